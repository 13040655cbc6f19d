package pods

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/coracle-edge/coracle/edgelet/pods/fakecri"
)

// jumpingClock is a wall clock that somebody sets while the monotonic one goes on.
type jumpingClock struct{ by atomic.Int64 }

func (c *jumpingClock) now() time.Time { return time.Now().Add(time.Duration(c.by.Load())) }

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
				limit := int64(100)
				b.store.put(testPod("limited", func(p *v1.Pod) { p.Spec.ActiveDeadlineSeconds = &limit }))
				b.settle(time.Minute) // restarts at 0, 10, 30, 70, 150 s
				restarts := func() int32 { return b.store.status("uid-crashing").ContainerStatuses[0].RestartCount }
				before := restarts()
				b.store.put(deleted(slow, 20))
				b.settle(5 * time.Second)
				clock.by.Store(int64(by))
				b.settle(time.Second)
				b.store.put(deleted(slow, 15)) // said again: until 81 s, so it stays at 80
				b.settle(time.Second)
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
				if s := b.store.status("uid-limited"); s.Phase != v1.PodRunning {
					t.Errorf("its deadline is at 100 s, and it is %s %s after 87", s.Phase, s.Reason)
				}
				b.settle(20 * time.Second)
				if s := b.store.status("uid-limited"); s.Phase != v1.PodFailed || s.Reason != "DeadlineExceeded" {
					t.Errorf("after its deadline it is %s %s", s.Phase, s.Reason)
				}
				b.stop()
			})
		})
	}
}

// activeDeadlineSeconds are over when the pod was active for so long, whatever the
// clock is set to, and whether or not the agent or the board began again meanwhile.
func TestDeadlineOverJumpsRestartsAndReboots(t *testing.T) {
	const years = 10 * 365 * 24 * time.Hour
	for name, c := range map[string]struct {
		jump    time.Duration
		restart bool // the agent
		reboot  bool // the board, after half a deadline off
		late    time.Duration
	}{
		"ahead":                 {jump: years},
		"back":                  {jump: -years},
		"restart, ahead":        {jump: years, restart: true},
		"restart, back":         {jump: -years, restart: true},
		"reboot":                {restart: true, reboot: true, late: time.Minute},
		"reboot, clock of 1970": {jump: -30 * 365 * 24 * time.Hour, restart: true, reboot: true, late: time.Minute},
		"reboot, clock was so":  {jump: years, restart: true, reboot: true, late: time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				clock := &jumpingClock{}
				b := newBoard(t)
				b.more = func(c *Config) { c.Now = clock.now }
				b.boot()
				limit := int64(600) // a tenth of it may be lost in a power cut
				b.store.put(testPod("p", func(p *v1.Pod) { p.Spec.ActiveDeadlineSeconds = &limit }))
				b.settle(5 * time.Minute)
				if c.restart {
					b.stop()
				}
				if c.reboot {
					b.rt.Reboot(true)
					time.Sleep(5 * time.Minute)
					b.bootID, b.booted = "second", time.Now()
				}
				clock.by.Store(int64(c.jump))
				if c.restart {
					b.boot()
				}
				b.settle(5*time.Minute - 10*time.Second)
				if s := b.store.status("uid-p"); s.Phase != v1.PodRunning {
					t.Fatalf("too early: %s %s", s.Phase, s.Reason)
				}
				b.settle(20*time.Second + c.late)
				if s := b.store.status("uid-p"); s.Phase != v1.PodFailed || s.Reason != "DeadlineExceeded" {
					t.Errorf("too late: %s %s", s.Phase, s.Reason)
				}
				b.stop()
			})
		})
	}
}

// A deadline that comes later counts from the pod's start.
func TestDeadlineThatComesLater(t *testing.T) {
	on(t, func(b *board) {
		pod := testPod("p")
		b.store.put(pod)
		b.settle(50 * time.Second)
		limit := int64(60)
		pod.Spec.ActiveDeadlineSeconds = &limit
		b.store.put(pod)
		b.settle(5 * time.Second)
		if s := b.store.status("uid-p"); s.Phase != v1.PodRunning {
			t.Fatalf("too early: %s", s.Phase)
		}
		b.settle(6 * time.Second)
		if s := b.store.status("uid-p"); s.Reason != "DeadlineExceeded" {
			t.Errorf("%s %s", s.Phase, s.Reason)
		}
	})
}

func TestKernelUptime(t *testing.T) {
	boot, up, err := kernelUptime()
	again, later, _ := kernelUptime()
	if err != nil || boot == "" || boot != again || up <= 0 || later < up {
		t.Errorf("%q %s, then %q %s: %v", boot, up, again, later, err)
	}
}
