package fleethub

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

// Whatever a node reports of itself and of its pods, what is written has the names,
// specs and metadata that are the cluster's.
func FuzzReports(f *testing.F) {
	for _, n := range []*corev1.Node{
		{ObjectMeta: metav1.ObjectMeta{Name: "other", Labels: map[string]string{"a": "b"}, Annotations: map[string]string{AnnotationLabels: "a,,b", fleet.AnnotationCSIDrivers: `[{"name":"d","nodeID":"n"}]`}}},
		{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{fleet.AnnotationExpanded: `[null]`, fleet.AnnotationCSIDrivers: `{}`}}},
	} {
		raw, err := n.Marshal()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw, "1.2.3")
	}
	rich := richPod()
	raw, err := rich.Status.Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw, "")
	if raw, err = rich.Marshal(); err != nil {
		f.Fatal(err)
	}
	f.Add(raw, "x")
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	have := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", UID: "u", Labels: map[string]string{"mine": "1"}}, Spec: corev1.NodeSpec{Unschedulable: true}}
	f.Fuzz(func(t *testing.T, raw []byte, stamp string) {
		_, _ = fleet.ParseStamp(stamp)
		var said corev1.Node
		if said.Unmarshal(raw) == nil {
			if _, err := takeStorage(&said); err == nil {
				out := mergeNode(have, &said, fleet.StampID{}, now)
				if out.Name != "n" || out.UID != "u" || !out.Spec.Unschedulable || out.Labels["mine"] != "1" && said.Labels["mine"] == "" {
					t.Errorf("%+v", out)
				}
			}
		}
		var status corev1.PodStatus
		if status.Unmarshal(raw) == nil {
			mergeStatus(richPod(), &status, now)
		}
		var manifest corev1.Pod
		if manifest.Unmarshal(raw) == nil {
			r := &report{PodReport: &fleet.PodReport{Namespace: "ns", Name: "p", Uid: "hash", Mirror: raw}}
			owner := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", UID: types.UID("u")}}
			if m := mirrorOf(&manifest, r, owner); m.Namespace != "ns" || m.Name != "p" || m.Spec.NodeName != "n" || m.UID != "" ||
				len(m.OwnerReferences) != 1 || m.OwnerReferences[0].Name != "n" {
				t.Errorf("%+v", m)
			}
		}
	})
}

// The hub's own record, in etcd.
func FuzzReign(f *testing.F) {
	f.Add([]byte("00ff"), []byte("7"), []byte("0123456789abcdef"), []byte(`{"id":"x"}`), "12")
	f.Add([]byte(""), []byte("-1"), []byte("k"), []byte(`[]`), "99999999999999999999")
	f.Fuzz(func(t *testing.T, incarnation, epoch, key, restore []byte, version string) {
		r, err := readReign(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{ResourceVersion: version},
			Data: map[string][]byte{keyIncarnation: incarnation, keyEpoch: epoch, keyHashKey: key, keyRestore: restore}})
		if err == nil && (r.Incarnation == "" || len(r.hashKey) < 16 || len(restore) > 0 && r.restore == nil) {
			t.Errorf("%+v", r)
		}
	})
}
