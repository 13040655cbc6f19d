package trace

import (
	"fmt"
	"testing"
	"time"
)

func TestEventsComeInStepOrderAndFirstWins(t *testing.T) {
	r := NewRecorder(2)
	base := time.Unix(100, 0)
	r.Record("a", Event{Step: Bound, Time: base.Add(2)})
	r.Record("a", Event{Step: Received, Time: base})
	r.Record("a", Event{Step: Received, Time: base.Add(9)})
	got := r.Events("a")
	if len(got) != 2 || got[0].Step != Received || !got[0].Time.Equal(base) || got[1].Step != Bound {
		t.Fatalf("events = %+v", got)
	}
}

func TestRecorderIsBounded(t *testing.T) {
	r := NewRecorder(2)
	for i := range 5 {
		r.Record(fmt.Sprint(i), Event{Step: Stored})
	}
	if r.Events("2") != nil || r.Events("3") == nil || r.Events("4") == nil {
		t.Fatalf("want the last two pods only")
	}
}

func TestNilRecorderAndNodeTimes(t *testing.T) {
	var r *Recorder
	r.Record("a", Event{Step: Stored})
	if r.Events("a") != nil {
		t.Fatal("nil recorder remembered")
	}
	var n *NodeTimes
	n.Mark(NodeStored, time.Now())
	if n.Offsets() != nil {
		t.Fatal("nil node times remembered")
	}
}

func TestAnchorSplitsTheWireAndStaysInside(t *testing.T) {
	sent := time.Unix(1000, 0)
	received := sent.Add(100 * time.Millisecond)
	offs := []Offset{{NodeStored, 0}, {ContainerStarted, 50 * time.Millisecond}, {StatusQueued, 90 * time.Millisecond}}
	got := Anchor(sent, received, 60*time.Millisecond, offs, "edgelet")
	want := []time.Duration{20, 70, 100} // the last one is clamped to the report's arrival
	for i, w := range want {
		if d := got[i].Time.Sub(sent); d != w*time.Millisecond {
			t.Errorf("%s at %v, want %v", got[i].Step, d, w*time.Millisecond)
		}
	}
}
