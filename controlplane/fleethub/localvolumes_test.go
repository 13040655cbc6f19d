package fleethub

import (
	"encoding/json"
	"log/slog"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/util/workqueue"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/controlplane/api/localvolumes"
)

// A released volume goes to its node although no pod leads there, until it is gone,
// and what the node says of it counts for its own volumes only.
func TestReleasedVolumesGoToTheirNode(t *testing.T) {
	pv := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv", UID: "pv-uid", ResourceVersion: "1"}, Spec: corev1.PersistentVolumeSpec{
		PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
		PersistentVolumeSource:        corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: "/x/pv"}}}}
	localvolumes.Mark(pv, "board-a")
	client := fake.NewClientset(pv)
	f := informers.NewSharedInformerFactory(client, 0)
	h := &Hub{
		c: Config{Now: time.Now, Client: client}, log: slog.New(slog.DiscardHandler), encoder: newEncoder([]byte("key")),
		nodes: map[string]*node{}, bound: map[string]map[types.NamespacedName]*corev1.Pod{}, users: map[ref]map[string]bool{},
		released: map[string]map[ref]bool{}, work: workqueue.NewTypedDelayingQueue[string](), storage: newStorageLists(f),
	}
	defer h.work.ShutDown()
	informer := f.Core().V1().PersistentVolumes().Informer()
	show := func(pv *corev1.PersistentVolume) {
		t.Helper()
		if err := informer.GetStore().Add(pv); err != nil {
			t.Fatal(err)
		}
		if _, err := client.CoreV1().PersistentVolumes().Update(t.Context(), pv.DeepCopy(), metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	show(pv)
	a, b := h.get("board-a"), h.get("board-b")
	handler := refHandler{h, kindVolume}
	handler.OnAdd(pv, true)
	if len(h.compute(a)) != 0 || a.stale {
		t.Error("a volume of no pod's that is claimed goes to its node")
	}

	released := pv.DeepCopy()
	released.Status.Phase, released.ResourceVersion = corev1.VolumeReleased, "2"
	show(released)
	handler.OnUpdate(pv, released)
	ordered := h.compute(a)
	if _, there := ordered["pv-uid"]; !there || len(ordered) != 1 || !a.stale {
		t.Errorf("%v, told %v", ordered, a.stale)
	}
	if len(h.compute(b)) != 0 || b.stale {
		t.Error("another node gets it")
	}
	hash := func(pv *corev1.PersistentVolume) fleet.Hash {
		o, err := h.encoder.describe(ref{kindVolume, "", "pv"}, pv, pv, object{})
		if err != nil {
			t.Fatal(err)
		}
		return o.hash
	}
	if hash(pv) == hash(released) {
		t.Error("that it is released isn't sent")
	}

	says := func(n *node, gone ...localvolumes.Gone) {
		t.Helper()
		raw, err := json.Marshal(gone)
		if err != nil {
			t.Fatal(err)
		}
		said := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.name, Annotations: map[string]string{localvolumes.AnnotationGone: string(raw)}}}
		report, err := said.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		n.bare.Store(true)
		if err := h.writeStorage(t.Context(), n, &fleet.NodeReport{Node: report}); err != nil {
			t.Fatal(err)
		}
		if _, err := takeStorage(said); err != nil || len(said.Annotations) > 0 {
			t.Errorf("stored in the Node: %v, %v", said.Annotations, err)
		}
	}
	noted := func() bool {
		have, err := client.CoreV1().PersistentVolumes().Get(t.Context(), "pv", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return have.Annotations[localvolumes.AnnotationRemoved] != ""
	}
	says(b, localvolumes.Gone{Name: "pv", UID: "pv-uid"})
	says(a, localvolumes.Gone{Name: "pv", UID: "one before"}, localvolumes.Gone{Name: "unknown", UID: "x"})
	show(pv)
	says(a, localvolumes.Gone{Name: "pv", UID: "pv-uid"})
	if noted() {
		t.Error("noted of another node's volume, of one of another UID or of one that is claimed")
	}
	show(released)
	says(a, localvolumes.Gone{Name: "pv", UID: "pv-uid"})
	if !noted() {
		t.Error("not noted")
	}

	// Once noted it is no order any more.
	removed, err := client.CoreV1().PersistentVolumes().Get(t.Context(), "pv", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	a.stale = false
	handler.OnUpdate(released, removed)
	if !a.stale || len(h.released) != 0 {
		t.Errorf("told %v, %v", a.stale, h.released)
	}
	handler.OnUpdate(removed, released)

	if err := informer.GetStore().Delete(released); err != nil {
		t.Fatal(err)
	}
	a.stale = false
	handler.OnDelete(released)
	if len(h.compute(a)) != 0 || !a.stale || len(h.released) != 0 {
		t.Errorf("a volume that is gone: told %v, %v", a.stale, h.released)
	}
}
