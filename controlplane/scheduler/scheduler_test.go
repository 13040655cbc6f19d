package scheduler

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/coracle-edge/coracle/controlplane/api/trace"
	"github.com/coracle-edge/coracle/controlplane/scheduler/queue"
)

// rig is a scheduler on a fake API server whose pods/binding works.
type rig struct {
	t      testing.TB
	client *fake.Clientset
	trace  *trace.Recorder
	binds  atomic.Int64
	events atomic.Int64
	writes atomic.Int64 // of conditions
	refuse atomic.Bool  // bindings fail
	stop   func()
	// wide, if set, carries the pods' changes: the tracker's own watch panics
	// when more than 100 wait to be read.
	wide *watch.FakeWatcher
}

func newRig(t testing.TB, objects ...runtime.Object) *rig {
	// NewClientset keeps managed fields, at 5 ms a write; nothing here applies server-side.
	r := &rig{t: t, client: fake.NewSimpleClientset(objects...), trace: trace.NewRecorder(0)}
	r.client.PrependReactor("create", "pods", func(a clienttesting.Action) (bool, runtime.Object, error) {
		if a.GetSubresource() != "binding" {
			return false, nil, nil
		}
		return true, nil, r.bind(a.(clienttesting.CreateAction).GetObject().(*v1.Binding))
	})
	r.client.PrependReactor("create", "events", func(clienttesting.Action) (bool, runtime.Object, error) {
		r.events.Add(1)
		return false, nil, nil
	})
	r.client.PrependReactor("patch", "pods", func(clienttesting.Action) (bool, runtime.Object, error) {
		r.writes.Add(1)
		return false, nil, nil
	})
	return r
}

func (r *rig) bind(b *v1.Binding) error {
	if r.refuse.Load() {
		return apierrors.NewInternalError(fmt.Errorf("etcdserver: request timed out"))
	}
	gvr := v1.SchemeGroupVersion.WithResource("pods")
	obj, err := r.client.Tracker().Get(gvr, b.Namespace, b.Name)
	if err != nil {
		return err
	}
	pod := obj.(*v1.Pod).DeepCopy()
	if pod.UID != b.UID {
		return apierrors.NewConflict(gvr.GroupResource(), b.Name, fmt.Errorf("uid"))
	}
	pod.Spec.NodeName = b.Target.Name
	r.binds.Add(1)
	if r.wide != nil {
		r.wide.Modify(pod)
	}
	return r.client.Tracker().Update(gvr, pod, b.Namespace)
}

func (r *rig) start(opts Options) *Scheduler {
	ctx, cancel := context.WithCancel(context.Background())
	factory := informers.NewSharedInformerFactory(r.client, 0)
	opts.Trace = r.trace
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	s := New(r.client, factory, opts)
	factory.Start(ctx.Done())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	r.stop = func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Errorf("Run: %v", err)
		}
		factory.Shutdown()
		r.stop = func() {}
	}
	r.t.Cleanup(func() { r.stop() })
	return s
}

func (r *rig) pod(name string) *v1.Pod {
	p, err := r.client.CoreV1().Pods("default").Get(context.Background(), name, metav1.GetOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
	return p
}

func (r *rig) create(pods ...*v1.Pod) {
	for _, p := range pods {
		if _, err := r.client.CoreV1().Pods(p.Namespace).Create(context.Background(), p, metav1.CreateOptions{}); err != nil {
			r.t.Fatal(err)
		}
	}
}

func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatalf("never: %s", what)
}

func makeNode(name, cpu, memory string) *v1.Node {
	return &v1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name), Labels: map[string]string{v1.LabelHostname: name}},
		Status: v1.NodeStatus{Allocatable: v1.ResourceList{
			v1.ResourceCPU: resource.MustParse(cpu), v1.ResourceMemory: resource.MustParse(memory), v1.ResourcePods: resource.MustParse("110"),
		}},
	}
}

func makePod(name, cpu string) *v1.Pod {
	p := &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID("uid-" + name)},
		Spec:       v1.PodSpec{SchedulerName: DefaultName, Containers: []v1.Container{{Name: "c", Image: "registry/hello:1"}}},
	}
	if cpu != "" {
		p.Spec.Containers[0].Resources.Requests = v1.ResourceList{v1.ResourceCPU: resource.MustParse(cpu)}
	}
	return p
}

func TestPodIsBoundAndTraced(t *testing.T) {
	r := newRig(t, makeNode("a", "1", "1Gi"), makeNode("b", "4", "4Gi"))
	r.start(Options{})
	r.create(makePod("p", "500m"))
	eventually(t, "bound", func() bool { return r.pod("p").Spec.NodeName != "" })
	if got := r.pod("p").Spec.NodeName; got != "b" {
		t.Errorf("on node %q, want b, which has more left", got)
	}
	steps := r.trace.Events("uid-p")
	var got []string
	for _, e := range steps {
		got = append(got, string(e.Step))
	}
	if s := strings.Join(got, " "); s != "queued filtered scored" {
		t.Errorf("trace: %s", s)
	}
	eventually(t, "Scheduled event", func() bool { return r.events.Load() == 1 })
	list, _ := r.client.EventsV1().Events("default").List(context.Background(), metav1.ListOptions{})
	if e := list.Items[0]; e.Reason != "Scheduled" || e.Note != "Successfully assigned default/p to b" || e.Type != v1.EventTypeNormal {
		t.Errorf("event %+v", e)
	}
}

func TestOtherSchedulersPodsAreLeftAlone(t *testing.T) {
	r := newRig(t, makeNode("a", "1", "1Gi"))
	s := r.start(Options{})
	other := makePod("other", "")
	other.Spec.SchedulerName = "another"
	r.create(other, makePod("ours", ""))
	eventually(t, "ours bound", func() bool { return r.pod("ours").Spec.NodeName != "" })
	if r.pod("other").Spec.NodeName != "" || s.queue.Stats() != (queue.Stats{}) {
		t.Errorf("took a pod of another scheduler: %+v", s.queue.Stats())
	}
}

func TestUnschedulableSaysWhyOnce(t *testing.T) {
	small, tainted, cordoned := makeNode("small", "1", "1Gi"), makeNode("away", "8", "8Gi"), makeNode("cordoned", "8", "8Gi")
	tainted.Spec.Taints = []v1.Taint{{Key: v1.TaintNodeUnreachable, Effect: v1.TaintEffectNoSchedule}}
	cordoned.Spec.Unschedulable = true
	r := newRig(t, small, tainted, cordoned)
	s := r.start(Options{})
	r.create(makePod("big", "4"))
	eventually(t, "condition and event", func() bool { return r.writes.Load() == 1 && r.events.Load() == 1 })
	want := "0/3 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint {node.kubernetes.io/unreachable: }, 1 node(s) were unschedulable. preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."
	c := scheduledCondition(r.pod("big"))
	if c == nil || c.Message != want || c.Reason != v1.PodReasonUnschedulable || c.Status != v1.ConditionFalse {
		t.Errorf("condition %+v\nwant %q", c, want)
	}
	// Tried again with the same outcome: nothing is written.
	node := makeNode("small", "2", "1Gi")
	if _, err := r.client.CoreV1().Nodes().Update(context.Background(), node, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	s.queue.Add(r.pod("big"), true)
	time.Sleep(1500 * time.Millisecond)
	eventually(t, "parked again", func() bool { return s.queue.Stats().Parked == 1 })
	if r.writes.Load() != 1 || r.events.Load() != 1 {
		t.Errorf("same outcome written again: %d conditions, %d events", r.writes.Load(), r.events.Load())
	}
	// The taint goes: the node is back, and takes the pod.
	tainted = makeNode("away", "8", "8Gi")
	if _, err := r.client.CoreV1().Nodes().Update(context.Background(), tainted, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "bound", func() bool { return r.pod("big").Spec.NodeName == "away" })
}

func TestNoNodes(t *testing.T) {
	r := newRig(t)
	r.start(Options{})
	r.create(makePod("p", ""))
	eventually(t, "reported", func() bool {
		c := scheduledCondition(r.pod("p"))
		return c != nil && c.Message == "no nodes available to schedule pods"
	})
	if _, err := r.client.CoreV1().Nodes().Create(context.Background(), makeNode("a", "1", "1Gi"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "bound", func() bool { return r.pod("p").Spec.NodeName == "a" })
}

func TestGatedPodWaits(t *testing.T) {
	r := newRig(t, makeNode("a", "1", "1Gi"))
	r.start(Options{})
	gated := makePod("gated", "")
	gated.Spec.SchedulingGates = []v1.PodSchedulingGate{{Name: "example.com/hold"}}
	r.create(gated, makePod("p", ""))
	eventually(t, "other bound", func() bool { return r.pod("p").Spec.NodeName != "" })
	if p := r.pod("gated"); p.Spec.NodeName != "" || scheduledCondition(p) != nil {
		t.Fatalf("gated pod was touched: %+v", p.Status)
	}
	open := gated.DeepCopy()
	open.Spec.SchedulingGates = nil
	if _, err := r.client.CoreV1().Pods("default").Update(context.Background(), open, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "bound", func() bool { return r.pod("gated").Spec.NodeName == "a" })
}

// A failed binding gives the room back, and the pod is tried again.
func TestBindingFails(t *testing.T) {
	r := newRig(t, makeNode("a", "1", "1Gi"))
	r.refuse.Store(true)
	s := r.start(Options{Queue: queue.Options{InitialBackoff: 50 * time.Millisecond}})
	r.create(makePod("p", "800m"))
	eventually(t, "error reported", func() bool {
		c := scheduledCondition(r.pod("p"))
		return c != nil && c.Reason == v1.PodReasonSchedulerError && strings.Contains(c.Message, "binding pod default/p to node a")
	})
	r.refuse.Store(false)
	eventually(t, "bound", func() bool { return r.pod("p").Spec.NodeName == "a" })
	eventually(t, "confirmed", func() bool { c := s.cache.Stats(); return c.Pods == 1 && c.Assumed == 0 })
}

// Pods are never given the same room twice while bindings are under way.
func TestRoomIsGivenOnce(t *testing.T) {
	r := newRig(t, makeNode("a", "1", "1Gi"), makeNode("b", "1", "1Gi"))
	r.start(Options{})
	for i := range 20 {
		r.create(makePod(fmt.Sprintf("p%d", i), "300m"))
	}
	eventually(t, "three on each", func() bool { return r.binds.Load() == 6 })
	time.Sleep(100 * time.Millisecond)
	on := map[string]int{}
	list, _ := r.client.CoreV1().Pods("default").List(context.Background(), metav1.ListOptions{})
	for _, p := range list.Items {
		on[p.Spec.NodeName]++
	}
	if on["a"] != 3 || on["b"] != 3 {
		t.Errorf("placed %v", on)
	}
	// One leaves: exactly one takes its place.
	for _, p := range list.Items {
		if p.Spec.NodeName == "a" {
			if err := r.client.CoreV1().Pods("default").Delete(context.Background(), p.Name, metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
			break
		}
	}
	eventually(t, "seventh bound", func() bool { return r.binds.Load() == 7 })
}

func TestPriorityGoesFirst(t *testing.T) {
	low, high := makePod("low", "800m"), makePod("high", "800m")
	prio := int32(1000)
	high.Spec.Priority = &prio
	r := newRig(t, makeNode("a", "1", "1Gi"), low, high)
	r.start(Options{})
	eventually(t, "bound", func() bool { return r.binds.Load() == 1 })
	if r.pod("high").Spec.NodeName != "a" {
		t.Error("the pod of lower priority was first")
	}
}

func withPriority(p *v1.Pod, priority int32) *v1.Pod {
	p.Spec.Priority = &priority
	return p
}

// Room is made for an important pod, gracefully, and kept from others meanwhile.
func TestPreemption(t *testing.T) {
	low, mid := withPriority(makePod("low", "600m"), 1), withPriority(makePod("mid", "300m"), 5)
	low.Spec.NodeName, mid.Spec.NodeName = "a", "a"
	r := newRig(t, makeNode("a", "1", "1Gi"), low, mid)
	pods := v1.SchemeGroupVersion.WithResource("pods")
	r.client.PrependReactor("delete", "pods", func(a clienttesting.Action) (bool, runtime.Object, error) {
		name := a.(clienttesting.DeleteAction).GetName()
		obj, err := r.client.Tracker().Get(pods, "default", name)
		if err != nil {
			return true, nil, err
		}
		p := obj.(*v1.Pod).DeepCopy()
		now := metav1.Now()
		p.DeletionTimestamp = &now // the node has yet to end it
		return true, nil, r.client.Tracker().Update(pods, p, "default")
	})
	r.start(Options{Queue: queue.Options{InitialBackoff: 50 * time.Millisecond, MaxBackoff: 50 * time.Millisecond}})
	r.create(withPriority(makePod("high", "500m"), 100))
	eventually(t, "victim deleted", func() bool { return r.pod("low").DeletionTimestamp != nil })
	eventually(t, "nominated", func() bool { return r.pod("high").Status.NominatedNodeName == "a" })
	if r.pod("mid").DeletionTimestamp != nil {
		t.Error("more pods were deleted than needed, or the wrong one")
	}
	c := scheduledCondition(r.pod("high"))
	if want := "0/1 nodes are available: 1 Insufficient cpu. preemption: 1 pod(s) are being deleted from node a."; c == nil || c.Message != want {
		t.Errorf("condition %+v\nwant %q", c, want)
	}
	var target *v1.PodCondition
	for _, c := range r.pod("low").Status.Conditions {
		if c.Type == v1.DisruptionTarget {
			target = &c
		}
	}
	if target == nil || target.Reason != v1.PodReasonPreemptionByScheduler {
		t.Errorf("victim's condition %+v", target)
	}
	// Once the victim is gone there is room for either of them, and for one only.
	r.create(withPriority(makePod("thief", "400m"), 1))
	if err := r.client.Tracker().Delete(pods, "default", "low"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "bound", func() bool { return r.pod("high").Spec.NodeName == "a" })
	time.Sleep(200 * time.Millisecond)
	if r.pod("thief").Spec.NodeName != "" {
		t.Error("the room was given to another")
	}
}

func TestPreemptionNever(t *testing.T) {
	low := withPriority(makePod("low", "600m"), 1)
	low.Spec.NodeName = "a"
	r := newRig(t, makeNode("a", "1", "1Gi"), low)
	r.start(Options{})
	polite := withPriority(makePod("polite", "500m"), 100)
	never := v1.PreemptNever
	polite.Spec.PreemptionPolicy = &never
	r.create(polite)
	eventually(t, "reported", func() bool {
		c := scheduledCondition(r.pod("polite"))
		return c != nil && strings.HasSuffix(c.Message, "preemption: not eligible due to preemptionPolicy=Never.")
	})
	if r.pod("low").DeletionTimestamp != nil {
		t.Error("deleted all the same")
	}
}

// BenchmarkSchedule places 1000 pods on 100 nodes, bindings through a fake API
// server included.
func BenchmarkSchedule(b *testing.B) {
	const pods, nodes = 1000, 100
	for b.Loop() {
		b.StopTimer()
		objects := make([]runtime.Object, 0, nodes)
		for i := range nodes {
			n := makeNode(fmt.Sprintf("n%03d", i), "4", "4Gi")
			for j := range 20 {
				n.Status.Images = append(n.Status.Images, v1.ContainerImage{Names: []string{fmt.Sprintf("registry/image%d:1", j)}, SizeBytes: 50 << 20})
			}
			objects = append(objects, n)
		}
		for i := range pods {
			objects = append(objects, makePod(fmt.Sprintf("p%04d", i), "100m"))
		}
		r := newRig(b, objects...)
		r.wide = watch.NewFakeWithChanSize(2*pods, false)
		r.client.PrependWatchReactor("pods", func(clienttesting.Action) (bool, watch.Interface, error) { return true, r.wide, nil })
		r.client.PrependReactor("create", "events", func(clienttesting.Action) (bool, runtime.Object, error) {
			return true, &eventsv1.Event{}, nil
		})
		b.StartTimer()
		start := time.Now()
		r.start(Options{})
		for r.binds.Load() < pods {
			time.Sleep(time.Millisecond)
		}
		b.ReportMetric(pods/time.Since(start).Seconds(), "pods/s")
		b.StopTimer()
		r.stop()
		b.StartTimer()
	}
}
