package node

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/coracle-edge/coracle/boards"
)

// A node tells of itself what a kubelet does, once for each change, also over a
// restart of the agent and of the machine.
func TestEventsAreAKubelets(t *testing.T) {
	rt, root := &fakeRuntime{}, pi()
	var kept []byte
	var events []string
	start := func() *Node {
		n, err := New(Config{Name: "board", Runtime: rt, IPs: func() []string { return []string{"192.0.2.1"} }, Before: kept,
			Machine: boards.Machine{Root: root, DataDir: "/data", Space: func(string) (uint64, uint64, error) { return 8 << 30, 10 << 30, nil }},
			Report:  func(raw []byte) error { kept = raw; return nil },
			Event:   func(kind, reason, message string) { events = append(events, kind+" "+reason+": "+message) }})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	look := func(n *Node, what string, want ...string) {
		t.Helper()
		if err := n.Look(t.Context()); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(events, want) {
			t.Errorf("%s: events %q, want %q", what, events, want)
		}
		events = nil
	}
	status := func(reason string) string {
		return fmt.Sprintf("Normal %s: Node board status is now: %s", reason, reason)
	}
	well := []string{status("NodeHasSufficientMemory"), status("NodeHasNoDiskPressure"), status("NodeHasSufficientPID")}
	rt.down = errors.New("no answer")
	n := start()
	look(n, "registered, and never ready yet", well...)
	rt.down = nil
	look(n, "the runtime came", status("NodeReady"))
	look(n, "nothing")
	n = start()
	look(n, "the agent was restarted")
	n.Pressure = func() []v1.NodeConditionType { return []v1.NodeConditionType{v1.NodeDiskPressure, v1.NodePIDPressure} }
	look(n, "short of two", status("NodeHasDiskPressure"), status("NodeHasInsufficientPID"))
	rt.down = errors.New("no answer")
	look(n, "and no runtime", status("NodeNotReady"))
	rt.down = nil
	root["proc/sys/kernel/random/boot_id"] = file("boot-2\n")
	n = start()
	look(n, "the machine was restarted", "Warning Rebooted: Node board has been rebooted, boot id: boot-2",
		status("NodeHasNoDiskPressure"), status("NodeHasSufficientPID"), status("NodeReady"))
	kept = []byte("what?")
	look(start(), "what was said can't be read", append(well, status("NodeReady"))...)
}

func TestWhatIsToldIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told []Event
		r := NewRecorder(func(e Event) error { told = append(told, e); return nil }, slog.New(slog.DiscardHandler))
		// A warning that repeats is counted, another one isn't it.
		for range 30 {
			r.Event(v1.EventTypeWarning, "FreeDiskSpaceFailed", "full")
			time.Sleep(10 * time.Second)
		}
		r.Event(v1.EventTypeWarning, "FreeDiskSpaceFailed", "fuller")
		if len(told) != 2 || told[0].Count != 1 {
			t.Errorf("told %+v", told)
		}
		time.Sleep(10 * time.Minute) // as docs/failures.md says
		r.Event(v1.EventTypeWarning, "FreeDiskSpaceFailed", "full")
		if len(told) != 3 || told[2].Count != 30 {
			t.Errorf("told %+v, want how often it was so since", told)
		}
		// Transitions are all told, or the last one would be wrong; but not without end.
		told = nil
		time.Sleep(eventRefill)
		for i := range 100 {
			r.Event(v1.EventTypeNormal, []string{"NodeReady", "NodeNotReady"}[i%2], "")
		}
		if len(told) != eventBurst {
			t.Errorf("%d told at once, want %d", len(told), eventBurst)
		}
		time.Sleep(3 * eventRefill)
		for range 100 {
			r.Event(v1.EventTypeNormal, "NodeReady", "")
		}
		if len(told) != eventBurst+3 {
			t.Errorf("%d told, want three more than %d", len(told), eventBurst)
		}
		// What repeats is remembered within bounds.
		for i := range 100 {
			time.Sleep(eventRefill)
			r.Event(v1.EventTypeWarning, "SystemOOM", fmt.Sprint(i))
		}
		if len(r.repeats) > maxRepeats {
			t.Errorf("%d texts are remembered", len(r.repeats))
		}
	})
}

func FuzzBefore(f *testing.F) {
	f.Add([]byte("\n\x07\n\x05board"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		b, err := readBefore(raw)
		if err != nil && (b.bootID != "" || b.conditions != nil) {
			t.Errorf("%q: %+v, %v", raw, b, err)
		}
	})
}
