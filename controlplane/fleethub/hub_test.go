package fleethub

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

func TestEpochRisesAndIncarnationStays(t *testing.T) {
	client := fake.NewClientset()
	var first reign
	for i := uint64(1); i <= 3; i++ {
		r, err := raiseEpoch(t.Context(), client, nil)
		if err != nil {
			t.Fatal(err)
		}
		if i == 1 {
			first = r
		}
		if r.Number != i || r.Incarnation != first.Incarnation || !bytes.Equal(r.hashKey, first.hashKey) || i > 1 && r.Hub == first.Hub {
			t.Errorf("reign %d: %+v", i, r.Epoch)
		}
	}
	if len(first.Incarnation) != 16 {
		t.Errorf("incarnation %x", first.Incarnation)
	}
}

func TestDamagedRecordStopsTheHub(t *testing.T) {
	for key, value := range map[string]string{keyEpoch: "many", keyIncarnation: "zz", keyHashKey: "x"} {
		client := fake.NewClientset()
		if _, err := raiseEpoch(t.Context(), client, nil); err != nil {
			t.Fatal(err)
		}
		s, _ := client.CoreV1().Secrets(Namespace).Get(t.Context(), RecordName, metav1.GetOptions{})
		s.Data[key] = []byte(value)
		_, _ = client.CoreV1().Secrets(Namespace).Update(t.Context(), s, metav1.UpdateOptions{})
		if _, err := raiseEpoch(t.Context(), client, nil); !errors.Is(err, ErrRecord) || !strings.Contains(err.Error(), key) || !strings.Contains(err.Error(), RecordName) {
			t.Errorf("%s: %v", key, err)
		}
	}
}

// A pod that refers to everything in every way.
func richPod() *corev1.Pod {
	local := func(n string) corev1.LocalObjectReference { return corev1.LocalObjectReference{Name: n} }
	class := "wasm"
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "ns", UID: "u", ResourceVersion: "5", Annotations: map[string]string{"mine": "1"}},
		Spec: corev1.PodSpec{
			RuntimeClassName: &class,
			ImagePullSecrets: []corev1.LocalObjectReference{local("pull")},
			InitContainers:   []corev1.Container{{EnvFrom: []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: local("init-env")}}}}},
			Containers: []corev1.Container{{
				EnvFrom: []corev1.EnvFromSource{{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: local("env-secret")}}},
				Env: []corev1.EnvVar{
					{Name: "a", ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: local("key-map")}}},
					{Name: "b", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: local("key-secret")}}},
					{Name: "c", Value: "plain"},
				},
			}},
			EphemeralContainers: []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{
				EnvFrom: []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: local("debug-env")}}}}}},
			Volumes: []corev1.Volume{
				{VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: local("vol-map")}}},
				{VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "vol-secret"}}},
				{VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
					{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: local("kube-root-ca.crt")}},
					{Secret: &corev1.SecretProjection{LocalObjectReference: local("proj-secret")}},
					{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{}},
				}}}},
				{VolumeSource: corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{Driver: "inline.example.com", NodePublishSecretRef: &corev1.LocalObjectReference{Name: "csi-secret"}}}},
				{VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
				{VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "claim"}}},
				{Name: "scratch", VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}}},
			},
		},
	}
}

func TestReferencesAreComplete(t *testing.T) {
	var got []string
	for r := range references(richPod()) {
		got = append(got, r.kind+" "+r.namespace+"/"+r.name)
	}
	slices.Sort(got)
	want := []string{
		"CSIDriver /inline.example.com",
		"ConfigMap ns/debug-env", "ConfigMap ns/init-env", "ConfigMap ns/key-map", "ConfigMap ns/kube-root-ca.crt", "ConfigMap ns/vol-map",
		"PersistentVolumeClaim ns/claim", "PersistentVolumeClaim ns/p-scratch", "RuntimeClass /wasm",
		"Secret ns/csi-secret", "Secret ns/env-secret", "Secret ns/key-secret", "Secret ns/proj-secret", "Secret ns/pull", "Secret ns/vol-secret",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

func TestOnlyWhatConcernsTheNodeChangesTheHash(t *testing.T) {
	e := newEncoder([]byte("key"))
	hash := func(pod *corev1.Pod) fleet.Hash {
		o, err := e.describe(ref{"Pod", pod.Namespace, pod.Name}, pod, pod, object{})
		if err != nil {
			t.Fatal(err)
		}
		return o.hash
	}
	base := hash(richPod())
	for what, c := range map[string]struct {
		change func(*corev1.Pod)
		same   bool
	}{
		"status":           {func(p *corev1.Pod) { p.Status.Phase = corev1.PodRunning; p.Status.PodIP = "1.2.3.4" }, true},
		"resource version": {func(p *corev1.Pod) { p.ResourceVersion = "6" }, true},
		"our annotation":   {func(p *corev1.Pod) { p.Annotations[AnnotationReport] = "01/1/1" }, true},
		"managed fields":   {func(p *corev1.Pod) { p.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "x"}} }, true},
		"a gate's verdict": {func(p *corev1.Pod) {
			p.Status.Conditions = []corev1.PodCondition{{Type: "gate", Status: "True"}}
		}, true},
		"deletion":   {func(p *corev1.Pod) { now := metav1.NewTime(time.Unix(1e9, 0)); p.DeletionTimestamp = &now }, false},
		"a label":    {func(p *corev1.Pod) { p.Labels = map[string]string{"a": "b"} }, false},
		"annotation": {func(p *corev1.Pod) { p.Annotations["mine"] = "2" }, false},
		"image":      {func(p *corev1.Pod) { p.Spec.Containers[0].Image = "other" }, false},
	} {
		pod := richPod()
		c.change(pod)
		if got := hash(pod) == base; got != c.same {
			t.Errorf("%s: same hash %v, want %v", what, got, c.same)
		}
	}
	gated := richPod()
	gated.Spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: "gate"}}
	before := hash(gated)
	gated.Status.Conditions = []corev1.PodCondition{{Type: "gate", Status: corev1.ConditionTrue}}
	if hash(gated) == before {
		t.Error("the node doesn't hear of its readiness gate")
	}
}

func TestObjectsAreK8sProtobuf(t *testing.T) {
	e := newEncoder(nil)
	for _, x := range []struct {
		kind string
		obj  runtime.Object
		meta metav1.Object
	}{
		{"Pod", richPod(), richPod()},
		{"ConfigMap", &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "c"}, Data: map[string]string{"a": "b"}}, &metav1.ObjectMeta{}},
		{"Secret", &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "s"}}, &metav1.ObjectMeta{}},
		{"RuntimeClass", &nodev1.RuntimeClass{ObjectMeta: metav1.ObjectMeta{Name: "r"}, Handler: "wasm"}, &metav1.ObjectMeta{}},
	} {
		before := x.obj.DeepCopyObject()
		raw, err := e.raw(object{ref: ref{x.kind, "", "n"}, from: x.obj})
		if err != nil || !bytes.HasPrefix(raw, []byte("k8s\x00")) {
			t.Fatalf("%s: %x, %v", x.kind, raw, err)
		}
		var u runtime.Unknown
		if err := u.Unmarshal(raw[4:]); err != nil || u.Kind != x.kind {
			t.Errorf("%s: %v, %v", x.kind, u.TypeMeta, err)
		}
		if fmt.Sprint(before) != fmt.Sprint(x.obj) {
			t.Errorf("%s: the informer's object was changed", x.kind)
		}
	}
}

func TestMergeStatusKeepsWhatIsOthers(t *testing.T) {
	now := time.Unix(2e9, 0)
	created := now.Add(-time.Hour)
	then := metav1.NewTime(now.Add(-30 * time.Minute))
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{CreationTimestamp: metav1.NewTime(created)}, Status: corev1.PodStatus{
		QOSClass: corev1.PodQOSBurstable, StartTime: &then, NominatedNodeName: "n",
		Conditions: []corev1.PodCondition{
			{Type: corev1.PodScheduled, Status: corev1.ConditionTrue, LastTransitionTime: then},
			{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: then},
			{Type: corev1.PodResizePending, Status: corev1.ConditionTrue},
			{Type: "gate", Status: corev1.ConditionTrue},
		}}}
	said := &corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{
		{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(time.Unix(100, 0))},
		{Type: corev1.ContainersReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(time.Unix(100, 0))}, // 1970
	}}
	out := mergeStatus(pod, said, now)
	if c := condition(out.Conditions, corev1.PodReady); !c.LastTransitionTime.Equal(&then) {
		t.Errorf("ready since %v", c.LastTransitionTime)
	}
	if c := condition(out.Conditions, corev1.ContainersReady); !c.LastTransitionTime.Time.Equal(now) {
		t.Errorf("a board's clock of 1970 is believed: %v", c.LastTransitionTime)
	}
	if condition(out.Conditions, corev1.PodScheduled) == nil || condition(out.Conditions, "gate") == nil || condition(out.Conditions, corev1.PodResizePending) != nil {
		t.Errorf("conditions %v", out.Conditions)
	}
	if out.QOSClass != corev1.PodQOSBurstable || !out.StartTime.Equal(&then) || out.NominatedNodeName != "n" {
		t.Errorf("%+v", out)
	}
	said.Phase = corev1.PodSucceeded
	out = mergeStatus(pod, said, now)
	if c := condition(out.Conditions, corev1.PodReady); c.Status != corev1.ConditionFalse || c.Reason != "PodCompleted" {
		t.Errorf("a finished pod is ready: %+v", c)
	}
}

func TestMergeNodeKeepsTheAdministratorsWord(t *testing.T) {
	now := time.Unix(2e9, 0)
	then := metav1.NewTime(now.Add(-time.Hour))
	have := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{"admin": "1", "camera": "true", "arch": "arm"}, Annotations: map[string]string{AnnotationLabels: "arch,camera"}},
		Spec:       corev1.NodeSpec{Unschedulable: true, PodCIDR: "10.0.0.0/24"},
		Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{
			{Type: corev1.NodeReady, Status: corev1.ConditionUnknown, LastTransitionTime: then},
			{Type: corev1.NodeMemoryPressure, Status: corev1.ConditionFalse, LastTransitionTime: then},
			{Type: corev1.NodeNetworkUnavailable, Status: corev1.ConditionFalse},
		}, VolumesAttached: []corev1.AttachedVolume{{Name: "v"}},
			Capacity: corev1.ResourceList{"cpu": resource.MustParse("2"), "example.org/dongle": resource.MustParse("5"), "example.org/camera": resource.MustParse("2"), "hugepages-2Mi": resource.MustParse("2Mi")}},
	}
	said := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"arch": "arm64"}}, Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{
		{Type: corev1.NodeReady, Status: corev1.ConditionTrue}, {Type: corev1.NodeMemoryPressure, Status: corev1.ConditionFalse}},
		Capacity: corev1.ResourceList{"cpu": resource.MustParse("4"), "example.org/camera": resource.MustParse("0")}}}
	out := mergeNode(have, said, fleet.StampID{Store: "s", Boot: 1, Seq: 2}, now)
	if fmt.Sprint(out.Labels) != "map[admin:1 arch:arm64]" {
		t.Errorf("labels %v: the camera is gone, the administrator's stays", out.Labels)
	}
	if !out.Spec.Unschedulable || out.Spec.PodCIDR == "" || len(out.Status.VolumesAttached) != 1 || nodeCondition(out.Status.Conditions, corev1.NodeNetworkUnavailable) == nil {
		t.Errorf("%+v", out)
	}
	if got := out.Status.Capacity; len(got) != 3 || got.Cpu().Value() != 4 || got.Name("example.org/dongle", resource.DecimalSI).Value() != 5 ||
		!got.Name("example.org/camera", resource.DecimalSI).IsZero() || out.Status.Allocatable.Name("example.org/dongle", resource.DecimalSI).Value() != 5 {
		t.Errorf("capacity %v, allocatable %v: somebody patched dongles in, and the camera's plugin is gone", got, out.Status.Allocatable)
	}
	if c := nodeCondition(out.Status.Conditions, corev1.NodeReady); c.Status != corev1.ConditionTrue || !c.LastTransitionTime.Time.Equal(now) {
		t.Errorf("ready %+v", c)
	}
	if c := nodeCondition(out.Status.Conditions, corev1.NodeMemoryPressure); !c.LastTransitionTime.Equal(&then) {
		t.Errorf("memory %+v", c)
	}
}

// ---- the peer ----

func unmarshal(b []byte, m proto.Message) error { return proto.Unmarshal(b, m) }

var testEpoch = Epoch{Incarnation: "A", Number: 5, Hub: "h"}

func testPeer(unsure bool) *Peer {
	return NewPeer(0, testEpoch, Timing{Keepalive: time.Minute, WillGrace: time.Second, Jitter: 2 * time.Second}, unsure)
}

func sessionNo(n uint64) fleet.SessionID {
	return fleet.SessionID{Store: "store", Boot: 1, Conn: n, Hello: 1}
}

func hello(s fleet.SessionID, v fleet.OrderVersion, set fleet.Set) *fleet.Up {
	d := set.Digest()
	return &fleet.Up{Session: s.Proto(), Seq: 1, Hello: &fleet.Hello{Version: v.Proto(), Digest: d[:], Keepalive: 60}}
}

func said(p *Peer, seq uint64) *fleet.Up {
	return &fleet.Up{Session: p.session.Proto(), Seq: seq, Grant: p.grant.Proto()}
}

func has[T Output](out []Output) (T, bool) {
	for _, o := range out {
		if t, ok := o.(T); ok {
			return t, true
		}
	}
	var none T
	return none, false
}

func TestNobodyIsAwayForOneAndAHalfKeepalives(t *testing.T) {
	p := testPeer(true)
	rebirths := 0
	for now := time.Duration(0); now < 90*time.Second; now += time.Second {
		out := p.Tick(now)
		if _, went := has[Went](out); went {
			t.Fatalf("called away after %v", now)
		}
		if _, ok := has[SendRebirth](out); ok {
			rebirths++
		}
	}
	if rebirths < 2 {
		t.Errorf("asked %d times", rebirths)
	}
	if _, went := has[Went](p.Tick(93 * time.Second)); !went {
		t.Error("never called away")
	}
}

func TestAHelloIsNotYetPresence(t *testing.T) {
	p := testPeer(false)
	p.SetDesired(0, Desired{}, 1)
	out, accept := p.Up(0, hello(sessionNo(1), fleet.OrderVersion{}, nil))
	if _, ok := has[SendWelcome](out); !ok || !accept {
		t.Fatal("no Welcome")
	}
	if _, came := has[Came](out); came || p.Presence() == Present {
		t.Error("a Hello that may be a recording counts as presence")
	}
	out, accept = p.Up(0, said(p, 2))
	if _, came := has[Came](out); !came || !accept || p.Presence() != Present {
		t.Error("a confirmed one doesn't")
	}
	// The recording again, and an older one.
	for _, s := range []fleet.SessionID{sessionNo(1), sessionNo(0)} {
		if out, accept := p.Up(0, hello(s, fleet.OrderVersion{}, nil)); accept || len(out) > 0 {
			t.Errorf("an old Hello is answered: %v", out)
		}
	}
	if !p.Confirmed() {
		t.Error("an old Hello ended the session")
	}
}

func TestUnconfirmedHelloOfAnotherStoreDoesNotHoldPresence(t *testing.T) {
	p := testPeer(false)
	p.SetDesired(0, Desired{}, 1)
	p.Up(0, hello(sessionNo(1), fleet.OrderVersion{}, nil))
	p.Up(0, said(p, 2))
	other := sessionNo(9)
	other.Store = "recorded"
	p.Up(0, hello(other, fleet.OrderVersion{}, nil))
	asked := false
	for now := time.Duration(0); now < 3*time.Minute; now += time.Second {
		out := p.Tick(now)
		if _, ok := has[SendRebirth](out); ok {
			asked = true
		}
		if _, went := has[Went](out); went {
			if !asked {
				t.Error("called away without being asked")
			}
			return
		}
	}
	t.Error("present for ever by a recording")
}

func TestLateWillOfAnOldConnectionIsIgnored(t *testing.T) {
	p := testPeer(false)
	p.SetDesired(0, Desired{}, 1)
	for n := uint64(1); n <= 2; n++ {
		p.Up(0, hello(sessionNo(n), fleet.OrderVersion{}, nil))
		p.Up(0, said(p, 2))
	}
	p.Will(0, sessionNo(1))
	if _, went := has[Went](p.Tick(time.Hour)); went || !p.Confirmed() {
		t.Error("a late will was believed")
	}
	p.Will(0, sessionNo(2))
	if _, went := has[Went](p.Tick(500 * time.Millisecond)); went {
		t.Error("no grace")
	}
	if _, went := has[Went](p.Tick(time.Second)); !went {
		t.Error("a will was ignored")
	}
}

func TestSilenceHasNoGrace(t *testing.T) {
	p := testPeer(false)
	p.SetDesired(0, Desired{}, 1)
	for n := uint64(1); n <= 2; n++ {
		p.Up(0, hello(sessionNo(n), fleet.OrderVersion{}, nil))
		p.Up(0, said(p, 2))
	}
	p.Silent(time.Minute, sessionNo(1))
	if _, went := has[Went](p.Tick(time.Minute)); went || !p.Confirmed() {
		t.Error("a connection that was replaced fell silent, and the node was called away")
	}
	p.Silent(time.Minute, sessionNo(2))
	if _, went := has[Went](p.Tick(time.Minute)); !went {
		t.Error("silence was given a grace")
	}
}

func TestReconnectWithinTheGraceIsNoAbsence(t *testing.T) {
	p := testPeer(false)
	p.SetDesired(0, Desired{}, 1)
	p.Up(0, hello(sessionNo(1), fleet.OrderVersion{}, nil))
	p.Up(0, said(p, 2))
	p.Will(0, sessionNo(1))
	out, _ := p.Up(500*time.Millisecond, hello(sessionNo(2), fleet.OrderVersion{}, nil))
	out = append(out, p.Tick(2*time.Second)...)
	if _, went := has[Went](out); went {
		t.Error("called away while it comes back")
	}
	out, _ = p.Up(3*time.Second, said(p, 2))
	if _, came := has[Came](out); came {
		t.Error("it never went")
	}
}

func TestNothingIsOrderedBeforeDesiredIsKnown(t *testing.T) {
	p := testPeer(false)
	out, _ := p.Up(0, hello(sessionNo(1), fleet.OrderVersion{}, fleet.Set{"a": {1}}))
	if _, ok := has[SendOrder](out); ok {
		t.Error("ordered from nothing")
	}
	if w, _ := has[SendWelcome](out); w.InSync {
		t.Error("in sync with nothing")
	}
}

func TestUnknownSetGetsAListAndThenWhatItLacks(t *testing.T) {
	p := testPeer(false)
	want := Desired{"a": {Hash: fleet.Hash{1}, Size: 10}, "b": {Hash: fleet.Hash{2}, Size: 10, Later: true}}
	p.SetDesired(0, want, 1)
	node := fleet.Set{"a": {1}, "x": {9}}
	out, _ := p.Up(0, hello(sessionNo(1), fleet.OrderVersion{}, node))
	o, ok := has[SendOrder](out)
	if !ok || o.List == nil {
		t.Fatalf("%v", out)
	}
	left := fleet.Set{"a": {1}}
	d := left.Digest()
	u := said(p, 2)
	u.Ack = &fleet.Ack{Version: o.Version.Proto(), Status: fleet.AckStatus_APPLIED, Current: o.Version.Proto(), Digest: d[:], Want: []*fleet.Want{{Uid: "b"}}}
	out, _ = p.Up(0, u)
	o, ok = has[SendOrder](out)
	if !ok || o.List != nil || !slices.Equal(o.Upserts, []string{"b"}) || o.Base != d {
		t.Fatalf("%+v", out)
	}
}

func TestForeignAndDeposed(t *testing.T) {
	for what, v := range map[string]fleet.OrderVersion{
		"another incarnation": {Incarnation: "B", Epoch: 1, Counter: 1},
		"another hub":         {Incarnation: "A", Epoch: 5, Counter: 1, Hub: "x"},
		"a later revision":    {Incarnation: "A", Epoch: 4, Counter: 1, Hub: "y", Revision: 1000},
		"a later epoch":       {Incarnation: "A", Epoch: 6, Counter: 1, Hub: "z"},
	} {
		p := testPeer(false)
		p.SetDesired(0, Desired{}, 500)
		out, accept := p.Up(0, hello(sessionNo(1), v, fleet.Set{"a": {1}}))
		if _, ordered := has[SendOrder](out); ordered || !p.IsForeign() || !accept {
			t.Errorf("%s: %v", what, out)
		}
		if _, welcome := has[SendWelcome](out); !welcome {
			t.Errorf("%s: its reports are not taken", what)
		}
	}
	p := testPeer(false)
	p.SetDesired(0, Desired{}, 500)
	out, _ := p.Up(0, hello(sessionNo(1), fleet.OrderVersion{Incarnation: "A", Epoch: 4, Counter: 9, Hub: "y", Revision: 400}, fleet.Set{"a": {1}}))
	if _, ordered := has[SendOrder](out); !ordered {
		t.Errorf("a node of the hub before: %v", out)
	}
}

func TestOrdersFitAndRefersComeFirst(t *testing.T) {
	want := Desired{}
	for i := range 30 {
		want[fmt.Sprintf("pod-%02d", i)] = Item{Hash: fleet.Hash{1, byte(i)}, Size: 5 << 10, Later: true}
		want[fmt.Sprintf("map-%02d", i)] = Item{Hash: fleet.Hash{2, byte(i)}, Size: 2 << 10}
	}
	want["big"] = Item{Hash: fleet.Hash{3}, Size: 1 << 20}
	p := testPeer(false)
	p.SetDesired(0, want, 1)
	node := fleet.Set{"old": {9}}
	out, _ := p.Up(0, hello(sessionNo(1), fleet.OrderVersion{}, node))
	o, _ := has[SendOrder](out) // the list
	node = fleet.Set{}
	ack := func(seq uint64, o SendOrder, wants []*fleet.Want) []Output {
		d := node.Digest()
		u := said(p, seq)
		u.Ack = &fleet.Ack{Version: o.Version.Proto(), Status: fleet.AckStatus_APPLIED, Current: o.Version.Proto(), Digest: d[:], Want: wants}
		out, _ := p.Up(0, u)
		return out
	}
	var wants []*fleet.Want
	for uid := range want {
		wants = append(wants, &fleet.Want{Uid: uid})
	}
	out = ack(2, o, wants)
	podSeen := false
	var last []string
	for seq := uint64(3); ; seq++ {
		o, ok := has[SendOrder](out)
		if !ok {
			break
		}
		size := 0
		for _, uid := range o.Upserts {
			if uid != "big" {
				size += want[uid].Size
			}
			if strings.HasPrefix(uid, "map") && podSeen {
				t.Errorf("%s comes after pods", uid)
			}
			podSeen = podSeen || strings.HasPrefix(uid, "pod")
			node[uid] = want[uid].Hash
		}
		if size > fleet.MaxOrderObjects {
			t.Errorf("order of %d bytes", size)
		}
		if o.Digest != node.Digest() {
			t.Fatal("digest of the result is wrong")
		}
		last = o.Upserts
		out = ack(seq, o, nil)
	}
	if len(node) != len(want) || !slices.Equal(last, []string{"big"}) {
		t.Errorf("%d of %d, last %v", len(node), len(want), last)
	}
}

func TestOneObjectThatCannotBeHadHoldsNothingUp(t *testing.T) {
	p := testPeer(false)
	want := Desired{"big": {Hash: fleet.Hash{3}, Size: 1 << 20}}
	p.SetDesired(0, want, 1)
	out, _ := p.Up(0, hello(sessionNo(1), fleet.OrderVersion{}, nil))
	o, ok := has[SendOrder](out)
	if !ok {
		t.Fatal("not ordered")
	}
	d := fleet.Set{}.Digest()
	u := said(p, 2)
	u.Ack = &fleet.Ack{Version: o.Version.Proto(), Status: fleet.AckStatus_FAILED, Current: &fleet.Version{}, Digest: d[:], Failed: []string{"big"}, Message: "no route"}
	out, _ = p.Up(0, u)
	if _, ok := has[SendOrder](out); ok {
		t.Error("tried again at once")
	}
	out = p.SetDesired(time.Second, Desired{"big": want["big"], "pod": {Hash: fleet.Hash{1}, Size: 10, Later: true}}, 2)
	if o, ok := has[SendOrder](out); !ok || !slices.Equal(o.Upserts, []string{"pod"}) {
		t.Errorf("%v", out)
	}
	if at, ok := p.Deadline(); !ok || at > time.Hour {
		t.Errorf("never tried again: %v %v", at, ok)
	}
}

func FuzzPeer(f *testing.F) {
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		var u fleet.Up
		if err := unmarshal(data, &u); err != nil {
			return
		}
		p := testPeer(true)
		p.SetDesired(0, Desired{"a": {Hash: fleet.Hash{1}, Size: 10}}, 1)
		p.Up(0, &u)
		p.Up(0, hello(sessionNo(1), fleet.OrderVersion{}, nil))
		u.Session, u.Seq, u.Grant, u.Hello = p.session.Proto(), 2, p.grant.Proto(), nil
		if u.Ack != nil && p.sent != nil {
			u.Ack.Version = p.sent.version().Proto()
		}
		p.Up(0, &u)
		p.Tick(time.Hour)
	})
}

func TestEventsAreBounded(t *testing.T) {
	n := newNode("a")
	var wg sync.WaitGroup
	h := &Hub{c: Config{Now: time.Now, Events: 3, EventInterval: time.Hour}}
	taken := 0
	var mu sync.Mutex
	for range 10 {
		wg.Go(func() {
			if h.mayStoreEvent(n) {
				mu.Lock()
				taken++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if taken != 3 {
		t.Errorf("%d events of 3", taken)
	}
}
