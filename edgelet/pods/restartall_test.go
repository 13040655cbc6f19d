package pods

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/coracle-edge/coracle/edgelet/pods/fakecri"
)

func restartingAll(codes ...int32) v1.Container {
	c := ctr("main")
	never := v1.ContainerRestartPolicyNever
	c.RestartPolicy = &never
	c.RestartPolicyRules = []v1.ContainerRestartRule{{Action: v1.ContainerRestartRuleActionRestartAllContainers,
		ExitCodes: &v1.ContainerRestartRuleOnExitCodes{Operator: v1.ContainerRestartRuleOnExitCodesOpIn, Values: codes}}}
	return c
}

func TestRestartAllContainers(t *testing.T) {
	for _, cut := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			b := newBoard(t)
			b.more = func(c *Config) { c.Node = ableNode{} }
			b.boot()
			b.rt.Plan("init", fakecri.Exit(0))
			b.rt.Plan("done", fakecri.Exit(0))
			pod := testPod("a", restart(v1.RestartPolicyNever), withInit(ctr("init"), sidecar("side")),
				withContainers(restartingAll(42), ctr("done"), ctr("other")))
			b.store.put(pod)
			b.settle(time.Minute)
			sandboxes, _ := b.rt.Count()
			b.rt.Calls()
			if !b.rt.Kill("uid-a", "main", 42) {
				t.Fatal("main doesn't run")
			}
			b.settle(10 * time.Second)
			if cut {
				b.stop()
				b.boot()
				b.settle(10 * time.Second)
			}
			var restarting []v1.ConditionStatus
			for _, r := range b.store.told() {
				if c := condition(r.Status, v1.AllContainersRestarting); r.UID == "uid-a" && (len(restarting) == 0 || c.Status != restarting[len(restarting)-1]) {
					restarting = append(restarting, c.Status)
				}
			}
			if !slices.Equal(restarting, []v1.ConditionStatus{v1.ConditionFalse, v1.ConditionTrue, v1.ConditionFalse}) {
				t.Errorf("cut %t: AllContainersRestarting was %v", cut, restarting)
			}
			s := b.store.status("uid-a")
			calls := strings.Join(b.rt.Calls(), "\n")
			for _, name := range []string{"init", "side", "main", "done", "other"} {
				if n := strings.Count(calls, "StartContainer "+name); n != 1 {
					t.Errorf("cut %t: %s was started %d times:\n%s", cut, name, n, calls)
				}
			}
			if i, m := strings.Index(calls, "StartContainer init"), strings.Index(calls, "StartContainer main"); i > m {
				t.Error("init after main:\n", calls)
			}
			if n, _ := b.rt.Count(); n != sandboxes || s.Phase != v1.PodRunning {
				t.Errorf("%d sandboxes, phase %s", n, s.Phase)
			}
			for _, list := range [][]v1.ContainerStatus{s.InitContainerStatuses, s.ContainerStatuses} {
				for _, c := range list {
					if c.RestartCount != 1 || c.LastTerminationState.Terminated == nil {
						t.Errorf("%s: %+v", c.Name, c)
					}
				}
			}
			// An exit that no rule names ends the pod as ever.
			b.rt.Kill("uid-a", "main", 1)
			b.rt.Kill("uid-a", "other", 0)
			b.settle(10 * time.Second)
			if s := b.store.status("uid-a"); s.Phase != v1.PodFailed {
				t.Errorf("in the end: %s %+v", s.Phase, s.ContainerStatuses)
			}
			b.stop()
		})
	}
}

// ableNode declares the feature.
type ableNode struct{ fakeNode }

func (ableNode) DeclaredFeatures() []string { return []string{featureRestartAll} }

// A pod that restarts all of its containers all the time is slowed down.
func TestRestartAllBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard(t)
		b.more = func(c *Config) { c.Node = ableNode{} }
		b.boot()
		b.rt.Plan("main", fakecri.Exit(42))
		b.store.put(testPod("a", restart(v1.RestartPolicyNever), withContainers(restartingAll(42))))
		b.settle(5 * time.Minute)
		if n := b.store.status("uid-a").ContainerStatuses[0].RestartCount; n < 3 || n > 6 {
			t.Errorf("%d restarts in five minutes", n)
		}
		b.stop()
	})
}

// A sidecar asks for it, in a pod that never restarts: that its only app container is
// stopped for it isn't the pod's end.
func TestASidecarRestartsAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard(t)
		b.more = func(c *Config) { c.Node = ableNode{} }
		b.boot()
		b.rt.Plan("init", fakecri.Exit(0))
		source := sidecar("source")
		source.RestartPolicyRules = restartingAll(42).RestartPolicyRules
		b.store.put(testPod("a", restart(v1.RestartPolicyNever), withInit(ctr("init"), sidecar("side"), source), withContainers(ctr("main"))))
		b.settle(time.Minute)
		if !b.rt.Kill("uid-a", "source", 42) {
			t.Fatal("the sidecar doesn't run")
		}
		b.settle(time.Minute)
		s := b.store.status("uid-a")
		if s.Phase != v1.PodRunning {
			t.Fatalf("phase %s: %+v", s.Phase, s.ContainerStatuses)
		}
		for _, list := range [][]v1.ContainerStatus{s.InitContainerStatuses, s.ContainerStatuses} {
			for _, c := range list {
				if c.RestartCount != 1 || c.Name != "init" && c.State.Running == nil {
					t.Errorf("%s: %+v", c.Name, c)
				}
			}
		}
		b.stop()
	})
}
