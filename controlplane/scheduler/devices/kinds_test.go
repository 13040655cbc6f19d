package devices_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A device class stands behind a resource: nodes that offer the resource itself give
// that, others a device, by a claim that the scheduler makes.
func TestExtendedResource(t *testing.T) {
	s := newScene(t, 2)
	name := s.driver() + "/npu"
	s.class(func(c *resourceapi.DeviceClass) { c.Spec.ExtendedResourceName = &name })
	s.slice(1, device("a", "x"), device("b", "x"), device("c", "x"))
	node, err := admin.CoreV1().Nodes().Get(s.ctx, s.nodes[0], metav1.GetOptions{})
	must(t, err)
	node.Status.Allocatable[v1.ResourceName(name)] = resource.MustParse("1")
	_, err = admin.CoreV1().Nodes().UpdateStatus(s.ctx, node, metav1.UpdateOptions{})
	must(t, err)
	schedule(t, nil)
	ask := func(c *v1.Container, what, n string) {
		list := v1.ResourceList{v1.ResourceName(what): resource.MustParse(n)}
		c.Resources = v1.ResourceRequirements{Requests: list, Limits: list}
	}
	on := func(node int) func(*v1.Pod) {
		return func(p *v1.Pod) {
			p.Spec.NodeSelector[v1.LabelHostname] = s.nodes[node]
			ask(&p.Spec.Containers[0], name, "1")
		}
	}
	s.newPod("own", on(0))
	s.bound("own")
	if got := s.pod("own").Status.ExtendedResourceClaimStatus; got != nil {
		t.Errorf("a claim was made for what the node offers: %+v", got)
	}
	// By the class's own name, too; init and main container share what they can.
	s.newPod("device", func(p *v1.Pod) {
		on(1)(p)
		ask(&p.Spec.Containers[0], resourceapi.ResourceDeviceClassPrefix+s.ns, "1")
		p.Spec.InitContainers = []v1.Container{{Name: "init", Image: "registry/hello:1"}}
		ask(&p.Spec.InitContainers[0], resourceapi.ResourceDeviceClassPrefix+s.ns, "2")
	})
	s.bound("device")
	status := s.pod("device").Status.ExtendedResourceClaimStatus
	if status == nil {
		t.Fatal("the pod's status names no claim")
	}
	var got []string
	for _, m := range status.RequestMappings {
		got = append(got, m.ContainerName+"="+m.RequestName)
	}
	if s := strings.Join(got, " "); s != "c=container-1-request-0 init=container-1-request-0 init=container-0-request-0" {
		t.Errorf("mappings %s", s)
	}
	c := s.claim(status.ResourceClaimName)
	if n := len(c.Status.Allocation.Devices.Results); n != 2 || len(c.Status.ReservedFor) != 1 || !metav1.IsControlledBy(c, s.pod("device")) {
		t.Errorf("claim %+v", c)
	}
	s.newPod("last", on(1))
	s.bound("last")
	s.newPod("none", on(1))
	s.refused("none", "cannot allocate all claims")
	s.end("last")
	s.bound("none")
}

// What a class stands behind may be asked for before the class is there.
func TestExtendedResourceOfLaterClass(t *testing.T) {
	s := newScene(t, 1)
	s.slice(0, device("a", "x"))
	schedule(t, nil)
	name := s.driver() + "/npu"
	s.newPod("p", func(p *v1.Pod) {
		list := v1.ResourceList{v1.ResourceName(name): resource.MustParse("1")}
		p.Spec.Containers[0].Resources = v1.ResourceRequirements{Requests: list, Limits: list}
	})
	s.refused("p", "Insufficient "+name)
	s.class(func(c *resourceapi.DeviceClass) { c.Spec.ExtendedResourceName = &name })
	s.bound("p")
}

// A scheduler that dies after it made a claim of its own leaves it; the next one
// deletes it, for it may be of another node, and makes another.
func TestRestartWithExtendedResource(t *testing.T) {
	s := newScene(t, 1)
	name := s.driver() + "/npu"
	s.class(func(c *resourceapi.DeviceClass) { c.Spec.ExtendedResourceName = &name })
	s.slice(0, device("only", "x"))
	asked := make(chan struct{}, 10)
	stop := schedule(t, blockBindings(asked))
	s.newPod("p", func(p *v1.Pod) {
		list := v1.ResourceList{v1.ResourceName(name): resource.MustParse("1")}
		p.Spec.Containers[0].Resources = v1.ResourceRequirements{Requests: list, Limits: list}
	})
	<-asked
	first := s.pod("p").Status.ExtendedResourceClaimStatus.ResourceClaimName
	stop()
	schedule(t, nil)
	s.bound("p")
	second := s.pod("p").Status.ExtendedResourceClaimStatus.ResourceClaimName
	list, err := admin.ResourceV1().ResourceClaims(s.ns).List(s.ctx, metav1.ListOptions{})
	must(t, err)
	if len(list.Items) != 1 || list.Items[0].Name != second || first == second || devicesOf(&list.Items[0]) != "only" {
		t.Errorf("claims %+v after %s", list.Items, first)
	}
}

func TestBindingConditions(t *testing.T) {
	s := newScene(t, 1)
	s.class(nil)
	slow := func(name string) resourceapi.Device {
		d := device(name, "x")
		d.BindingConditions, d.BindingFailureConditions = []string{"example.com/attached"}, []string{"example.com/broken"}
		return d
	}
	s.slice(0, slow("a"), slow("b"))
	schedule(t, nil)
	s.newClaim("c", s.one())
	s.newPod("p", nil, "c")
	says := func(condition string) {
		s.await("the claim is written", func() string {
			if c := s.claim("c"); len(c.Status.ReservedFor) != 1 || c.Status.Allocation == nil {
				return fmt.Sprintf("%+v", c.Status)
			}
			return ""
		})
		c := s.claim("c")
		r := c.Status.Allocation.Devices.Results[0]
		if c.Status.Allocation.AllocationTimestamp == nil {
			t.Error("no time of allocation")
		}
		if node := s.pod("p").Spec.NodeName; node != "" {
			t.Errorf("bound to %s before its device is ready", node)
		}
		c.Status.Devices = []resourceapi.AllocatedDeviceStatus{{Driver: r.Driver, Pool: r.Pool, Device: r.Device, Conditions: []metav1.Condition{{
			Type: condition, Status: metav1.ConditionTrue, Reason: "Test", Message: "of the test", LastTransitionTime: metav1.NewTime(time.Now()),
		}}}}
		_, err := admin.ResourceV1().ResourceClaims(s.ns).UpdateStatus(s.ctx, c, metav1.UpdateOptions{})
		must(t, err)
	}
	s.await("an event says why the pod waits", func() string {
		events, err := admin.EventsV1().Events(s.ns).List(s.ctx, metav1.ListOptions{})
		must(t, err)
		for _, e := range events.Items {
			if e.Reason == "BindingConditionsPending" && e.Note == "waiting for binding conditions for device on node "+s.nodes[0] {
				return ""
			}
		}
		return fmt.Sprintf("%d events", len(events.Items))
	})
	says("example.com/broken")
	s.await("the claim is given up", func() string {
		if c := s.claim("c"); c.Status.Allocation != nil && len(c.Status.Devices) > 0 {
			return fmt.Sprintf("%+v", c.Status)
		}
		return ""
	})
	// Which device comes next is the allocator's choice.
	says("example.com/attached")
	s.bound("p")
}

func TestTaintsOfDevices(t *testing.T) {
	s := newScene(t, 1)
	s.class(nil)
	d := device("tainted", "x")
	d.Taints = []resourceapi.DeviceTaint{{Key: "example.com/hot", Effect: resourceapi.DeviceTaintEffectNoSchedule}}
	s.slice(0, d)
	schedule(t, nil)
	s.newClaim("plain", s.one())
	s.newPod("plain", nil, "plain")
	s.refused("plain", "cannot allocate all claims")
	spec := s.one()
	spec.Devices.Requests[0].Exactly.Tolerations = []resourceapi.DeviceToleration{{Operator: resourceapi.DeviceTolerationOpExists}}
	s.newClaim("tolerant", spec)
	s.newPod("tolerant", nil, "tolerant")
	s.bound("tolerant")
}

// Who administers a device doesn't take it from anybody.
func TestAdminAccess(t *testing.T) {
	s := newScene(t, 1)
	ns, err := admin.CoreV1().Namespaces().Get(s.ctx, s.ns, metav1.GetOptions{})
	must(t, err)
	ns.Labels["resource.kubernetes.io/admin-access"] = "true"
	_, err = admin.CoreV1().Namespaces().Update(s.ctx, ns, metav1.UpdateOptions{})
	must(t, err)
	s.class(nil)
	s.slice(0, device("only", "x"))
	schedule(t, nil)
	spec := s.one()
	spec.Devices.Requests[0].Exactly.AdminAccess = new(true)
	for _, name := range []string{"admin", "admin2"} {
		s.newClaim(name, spec)
		s.newPod(name, nil, name)
		s.bound(name)
	}
	s.newClaim("user", s.one())
	s.newPod("user", nil, "user")
	s.bound("user")
}

// Parts of one device, and shares of another's capacity, are given until it is used
// up (KEP-4815, KEP-5075).
func TestPartsAndShares(t *testing.T) {
	s := newScene(t, 2)
	s.class(nil)
	part := func(name, memory string) resourceapi.Device {
		d := device(name, "part")
		d.ConsumesCounters = []resourceapi.DeviceCounterConsumption{{CounterSet: "gpu", Counters: map[string]resourceapi.Counter{"memory": {Value: resource.MustParse(memory)}}}}
		return d
	}
	for i, spec := range []resourceapi.ResourceSliceSpec{
		{SharedCounters: []resourceapi.CounterSet{{Name: "gpu", Counters: map[string]resourceapi.Counter{"memory": {Value: resource.MustParse("4Gi")}}}}},
		{Devices: []resourceapi.Device{part("half-1", "2Gi"), part("half-2", "2Gi"), part("whole", "4Gi")}},
	} {
		spec.Driver, spec.NodeName = s.driver(), &s.nodes[0]
		spec.Pool = resourceapi.ResourcePool{Name: s.nodes[0], ResourceSliceCount: 2}
		_, err := admin.ResourceV1().ResourceSlices().Create(s.ctx, &resourceapi.ResourceSlice{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%s-parts-%d", s.ns, i)}, Spec: spec,
		}, metav1.CreateOptions{})
		must(t, err)
	}
	link := device("link", "link")
	link.AllowMultipleAllocations = new(true)
	link.Capacity = map[resourceapi.QualifiedName]resourceapi.DeviceCapacity{"bandwidth": {Value: resource.MustParse("10G")}}
	s.slice(1, link)
	schedule(t, nil)
	take := func(name string, spec resourceapi.ResourceClaimSpec) {
		s.newClaim(name, spec)
		s.newPod(name, nil, name)
	}
	for _, name := range []string{"half-a", "half-b"} {
		take(name, s.one(s.kind("part")))
		s.bound(name)
	}
	take("third", s.one(s.kind("part"))) // the whole isn't whole any more
	s.refused("third", "cannot allocate all claims")

	share := s.one(s.kind("link"))
	share.Devices.Requests[0].Exactly.Capacity = &resourceapi.CapacityRequirements{
		Requests: map[resourceapi.QualifiedName]resource.Quantity{"bandwidth": resource.MustParse("6G")},
	}
	take("share-a", share)
	s.bound("share-a")
	if r := s.claim("share-a").Status.Allocation.Devices.Results[0]; r.ShareID == nil {
		t.Errorf("no share: %+v", r)
	}
	small := share.DeepCopy()
	small.Devices.Requests[0].Exactly.Capacity.Requests["bandwidth"] = resource.MustParse("4G")
	take("share-b", share)
	s.refused("share-b", "cannot allocate all claims")
	take("share-c", *small)
	s.bound("share-c")
}
