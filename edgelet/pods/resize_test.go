package pods

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
)

func asking(cpu, memory string) podOption {
	return func(p *v1.Pod) {
		p.Spec.Containers[0].Resources = v1.ResourceRequirements{Requests: list("cpu", cpu, "memory", memory), Limits: list("cpu", cpu, "memory", memory)}
	}
}

// resized is the pod as the resize subresource leaves it.
func resized(pod *v1.Pod, cpu, memory string) *v1.Pod {
	p := pod.DeepCopy()
	asking(cpu, memory)(p)
	p.Generation++
	return p
}

func (b *board) cpuOf(uid string) string {
	r := b.store.status(uid).ContainerStatuses[0].Resources
	return r.Requests.Cpu().String()
}

func TestResizeInPlace(t *testing.T) {
	on(t, func(b *board) {
		pod := testPod("a", asking("500m", "64Mi"))
		b.store.put(pod)
		b.settle(time.Second)
		id := b.rt.Running("uid-a")["main"]
		b.store.put(resized(pod, "1", "128Mi"))
		b.settle(time.Second)
		s := b.store.status("uid-a")
		if got := b.rt.Running("uid-a")["main"]; got != id || s.ContainerStatuses[0].RestartCount != 0 {
			t.Error("it was restarted")
		}
		if r := b.rt.Config("main").Linux.Resources; r.CpuQuota != quotaPeriod || r.CpuShares != 1024 || r.MemoryLimitInBytes != 128<<20 {
			t.Errorf("the runtime has %v", r)
		}
		if b.cpuOf("uid-a") != "1" || s.ContainerStatuses[0].AllocatedResources.Cpu().String() != "1" || s.ObservedGeneration != 2 {
			t.Errorf("reported: %+v", s.ContainerStatuses[0])
		}
		if condition(s, v1.PodResizePending).Status != "" || condition(s, v1.PodResizeInProgress).Status != "" {
			t.Errorf("done, and yet: %+v", s.Conditions)
		}
		if got := b.store.reasons("uid-a"); !strings.Contains(got, "ResizeStarted") || !strings.Contains(got, "ResizeCompleted") {
			t.Error("events:", got)
		}
		// The next start of the agent finds nothing to do.
		b.rt.Calls()
		b.stop()
		b.boot()
		b.settle(time.Minute)
		if calls := b.rt.Calls(); len(calls) > 0 || b.cpuOf("uid-a") != "1" {
			t.Errorf("after a restart: %v, %s", calls, b.cpuOf("uid-a"))
		}
	})
}

func TestResizeThatDoesNotFitWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard(t)
		b.boot()
		a, other := testPod("a", asking("500m", "64Mi")), testPod("b", asking("1", "64Mi"))
		b.store.put(a)
		b.store.put(other)
		b.settle(time.Second)
		b.store.put(resized(a, "1500m", "64Mi"))
		b.settle(time.Second)
		deferred := func(when string) {
			t.Helper()
			s := b.store.status("uid-a")
			c := condition(s, v1.PodResizePending)
			if c.Reason != v1.PodReasonDeferred || c.ObservedGeneration != 2 ||
				c.Message != "Node didn't have enough resource: cpu, requested: 1500, used: 1000, capacity: 2000" {
				t.Errorf("%s: %+v", when, c)
			}
			if b.cpuOf("uid-a") != "500m" || s.ContainerStatuses[0].AllocatedResources.Cpu().String() != "500m" {
				t.Errorf("%s: %+v", when, s.ContainerStatuses[0])
			}
		}
		deferred("at first")
		// What was allocated is what counts after a restart, too.
		b.stop()
		b.boot()
		b.settle(time.Minute)
		deferred("after a restart")
		b.store.drop("uid-b")
		b.settle(40 * time.Second)
		s := b.store.status("uid-a")
		if b.cpuOf("uid-a") != "1500m" || condition(s, v1.PodResizePending).Status != "" {
			t.Errorf("with room: %s %+v", b.cpuOf("uid-a"), s.Conditions)
		}
		if n := strings.Count(b.store.reasons("uid-a"), "ResizeDeferred"); n != 1 {
			t.Errorf("deferred was told %d times", n)
		}
		b.stop()
	})
}

// Room goes to the more important, then to the guaranteed, then to who waits the
// longest, whoever looks first.
func TestResizesWaitInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard(t)
		b.boot()
		burstable := func(p *v1.Pod) {
			p.Spec.Containers[0].Resources.Limits = nil
			p.Status.QOSClass = v1.PodQOSBurstable
		}
		important := func(p *v1.Pod) { p.Spec.Priority = new(int32(1000)) }
		pods := map[string]*v1.Pod{
			"long":       testPod("long", asking("100m", "8Mi"), burstable),
			"short":      testPod("short", asking("100m", "8Mi"), burstable),
			"guaranteed": testPod("guaranteed", asking("100m", "8Mi")),
			"important":  testPod("important", asking("100m", "8Mi"), burstable, important),
		}
		for _, p := range pods {
			b.store.put(p)
		}
		filler := testPod("filler", asking("1600m", "8Mi"))
		b.store.put(filler)
		b.settle(time.Second)
		for _, name := range []string{"long", "short", "guaranteed", "important"} {
			p := resized(pods[name], "400m", "8Mi")
			if name != "guaranteed" {
				p.Spec.Containers[0].Resources.Limits = nil
			}
			b.store.put(p)
			b.settle(2 * time.Second) // time stamps have seconds
		}
		for name := range pods {
			if s := b.store.status("uid-" + name); condition(s, v1.PodResizePending).Reason != v1.PodReasonDeferred {
				t.Fatalf("%s: %+v", name, s)
			}
		}
		for i, next := range []string{"important", "guaranteed", "long", "short"} {
			filler = resized(filler, []string{"1300m", "1", "700m", "400m"}[i], "8Mi")
			b.store.put(filler)
			b.settle(time.Second)
			for name := range pods {
				c := condition(b.store.status("uid-"+name), v1.PodResizePending)
				if name == next && (c.Status != "" || b.cpuOf("uid-"+name) != "400m") {
					t.Errorf("room %d: %s has %s, %+v", i, name, b.cpuOf("uid-"+name), c)
				}
			}
		}
		b.stop()
	})
}

func TestResizeByRestart(t *testing.T) {
	on(t, func(b *board) {
		pod := testPod("a", asking("500m", "64Mi"))
		pod.Spec.Containers[0].ResizePolicy = []v1.ContainerResizePolicy{{ResourceName: v1.ResourceMemory, RestartPolicy: v1.RestartContainer}}
		b.store.put(pod)
		b.settle(time.Second)
		b.store.put(resized(pod, "500m", "128Mi"))
		b.settle(time.Second)
		s := b.store.status("uid-a")
		if s.ContainerStatuses[0].RestartCount != 1 || b.rt.Config("main").Linux.Resources.MemoryLimitInBytes != 128<<20 {
			t.Errorf("%+v", s.ContainerStatuses[0])
		}
		if !b.store.said("Container main resize requires restart, will be restarted") || condition(s, v1.PodResizeInProgress).Status != "" {
			t.Errorf("%s %+v", b.store.reasons("uid-a"), s.Conditions)
		}
	})
}

func TestResizeThatFails(t *testing.T) {
	for name, c := range map[string]struct {
		prepare func(*board)
		memory  string
		text    string
	}{
		"the runtime refuses":     {func(b *board) { b.rt.Fail("UpdateContainerResources", errors.New("no such cgroup")) }, "128Mi", "no such cgroup"},
		"more is used than given": {func(b *board) { b.rt.Uses(50 << 20) }, "32Mi", `cannot decrease memory limits: attempting to set container "main" memory limit (33554432) below current usage (52428800)`},
	} {
		t.Run(name, func(t *testing.T) {
			on(t, func(b *board) {
				pod := testPod("a", asking("500m", "64Mi"))
				b.store.put(pod)
				b.settle(time.Second)
				c.prepare(b)
				b.store.put(resized(pod, "500m", c.memory))
				b.settle(time.Minute)
				s := b.store.status("uid-a")
				got := condition(s, v1.PodResizeInProgress)
				if got.Reason != v1.PodReasonError || !strings.Contains(got.Message, c.text) || got.ObservedGeneration != 2 {
					t.Errorf("%+v", got)
				}
				if s.ContainerStatuses[0].Resources.Limits.Memory().String() != "64Mi" || s.ContainerStatuses[0].RestartCount != 0 {
					t.Errorf("%+v", s.ContainerStatuses[0])
				}
				b.rt.Fail("UpdateContainerResources", nil)
				b.rt.Uses(0)
				b.settle(time.Minute)
				if s := b.store.status("uid-a"); s.ContainerStatuses[0].Resources.Limits.Memory().String() != c.memory ||
					condition(s, v1.PodResizeInProgress).Status != "" {
					t.Errorf("in the end: %+v %+v", s.ContainerStatuses[0], s.Conditions)
				}
				if n := strings.Count(b.store.reasons("uid-a"), "ResizeError"); n != 1 {
					t.Errorf("the error was told %d times", n)
				}
			})
		})
	}
}

// What isn't durable isn't acted on: after a power cut the node would not know
// what it promised.
func TestResizeIsPromisedFirst(t *testing.T) {
	on(t, func(b *board) {
		pod := testPod("a", asking("500m", "64Mi"))
		b.store.put(pod)
		b.settle(time.Second)
		b.rt.Calls()
		full := func(err error) {
			b.store.mu.Lock()
			defer b.store.mu.Unlock()
			b.store.broken = err
		}
		full(errors.New("no space left on device"))
		b.store.put(resized(pod, "1", "64Mi"))
		b.settle(time.Minute)
		if calls := b.rt.Calls(); len(calls) > 0 {
			t.Errorf("on a full disk: %v", calls)
		}
		full(nil)
		b.settle(time.Minute)
		if b.cpuOf("uid-a") != "1" {
			t.Errorf("with room again: %s", b.cpuOf("uid-a"))
		}
	})
}
