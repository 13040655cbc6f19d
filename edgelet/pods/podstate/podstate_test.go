package podstate

import (
	"path/filepath"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/edgelet/pods"
	"github.com/coracle-edge/coracle/edgelet/pods/kubeobj"
	"github.com/coracle-edge/coracle/edgelet/state"
)

func TestWhatPodsKeepSurvivesInTheStateFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	st, err := state.Open(path, state.Options{})
	if err != nil {
		t.Fatal(err)
	}
	s := New(st)
	if list, complete, err := s.Desired(); err != nil || complete || len(list) != 0 {
		t.Fatalf("an empty file is not an order: %v %v %v", list, complete, err)
	}
	raw, _ := kubeobj.EncodePod(&v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "n", UID: "u"}})
	hash := fleet.HashObject(raw)
	err = st.Apply(fleet.OrderVersion{Incarnation: "i", Epoch: 1, Counter: 1},
		[]*fleet.Object{{Kind: "Pod", Namespace: "n", Name: "p", Uid: "u", Hash: hash[:], Raw: raw}}, nil, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Report(pods.Report{Namespace: "n", Name: "p", UID: "u", Status: &v1.PodStatus{Phase: v1.PodRunning}, Mirror: raw}); err != nil {
		t.Fatal(err)
	}
	if err := s.PutRecord("u", []byte("record")); err != nil {
		t.Fatal(err)
	}
	if err := s.Event(pods.Event{Namespace: "n", Name: "p", UID: "u", Type: "Normal", Reason: "Started", Message: "m"}); err != nil {
		t.Fatal(err)
	}
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	if st, err = state.Open(path, state.Options{}); err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	s = New(st)
	list, complete, err := s.Desired()
	if err != nil || !complete || len(list) != 1 || list[0].UID != "u" || list[0].Name != "p" || string(list[0].Raw) != string(raw) {
		t.Errorf("%+v %v %v", list, complete, err)
	}
	if got, err := s.Record("u"); err != nil || string(got) != "record" {
		t.Errorf("%q %v", got, err)
	}
	if r, ok := st.PodStatus("u"); !ok || len(r.Status) == 0 || len(r.Mirror) == 0 {
		t.Errorf("%+v %v", r, ok)
	} else {
		var mirror v1.Pod
		if err := mirror.Unmarshal(r.Mirror); err != nil || mirror.Name != "p" {
			t.Error(err)
		}
	}
	if err := s.DeleteRecord("u"); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Record("u"); err != nil || got != nil {
		t.Errorf("%q %v", got, err)
	}
}
