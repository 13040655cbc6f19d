package state

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

func TestUsageCostsNoWriteOfItsOwn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s := open(t, path, Options{FlushDelay: time.Millisecond})
	began := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	before := s.Written()
	for i := range 100 {
		s.PutUsage(Usage{int64(i), time.Duration(i) * time.Minute, began}, false)
	}
	time.Sleep(20 * time.Millisecond)
	if now := s.Written(); now != before {
		t.Errorf("counting wrote to the flash: %+v, before %+v", now, before)
	}
	// It goes along with what has to be written.
	if err := s.PutSetting("a", "b"); err != nil {
		t.Fatal(err)
	}
	if now := s.Written(); now.Commits != before.Commits+1 {
		t.Errorf("%d commits", now.Commits-before.Commits)
	}
	other := open(t, copyOf(t, path), Options{}) // as after a power cut
	if u := other.Usage(); u != (Usage{99, 99 * time.Minute, began}) {
		t.Errorf("%+v", u)
	}
	// Or by itself, if it is asked for.
	s.PutUsage(Usage{Bytes: 500}, true)
	eventually(t, func() bool { return s.Written().Commits == before.Commits+2 })
	s.PutUsage(Usage{Bytes: 600}, false)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, path, Options{})
	if u := s.Usage(); u != (Usage{Bytes: 600}) {
		t.Errorf("after an orderly end: %+v", u)
	}
}

func FuzzUsage(f *testing.F) {
	f.Add(Usage{5, time.Hour, time.Unix(1e9, 0)}.encode())
	f.Add([]byte("short"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		u := decodeUsage(raw)
		if u.Bytes < 0 || u.Elapsed < 0 {
			t.Errorf("%x: %+v", raw, u)
		}
		if again := decodeUsage(u.encode()); again != u {
			t.Errorf("%+v became %+v", u, again)
		}
	})
}

func status(phase v1.PodPhase, ready v1.ConditionStatus, ip, message string) []byte {
	s := v1.PodStatus{Phase: phase, PodIP: ip, Message: message, Conditions: []v1.PodCondition{
		{Type: v1.PodScheduled, Status: v1.ConditionTrue}, {Type: v1.PodReady, Status: ready}},
		ContainerStatuses: []v1.ContainerStatus{{Name: "c", RestartCount: int32(len(message))}}}
	raw, err := s.Marshal()
	if err != nil {
		panic(err)
	}
	return raw
}

func TestWhatOfAReportIsUrgent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s := open(t, path, Options{})
	urgent := func(uid string) bool {
		for _, r := range s.Reports() {
			if r.UID == uid {
				return r.Urgent && !r.Acked
			}
		}
		t.Fatalf("no report of %q", uid)
		return false
	}
	ack := func(uid string) {
		for _, r := range s.Reports() {
			if r.UID == uid {
				s.Acked(uid, r.Stamp)
			}
		}
	}
	base := status(v1.PodRunning, v1.ConditionTrue, "10.0.0.1", "")
	say := func(raw []byte, gone bool) {
		if err := s.PutPodStatus("u", PodReport{Namespace: "d", Name: "p", Status: raw, Gone: gone}); err != nil {
			t.Fatal(err)
		}
	}
	say(base, false)
	if !urgent("u") {
		t.Error("the first report of a pod can wait")
	}
	for _, x := range []struct {
		what string
		raw  []byte
		gone bool
		want bool
	}{
		{"another restart count", status(v1.PodRunning, v1.ConditionTrue, "10.0.0.1", "again"), false, false},
		{"not ready", status(v1.PodRunning, v1.ConditionFalse, "10.0.0.1", ""), false, true},
		{"failed", status(v1.PodFailed, v1.ConditionTrue, "10.0.0.1", ""), false, true},
		{"another address", status(v1.PodRunning, v1.ConditionTrue, "10.0.0.2", ""), false, true},
		{"gone", base, true, true},
	} {
		say(base, false)
		ack("u")
		say(x.raw, x.gone)
		if urgent("u") != x.want {
			t.Errorf("%s: urgent is %v", x.what, !x.want)
		}
		// It was not said yet: what follows is no less urgent.
		if !x.gone && x.want {
			say(append([]byte(nil), append(x.raw, 0x1a, 1, 'm')...), false) // message (3)
			if !urgent("u") {
				t.Errorf("%s, and then another message: can wait", x.what)
			}
		}
	}
	say(base, false)
	ack("u")
	s.Unack("u")
	if !urgent("u") {
		t.Error("a report that was asked for can wait")
	}

	node := func(ready v1.ConditionStatus, label string) []byte {
		n := v1.Node{Status: v1.NodeStatus{Conditions: []v1.NodeCondition{{Type: v1.NodeReady, Status: ready, Message: label}}, Images: []v1.ContainerImage{{Names: []string{label}}}}}
		n.Labels = map[string]string{"l": label}
		raw, err := n.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	without := v1.Node{}
	without.Annotations = map[string]string{fleet.AnnotationGoneDrivers: `["d"]`}
	gone, err := without.ObjectMeta.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	gone = append([]byte{0x0a, byte(len(gone))}, gone...) // metadata (1), once more
	for _, x := range []struct {
		raw  []byte
		want bool
	}{{node(v1.ConditionTrue, "b"), false}, {node(v1.ConditionFalse, "a"), true}, {append(node(v1.ConditionTrue, "a"), gone...), true}} {
		if err := s.PutNodeReport(node(v1.ConditionTrue, "a")); err != nil {
			t.Fatal(err)
		}
		ack("")
		if err := s.PutNodeReport(x.raw); err != nil {
			t.Fatal(err)
		}
		if urgent("") != x.want {
			t.Errorf("the node's report: urgent is %v, want %v", !x.want, x.want)
		}
	}
	// The next start knows what was answered for.
	if err := s.PutNodeReport(node(v1.ConditionTrue, "a")); err != nil {
		t.Fatal(err)
	}
	ack("")
	say(base, false)
	ack("u")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, path, Options{})
	say(status(v1.PodRunning, v1.ConditionTrue, "10.0.0.1", "again"), false)
	if err := s.PutNodeReport(node(v1.ConditionTrue, "b")); err != nil {
		t.Fatal(err)
	}
	if urgent("u") || urgent("") {
		t.Error("after a restart everything is urgent")
	}
}

func FuzzUrgency(f *testing.F) {
	f.Add(status(v1.PodRunning, v1.ConditionTrue, "10.0.0.1", "m"))
	f.Add([]byte{0x1a, 0x02, 0x22, 0x00})
	f.Fuzz(func(t *testing.T, raw []byte) {
		_ = podUrgency(&fleet.PodReport{Status: raw})
		_ = nodeUrgency(&fleet.NodeReport{Node: raw})
		var p v1.PodStatus
		if p.Unmarshal(raw) != nil {
			return
		}
		again, err := p.Marshal()
		if err != nil {
			return
		}
		if a, b := podUrgency(&fleet.PodReport{Status: again}), podUrgency(&fleet.PodReport{Status: again}); a != b {
			t.Errorf("%s and %s", a, b)
		}
	})
}

func copyOf(t *testing.T, path string) string {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "copy.db")
	if err := os.WriteFile(out, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	return out
}
