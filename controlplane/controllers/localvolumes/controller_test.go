package localvolumes

import (
	"context"
	"slices"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/component-helpers/storage/volume"
	"k8s.io/utils/ptr"

	"github.com/coracle-edge/coracle/controlplane/api/localvolumes"
	"github.com/coracle-edge/coracle/controlplane/controllers/fixture"
)

func board(name, dir string) *v1.Node {
	n := fixture.Node(name, v1.ConditionTrue)
	n.Annotations = map[string]string{localvolumes.AnnotationDir: dir}
	return n
}

func class() *storagev1.StorageClass {
	return &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "local-path"}, Provisioner: localvolumes.Provisioner,
		VolumeBindingMode: ptr.To(storagev1.VolumeBindingWaitForFirstConsumer)}
}

func claim() *v1.PersistentVolumeClaim {
	return &v1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "data", UID: "u", Annotations: map[string]string{
		volume.AnnStorageProvisioner: localvolumes.Provisioner, volume.AnnSelectedNode: "board"}},
		Spec: v1.PersistentVolumeClaimSpec{StorageClassName: ptr.To("local-path"), AccessModes: []v1.PersistentVolumeAccessMode{v1.ReadWriteOnce},
			Resources: v1.VolumeResourceRequirements{Requests: v1.ResourceList{v1.ResourceStorage: resource.MustParse("1Gi")}}}}
}

func run(t *testing.T, key string, objects ...runtime.Object) *fixture.World {
	t.Helper()
	w := fixture.New(t, objects...)
	c, err := New(w.Client, w.Factory, w.Options())
	if err != nil {
		t.Fatal(err)
	}
	w.Sync()
	if err := c.reconcile(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	return w
}

func TestAClaimGetsAFolderOfItsNode(t *testing.T) {
	w := run(t, "ns/data", board("board", "/mnt/ssd/v"), class(), claim())
	created := w.Created("persistentvolumes")
	if len(created) != 1 {
		t.Fatalf("%v", created)
	}
	pv := created[0].(*v1.PersistentVolume)
	if pv.Name != "pvc-u" || pv.Spec.Local.Path != "/mnt/ssd/v/pvc-u_ns_data" || !localvolumes.Ours(pv) || localvolumes.Node(pv) != "board" ||
		pv.Spec.ClaimRef.UID != "u" || pv.Spec.StorageClassName != "local-path" || !slices.Equal(pv.Finalizers, []string{finalizer}) ||
		pv.Spec.PersistentVolumeReclaimPolicy != v1.PersistentVolumeReclaimDelete || pv.Spec.Capacity.Storage().String() != "1Gi" {
		t.Errorf("%+v", pv)
	}
	if got := w.EventReasons(); !slices.Equal(got, []string{"ProvisioningSucceeded"}) {
		t.Errorf("events %v", got)
	}
	long := claim()
	long.Name = strings.Repeat("n", 250)
	pv = run(t, "ns/"+long.Name, board("board", "/v"), class(), long).Created("persistentvolumes")[0].(*v1.PersistentVolume)
	if pv.Spec.Local.Path != "/v/pvc-u" {
		t.Errorf("longer than a file's name may be: %s", pv.Spec.Local.Path)
	}
	keep := class()
	keep.ReclaimPolicy = ptr.To(v1.PersistentVolumeReclaimRetain)
	pv = run(t, "ns/data", board("board", "/v"), keep, claim()).Created("persistentvolumes")[0].(*v1.PersistentVolume)
	if len(pv.Finalizers) > 0 || pv.Spec.PersistentVolumeReclaimPolicy != v1.PersistentVolumeReclaimRetain {
		t.Errorf("%+v", pv)
	}
}

func TestClaimsThatGetNone(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*v1.PersistentVolumeClaim, *storagev1.StorageClass, *v1.Node)
		says   string // in an event; empty: none
		writes []string
	}{
		"no pod yet": {func(c *v1.PersistentVolumeClaim, _ *storagev1.StorageClass, _ *v1.Node) {
			delete(c.Annotations, volume.AnnSelectedNode)
		}, "", nil},
		"another's": {func(c *v1.PersistentVolumeClaim, _ *storagev1.StorageClass, _ *v1.Node) {
			c.Annotations[volume.AnnStorageProvisioner] = "x"
		}, "", nil},
		"bound":            {func(c *v1.PersistentVolumeClaim, _ *storagev1.StorageClass, _ *v1.Node) { c.Spec.VolumeName = "x" }, "", nil},
		"class of another": {func(_ *v1.PersistentVolumeClaim, s *storagev1.StorageClass, _ *v1.Node) { s.Provisioner = "x" }, "", nil},
		"immediate":        {func(_ *v1.PersistentVolumeClaim, s *storagev1.StorageClass, _ *v1.Node) { s.VolumeBindingMode = nil }, "volumeBindingMode has to be WaitForFirstConsumer", nil},
		"parameters": {func(_ *v1.PersistentVolumeClaim, s *storagev1.StorageClass, _ *v1.Node) {
			s.Parameters = map[string]string{"nodePath": "/x"}
		}, "--local-volumes-dir", nil},
		"many writers": {func(c *v1.PersistentVolumeClaim, _ *storagev1.StorageClass, _ *v1.Node) {
			c.Spec.AccessModes = []v1.PersistentVolumeAccessMode{v1.ReadWriteMany}
		}, "access mode ReadWriteMany: the volume is on one node only", nil},
		"block": {func(c *v1.PersistentVolumeClaim, _ *storagev1.StorageClass, _ *v1.Node) {
			c.Spec.VolumeMode = ptr.To(v1.PersistentVolumeBlock)
		}, "volumeMode Block", nil},
		"snapshot": {func(c *v1.PersistentVolumeClaim, _ *storagev1.StorageClass, _ *v1.Node) {
			c.Spec.DataSource = &v1.TypedLocalObjectReference{}
		}, "dataSource", nil},
		"selector": {func(c *v1.PersistentVolumeClaim, _ *storagev1.StorageClass, _ *v1.Node) {
			c.Spec.Selector = &metav1.LabelSelector{}
		}, "selector", nil},
		"a node that makes none": {func(_ *v1.PersistentVolumeClaim, _ *storagev1.StorageClass, n *v1.Node) { n.Annotations = nil }, "its edgelet is too old, or runs without root", []string{"update persistentvolumeclaims"}},
		"a node that went": {func(c *v1.PersistentVolumeClaim, _ *storagev1.StorageClass, _ *v1.Node) {
			c.Annotations[volume.AnnSelectedNode] = "other"
		}, "node other is gone", []string{"update persistentvolumeclaims"}},
	} {
		t.Run(name, func(t *testing.T) {
			cl, s, n := claim(), class(), board("board", "/v")
			c.change(cl, s, n)
			w := run(t, "ns/data", n, s, cl)
			if got := w.Writes(); !slices.Equal(got, c.writes) {
				t.Errorf("writes %v, want %v", got, c.writes)
			}
			if len(c.writes) > 0 {
				have, err := w.Client.CoreV1().PersistentVolumeClaims("ns").Get(t.Context(), "data", metav1.GetOptions{})
				if _, set := have.Annotations[volume.AnnSelectedNode]; err != nil || set {
					t.Errorf("the scheduler can't choose again: %v %v", have.Annotations, err)
				}
			}
			select {
			case e := <-w.Events.Events:
				if c.says == "" || !strings.Contains(e, c.says) || !strings.Contains(e, "Warning ProvisioningFailed") {
					t.Errorf("%s", e)
				}
			default:
				if c.says != "" {
					t.Error("no event")
				}
			}
		})
	}
}

func TestReleasedVolumesEndOnceTheirFolderIsGone(t *testing.T) {
	pv := func(change func(*v1.PersistentVolume)) *v1.PersistentVolume {
		pv := &v1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pvc-u", UID: types.UID("pv"), Finalizers: []string{"kubernetes.io/pv-protection", finalizer}},
			Spec: v1.PersistentVolumeSpec{PersistentVolumeReclaimPolicy: v1.PersistentVolumeReclaimDelete,
				PersistentVolumeSource: v1.PersistentVolumeSource{Local: &v1.LocalVolumeSource{Path: "/v/pvc-u"}}},
			Status: v1.PersistentVolumeStatus{Phase: v1.VolumeReleased}}
		localvolumes.Mark(pv, "board")
		if change != nil {
			change(pv)
		}
		return pv
	}
	removed := func(pv *v1.PersistentVolume) { pv.Annotations[localvolumes.AnnotationRemoved] = "true" }
	for name, c := range map[string]struct {
		pv     *v1.PersistentVolume
		node   string
		writes []string
	}{
		"its folder is there": {pv(nil), "board", nil},
		"its folder is gone":  {pv(removed), "board", []string{"update persistentvolumes", "delete persistentvolumes"}},
		"its node is gone":    {pv(nil), "other", []string{"update persistentvolumes", "delete persistentvolumes"}},
		"claimed":             {pv(func(pv *v1.PersistentVolume) { removed(pv); pv.Status.Phase = v1.VolumeBound }), "board", nil},
		"to be retained": {pv(func(pv *v1.PersistentVolume) {
			pv.Spec.PersistentVolumeReclaimPolicy = v1.PersistentVolumeReclaimRetain
		}), "board", []string{"update persistentvolumes"}},
		"no more to be retained": {pv(func(pv *v1.PersistentVolume) { pv.Finalizers, pv.Status.Phase = nil, v1.VolumeBound }), "board", []string{"update persistentvolumes"}},
		"of somebody else": {pv(func(pv *v1.PersistentVolume) {
			removed(pv)
			pv.Annotations = map[string]string{"pv.kubernetes.io/provisioned-by": "x"}
		}), "board", nil},
		"somebody else's finalizers": {pv(func(pv *v1.PersistentVolume) { removed(pv); pv.Finalizers = []string{"x"} }), "board", []string{"delete persistentvolumes"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := run(t, "pvc-u", board(c.node, "/v"), c.pv)
			if got := w.Writes(); !slices.Equal(got, c.writes) {
				t.Errorf("writes %v, want %v", got, c.writes)
			}
			have, err := w.Client.CoreV1().PersistentVolumes().Get(t.Context(), "pvc-u", metav1.GetOptions{})
			if deleted := slices.Contains(c.writes, "delete persistentvolumes"); apierrors.IsNotFound(err) != deleted || err != nil && !deleted {
				t.Errorf("%v", err)
			}
			if err == nil && slices.Contains(have.Finalizers, finalizer) == (have.Spec.PersistentVolumeReclaimPolicy == v1.PersistentVolumeReclaimRetain) {
				t.Errorf("finalizers %v", have.Finalizers)
			}
		})
	}
}

// A claim that was refused for its class is looked at again when there is another of
// the name, and its node's volumes end with the node.
func TestClaimsFollowTheirClass(t *testing.T) {
	wrong := class()
	wrong.Parameters = map[string]string{"nodePath": "/x"}
	w := fixture.New(t, board("board", "/v"), wrong, claim())
	c, err := New(w.Client, w.Factory, w.Options())
	if err != nil {
		t.Fatal(err)
	}
	w.Sync()
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	w.Eventually("it is refused", func() bool { return slices.Contains(w.EventReasons(), "ProvisioningFailed") })
	classes := w.Client.StorageV1().StorageClasses()
	if err := classes.Delete(ctx, wrong.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := classes.Create(ctx, class(), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	volumes := w.Client.CoreV1().PersistentVolumes()
	var pv *v1.PersistentVolume
	w.Eventually("its volume", func() bool { pv, err = volumes.Get(ctx, "pvc-u", metav1.GetOptions{}); return err == nil })
	pv.Status.Phase = v1.VolumeReleased
	if _, err := volumes.Update(ctx, pv, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := w.Client.CoreV1().Nodes().Delete(ctx, "board", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.Eventually("it goes with its node", func() bool {
		_, err := volumes.Get(ctx, "pvc-u", metav1.GetOptions{})
		return apierrors.IsNotFound(err)
	})
}
