package queue

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/coracle-edge/coracle/controlplane/scheduler/framework"
)

func pod(name string, priority int32) *v1.Pod {
	return &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID(name)},
		Spec:       v1.PodSpec{Priority: &priority},
	}
}

// by answers Helps: only events that carry a node help.
func nodesHelp(_ *framework.Pod, _ map[string]bool, ev framework.Event) bool {
	return ev.Kind == framework.NodeChanged
}

var (
	helpful = framework.Event{Kind: framework.NodeChanged}
	useless = framework.Event{Kind: framework.PodPlaced}
	refused = map[string]bool{"Fit": true}
)

func pop(t *testing.T, q *Queue) *Item {
	t.Helper()
	it, err := q.Pop(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return it
}

// popAfter returns the next item and how long Pop took.
func popAfter(t *testing.T, q *Queue) (*Item, time.Duration) {
	t.Helper()
	start := time.Now()
	it := pop(t, q)
	return it, time.Since(start)
}

// empty fails the test if a pod can be popped within d.
func empty(t *testing.T, q *Queue, d time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	if it, err := q.Pop(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("popped %v, %v within %v", it, err, d)
	}
}

func TestOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := New(Options{})
		for _, p := range []*v1.Pod{pod("old", 0), pod("young", 0), pod("urgent", 7)} {
			q.Add(p, true)
			time.Sleep(time.Millisecond)
		}
		for _, want := range []string{"urgent", "old", "young"} {
			if it := pop(t, q); it.Name != want {
				t.Fatalf("popped %s, want %s", it.Name, want)
			}
		}
	})
}

func TestBackoffDoublesUpToItsMaximum(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := New(Options{})
		q.Add(pod("p", 0), true)
		it := pop(t, q)
		for _, want := range []time.Duration{1, 2, 4, 8, 10, 10} {
			q.Failed(it, it.Pod.Pod, nil) // an error, not a refusal: tried again by itself
			var took time.Duration
			if it, took = popAfter(t, q); took != want*time.Second {
				t.Fatalf("tried again after %v, want %v s", took, want)
			}
		}
		if it.Attempts != 7 {
			t.Errorf("attempts %d, want 7", it.Attempts)
		}
	})
}

func TestParkedUntilAnEventHelps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := New(Options{Helps: nodesHelp})
		q.Add(pod("p", 0), true)
		it := pop(t, q)
		q.Failed(it, it.Pod.Pod, refused)
		q.Happened(useless)
		empty(t, q, 3*time.Minute)
		q.Happened(helpful)
		// Its back-off of 1 s is long over: at once.
		if _, took := popAfter(t, q); took != 0 {
			t.Errorf("tried again after %v", took)
		}
	})
}

// An event may help a pod just refused, but not before its back-off.
func TestEventDuringBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := New(Options{Helps: nodesHelp})
		q.Add(pod("p", 0), true)
		it := pop(t, q)
		q.Failed(it, it.Pod.Pod, refused)
		time.Sleep(300 * time.Millisecond)
		q.Happened(helpful)
		if _, took := popAfter(t, q); took != 700*time.Millisecond {
			t.Errorf("tried again after %v, want what is left of 1 s", took)
		}
	})
}

// An event that arrives between the look at the nodes and the parking counts.
func TestEventWhileTrying(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, c := range map[string]struct {
			ev   framework.Event
			n    int
			want time.Duration
		}{
			"helpful":           {helpful, 1, time.Second},
			"useless":           {useless, 1, 5 * time.Minute},
			"more than is kept": {useless, recent + 1, time.Second},
		} {
			q := New(Options{Helps: nodesHelp})
			q.Add(pod("p", 0), true)
			it := pop(t, q)
			for range c.n {
				q.Happened(c.ev)
			}
			q.Failed(it, it.Pod.Pod, refused)
			if _, took := popAfter(t, q); took != c.want {
				t.Errorf("%s: tried again after %v, want %v", name, took, c.want)
			}
		}
	})
}

// Events before the pod was popped are not held against its refusal.
func TestEventBeforeTrying(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := New(Options{Helps: nodesHelp})
		q.Add(pod("other", 9), true)
		pop(t, q) // keeps events remembered
		q.Happened(helpful)
		q.Add(pod("p", 0), true)
		it := pop(t, q)
		q.Failed(it, it.Pod.Pod, refused)
		if _, took := popAfter(t, q); took != 5*time.Minute {
			t.Errorf("tried again after %v", took)
		}
	})
}

func TestParkedPodsAreTriedNowAndThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := New(Options{Helps: nodesHelp, MaxParked: time.Minute})
		for _, name := range []string{"a", "b"} {
			q.Add(pod(name, 0), true)
			it := pop(t, q)
			q.Failed(it, it.Pod.Pod, refused)
			time.Sleep(10 * time.Second)
		}
		a, tookA := popAfter(t, q)
		b, tookB := popAfter(t, q)
		if a.Name != "a" || tookA != 40*time.Second || b.Name != "b" || tookB != 10*time.Second {
			t.Errorf("%s after %v, %s after %v", a.Name, tookA, b.Name, tookB)
		}
	})
}

// A pod that came too early is ready the moment that what it waits for is there,
// and without that at the time given.
func TestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := New(Options{Helps: nodesHelp})
		q.Add(pod("p", 0), true)
		it := pop(t, q)
		q.Wait(it, it.Pod.Pod, refused, time.Now().Add(5*time.Second))
		q.Happened(useless)
		empty(t, q, time.Second)
		q.Happened(helpful)
		it, took := popAfter(t, q)
		if took != 0 {
			t.Errorf("ready after %v: it didn't fail before", took)
		}
		q.Happened(helpful) // while it is tried
		q.Wait(it, it.Pod.Pod, refused, time.Now().Add(5*time.Second))
		if it, took = popAfter(t, q); took != 0 {
			t.Errorf("ready after %v: the event was missed", took)
		}
		q.Wait(it, it.Pod.Pod, refused, time.Now().Add(5*time.Second))
		if _, took = popAfter(t, q); took != 5*time.Second {
			t.Errorf("ready after %v, want 5s", took)
		}
		q.Delete("p")
		q.Wait(it, it.Pod.Pod, refused, time.Now())
		empty(t, q, time.Hour)
	})
}

func TestGated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := New(Options{Gated: func(p *framework.Pod) bool { return len(p.Spec.SchedulingGates) > 0 }})
		p := pod("p", 0)
		p.Spec.SchedulingGates = []v1.PodSchedulingGate{{Name: "hold"}}
		q.Add(p, true)
		q.Happened(helpful)
		empty(t, q, time.Hour)
		open := p.DeepCopy()
		open.Spec.SchedulingGates = nil
		q.Add(open, true)
		if it := pop(t, q); it.Pod.Pod != open {
			t.Error("popped the old object")
		}
	})
}

// A pod that changes while it is tried is tried again.
func TestChangedWhileTrying(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := New(Options{Helps: nodesHelp})
		q.Add(pod("p", 0), true)
		it := pop(t, q)
		changed := pod("p", 0)
		q.Add(changed, true)
		q.Failed(it, changed, refused)
		if it, took := popAfter(t, q); took != time.Second || it.Pod.Pod != changed {
			t.Errorf("tried %p again after %v", it.Pod.Pod, took)
		}
	})
}

func TestDeleted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := New(Options{Helps: nodesHelp})
		for _, name := range []string{"trying", "parked", "backing", "ready"} {
			q.Add(pod(name, 0), true)
		}
		trying, park, back := pop(t, q), pop(t, q), pop(t, q)
		q.Failed(park, park.Pod.Pod, refused)
		q.Failed(back, back.Pod.Pod, nil)
		for _, uid := range []types.UID{"trying", "parked", "backing", "ready", "never seen"} {
			q.Delete(uid)
		}
		q.Failed(trying, trying.Pod.Pod, nil) // comes too late
		q.Done(trying)
		if s := q.Stats(); s != (Stats{}) {
			t.Errorf("left behind: %+v", s)
		}
		empty(t, q, time.Hour)
	})
}

func TestStatusUpdateDoesNotUnpark(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := New(Options{})
		q.Add(pod("p", 0), true)
		it := pop(t, q)
		q.Failed(it, it.Pod.Pod, refused)
		q.Add(pod("p", 0), false)
		empty(t, q, 4*time.Minute)
	})
}
