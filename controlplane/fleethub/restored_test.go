package fleethub

import (
	"encoding/hex"
	"errors"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

func TestARestoreBeginsAnIncarnationOnce(t *testing.T) {
	client := fake.NewClientset()
	raise := func(r *Restore) reign {
		t.Helper()
		out, err := raiseEpoch(t.Context(), client, r)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	confirm := func(id string) {
		t.Helper()
		s, err := client.CoreV1().Secrets(Namespace).Get(t.Context(), RecordName, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		s.Data[keyConfirmed] = []byte(id)
		if _, err := client.CoreV1().Secrets(Namespace).Update(t.Context(), s, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	first := raise(nil)
	one := &Restore{ID: "1", Incarnation: strings.Repeat("11", 16), Snapshot: "s.db", Revision: 7, At: time.Unix(1e9, 0).UTC()}
	restored := raise(one)
	if hex.EncodeToString([]byte(restored.Incarnation)) != one.Incarnation || restored.confirmed || restored.restore == nil || restored.restore.Snapshot != "s.db" ||
		restored.Number != first.Number+1 || string(restored.hashKey) != string(first.hashKey) {
		t.Errorf("%+v", restored)
	}
	confirm("1")
	if again := raise(one); again.Incarnation != restored.Incarnation || !again.confirmed || again.Number != restored.Number+1 {
		t.Errorf("the same restore, told twice: %+v", again)
	}
	// The next one is an incarnation of its own, and what was confirmed of the last
	// says nothing of it.
	two := &Restore{ID: "2", Incarnation: strings.Repeat("22", 16)}
	if next := raise(two); hex.EncodeToString([]byte(next.Incarnation)) != two.Incarnation || next.confirmed {
		t.Errorf("%+v", next)
	}
	// A snapshot of before the first hub has no record at all.
	client = fake.NewClientset()
	if r := raise(one); hex.EncodeToString([]byte(r.Incarnation)) != one.Incarnation || r.restore == nil {
		t.Errorf("%+v", r)
	}
}

func TestDamagedRestoreStopsTheHub(t *testing.T) {
	client := fake.NewClientset()
	r := &Restore{ID: "1", Incarnation: strings.Repeat("11", 16)}
	if _, err := raiseEpoch(t.Context(), client, r); err != nil {
		t.Fatal(err)
	}
	s, _ := client.CoreV1().Secrets(Namespace).Get(t.Context(), RecordName, metav1.GetOptions{})
	s.Data[keyRestore] = []byte("{")
	_, _ = client.CoreV1().Secrets(Namespace).Update(t.Context(), s, metav1.UpdateOptions{})
	if _, err := raiseEpoch(t.Context(), client, r); !errors.Is(err, ErrRecord) || !strings.Contains(err.Error(), keyRestore) {
		t.Errorf("%v", err)
	}
}

func TestPendingConditionComesAndGoes(t *testing.T) {
	h := &Hub{c: Config{Now: func() time.Time { return time.Unix(2e9, 0) }}, reign: reign{Epoch: Epoch{Incarnation: "ours"}}}
	node := &corev1.Node{Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}}}
	if h.withPending(node, nil) != nil {
		t.Error("nothing is pending, and something is written")
	}
	theirs, ours := "theirs", "ours"
	pending := h.withPending(node, &theirs)
	if c := nodeCondition(pending.Status.Conditions, ConditionRestorePending); c == nil || c.Status != corev1.ConditionTrue || !strings.Contains(c.Message, "before etcd was put back") {
		t.Fatalf("%+v", c)
	}
	if h.withPending(pending, &theirs) != nil {
		t.Error("the same is written again")
	}
	later := h.withPending(pending, &ours)
	if c := nodeCondition(later.Status.Conditions, ConditionRestorePending); c == nil || !strings.Contains(c.Message, "without a word") || len(later.Status.Conditions) != 2 {
		t.Errorf("%+v", later.Status.Conditions)
	}
	if gone := h.withPending(pending, nil); len(gone.Status.Conditions) != 1 {
		t.Errorf("%+v", gone.Status.Conditions)
	}
}
