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
	resourceapi "k8s.io/api/resource/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/coracle-edge/coracle/controlplane/api/trace"
	"github.com/coracle-edge/coracle/controlplane/scheduler/framework"
	"github.com/coracle-edge/coracle/controlplane/scheduler/plugins"
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

// keeper is a plugin that notes what it is asked to keep.
type keeper struct{ said chan string }

func (keeper) Name() string { return "Keeper" }
func (keeper) Filter(context.Context, *framework.Pod, *framework.NodeInfo) *framework.Status {
	return nil
}
func (k keeper) Reserve(context.Context, *framework.Pod, *framework.NodeInfo) *framework.Status {
	k.said <- "reserve"
	return nil
}
func (k keeper) Unreserve(context.Context, *framework.Pod, string) { k.said <- "unreserve" }
func (k keeper) PreBind(context.Context, *framework.Pod, string) error {
	k.said <- "prebind"
	return nil
}
func (k keeper) PostBind(*framework.Pod) { k.said <- "postbind" }

// A reserver hears how the binding ended, either way.
func TestReserverHearsOfTheBinding(t *testing.T) {
	r := newRig(t, makeNode("a", "1", "1Gi"))
	k := keeper{make(chan string, 100)}
	r.refuse.Store(true)
	r.start(Options{Queue: queue.Options{InitialBackoff: 10 * time.Millisecond, MaxBackoff: 10 * time.Millisecond}, Plugins: &plugins.Set{Filters: []framework.Filter{k}}})
	r.create(makePod("p", ""))
	for _, want := range []string{"reserve", "prebind", "unreserve"} {
		if got := <-k.said; got != want {
			t.Fatalf("heard %s, want %s", got, want)
		}
	}
	r.refuse.Store(false)
	eventually(t, "postbind after a binding", func() bool {
		select {
		case got := <-k.said:
			return got == "postbind"
		default:
			return false
		}
	})
}

// watched says whether objects of a kind were ever asked for.
func (r *rig) watched(kind string) bool {
	for _, a := range r.client.Actions() {
		if a.GetVerb() == "list" && a.GetResource().Resource == kind {
			return true
		}
	}
	return false
}

// Who uses no devices pays for no watch of them.
func TestDevicesAreWatchedOnceAskedFor(t *testing.T) {
	name, one := "a", "1"
	class := &resourceapi.DeviceClass{ObjectMeta: metav1.ObjectMeta{Name: "npu"}}
	slice := &resourceapi.ResourceSlice{
		ObjectMeta: metav1.ObjectMeta{Name: "a-npu"},
		Spec: resourceapi.ResourceSliceSpec{
			Driver: "npu.example.com", NodeName: &name, Pool: resourceapi.ResourcePool{Name: name, ResourceSliceCount: 1},
			Devices: []resourceapi.Device{{Name: "npu-0"}},
		},
	}
	claim := &resourceapi.ResourceClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "mine", UID: "uid-mine"},
		Spec: resourceapi.ResourceClaimSpec{Devices: resourceapi.DeviceClaim{Requests: []resourceapi.DeviceRequest{{
			Name: "npu", Exactly: &resourceapi.ExactDeviceRequest{DeviceClassName: "npu", AllocationMode: resourceapi.DeviceAllocationModeExactCount, Count: 1},
		}}}},
	}
	node := makeNode("a", "4", "4Gi")
	node.Status.Allocatable["example.com/gpio"] = resource.MustParse(one)
	r := newRig(t, node, class, slice, claim)
	r.start(Options{})
	r.create(makePod("plain", "100m"))
	eventually(t, "plain bound", func() bool { return r.pod("plain").Spec.NodeName != "" })
	for _, kind := range []string{"deviceclasses", "resourceclaims", "resourceslices"} {
		if r.watched(kind) {
			t.Errorf("%s are watched for a pod that asks for no device", kind)
		}
	}
	// A resource may be one of a class, which only the classes can say.
	extended := makePod("extended", "")
	extended.Spec.Containers[0].Resources.Requests = v1.ResourceList{"example.com/gpio": resource.MustParse(one)}
	r.create(extended)
	eventually(t, "extended bound", func() bool { return r.pod("extended").Spec.NodeName != "" })
	if r.watched("resourceclaims") || r.watched("resourceslices") {
		t.Error("claims and slices are watched for a resource that no class stands behind")
	}
	user := makePod("user", "")
	user.Spec.ResourceClaims = []v1.PodResourceClaim{{Name: "npu", ResourceClaimName: &claim.Name}}
	r.create(user)
	eventually(t, "user bound", func() bool { return r.pod("user").Spec.NodeName != "" })
	if r.writes.Load() != 0 {
		t.Error("a pod was told that it can't be scheduled while the watches began")
	}
}

func withPriority(p *v1.Pod, priority int32) *v1.Pod {
	p.Spec.Priority = &priority
	return p
}

// endSlowly has deleted pods stay until somebody takes them out of the tracker.
func (r *rig) endSlowly() schema.GroupVersionResource {
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
	return pods
}

// Every pod gets room of its own: what is being made for one isn't counted for
// the next, and nobody makes more than once.
func TestPreemptionForMany(t *testing.T) {
	objects := []runtime.Object{makeNode("a", "4", "1Gi"), makeNode("b", "4", "1Gi")}
	var low []string
	for _, node := range []string{"a", "b"} {
		for i := range 4 {
			p := withPriority(makePod(fmt.Sprintf("low-%s-%d", node, i), "1"), 1)
			p.Spec.NodeName = node
			objects, low = append(objects, p), append(low, p.Name)
		}
	}
	r := newRig(t, objects...)
	r.endSlowly()
	r.start(Options{Queue: queue.Options{InitialBackoff: 20 * time.Millisecond, MaxBackoff: 20 * time.Millisecond}})
	for i := range 5 {
		r.create(withPriority(makePod(fmt.Sprintf("mid-%d", i), "1"), 5))
	}
	leaving := func() (n int) {
		for _, name := range low {
			if r.pod(name).DeletionTimestamp != nil {
				n++
			}
		}
		return n
	}
	eventually(t, "room for five", func() bool { return leaving() == 5 })
	for i := range 5 {
		eventually(t, "nominated", func() bool { return r.pod(fmt.Sprintf("mid-%d", i)).Status.NominatedNodeName != "" })
	}
	time.Sleep(200 * time.Millisecond) // ten tries of each
	if n := leaving(); n != 5 {
		t.Errorf("%d pods were made to leave for five", n)
	}
}

// Room is made for an important pod, gracefully, and kept from others meanwhile.
func TestPreemption(t *testing.T) {
	low, mid := withPriority(makePod("low", "600m"), 1), withPriority(makePod("mid", "300m"), 5)
	low.Spec.NodeName, mid.Spec.NodeName = "a", "a"
	r := newRig(t, makeNode("a", "1", "1Gi"), low, mid)
	pods := r.endSlowly()
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

// A claim that one pod may use is waited for; who is more important gets it, and on
// the node of the volume.
func TestAClaimOfOneUserIsWaitedForOrTaken(t *testing.T) {
	user := func(name string, priority int32) *v1.Pod {
		p := withPriority(makePod(name, "100m"), priority)
		p.Spec.Volumes = []v1.Volume{{Name: "v", VolumeSource: v1.VolumeSource{PersistentVolumeClaim: &v1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}}}}
		return p
	}
	claim := &v1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "data", UID: "c", Annotations: map[string]string{"pv.kubernetes.io/bind-completed": "yes"}},
		Spec: v1.PersistentVolumeClaimSpec{VolumeName: "disk", AccessModes: []v1.PersistentVolumeAccessMode{v1.ReadWriteOncePod}}}
	volume := &v1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "disk"}, Spec: v1.PersistentVolumeSpec{AccessModes: claim.Spec.AccessModes}}
	low, other := user("low", 5), withPriority(makePod("other", "100m"), 1)
	low.Spec.NodeName, other.Spec.NodeName = "a", "a"
	r := newRig(t, makeNode("a", "1", "1Gi"), makeNode("b", "1", "1Gi"), claim, volume, low, other)
	pods := r.endSlowly()
	r.start(Options{Queue: queue.Options{InitialBackoff: 20 * time.Millisecond, MaxBackoff: 20 * time.Millisecond}})
	const taken = "0/2 nodes are available: 2 node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by another pod. preemption: 0/2 nodes are available: 2 No preemption victims found for incoming pod."
	r.create(user("equal", 5))
	eventually(t, "told why it waits", func() bool {
		c := scheduledCondition(r.pod("equal"))
		return c != nil && c.Message == taken
	})
	if r.pod("low").DeletionTimestamp != nil {
		t.Fatal("a pod of the same priority was made to leave")
	}
	r.create(user("high", 100))
	eventually(t, "the user was made to leave", func() bool { return r.pod("low").DeletionTimestamp != nil })
	eventually(t, "nominated", func() bool { return r.pod("high").Status.NominatedNodeName == "a" })
	if r.pod("other").DeletionTimestamp != nil {
		t.Error("a pod that doesn't use the claim was made to leave")
	}
	if err := r.client.Tracker().Delete(pods, "default", "low"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "bound", func() bool { return r.pod("high").Spec.NodeName != "" })
	if r.pod("equal").Spec.NodeName != "" {
		t.Error("two pods have the claim")
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
