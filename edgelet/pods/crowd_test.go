package pods

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// bigNode has room for any number of pods.
type bigNode struct{ fakeNode }

func (bigNode) Allocatable() v1.ResourceList {
	return v1.ResourceList{"cpu": resource.MustParse("4"), "memory": resource.MustParse("4Gi"), "pods": resource.MustParse("2000")}
}

// A thousand pods ordered at once: all of them run in the end, no more than the
// slots are being started at a time, and what each one costs while it runs is a
// few KiB and no goroutine.
func TestThousandPods(t *testing.T) {
	const n = 1000
	synctest.Test(t, func(t *testing.T) {
		b := newBoard(t)
		b.node = bigNode{}
		b.boot()
		var before, after runtime.MemStats
		synctest.Wait()
		runtime.GC()
		runtime.ReadMemStats(&before)
		idle := runtime.NumGoroutine()
		b.rt.Slow("RunPodSandbox", 100*time.Millisecond)
		for i := range n {
			b.store.putQuietly(testPod(fmt.Sprint("p", i)))
		}
		b.store.kick()
		b.settle(2 * time.Minute)
		for i := range n {
			if s := b.store.status(fmt.Sprint("uid-p", i)); s.Phase != v1.PodRunning {
				t.Fatalf("pod %d: %+v", i, s)
			}
		}
		if most, slots := b.rt.Most("RunPodSandbox"), b.m.cfg.Parallel; most > slots || slots > 16 {
			t.Errorf("%d sandboxes were being made at the same time, there are %d slots", most, slots)
		}
		if per := float64(runtime.NumGoroutine()-idle) / n; per > 0.05 {
			t.Errorf("%.2f goroutines for each running pod", per)
		}
		b.store.forgetLog()
		runtime.GC()
		runtime.ReadMemStats(&after)
		if per := (int64(after.HeapAlloc) - int64(before.HeapAlloc) + int64(after.StackInuse) - int64(before.StackInuse)) / n; per > 32<<10 {
			t.Errorf("%d bytes for each running pod, the fake runtime's included", per)
		} else {
			t.Logf("%d bytes for each pod, the fake runtime's and the fake store's included", per)
		}
		b.stop()
	})
}

// A runtime that never returns holds up neither pods of the other kind nor the
// end of the agent, and the pod says what it waits for.
func TestHungRuntime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard(t)
		b.node = bigNode{}
		b.boot()
		b.rt.HangIf("RunPodSandbox", func(pod string) bool { return strings.HasPrefix(pod, "oci") })
		for i := range 50 {
			p := testPod(fmt.Sprint("oci", i))
			p.Spec.Containers[0].Image = "oci:1"
			b.store.putQuietly(p)
		}
		b.store.kick()
		b.settle(time.Second)
		b.store.put(testPod("wasm"))
		b.settle(time.Second)
		if len(b.rt.Running("uid-wasm")) != 1 {
			t.Error("a Wasm pod waits for containerd")
		}
		b.settle(15 * time.Second)
		said := 0
		for i := range 50 {
			for _, c := range b.store.status(fmt.Sprint("uid-oci", i)).ContainerStatuses {
				if w := c.State.Waiting; w != nil && strings.Contains(w.Message, "did not answer to RunPodSandbox") {
					said++
				}
			}
		}
		if said != cap(b.m.slots[0]) {
			t.Errorf("%d pods say that they wait for the runtime, %d do", said, cap(b.m.slots[0]))
		}
		b.settle(10 * time.Minute)
		if !b.store.said("Failed to create pod sandbox: context deadline exceeded") {
			t.Error("the call has no deadline")
		}
		// Nor does a list that hangs keep new pods from being started.
		b.rt.Hang("ListContainers", true)
		b.settle(5 * time.Minute)
		b.store.put(testPod("later"))
		b.settle(time.Second)
		if len(b.rt.Running("uid-later")) != 1 {
			t.Error("a new pod waits for a list of all containers")
		}
		b.rt.Hang("ListContainers", false)
		b.rt.HangIf("RunPodSandbox", nil)
		b.settle(20 * time.Minute)
		for i := range 50 {
			if s := b.store.status(fmt.Sprint("uid-oci", i)); s.Phase != v1.PodRunning {
				t.Errorf("when it is back: %s", s.Phase)
			}
		}
		b.stop()
	})
}
