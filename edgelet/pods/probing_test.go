package pods

import (
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// health is what commands in containers answer.
type health struct{ code atomic.Int32 }

func (h *health) answer(string) (*runtimeapi.ExecSyncResponse, error) {
	return &runtimeapi.ExecSyncResponse{ExitCode: h.code.Load(), Stdout: []byte("out")}, nil
}

func execProbe(command string, change func(*v1.Probe)) *v1.Probe {
	p := &v1.Probe{ProbeHandler: v1.ProbeHandler{Exec: &v1.ExecAction{Command: strings.Fields(command)}},
		TimeoutSeconds: 1, PeriodSeconds: 5, SuccessThreshold: 1, FailureThreshold: 3}
	if change != nil {
		change(p)
	}
	return p
}

func TestReadinessProbe(t *testing.T) {
	on(t, func(b *board) {
		var h health
		h.code.Store(1)
		b.rt.Answer("ready", h.answer)
		c := ctr("main")
		c.ReadinessProbe = execProbe("ready", func(p *v1.Probe) { p.InitialDelaySeconds = 10; p.SuccessThreshold = 2 })
		b.store.put(testPod("a", withContainers(c)))
		b.settle(9 * time.Second)
		if b.store.said("probe failed") {
			t.Error("probed within the initial delay")
		}
		b.settle(3 * time.Second)
		s := b.store.status("uid-a")
		if s.Phase != v1.PodRunning || s.ContainerStatuses[0].Ready || condition(s, v1.PodReady).Reason != "ContainersNotReady" {
			t.Errorf("unready: %+v", s.ContainerStatuses)
		}
		if !b.store.said("Readiness probe failed: out") {
			t.Error("nobody was told:", b.store.reasons("uid-a"))
		}
		h.code.Store(0)
		b.settle(5 * time.Second)
		if b.store.status("uid-a").ContainerStatuses[0].Ready {
			t.Error("ready after one success of two")
		}
		b.settle(5 * time.Second)
		if !b.store.status("uid-a").ContainerStatuses[0].Ready {
			t.Error("not ready after two successes")
		}
		h.code.Store(1)
		b.settle(9 * time.Second)
		if !b.store.status("uid-a").ContainerStatuses[0].Ready {
			t.Error("unready before the threshold")
		}
		b.settle(6 * time.Second)
		if s := b.store.status("uid-a").ContainerStatuses[0]; s.Ready || s.RestartCount != 0 {
			t.Errorf("after the threshold: %+v", s)
		}
		if n := strings.Count(b.store.reasons("uid-a"), "Unhealthy"); n != 2 {
			t.Errorf("%d events of two spells of failure that said the same", n)
		}
	})
}

func TestLivenessProbeRestartsWithItsOwnGrace(t *testing.T) {
	on(t, func(b *board) {
		var h health
		b.rt.Answer("alive", h.answer)
		c := ctr("main")
		grace := int64(7)
		c.LivenessProbe = execProbe("alive", func(p *v1.Probe) { p.TerminationGracePeriodSeconds = &grace })
		b.store.put(testPod("a", withContainers(c)))
		b.settle(30 * time.Second)
		if s := b.store.status("uid-a").ContainerStatuses[0]; !s.Ready || s.RestartCount != 0 {
			t.Fatalf("healthy: %+v", s)
		}
		h.code.Store(1)
		b.settle(16 * time.Second)
		h.code.Store(0)
		if got, _ := b.rt.StopTimeout("main"); got != grace {
			t.Errorf("stopped with a grace of %d s, the probe's is %d", got, grace)
		}
		b.settle(30 * time.Second)
		if s := b.store.status("uid-a").ContainerStatuses[0]; s.RestartCount != 1 || s.State.Running == nil {
			t.Errorf("restarted: %+v", s)
		}
		if !b.store.said("Container main failed liveness probe, will be restarted") {
			t.Error("the reason was not told")
		}
	})
}

func TestStartupProbeHoldsTheOthers(t *testing.T) {
	on(t, func(b *board) {
		var started, alive health
		started.code.Store(1)
		alive.code.Store(1)
		b.rt.Answer("started", started.answer)
		b.rt.Answer("alive", alive.answer)
		c := ctr("main")
		c.StartupProbe = execProbe("started", func(p *v1.Probe) { p.FailureThreshold = 20 })
		c.LivenessProbe = execProbe("alive", func(p *v1.Probe) { p.FailureThreshold = 1 })
		b.store.put(testPod("a", withContainers(c)))
		b.settle(42 * time.Second)
		s := b.store.status("uid-a").ContainerStatuses[0]
		if *s.Started || s.Ready || s.RestartCount != 0 {
			t.Fatalf("starting: %+v", s)
		}
		started.code.Store(0)
		alive.code.Store(0)
		b.settle(6 * time.Second)
		if s = b.store.status("uid-a").ContainerStatuses[0]; !*s.Started || !s.Ready {
			t.Errorf("started: %+v", s)
		}
		alive.code.Store(1)
		b.settle(6 * time.Second)
		if s = b.store.status("uid-a").ContainerStatuses[0]; s.RestartCount < 1 {
			t.Errorf("not alive: %+v", s)
		}
	})
}

// An init container that stays is probed too, and what comes after waits for it.
func TestSidecarStartupProbe(t *testing.T) {
	on(t, func(b *board) {
		var h health
		h.code.Store(1)
		b.rt.Answer("started", h.answer)
		c := sidecar("side")
		c.StartupProbe = execProbe("started", func(p *v1.Probe) { p.FailureThreshold = 20 })
		b.store.put(testPod("a", withInit(c)))
		b.settle(12 * time.Second)
		if s := b.store.status("uid-a"); len(b.rt.Running("uid-a")) != 1 || s.Phase != v1.PodPending {
			t.Fatalf("running %v in phase %s before the sidecar started", b.rt.Running("uid-a"), s.Phase)
		}
		h.code.Store(0)
		b.settle(6 * time.Second)
		if s := b.store.status("uid-a"); len(b.rt.Running("uid-a")) != 2 || s.Phase != v1.PodRunning || !*s.InitContainerStatuses[0].Started {
			t.Errorf("running %v in phase %s", b.rt.Running("uid-a"), s.Phase)
		}
	})
}

// What was ready before the agent restarted is not called unready until its probe
// has run, nor the other way round.
func TestProbesSurviveTheAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard(t)
		b.boot()
		var good, bad health
		bad.code.Store(1)
		b.rt.Answer("good", good.answer)
		b.rt.Answer("bad", bad.answer)
		one, other := ctr("one"), ctr("other")
		one.ReadinessProbe, one.StartupProbe = execProbe("good", nil), execProbe("good", nil)
		other.ReadinessProbe = execProbe("bad", nil)
		b.store.put(testPod("a", withContainers(one, other)))
		b.settle(20 * time.Second)
		b.stop()
		before := len(b.store.told())
		b.boot()
		b.settle(10 * time.Minute)
		for _, r := range b.store.told()[before:] {
			if cs := r.Status.ContainerStatuses; !cs[0].Ready || cs[1].Ready || !*cs[0].Started {
				t.Errorf("reported after the restart: %+v", cs)
			}
		}
		good.code.Store(1)
		b.settle(16 * time.Second)
		if cs := b.store.status("uid-a").ContainerStatuses; cs[0].Ready {
			t.Error("probes stand still after a restart")
		}
		b.stop()
	})
}

// An ending pod is told unready as soon as its probe says so, and its liveness is
// not asked any more.
func TestReadinessOfAnEndingPod(t *testing.T) {
	on(t, func(b *board) {
		var ready, alive health
		b.rt.Answer("ready", ready.answer)
		b.rt.Answer("alive", alive.answer)
		c := ctr("main")
		c.ReadinessProbe = execProbe("ready", func(p *v1.Probe) { p.FailureThreshold = 1 })
		c.LivenessProbe = execProbe("alive", func(p *v1.Probe) { p.FailureThreshold = 1 })
		b.rt.Plan("main", plan(func(p *planT) { p.IgnoreTerm = true }))
		pod := testPod("a", withContainers(c))
		b.store.put(pod)
		b.settle(10 * time.Second)
		ready.code.Store(1)
		alive.code.Store(1)
		b.store.put(deleted(pod, 30))
		b.settle(10 * time.Second)
		if s := b.store.status("uid-a").ContainerStatuses[0]; s.Ready || s.State.Running == nil {
			t.Errorf("ending: %+v", s)
		}
		if b.store.said("Liveness probe failed") {
			t.Error("an ending container was asked whether it lives")
		}
		b.settle(30 * time.Second)
		if !b.store.gone("uid-a") {
			t.Error("not gone")
		}
	})
}
