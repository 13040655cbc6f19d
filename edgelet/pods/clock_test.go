package pods

import (
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/coracle-edge/coracle/edgelet/pods/fakecri"
)

// jumpingClock is a wall clock that somebody sets while the monotonic one goes on.
type jumpingClock struct{ by time.Duration }

func (c *jumpingClock) now() time.Time { return time.Now().Add(c.by) }

// A clock that is set, forth or back by years, ends nothing, delays nothing and
// shortens nothing: back-off and grace are measured on the monotonic clock.
func TestTheClockJumps(t *testing.T) {
	for name, by := range map[string]time.Duration{"ten years ahead": 10 * 365 * 24 * time.Hour, "ten years back": -10 * 365 * 24 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				clock := &jumpingClock{}
				b := newBoard(t)
				b.more = func(c *Config) { c.Now = clock.now }
				b.boot()
				b.rt.Plan("crashes", fakecri.Exit(1))
				b.rt.Plan("slow", fakecri.Plan{RunFor: -1, IgnoreTerm: true})
				b.store.put(testPod("steady"))
				crashing := testPod("crashing")
				crashing.Spec.Containers[0].Name = "crashes"
				b.store.put(crashing)
				slow := testPod("slow")
				slow.Spec.Containers[0].Name = "slow"
				b.store.put(slow)
				b.settle(time.Minute) // restarts at 0, 10, 30, 70, 150 s
				restarts := func() int32 { return b.store.status("uid-crashing").ContainerStatuses[0].RestartCount }
				before := restarts()
				b.store.put(deleted(slow, 20))
				b.settle(5 * time.Second)
				clock.by = by
				b.settle(2 * time.Second)
				if n := restarts(); n != before {
					t.Errorf("%d restarts more, before their back-off was over", n-before)
				}
				if len(b.rt.Running("uid-slow")) != 1 {
					t.Error("the grace was cut")
				}
				b.settle(20 * time.Second) // the grace is over at 80 s, the back-off at 70
				if !b.store.gone("uid-slow") {
					t.Error("the grace didn't end")
				}
				if n := restarts(); n != before+1 {
					t.Errorf("%d restarts after the back-off, want 1", n-before)
				}
				if s := b.store.status("uid-steady"); s.Phase != v1.PodRunning || s.ContainerStatuses[0].RestartCount != 0 {
					t.Errorf("%+v", s)
				}
				b.stop()
			})
		})
	}
}
