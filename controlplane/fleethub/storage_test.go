package fleethub

import (
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	storagev1client "k8s.io/client-go/kubernetes/typed/storage/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

// What a claim leads to goes to the node with the pod, and nobody else's secrets.
func TestClaimsLeadToWhatTheNodeNeeds(t *testing.T) {
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "claim", UID: "c"}, Spec: corev1.PersistentVolumeClaimSpec{VolumeName: "pv"}}
	pv := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv", UID: "v"}, Spec: corev1.PersistentVolumeSpec{
		ClaimRef: &corev1.ObjectReference{Namespace: "ns", Name: "claim", UID: "c"},
		PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: "d", VolumeHandle: "h",
			NodeStageSecretRef: &corev1.SecretReference{Namespace: "a", Name: "stage"}, NodePublishSecretRef: &corev1.SecretReference{Namespace: "b", Name: "publish"}}}}}
	attachment := attachmentName("h", "d", "board")
	for name, c := range map[string]struct {
		change func()
		want   []string
	}{
		"bound":                        {func() {}, []string{"CSIDriver /d", "PersistentVolume /pv", "PersistentVolumeClaim ns/claim", "Secret a/stage", "Secret b/publish", "VolumeAttachment /" + attachment}},
		"of another claim of the name": {func() { pv.Spec.ClaimRef.UID = "before" }, []string{"PersistentVolume /pv", "PersistentVolumeClaim ns/claim"}},
		"not bound yet":                {func() { claim.Spec.VolumeName = "" }, []string{"PersistentVolumeClaim ns/claim"}},
	} {
		t.Run(name, func(t *testing.T) {
			claim, pv = claim.DeepCopy(), pv.DeepCopy()
			claim.Spec.VolumeName, pv.Spec.ClaimRef.UID = "pv", "c"
			c.change()
			f := informers.NewSharedInformerFactory(fake.NewClientset(claim, pv), 0)
			l := newStorageLists(f)
			for _, i := range l.informers(f) {
				go i.Run(t.Context().Done())
				if !cache.WaitForCacheSync(t.Context().Done(), i.HasSynced) {
					t.Fatal("never synced")
				}
			}
			refs := map[ref]bool{{kindClaim, "ns", "claim"}: true}
			for n := -1; n != len(refs); {
				n = len(refs)
				l.follow("board", refs)
			}
			var got []string
			for r := range refs {
				got = append(got, r.kind+" "+r.namespace+"/"+r.name)
			}
			slices.Sort(got)
			if !slices.Equal(got, c.want) {
				t.Errorf("got  %v\nwant %v", got, c.want)
			}
		})
	}
}

func TestWhatChangesOfVolumesWithoutConcerningNodes(t *testing.T) {
	e := newEncoder(nil)
	hash := func(kind string, o described) fleet.Hash {
		got, err := e.describe(ref{kind, o.GetNamespace(), o.GetName()}, o, o, object{})
		if err != nil {
			t.Fatal(err)
		}
		return got.hash
	}
	claim := &corev1.PersistentVolumeClaim{Status: corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimBound}}
	before := hash(kindClaim, claim)
	claim.Status.Conditions = []corev1.PersistentVolumeClaimCondition{{Type: "Resizing"}}
	claim.ResourceVersion = "7"
	if hash(kindClaim, claim) != before {
		t.Error("a claim's conditions are sent again")
	}
	claim.Status.AllocatedResourceStatuses = map[corev1.ResourceName]corev1.ClaimResourceStatus{corev1.ResourceStorage: corev1.PersistentVolumeClaimNodeResizePending}
	if hash(kindClaim, claim) == before {
		t.Error("that a claim's volume waits for its node is not sent")
	}
	before = hash(kindClaim, claim)
	claim.Status.Phase = corev1.ClaimLost
	if hash(kindClaim, claim) == before {
		t.Error("a claim's phase is not sent")
	}
	a := &storagev1.VolumeAttachment{}
	before = hash(kindAttachment, a)
	a.Status.DetachError = &storagev1.VolumeError{Message: "x"}
	if hash(kindAttachment, a) != before {
		t.Error("a failed detachment is sent again")
	}
	a.Status.Attached = true
	if hash(kindAttachment, a) == before {
		t.Error("an attachment is not sent")
	}
}

// The drivers that a node says it has become its CSINode and upstream's
// annotation; what they say anew takes the place of what they said.
func TestDriversOfANodeBecomeItsCSINode(t *testing.T) {
	client := fake.NewClientset(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "board", UID: "node-uid"}})
	h := &Hub{c: Config{Client: client, NodeStorage: func(string) (storagev1client.StorageV1Interface, error) { return client.StorageV1(), nil }}}
	n := newNode("board")
	report := func(annotation string) *corev1.Node {
		t.Helper()
		said := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "board", Annotations: map[string]string{}}}
		if annotation != "" {
			said.Annotations[fleet.AnnotationCSIDrivers] = annotation
		}
		raw, err := said.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if err := h.writeStorage(t.Context(), n, &fleet.NodeReport{Node: raw}); err != nil {
			t.Fatal(err)
		}
		if _, err := takeStorage(said); err != nil {
			t.Fatal(err)
		}
		return said
	}
	report("")
	if list, err := client.StorageV1().CSINodes().List(t.Context(), metav1.ListOptions{}); err != nil || len(list.Items) > 0 {
		t.Errorf("a node without a driver: %v, %v", list.Items, err)
	}
	said := report(`[{"name":"d","nodeID":"me","limit":5,"topologyKeys":["rack"]}]`)
	if said.Annotations[annotationNodeID] != `{"d":"me"}` || len(said.Annotations) != 1 {
		t.Errorf("%v", said.Annotations)
	}
	for _, c := range []struct {
		annotation string
		ids        []string
	}{
		{`[{"name":"d","nodeID":"me","limit":5,"topologyKeys":["rack"]}]`, []string{"d me"}},
		{`[{"name":"d","nodeID":"else"},{"name":"e","nodeID":"me"}]`, []string{"d else", "e me"}},
		{``, nil},
	} {
		report(c.annotation)
		got, err := client.StorageV1().CSINodes().Get(t.Context(), "board", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		var ids []string
		for _, d := range got.Spec.Drivers {
			ids = append(ids, d.Name+" "+d.NodeID)
		}
		if !slices.Equal(ids, c.ids) || got.OwnerReferences[0].UID != "node-uid" {
			t.Errorf("after %q: %v, owner %v", c.annotation, ids, got.OwnerReferences)
		}
	}
	if _, err := takeStorage(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{fleet.AnnotationExpanded: "{"}}}); err == nil {
		t.Error("nonsense was taken")
	}
}

// What a node says of a volume that it has grown, or could not, becomes the claim's
// status once, and nothing of it if a controller has decided anew.
func TestWhatBecomesOfAVolumeIsInItsClaim(t *testing.T) {
	const size = 2 << 30
	now := time.Unix(1e9, 0)
	claim := func(state corev1.ClaimResourceStatus) *corev1.PersistentVolumeClaim {
		c := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{UID: "c"}}
		c.Status.Capacity = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}
		c.Status.AllocatedResources = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("2Gi")}
		c.Status.AllocatedResourceStatuses = map[corev1.ResourceName]corev1.ClaimResourceStatus{corev1.ResourceStorage: state}
		c.Status.Conditions = []corev1.PersistentVolumeClaimCondition{{Type: corev1.PersistentVolumeClaimFileSystemResizePending, Status: "True"}, {Type: "Another", Status: "True"}}
		return c
	}
	for name, c := range map[string]struct {
		of         corev1.ClaimResourceStatus
		says       fleet.ExpandedClaim
		state      corev1.ClaimResourceStatus
		conditions []string
		nothing    bool
	}{
		"grown":           {of: corev1.PersistentVolumeClaimNodeResizePending, says: fleet.ExpandedClaim{UID: "c", Bytes: size}, conditions: []string{"Another"}},
		"another's":       {of: corev1.PersistentVolumeClaimNodeResizePending, says: fleet.ExpandedClaim{UID: "d", Bytes: size}, nothing: true},
		"failed":          {of: corev1.PersistentVolumeClaimNodeResizePending, says: fleet.ExpandedClaim{UID: "c", Bytes: size, Error: "x"}, state: corev1.PersistentVolumeClaimNodeResizePending, conditions: []string{"FileSystemResizePending", "Another", "NodeResizeError"}},
		"never":           {of: corev1.PersistentVolumeClaimNodeResizeInProgress, says: fleet.ExpandedClaim{UID: "c", Bytes: size, Error: "x", Infeasible: true}, state: corev1.PersistentVolumeClaimNodeResizeInfeasible, conditions: []string{"FileSystemResizePending", "Another", "NodeResizeError"}},
		"of another size": {of: corev1.PersistentVolumeClaimNodeResizePending, says: fleet.ExpandedClaim{UID: "c", Bytes: size + 1, Error: "x"}, nothing: true},
		"decided anew":    {of: corev1.PersistentVolumeClaimControllerResizeInProgress, says: fleet.ExpandedClaim{UID: "c", Bytes: size, Error: "x", Infeasible: true}, nothing: true},
	} {
		t.Run(name, func(t *testing.T) {
			of := claim(c.of)
			got := expandedStatus(of, c.says, now)
			if c.nothing || got == nil {
				if (got == nil) != c.nothing {
					t.Errorf("%+v", got)
				}
				return
			}
			var types []string
			for _, one := range got.Conditions {
				types = append(types, string(one.Type))
				if one.Type == corev1.PersistentVolumeClaimNodeResizeError && (one.Message != "failed to expand pvc with x" || !one.LastTransitionTime.Time.Equal(now)) {
					t.Errorf("%+v", one)
				}
			}
			if got.AllocatedResourceStatuses[corev1.ResourceStorage] != c.state || !slices.Equal(types, c.conditions) {
				t.Errorf("%+v", got)
			}
			if capacity := got.Capacity[corev1.ResourceStorage]; (capacity.Value() == size) != (c.says.Error == "") {
				t.Errorf("capacity %v", capacity.String())
			}
			of.Status = *got
			if again := expandedStatus(of, c.says, now); again != nil {
				t.Errorf("written again: %+v", again)
			}
		})
	}
}
