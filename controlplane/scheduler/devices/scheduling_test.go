package devices_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestDeviceGoesFromPodToPod(t *testing.T) {
	s := newScene(t, 1)
	s.class(nil)
	s.slice(0, device("only", "a"))
	schedule(t, nil)
	s.newClaim("first", s.one())
	s.newClaim("second", s.one())
	s.newPod("first", nil, "first")
	if node := s.bound("first"); node != s.nodes[0] {
		t.Errorf("on node %s", node)
	}
	c := s.claim("first")
	users := c.Status.ReservedFor
	if devicesOf(c) != "only" || len(users) != 1 || users[0].UID != s.pod("first").UID || users[0].Resource != "pods" || users[0].Name != "first" {
		t.Errorf("claim of the bound pod: %+v", c.Status)
	}
	if !slices.Contains(c.Finalizers, resourceapi.Finalizer) {
		t.Errorf("an allocated claim isn't protected: %v", c.Finalizers)
	}
	s.newPod("second", nil, "second")
	s.refused("second", "cannot allocate all claims")
	if got := devicesOf(s.claim("second")); got != "none" {
		t.Errorf("the waiting pod's claim has %s", got)
	}
	s.end("first")
	s.bound("second")
	if got := devicesOf(s.claim("second")); got != "only" {
		t.Errorf("the second pod has %s", got)
	}
}

// Pods that come at once never get one device twice, and devices left by none idle.
func TestDevicesAreGivenOnce(t *testing.T) {
	s := newScene(t, 2)
	s.class(nil)
	s.slice(0, device("a", "x"), device("b", "x"))
	s.slice(1, device("a", "x"), device("b", "x"))
	schedule(t, nil)
	for i := range 6 {
		name := fmt.Sprintf("p%d", i)
		s.newClaim(name, s.one())
		s.newPod(name, nil, name)
	}
	s.await("four are bound and two refused", func() string {
		bound, refused := 0, 0
		for i := range 6 {
			p := s.pod(fmt.Sprintf("p%d", i))
			if p.Spec.NodeName != "" {
				bound++
			} else if len(p.Status.Conditions) > 0 {
				refused++
			}
		}
		if bound == 4 && refused == 2 {
			return ""
		}
		return fmt.Sprintf("%d bound, %d refused", bound, refused)
	})
	given := map[string]string{}
	for i := range 6 {
		name := fmt.Sprintf("p%d", i)
		c := s.claim(name)
		if c.Status.Allocation == nil {
			continue
		}
		r := c.Status.Allocation.Devices.Results[0]
		if other, twice := given[r.Pool+"/"+r.Device]; twice {
			t.Errorf("%s/%s was given to %s and to %s", r.Pool, r.Device, other, name)
		}
		given[r.Pool+"/"+r.Device] = name
		if node := s.pod(name).Spec.NodeName; node != r.Pool {
			t.Errorf("pod %s is on node %q, its device on %s", name, node, r.Pool)
		}
	}
}

func TestClaimFromTemplate(t *testing.T) {
	s := newScene(t, 1)
	s.class(nil)
	s.slice(0, device("d", "a"))
	schedule(t, nil)
	_, err := admin.ResourceV1().ResourceClaimTemplates(s.ns).Create(s.ctx, &resourceapi.ResourceClaimTemplate{
		ObjectMeta: metav1.ObjectMeta{Name: "template"}, Spec: resourceapi.ResourceClaimTemplateSpec{Spec: s.one()},
	}, metav1.CreateOptions{})
	must(t, err)
	s.newPod("p", func(p *v1.Pod) {
		p.Spec.ResourceClaims = []v1.PodResourceClaim{{Name: "mine", ResourceClaimTemplateName: new("template")}}
	})
	s.bound("p")
	name := *s.pod("p").Status.ResourceClaimStatuses[0].ResourceClaimName
	if got := devicesOf(s.claim(name)); got != "d" {
		t.Errorf("claim %s has %s", name, got)
	}
	// Waiting for the claim to be made is no failure to be told of.
	events, err := admin.EventsV1().Events(s.ns).List(s.ctx, metav1.ListOptions{})
	must(t, err)
	for _, e := range events.Items {
		if e.Reason == "FailedScheduling" {
			t.Errorf("event %q", e.Note)
		}
	}
	// Another pod's claim isn't taken, though named as if it were one's own.
	s.newPod("thief", func(p *v1.Pod) {
		p.Spec.SchedulingGates = []v1.PodSchedulingGate{{Name: "example.com/hold"}}
		p.Spec.ResourceClaims = []v1.PodResourceClaim{{Name: "mine", ResourceClaimTemplateName: new("missing")}}
	})
	thief := s.pod("thief")
	thief.Status.ResourceClaimStatuses = []v1.PodResourceClaimStatus{{Name: "mine", ResourceClaimName: &name}}
	thief, err = admin.CoreV1().Pods(s.ns).UpdateStatus(s.ctx, thief, metav1.UpdateOptions{})
	must(t, err)
	thief.Spec.SchedulingGates = nil
	_, err = admin.CoreV1().Pods(s.ns).Update(s.ctx, thief, metav1.UpdateOptions{})
	must(t, err)
	s.refused("thief", fmt.Sprintf("ResourceClaim %s/%s was not created for Pod %s/thief (Pod is not owner)", s.ns, name, s.ns))
}

func TestMissingClaimIsToldAndAwaited(t *testing.T) {
	s := newScene(t, 1)
	s.class(nil)
	s.slice(0, device("d", "a"))
	scheduleWith(t, nil, time.Second)
	s.newPod("p", nil, "later")
	s.newPod("template", func(p *v1.Pod) {
		p.Spec.ResourceClaims = []v1.PodResourceClaim{{Name: "mine", ResourceClaimTemplateName: new("missing")}}
	})
	s.refused("p", `resourceclaim.resource.k8s.io "later" not found`)
	s.refused("template", fmt.Sprintf("pod %q: ResourceClaim not created yet", s.ns+"/template"))
	s.newClaim("later", s.one())
	s.bound("p")
	// A claim that is on its way out is nobody's.
	must(t, admin.ResourceV1().ResourceClaims(s.ns).Delete(s.ctx, "later", metav1.DeleteOptions{}))
	s.newPod("late", nil, "later")
	s.refused("late", `resourceclaim "later" is being deleted`)
}

func TestSharedClaim(t *testing.T) {
	s := newScene(t, 2)
	s.class(nil)
	s.slice(1, device("d", "a"))
	schedule(t, nil)
	s.newClaim("shared", s.one())
	for i := range 3 {
		s.newPod(fmt.Sprintf("p%d", i), nil, "shared")
	}
	for i := range 3 {
		if node := s.bound(fmt.Sprintf("p%d", i)); node != s.nodes[1] {
			t.Errorf("pod %d is on node %s, the device on %s", i, node, s.nodes[1])
		}
	}
	if users := s.claim("shared").Status.ReservedFor; len(users) != 3 {
		t.Errorf("users %+v", users)
	}
}

func TestSelectors(t *testing.T) {
	s := newScene(t, 2)
	s.class(nil, s.kind("camera"))
	s.slice(0, device("lamp", "lamp"), device("plain", "camera"))
	wide := device("wide", "camera")
	wide.Capacity = map[resourceapi.QualifiedName]resourceapi.DeviceCapacity{"pixels": {Value: resource.MustParse("8M")}}
	s.slice(1, wide)
	schedule(t, nil)
	s.newClaim("any", s.one())
	s.newClaim("large", s.one(fmt.Sprintf(`%q in device.capacity && device.capacity[%q].pixels.compareTo(quantity("5M")) >= 0`, s.driver(), s.driver())))
	s.newClaim("lamp", s.one(s.kind("lamp"))) // the class wants cameras
	s.newPod("large", nil, "large")
	if node := s.bound("large"); node != s.nodes[1] || devicesOf(s.claim("large")) != "wide" {
		t.Errorf("on node %s with %s", node, devicesOf(s.claim("large")))
	}
	s.newPod("any", nil, "any")
	if node := s.bound("any"); node != s.nodes[0] || devicesOf(s.claim("any")) != "plain" {
		t.Errorf("on node %s with %s", node, devicesOf(s.claim("any")))
	}
	s.newPod("lamp", nil, "lamp")
	s.refused("lamp", "cannot allocate all claims")
}

// The first alternative wins wherever it is; the second where it isn't.
func TestFirstAvailable(t *testing.T) {
	s := newScene(t, 6)
	s.class(nil)
	for i := range 5 {
		s.slice(i, device("slow", "slow"))
	}
	s.slice(5, device("slow", "slow"), device("fast", "fast"))
	schedule(t, nil)
	spec := resourceapi.ResourceClaimSpec{Devices: resourceapi.DeviceClaim{Requests: []resourceapi.DeviceRequest{{
		Name: "device", FirstAvailable: []resourceapi.DeviceSubRequest{
			{Name: "fast", DeviceClassName: s.ns, Selectors: selectors([]string{s.kind("fast")})},
			{Name: "slow", DeviceClassName: s.ns, Selectors: selectors([]string{s.kind("slow")})},
		},
	}}}}
	for i, want := range []string{"device/fast", "device/slow"} {
		name := fmt.Sprintf("p%d", i)
		s.newClaim(name, spec)
		s.newPod(name, nil, name)
		node := s.bound(name)
		if got := s.claim(name).Status.Allocation.Devices.Results[0].Request; got != want {
			t.Errorf("pod %d on node %s has %s, want %s", i, node, got, want)
		}
	}
}

func TestMissingClass(t *testing.T) {
	s := newScene(t, 1)
	s.slice(0, device("d", "a"))
	schedule(t, nil)
	s.newClaim("c", s.one())
	s.newPod("p", nil, "c")
	s.refused("p", fmt.Sprintf("request device: device class %s does not exist", s.ns))
	s.class(nil)
	s.bound("p")
}

// An expression that can't be evaluated is told by name, and keeps the pod from
// nodes where it can be, too.
func TestBrokenExpression(t *testing.T) {
	s := newScene(t, 2)
	s.class(nil)
	s.slice(0, device("without", "a"))
	one := int64(1)
	s.slice(1, resourceapi.Device{Name: "good", Attributes: map[resourceapi.QualifiedName]resourceapi.DeviceAttribute{"nothing": {IntValue: &one}}})
	schedule(t, nil)
	s.newClaim("broken", s.one(fmt.Sprintf("device.attributes[%q].nothing == 1", s.driver())))
	s.newPod("p", nil, "broken")
	s.refused("p", "claim "+s.ns+"/broken")
	s.refused("p", "CEL runtime error")
	s.await("an event names it", func() string {
		events, err := admin.EventsV1().Events(s.ns).List(s.ctx, metav1.ListOptions{})
		must(t, err)
		for _, e := range events.Items {
			if e.Regarding.Name == "p" && strings.Contains(e.Note, s.ns+"/broken") && strings.Contains(e.Note, "CEL runtime error") {
				return ""
			}
		}
		return fmt.Sprintf("%d events", len(events.Items))
	})
	// The driver mends what it publishes.
	slice, err := admin.ResourceV1().ResourceSlices().Get(s.ctx, s.nodes[0], metav1.GetOptions{})
	must(t, err)
	zero := int64(0)
	slice.Spec.Devices[0].Attributes["nothing"] = resourceapi.DeviceAttribute{IntValue: &zero}
	_, err = admin.ResourceV1().ResourceSlices().Update(s.ctx, slice, metav1.UpdateOptions{})
	must(t, err)
	if node := s.bound("p"); node != s.nodes[1] {
		t.Errorf("on node %s", node)
	}
}

// blockBindings has requests to bind pods hang until they are given up.
func blockBindings(asked chan<- struct{}) func(http.RoundTripper) http.RoundTripper {
	return func(next http.RoundTripper) http.RoundTripper {
		return roundTrip(func(r *http.Request) (*http.Response, error) {
			if strings.HasSuffix(r.URL.Path, "/binding") {
				asked <- struct{}{}
				<-r.Context().Done()
				return nil, r.Context().Err()
			}
			return next.RoundTrip(r)
		})
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// A scheduler that dies after it wrote the claim leaves nothing that its successor
// can't go on with.
func TestRestartBetweenClaimAndBinding(t *testing.T) {
	s := newScene(t, 2)
	s.class(nil)
	s.slice(0, device("d", "a"))
	s.slice(1, device("d", "a"))
	asked := make(chan struct{}, 10)
	stop := schedule(t, blockBindings(asked))
	s.newClaim("c", s.one())
	s.newPod("p", nil, "c")
	<-asked
	before := s.claim("c")
	if before.Status.Allocation == nil || len(before.Status.ReservedFor) != 1 {
		t.Fatalf("bound before the claim was written: %+v", before.Status)
	}
	stop()
	if p := s.pod("p"); p.Spec.NodeName != "" {
		t.Fatal("bound")
	}
	schedule(t, nil)
	node := s.bound("p")
	after := s.claim("c")
	if pool := after.Status.Allocation.Devices.Results[0].Pool; pool != node || len(after.Status.ReservedFor) != 1 {
		t.Errorf("on node %s with a device of %s, users %+v", node, pool, after.Status.ReservedFor)
	}
	// Its device is known to be taken.
	s.newClaim("c2", s.one())
	s.newPod("p2", nil, "c2")
	if other := s.bound("p2"); other == node {
		t.Errorf("both on %s, which has one device", node)
	}
}

// failBindings refuses the first request to bind a pod.
func failBindings() func(http.RoundTripper) http.RoundTripper {
	failed := make(chan struct{}, 1)
	failed <- struct{}{}
	return func(next http.RoundTripper) http.RoundTripper {
		return roundTrip(func(r *http.Request) (*http.Response, error) {
			if strings.HasSuffix(r.URL.Path, "/binding") {
				select {
				case <-failed:
					return nil, fmt.Errorf("the network is down")
				default:
				}
			}
			return next.RoundTrip(r)
		})
	}
}

// What was written for a pod that wasn't bound is used for its next try.
func TestBindingFails(t *testing.T) {
	s := newScene(t, 1)
	s.class(nil)
	s.slice(0, device("d", "a"))
	schedule(t, failBindings())
	s.newClaim("c", s.one())
	s.newPod("p", nil, "c")
	s.bound("p")
	if c := s.claim("c"); devicesOf(c) != "d" || len(c.Status.ReservedFor) != 1 {
		t.Errorf("claim %+v", c.Status)
	}
}

// A claim that is allocated where its pod can't be, and that nobody uses, is
// allocated again.
func TestUnusedAllocationIsGivenUp(t *testing.T) {
	s := newScene(t, 2)
	s.class(nil)
	s.slice(0, device("d", "a"))
	s.slice(1, device("d", "a"))
	c := s.newClaim("c", s.one())
	c.Finalizers = append(c.Finalizers, resourceapi.Finalizer)
	c, err := admin.ResourceV1().ResourceClaims(s.ns).Update(s.ctx, c, metav1.UpdateOptions{})
	must(t, err)
	c.Status.Allocation = &resourceapi.AllocationResult{
		Devices: resourceapi.DeviceAllocationResult{Results: []resourceapi.DeviceRequestAllocationResult{{
			Request: "device", Driver: s.driver(), Pool: s.nodes[0], Device: "d",
		}}},
		NodeSelector: &v1.NodeSelector{NodeSelectorTerms: []v1.NodeSelectorTerm{{MatchFields: []v1.NodeSelectorRequirement{{
			Key: "metadata.name", Operator: v1.NodeSelectorOpIn, Values: []string{s.nodes[0]},
		}}}}},
	}
	_, err = admin.ResourceV1().ResourceClaims(s.ns).UpdateStatus(s.ctx, c, metav1.UpdateOptions{})
	must(t, err)
	node, err := admin.CoreV1().Nodes().Get(s.ctx, s.nodes[0], metav1.GetOptions{})
	must(t, err)
	node.Spec.Unschedulable = true
	_, err = admin.CoreV1().Nodes().Update(s.ctx, node, metav1.UpdateOptions{})
	must(t, err)
	schedule(t, nil)
	s.newPod("p", nil, "c")
	if node := s.bound("p"); node != s.nodes[1] || s.claim("c").Status.Allocation.Devices.Results[0].Pool != s.nodes[1] {
		t.Errorf("on node %s with %+v", node, s.claim("c").Status.Allocation)
	}
}

// A pod with a claim makes room like any other. Who leaves gives its devices back.
func TestPreemption(t *testing.T) {
	s := newScene(t, 1)
	s.class(nil)
	s.slice(0, device("a", "x"), device("b", "x"))
	_, err := admin.SchedulingV1().PriorityClasses().Create(s.ctx, &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: s.ns}, Value: 1000}, metav1.CreateOptions{})
	must(t, err)
	schedule(t, nil)
	large := func(p *v1.Pod) {
		p.Spec.Containers[0].Resources.Requests = v1.ResourceList{v1.ResourceCPU: resource.MustParse("800m")}
	}
	for _, name := range []string{"low", "high", "third"} {
		s.newClaim(name, s.one())
	}
	s.newPod("low", large, "low")
	s.bound("low")
	s.newPod("high", func(p *v1.Pod) { large(p); p.Spec.PriorityClassName = s.ns }, "high")
	s.bound("high")
	s.await("the victim's device is free", func() string {
		if devicesOf(s.claim("low")) == "none" {
			return ""
		}
		return devicesOf(s.claim("low"))
	})
	s.newPod("third", nil, "third")
	s.bound("third")
	if a, b := devicesOf(s.claim("high")), devicesOf(s.claim("third")); a == b {
		t.Errorf("both have %s", a)
	}
}
