package devices_test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr"
	v1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/controller/resourceclaim"

	"github.com/coracle-edge/coracle/controlplane/scheduler"
	"github.com/coracle-edge/coracle/controlplane/scheduler/queue"
	"github.com/coracle-edge/coracle/test/lab/realapi"
)

// The tests of this file's package run the scheduler, with the rights that it has,
// against the real API server on a real etcd, beside upstream's controller of
// resource claims. Nodes, slices and ends of pods are played by the test.

var (
	server *realapi.Server
	admin  kubernetes.Interface
)

func TestMain(m *testing.M) {
	klog.SetLogger(logr.Discard())
	dir, err := os.MkdirTemp("", "coracle-devices-*")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	stop, err := startServer(dir)
	code := 1
	if err != nil {
		fmt.Fprintln(os.Stderr, "start the API server:", err)
	} else {
		code = m.Run()
		stop()
	}
	os.RemoveAll(dir)
	os.Exit(code)
}

func startServer(dir string) (stop func(), err error) {
	if server, err = realapi.Start(dir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			server.Stop()
		}
	}()
	if admin, err = kubernetes.NewForConfig(unthrottled(server.ClientConfig("test", "system:masters"))); err != nil {
		return nil, err
	}
	factory := informers.NewSharedInformerFactory(admin, 0)
	controller, err := resourceclaim.NewController(logr.Discard(), resourceclaim.Features{AdminAccess: true, PrioritizedList: true}, admin,
		factory.Core().V1().Pods(), factory.Scheduling().V1alpha2().PodGroups(),
		factory.Resource().V1().ResourceClaims(), factory.Resource().V1().ResourceClaimTemplates())
	if err != nil {
		return nil, err
	}
	server.Go(func(ctx context.Context) {
		factory.StartWithContext(ctx)
		controller.Run(ctx, 2)
		factory.Shutdown()
	})
	return server.Stop, nil
}

func unthrottled(c *rest.Config) *rest.Config {
	c.QPS = -1
	return c
}

// schedule runs a scheduler until the test ends or stop is called. wrap may change
// its way to the API server. Nothing that it does waits for its patience to end.
func schedule(t *testing.T, wrap func(http.RoundTripper) http.RoundTripper) (stop func()) {
	t.Helper()
	return scheduleWith(t, wrap, time.Hour)
}

func scheduleWith(t *testing.T, wrap func(http.RoundTripper) http.RoundTripper, patience time.Duration) (stop func()) {
	t.Helper()
	config := unthrottled(server.ClientConfig("system:kube-scheduler"))
	if wrap != nil {
		config.Wrap(wrap)
	}
	client, err := kubernetes.NewForConfig(config)
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	factory := informers.NewSharedInformerFactory(admin, 0) // in the control plane the API server's own
	s := scheduler.New(client, factory, scheduler.Options{
		Queue: queue.Options{InitialBackoff: 50 * time.Millisecond, MaxBackoff: 200 * time.Millisecond}, Patience: patience,
	})
	factory.StartWithContext(ctx)
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("scheduler: %v", err)
		}
		factory.Shutdown()
	})
	t.Cleanup(stop)
	return stop
}

// scene is one test's namespace, nodes, driver and class, all of one name.
type scene struct {
	*testing.T
	ns    string
	ctx   context.Context
	nodes []string
}

var scenes atomic.Int64

// newScene makes nodes named by the scene and their place, from 0.
func newScene(t *testing.T, nodes int) *scene {
	s := &scene{T: t, ctx: t.Context(), ns: fmt.Sprintf("scene-%d", scenes.Add(1))}
	_, err := admin.CoreV1().Namespaces().Create(s.ctx, &v1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: s.ns}}, metav1.CreateOptions{})
	must(t, err)
	_, err = admin.CoreV1().ServiceAccounts(s.ns).Create(s.ctx, &v1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{})
	must(t, err)
	for i := range nodes {
		name := fmt.Sprintf("%s-%d", s.ns, i)
		node, err := admin.CoreV1().Nodes().Create(s.ctx, &v1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"scene": s.ns, v1.LabelHostname: name}},
			Status: v1.NodeStatus{Allocatable: v1.ResourceList{
				v1.ResourceCPU: resource.MustParse("1"), v1.ResourceMemory: resource.MustParse("1Gi"), v1.ResourcePods: resource.MustParse("10"),
			}},
		}, metav1.CreateOptions{})
		must(t, err)
		node.Spec.Taints = nil // that of a node that isn't ready yet
		_, err = admin.CoreV1().Nodes().Update(s.ctx, node, metav1.UpdateOptions{})
		must(t, err)
		s.nodes = append(s.nodes, name)
		t.Cleanup(func() { _ = admin.CoreV1().Nodes().Delete(context.Background(), name, metav1.DeleteOptions{}) })
	}
	return s
}

func (s *scene) driver() string { return s.ns + ".example.com" }

// class makes the scene's class: the driver's devices, of which those that match
// expressions.
func (s *scene) class(change func(*resourceapi.DeviceClass), expressions ...string) {
	s.Helper()
	c := &resourceapi.DeviceClass{ObjectMeta: metav1.ObjectMeta{Name: s.ns}}
	for _, e := range append([]string{fmt.Sprintf("device.driver == %q", s.driver())}, expressions...) {
		c.Spec.Selectors = append(c.Spec.Selectors, resourceapi.DeviceSelector{CEL: &resourceapi.CELDeviceSelector{Expression: e}})
	}
	if change != nil {
		change(c)
	}
	_, err := admin.ResourceV1().DeviceClasses().Create(s.ctx, c, metav1.CreateOptions{})
	must(s.T, err)
}

// slice publishes devices of a node.
func (s *scene) slice(node int, devices ...resourceapi.Device) {
	s.Helper()
	name := s.nodes[node]
	_, err := admin.ResourceV1().ResourceSlices().Create(s.ctx, &resourceapi.ResourceSlice{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: resourceapi.ResourceSliceSpec{
			Driver: s.driver(), NodeName: &name, Devices: devices,
			Pool: resourceapi.ResourcePool{Name: name, ResourceSliceCount: 1},
		},
	}, metav1.CreateOptions{})
	must(s.T, err)
	s.Cleanup(func() {
		_ = admin.ResourceV1().ResourceSlices().Delete(context.Background(), name, metav1.DeleteOptions{})
	})
}

// device has attribute "kind" in the driver's domain.
func device(name, kind string) resourceapi.Device {
	return resourceapi.Device{Name: name, Attributes: map[resourceapi.QualifiedName]resourceapi.DeviceAttribute{"kind": {StringValue: &kind}}}
}

// one is a claim's spec: one device of the scene's class that matches expressions.
func (s *scene) one(expressions ...string) resourceapi.ResourceClaimSpec {
	return resourceapi.ResourceClaimSpec{Devices: resourceapi.DeviceClaim{Requests: []resourceapi.DeviceRequest{{
		Name: "device", Exactly: &resourceapi.ExactDeviceRequest{DeviceClassName: s.ns, Selectors: selectors(expressions)},
	}}}}
}

func selectors(expressions []string) (list []resourceapi.DeviceSelector) {
	for _, e := range expressions {
		list = append(list, resourceapi.DeviceSelector{CEL: &resourceapi.CELDeviceSelector{Expression: e}})
	}
	return list
}

// kind is a selector of devices by their kind.
func (s *scene) kind(kind string) string {
	return fmt.Sprintf("device.attributes[%q].kind == %q", s.driver(), kind)
}

func (s *scene) newClaim(name string, spec resourceapi.ResourceClaimSpec) *resourceapi.ResourceClaim {
	s.Helper()
	c, err := admin.ResourceV1().ResourceClaims(s.ns).Create(s.ctx, &resourceapi.ResourceClaim{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}, metav1.CreateOptions{})
	must(s.T, err)
	return c
}

// newPod makes a pod for the scene's nodes that uses claims by name.
func (s *scene) newPod(name string, change func(*v1.Pod), claims ...string) *v1.Pod {
	s.Helper()
	p := &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: v1.PodSpec{
			NodeSelector: map[string]string{"scene": s.ns}, TerminationGracePeriodSeconds: new(int64(0)),
			Containers: []v1.Container{{Name: "c", Image: "registry/hello:1"}},
		},
	}
	for _, c := range claims {
		p.Spec.ResourceClaims = append(p.Spec.ResourceClaims, v1.PodResourceClaim{Name: c, ResourceClaimName: &c})
	}
	if change != nil {
		change(p)
	}
	p, err := admin.CoreV1().Pods(s.ns).Create(s.ctx, p, metav1.CreateOptions{})
	must(s.T, err)
	return p
}

func (s *scene) pod(name string) *v1.Pod {
	s.Helper()
	p, err := admin.CoreV1().Pods(s.ns).Get(s.ctx, name, metav1.GetOptions{})
	must(s.T, err)
	return p
}

func (s *scene) claim(name string) *resourceapi.ResourceClaim {
	s.Helper()
	c, err := admin.ResourceV1().ResourceClaims(s.ns).Get(s.ctx, name, metav1.GetOptions{})
	must(s.T, err)
	return c
}

// bound waits until the pod is, and returns its node.
func (s *scene) bound(name string) string {
	s.Helper()
	s.await("pod "+name+" is bound", func() string {
		p := s.pod(name)
		if p.Spec.NodeName != "" {
			return ""
		}
		return fmt.Sprintf("conditions %+v", p.Status.Conditions)
	})
	return s.pod(name).Spec.NodeName
}

// refused waits until the pod's condition says why it isn't scheduled.
func (s *scene) refused(name, why string) {
	s.Helper()
	s.await(fmt.Sprintf("pod %s is refused for %q", name, why), func() string {
		p := s.pod(name)
		for _, c := range p.Status.Conditions {
			if c.Type == v1.PodScheduled && c.Status == v1.ConditionFalse && strings.Contains(c.Message, why) {
				return ""
			}
		}
		return fmt.Sprintf("on node %q, conditions %+v", p.Spec.NodeName, p.Status.Conditions)
	})
}

// end has the pod succeed, as its node would.
func (s *scene) end(name string) {
	s.Helper()
	p := s.pod(name)
	p.Status.Phase = v1.PodSucceeded
	_, err := admin.CoreV1().Pods(s.ns).UpdateStatus(s.ctx, p, metav1.UpdateOptions{})
	must(s.T, err)
}

// devicesOf are the names of the claim's devices, joined.
func devicesOf(c *resourceapi.ResourceClaim) string {
	if c.Status.Allocation == nil {
		return "none"
	}
	var names []string
	for _, r := range c.Status.Allocation.Devices.Results {
		names = append(names, r.Device)
	}
	return strings.Join(names, " ")
}

// await polls until f has nothing to complain about.
func (s *scene) await(what string, f func() string) {
	s.Helper()
	last := ""
	for end := time.Now().Add(60 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if last = f(); last == "" {
			return
		}
	}
	s.Fatalf("never: %s: %s", what, last)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
