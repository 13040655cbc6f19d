package kubeobj

import (
	"errors"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// The API server writes the envelope with runtime.Unknown; ours must read and
// write the same bytes.
func TestEnvelopeIsTheAPIServers(t *testing.T) {
	pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "a", Namespace: "b", UID: "c"}}
	payload, err := pod.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	unknown := runtime.Unknown{TypeMeta: runtime.TypeMeta{APIVersion: "v1", Kind: "Pod"}, Raw: payload}
	theirs, err := unknown.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	theirs = append([]byte(Magic), theirs...)
	ours, err := EncodePod(pod)
	if err != nil {
		t.Fatal(err)
	}
	if string(ours) != string(theirs) {
		t.Errorf("envelope\n% x\nwant\n% x", ours, theirs)
	}
	got, err := Pod(theirs)
	if err != nil || got.Name != "a" || got.Namespace != "b" || got.UID != "c" {
		t.Errorf("Pod() = %v, %v", got, err)
	}
}

func TestWrongBytesAreNamed(t *testing.T) {
	cm, err := EncodeConfigMap(&v1.ConfigMap{})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		raw  []byte
		want error
	}{
		"json":       {[]byte(`{"kind":"Pod"}`), ErrNotKubernetes},
		"other kind": {cm, ErrKind},
		"cut":        {cm[:len(cm)-5], ErrMalformed},
		"bad pod":    {Join(Header{"v1", "Pod"}, []byte{0xff, 0xff}), ErrMalformed},
	} {
		if _, err := Pod(c.raw); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

func FuzzUnknown(f *testing.F) {
	raw, _ := EncodePod(&v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "a", Labels: map[string]string{"k": "v"}}})
	f.Add(raw)
	f.Add([]byte(Magic))
	f.Add(Join(Header{"node.k8s.io/v1", "RuntimeClass"}, []byte{0x12, 1, 'x'}))
	f.Fuzz(func(t *testing.T, raw []byte) {
		h, payload, err := Split(raw)
		if err == nil {
			h2, p2, err := Split(Join(h, payload))
			if err != nil || h2 != h || string(p2) != string(payload) {
				t.Fatalf("Join is not Split's inverse: %v", err)
			}
		}
		_, _ = Pod(raw)
		_, _ = Secret(raw)
		_, _ = RuntimeClassHandler(raw)
	})
}
