package pods

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/coracle-edge/coracle/edgelet/pods/fakecri"
)

// A runtime that learns late of an exit: what is said last of a pod that is deleted
// is that its containers ended.
func TestTheLastWordOfAPodIsItsEnd(t *testing.T) {
	on(t, func(b *board) {
		pod := testPod("p")
		b.store.put(pod)
		b.settle(time.Second)
		if s := b.store.status("uid-p"); s.Phase != v1.PodRunning {
			t.Fatalf("%+v", s)
		}
		b.rt.Lag(300 * time.Millisecond)
		b.store.put(deleted(pod, 1))
		b.settle(time.Minute)
		if !b.store.gone("uid-p") {
			t.Fatal("it isn't gone")
		}
		s := b.store.status("uid-p")
		if c := s.ContainerStatuses[0]; c.State.Terminated == nil || c.Ready || s.Phase == v1.PodRunning {
			t.Errorf("phase %s, %+v", s.Phase, c)
		}
	})
}

// Starts and ends are counted by type, an end once.
func TestContainersAreCounted(t *testing.T) {
	on(t, func(b *board) {
		b.rt.Plan("before", fakecri.Exit(0))
		b.rt.Plan("main", fakecri.Exit(3))
		b.store.put(testPod("p", withInit(ctr("before")), func(p *v1.Pod) { p.Spec.RestartPolicy = v1.RestartPolicyNever }))
		b.settle(time.Minute)
		n := b.m.Counts()
		if n.StartedPods != 1 || n.StartedContainers["init_container"] != 1 || n.StartedContainers["container"] != 1 || len(n.NotStarted) != 0 {
			t.Errorf("%+v", n)
		}
		ends := map[string]uint64{}
		for end, count := range n.Terminated {
			ends[fmt.Sprintf("%s %d", end.Type, end.ExitCode)] += count
		}
		if len(ends) != 2 || ends["init_container 0"] != 1 || ends["container 3"] != 1 {
			t.Errorf("ends %v", ends)
		}
	})
}

// In the node's network a pod has the node's address, from its first container on.
func TestAddressOfAPodInTheNodesNetwork(t *testing.T) {
	on(t, func(b *board) {
		b.store.put(testPod("p", func(p *v1.Pod) {
			p.Spec.HostNetwork = true
			p.Spec.Containers[0].Env = []v1.EnvVar{{Name: "IP", ValueFrom: &v1.EnvVarSource{FieldRef: &v1.ObjectFieldSelector{FieldPath: "status.podIP"}}}}
		}))
		synctest.Wait()
		b.settle(time.Second)
		config := b.rt.Config("main")
		if config == nil || len(config.Envs) == 0 {
			t.Fatalf("%+v", config)
		}
		for _, e := range config.Envs {
			if e.Key == "IP" && string(e.Value) != "192.0.2.7" {
				t.Errorf("status.podIP is %q", e.Value)
			}
		}
	})
}
