package devices

import (
	"context"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/coracle-edge/coracle/controlplane/scheduler/framework"
)

// stage is the plugin by itself, with node "n" and its device "x".
func stage(t *testing.T, objects ...runtime.Object) *Plugin {
	t.Helper()
	node := "n"
	objects = append(objects,
		&resourceapi.DeviceClass{ObjectMeta: metav1.ObjectMeta{Name: "class"}},
		&resourceapi.ResourceSlice{
			ObjectMeta: metav1.ObjectMeta{Name: "slice"},
			Spec: resourceapi.ResourceSliceSpec{
				Driver: "d", NodeName: &node, Pool: resourceapi.ResourcePool{Name: "p", ResourceSliceCount: 1},
				Devices: []resourceapi.Device{{Name: "x"}},
			},
		})
	client := fake.NewSimpleClientset(objects...)
	factory := informers.NewSharedInformerFactory(client, 0)
	p := New(client, factory, GatesOf(utilfeature.DefaultFeatureGate))
	ctx, cancel := context.WithCancel(context.Background())
	known := make(chan struct{}, 100)
	stop := p.Watch(ctx, func() { factory.StartWithContext(ctx) }, func(framework.Event) {
		select {
		case known <- struct{}{}:
		default:
		}
	})
	t.Cleanup(func() { cancel(); stop(); factory.Shutdown() })
	for {
		_, first, err := p.classes()
		_, second, err2 := p.inventory()
		if err != nil || err2 != nil {
			t.Fatal(err, err2)
		}
		if first && second {
			return p
		}
		select {
		case <-known:
		case <-time.After(20 * time.Second):
			t.Fatal("never known")
		}
	}
}

func simple(name string) (*framework.Pod, *resourceapi.ResourceClaim) {
	c := claimWith(name, "", "")
	c.Spec.Devices.Requests = []resourceapi.DeviceRequest{{Name: "r", Exactly: &resourceapi.ExactDeviceRequest{
		DeviceClassName: "class", AllocationMode: resourceapi.DeviceAllocationModeExactCount, Count: 1,
	}}}
	pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: c.UID + "-pod"}}
	pod.Spec.ResourceClaims = []v1.PodResourceClaim{{Name: "c", ResourceClaimName: &name}}
	return framework.NewPod(pod), c
}

var nodeN = framework.NewNodeInfo(&v1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}})

// What is reserved is kept until the pod is bound or given back; nothing is kept
// after that.
func TestReserved(t *testing.T) {
	a, claimA := simple("a")
	b, claimB := simple("b")
	p := stage(t, claimA, claimB)
	ctx := t.Context()
	if s := p.Filter(ctx, b, nodeN); !s.OK() {
		t.Fatalf("a free device: %v", s)
	}
	if s := p.Reserve(ctx, a, nodeN); !s.OK() {
		t.Fatal(s)
	}
	if s := p.Filter(ctx, b, nodeN); s.OK() || s.Code != framework.Unresolvable {
		t.Errorf("a reserved device: %v", s)
	}
	if s := p.Filter(ctx, a, nodeN); s.OK() || s.Reasons[0] != "resource claim ns/a is in the process of being allocated" {
		t.Errorf("another pod with the same claim: %v", s)
	}
	p.Unreserve(ctx, a, "n")
	p.Unreserve(ctx, a, "n") // idempotent
	if s := p.Filter(ctx, b, nodeN); !s.OK() || len(p.plans) != 0 {
		t.Errorf("a device given back: %v, %d plans", s, len(p.plans))
	}
	if s := p.Reserve(ctx, a, nodeN); !s.OK() {
		t.Fatal(s)
	}
	if err := p.PreBind(ctx, a, "n"); err != nil {
		t.Fatal(err)
	}
	if s := p.Filter(ctx, b, nodeN); s.OK() {
		t.Error("a device is free after its allocation was written")
	}
	// Not bound after all: no user, and still allocated for the next try.
	p.Unreserve(ctx, a, "n")
	c, err := p.client.ResourceV1().ResourceClaims("ns").Get(ctx, "a", metav1.GetOptions{})
	if err != nil || c.Status.Allocation == nil || len(c.Status.ReservedFor) != 0 {
		t.Errorf("claim %+v, %v", c.Status, err)
	}
	if s := p.Reserve(ctx, a, nodeN); !s.OK() {
		t.Fatal(s)
	}
	if err := p.PreBind(ctx, a, "n"); err != nil {
		t.Fatal(err)
	}
	p.PostBind(a)
	if len(p.plans) != 0 || len(p.have.claims.promised) != 0 {
		t.Errorf("kept after the binding: %d plans, %d promises", len(p.plans), len(p.have.claims.promised))
	}
}

// A search that takes too long is an error, to be tried again, and not a refusal.
func TestFilterTimeout(t *testing.T) {
	a, claimA := simple("a")
	p := stage(t, claimA)
	p.filterTimeout = time.Nanosecond
	s := p.Filter(t.Context(), a, nodeN)
	if s.OK() || s.Code != framework.Failed || s.Err.Error() != "node n: timed out trying to allocate devices" {
		t.Errorf("%v", s)
	}
	p.gates.FilterTimeout = false
	if s := p.Filter(t.Context(), a, nodeN); !s.OK() {
		t.Errorf("without the gate: %v", s)
	}
}

// Without Watch nothing is known of devices, so none is given.
func TestNotWatching(t *testing.T) {
	a, _ := simple("a")
	p := New(fake.NewSimpleClientset(), informers.NewSharedInformerFactory(fake.NewSimpleClientset(), 0), GatesOf(utilfeature.DefaultFeatureGate))
	if s := p.Filter(t.Context(), a, nodeN); s.OK() || s.Code != framework.Failed {
		t.Errorf("%v", s)
	}
}

func TestMayHelp(t *testing.T) {
	a, claimA := simple("a")
	missing, _ := simple("missing")
	p := stage(t, claimA)
	with := claimA.DeepCopy()
	with.Status.Allocation = allocated("x")
	other := claimWith("other", "", "x")
	free := claimWith("other", "", "")
	claim := func(before, after *resourceapi.ResourceClaim) framework.Event {
		return framework.Event{Kind: framework.ClaimChanged, OldDevices: before, Devices: after}
	}
	for _, c := range []struct {
		name string
		pod  *framework.Pod
		ev   framework.Event
		want bool
	}{
		{"own claim comes", a, claim(nil, claimA), true},
		{"own claim is allocated", a, claim(claimA, with), true},
		{"own claim changes in nothing that matters", a, claim(claimA, claimA), false},
		{"another is allocated", a, claim(free, other), false},
		{"another is deallocated", a, claim(other, free), true},
		{"another goes with its devices", a, claim(other, nil), true},
		{"another goes without any", a, claim(free, nil), false},
		{"devices are free, but the pod's claim is missing", missing, claim(other, free), false},
		{"a class comes", a, framework.Event{Kind: framework.ClassChanged, DeviceClass: &resourceapi.DeviceClass{}}, true},
		{"a slice comes", a, framework.Event{Kind: framework.DevicesChanged}, true},
		{"the pod's claims were made", a, framework.Event{Kind: framework.PodChanged, Pod: a.Pod}, true},
		{"the pod changes, a claim is missing", missing, framework.Event{Kind: framework.PodChanged, Pod: missing.Pod}, false},
		{"one with claims isn't bound after all", a, framework.Event{Kind: framework.PodLeft, Pod: missing.Pod}, true},
		{"one without leaves", a, framework.Event{Kind: framework.PodLeft, Pod: &v1.Pod{}}, false},
		{"a node comes", a, framework.Event{Kind: framework.NodeChanged, Node: nodeN.Node}, true},
		{"a node changes in nothing that matters", a, framework.Event{Kind: framework.NodeChanged, OldNode: nodeN.Node, Node: nodeN.Node}, false},
	} {
		if got := p.MayHelp(c.pod, c.ev); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}
