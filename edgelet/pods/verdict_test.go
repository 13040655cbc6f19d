package pods

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/edgelet/devices"
	"github.com/coracle-edge/coracle/edgelet/images"
	"github.com/coracle-edge/coracle/edgelet/pods/fakecri"
	"github.com/coracle-edge/coracle/edgelet/volumes"
)

func priority(n int32) podOption { return func(p *v1.Pod) { p.Spec.Priority = &n } }

func asks(cpu, memory string) podOption {
	return func(p *v1.Pod) {
		p.Spec.Containers[0].Resources.Requests = v1.ResourceList{"cpu": resource.MustParse(cpu), "memory": resource.MustParse(memory)}
	}
}

func (s *memStore) putStatic(pod *v1.Pod) Object {
	s.put(pod)
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.pods[string(pod.UID)]
	delete(s.pods, o.UID)
	o.Static = true
	return o
}

func TestAVerdictEndsAPodForGood(t *testing.T) {
	on(t, func(b *board) {
		b.rt.Plan("main", fakecri.Plan{RunFor: -1, IgnoreTerm: true})
		b.store.put(testPod("p"))
		synctest.Wait()
		grace := int64(5)
		began := time.Now()
		if err := b.m.End(b.t.Context(), "uid-p", Verdict{Reason: "Terminated", Message: "the node goes down", Disruption: "why", Grace: &grace}); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took < 5*time.Second || took > 6*time.Second {
			t.Errorf("it took %s: the verdict's grace counts, not the pod's", took)
		}
		check := func(when string) {
			t.Helper()
			s := b.store.status("uid-p")
			if c := condition(s, v1.DisruptionTarget); s.Phase != v1.PodFailed || s.Reason != "Terminated" || s.Message != "the node goes down" ||
				c.Status != v1.ConditionTrue || c.Reason != "TerminationByKubelet" || c.Message != "why" || c.LastTransitionTime.IsZero() {
				t.Errorf("%s: %+v", when, s)
			}
			if len(b.rt.Running("uid-p")) > 0 {
				t.Errorf("%s: it runs", when)
			}
		}
		check("at once")
		b.stop()
		b.rt.Reboot(true)
		b.boot()
		b.settle(time.Minute)
		check("after a reboot")
		if err := b.m.End(b.t.Context(), "uid-p", Verdict{}); err != nil {
			t.Error("a pod that is over:", err)
		}
		if err := b.m.End(b.t.Context(), "nobody", Verdict{}); err != nil {
			t.Error("a pod that isn't here:", err)
		}
	})
}

func TestAPodThatResumes(t *testing.T) {
	on(t, func(b *board) {
		unmounted := &notedMounts{below: map[string]int{}}
		b.stop()
		b.more = func(c *Config) {
			c.Volumes = volumes.New(volumes.Config{Dir: b.dir + "/pods", Objects: b.store, Mounts: unmounted})
		}
		b.boot()
		b.store.put(testPod("p"))
		b.m.SetStatic([]Object{b.store.putStatic(testPod("s"))})
		synctest.Wait()
		reports := len(b.store.told())
		for _, p := range b.m.Active() {
			if p.Static != (p.Name == "s") || p.Grace != 30 {
				t.Errorf("%+v", p)
			}
			if err := b.m.End(b.t.Context(), p.UID, Verdict{Reason: "Terminated", Resume: true}); err != nil {
				t.Fatal(err)
			}
		}
		b.settle(time.Hour)
		if n := len(b.rt.Running("uid-p")) + len(b.rt.Running("uid-s")); n > 0 || len(b.store.told()) != reports {
			t.Fatalf("%d run, %d reports", n, len(b.store.told())-reports)
		}
		// What has power no longer shouldn't have anything mounted.
		for _, uid := range []string{"uid-p", "uid-s"} {
			if unmounted.count(filepath.Join(b.dir, "pods", uid)) == 0 {
				t.Errorf("the volumes of %s are mounted: %v", uid, unmounted.below)
			}
		}
		b.m.Resume()
		b.settle(time.Minute)
		if s := b.store.status("uid-p"); s.Phase != v1.PodRunning || s.ContainerStatuses[0].RestartCount != 1 || len(b.rt.Running("uid-s")) != 1 {
			t.Errorf("%+v", s)
		}
	})
}

// notedMounts counts what is unmounted.
type notedMounts struct {
	noMounts
	mu    sync.Mutex
	below map[string]int
}

func (n *notedMounts) UnmountBelow(path string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.below[path]++
	return nil
}

func (n *notedMounts) count(path string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.below[path]
}

// A deletion that comes while a verdict is carried out ends both.
func TestADeletedPodsVerdict(t *testing.T) {
	on(t, func(b *board) {
		b.rt.Plan("main", fakecri.Plan{RunFor: -1, IgnoreTerm: true})
		pod := testPod("p")
		b.store.put(pod)
		synctest.Wait()
		done := make(chan error, 1)
		go func() { done <- b.m.End(context.Background(), "uid-p", Verdict{Reason: "x"}) }()
		b.settle(time.Second)
		b.store.put(deleted(pod, 3))
		b.settle(10 * time.Second)
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		default:
			t.Error("End still waits")
		}
		if !b.store.gone("uid-p") {
			t.Error("it is still here")
		}
	})
}

func TestACriticalPodFindsRoom(t *testing.T) {
	on(t, func(b *board) {
		// 2 CPUs, 512Mi, 5 pods.
		b.store.put(testPod("best"))
		b.store.put(testPod("small", asks("200m", "100Mi")))
		b.store.put(testPod("large", asks("900m", "200Mi")))
		sure := testPod("sure", asks("500m", "100Mi"))
		sure.Spec.Containers[0].Resources.Limits = sure.Spec.Containers[0].Resources.Requests
		b.store.put(sure)
		synctest.Wait()
		b.store.put(testPod("plain", asks("1", "10Mi"), priority(1000)))
		b.settle(time.Minute)
		if s := b.store.status("uid-plain"); s.Reason != "OutOfcpu" || s.Message != "Pod was rejected: Node didn't have enough resource: cpu, requested: 1000, used: 1600, capacity: 2000" {
			t.Errorf("%s: %s", s.Reason, s.Message)
		}
		b.store.put(testPod("critical", asks("1", "10Mi"), priority(2000000000)))
		b.settle(time.Minute)
		for name, want := range map[string]v1.PodPhase{"best": v1.PodRunning, "small": v1.PodRunning, "large": v1.PodFailed, "sure": v1.PodRunning, "critical": v1.PodRunning} {
			if s := b.store.status("uid-" + name); s.Phase != want {
				t.Errorf("%s is %s: %s %s", name, s.Phase, s.Reason, s.Message)
			}
		}
		s := b.store.status("uid-large")
		if c := condition(s, v1.DisruptionTarget); s.Reason != "Preempting" || s.Message != "Preempted in order to admit critical pod" ||
			c.Message != "Pod was preempted by Kubelet to accommodate a critical pod." || c.Reason != "TerminationByKubelet" {
			t.Errorf("%+v", s)
		}
		if got := b.store.reasons("uid-large"); !strings.Contains(got, "Preempting") {
			t.Errorf("events %s", got)
		}
		// More than everybody together has.
		b.store.put(testPod("huge", asks("5", "10Mi"), priority(2000000000)))
		b.settle(time.Minute)
		if s := b.store.status("uid-huge"); s.Reason != "UnexpectedAdmissionError" || !strings.Contains(s.Message, "no set of running pods found to reclaim resources: [(res: cpu, q: 4000), ]") {
			t.Errorf("%s: %s", s.Reason, s.Message)
		}
		// Room alone doesn't help.
		b.store.put(testPod("elsewhere", asks("2", "10Mi"), priority(2000000000), func(p *v1.Pod) { p.Spec.NodeSelector = map[string]string{"zone": "b"} }))
		b.settle(time.Minute)
		if s := b.store.status("uid-elsewhere"); s.Reason != "OutOfcpu" || b.store.status("uid-sure").Phase != v1.PodRunning {
			t.Errorf("%s: %s", s.Reason, s.Message)
		}
	})
}

// slowNode takes its time, so that others come between.
type slowNode struct{ fakeNode }

func (n slowNode) Labels() map[string]string {
	time.Sleep(5 * time.Millisecond)
	return n.fakeNode.Labels()
}

// Pods that come at once don't all get the last of it.
func TestAdmissionIsOneAfterTheOther(t *testing.T) {
	b := newBoard(t)
	m, err := New(Config{Runtime: b.rt, Store: b.store, Images: images.New(images.Config{Service: b.rt}),
		Volumes: volumes.New(volumes.Config{Dir: b.dir, Objects: b.store}), Node: slowNode{}, LogsDir: b.dir})
	if err != nil {
		t.Fatal(err)
	}
	var taken atomic.Int32
	var wg sync.WaitGroup
	for i := range 4 {
		pod := testPod(fmt.Sprint("p", i), asks("1", "1Mi"))
		w := newWorker(m, pod.Namespace, pod.Name, string(pod.UID))
		m.mu.Lock()
		m.workers[w.uid] = w
		m.mu.Unlock()
		wg.Go(func() {
			if _, _, ok := m.admit(t.Context(), w, pod); ok {
				taken.Add(1)
			}
		})
	}
	wg.Wait()
	if taken.Load() != 2 {
		t.Errorf("%d pods of 1 CPU were taken by a node of 2", taken.Load())
	}
}

// A label that an administrator gave the node isn't known here: who bound the pod
// knew it.
func TestLabelsThatOnlyTheClusterKnows(t *testing.T) {
	on(t, func(b *board) {
		selector := func(k, v string) podOption {
			return func(p *v1.Pod) {
				p.Spec.NodeSelector = map[string]string{k: v}
				p.Spec.Affinity = &v1.Affinity{NodeAffinity: &v1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &v1.NodeSelector{NodeSelectorTerms: []v1.NodeSelectorTerm{
					{MatchExpressions: []v1.NodeSelectorRequirement{{Key: k, Operator: v1.NodeSelectorOpIn, Values: []string{v}}}}}}}}
			}
		}
		b.store.put(testPod("admin", selector("admins", "label")))
		b.store.put(testPod("own", selector("zone", "a")))
		b.store.put(testPod("wrong", selector("zone", "b")))
		static := b.store.putStatic(testPod("static", selector("admins", "label")))
		b.m.SetStatic([]Object{static})
		b.settle(time.Minute)
		for name, want := range map[string]v1.PodPhase{"admin": v1.PodRunning, "own": v1.PodRunning, "wrong": v1.PodFailed, "static": v1.PodFailed} {
			if s := b.store.status("uid-" + name); s.Phase != want {
				t.Errorf("%s is %s: %s", name, s.Phase, s.Message)
			}
		}
	})
}

func TestGatesRefuse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard(t)
		closed := false
		b.more = func(c *Config) {
			c.Gates = []Gate{func(*v1.Pod) (string, string) { return "", "" }, func(*v1.Pod) (string, string) {
				if closed {
					return "NodeShutdown", "Pod was rejected as the node is shutting down."
				}
				return "", ""
			}}
		}
		b.boot()
		b.store.put(testPod("before"))
		b.settle(time.Second)
		closed = true
		b.store.put(testPod("after"))
		b.settle(time.Minute)
		if s := b.store.status("uid-after"); s.Phase != v1.PodFailed || s.Reason != "NodeShutdown" || s.Message != "Pod was rejected: Pod was rejected as the node is shutting down." {
			t.Errorf("%+v", s)
		}
		if b.store.status("uid-before").Phase != v1.PodRunning {
			t.Error("what ran was refused")
		}
		b.stop()
	})
}

// hand is a device manager that has two devices and no plugin.
type hand struct {
	mu    sync.Mutex
	held  map[string]bool
	given devices.Given
	err   error
}

func (h *hand) Begin(*v1.Pod) *devices.Allocation { return nil }

func (h *hand) Allocate(_ context.Context, pod *v1.Pod) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.err == nil && !pod.Spec.HostNetwork {
		h.held[string(pod.UID)] = true
	}
	return h.err
}
func (h *hand) Container(_ context.Context, uid, _ string) (*devices.Given, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.held[uid] {
		return nil, nil
	}
	given := h.given
	return &given, nil
}
func (h *hand) Health(uid, _ string) []v1.ResourceStatus {
	if !h.holds(uid) {
		return nil
	}
	return []v1.ResourceStatus{{Name: "example.org/camera", Resources: []v1.ResourceHealth{{ResourceID: "a", Health: v1.ResourceHealthStatusHealthy}}}}
}

func (h *hand) Free(uid string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.held, uid)
	return nil
}

func (h *hand) holds(uid string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.held[uid]
}

// change what is given from now on.
func (h *hand) change(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f()
}

func TestDevicesOfAContainer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard(t)
		h := &hand{held: map[string]bool{}, given: devices.Given{Resources: []string{"example.org/camera"}, Annotations: map[string]string{"a": "1", labelContainerName: "x"},
			Env:        []*runtimeapi.KeyValue{{Key: "CAMERA", Value: []byte("a")}, {Key: "OWN", Value: []byte("plugin")}},
			Mounts:     []*runtimeapi.Mount{{ContainerPath: "/lib/camera", HostPath: "/opt"}, {ContainerPath: "/dev/termination-log", HostPath: "/opt"}},
			Devices:    []*runtimeapi.Device{{ContainerPath: "/dev/video0", HostPath: "/dev/null", Permissions: "rw"}},
			CDIDevices: []*runtimeapi.CDIDevice{{Name: "example.org/camera=a"}}}}
		b.more = func(c *Config) { c.Devices = h }
		b.boot()
		oci := testPod("p", func(p *v1.Pod) {
			p.Spec.Containers[0].Image = "oci:1"
			p.Spec.Containers[0].Env = []v1.EnvVar{{Name: "OWN", Value: "pod"}}
		})
		b.store.put(oci)
		b.settle(time.Second)
		c := b.rt.Config("main")
		env := map[string]string{}
		for _, e := range c.Envs {
			env[e.Key] += string(e.Value)
		}
		paths := map[string]string{}
		for _, m := range c.Mounts {
			paths[m.ContainerPath] += m.HostPath
		}
		if env["CAMERA"] != "a" || env["OWN"] != "pod" || paths["/lib/camera"] != "/opt" || paths["/dev/termination-log"] == "" || strings.Contains(paths["/dev/termination-log"], "/opt") ||
			len(c.Devices) != 1 || len(c.CDIDevices) != 1 || c.Annotations["a"] != "1" || c.Labels[labelContainerName] != "main" {
			t.Errorf("%+v", c)
		}
		if got := b.store.status("uid-p").ContainerStatuses[0].AllocatedResourcesStatus; len(got) != 1 || got[0].Resources[0].ResourceID != "a" {
			t.Errorf("health %+v", got)
		}
		b.store.put(deleted(oci, 1))
		b.settle(time.Minute)
		if h.holds("uid-p") {
			t.Error("a pod that is gone holds its devices")
		}
		// A module can't open device nodes.
		b.store.put(testPod("w"))
		b.settle(time.Second)
		if s := b.store.status("uid-w").ContainerStatuses[0].State.Waiting; s == nil || s.Reason != "CreateContainerConfigError" || !strings.Contains(s.Message, `container "main" is a Wasm module and has example.org/camera`) {
			t.Errorf("%+v", s)
		}
		h.change(func() { h.given.Devices, h.given.CDIDevices = nil, nil })
		b.settle(time.Hour)
		if s := b.store.status("uid-w"); s.Phase != v1.PodRunning {
			t.Errorf("mounts alone are well: %+v", s)
		}
		if err := b.m.End(t.Context(), "uid-w", Verdict{Reason: "x"}); err != nil || h.holds("uid-w") {
			t.Errorf("%v, or a pod that is over holds its devices", err)
		}
		h.change(func() {
			h.err = errors.New("requested number of devices unavailable for example.org/camera. Requested: 3, Available: 2")
		})
		b.store.put(testPod("q"))
		b.settle(time.Second)
		if s := b.store.status("uid-q"); s.Reason != "UnexpectedAdmissionError" || s.Message != "Pod was rejected: Allocate failed due to "+h.err.Error()+", which is unexpected" {
			t.Errorf("%s: %s", s.Reason, s.Message)
		}
		// What is refused for another reason holds nothing.
		h.change(func() { h.err = nil })
		b.store.put(testPod("r", asks("50", "1Mi")))
		b.settle(time.Second)
		if h.holds("uid-r") {
			t.Error("it holds its devices")
		}
		b.stop()
	})
}
