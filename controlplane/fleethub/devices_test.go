package fleethub

import (
	"encoding/json"
	"errors"
	"log/slog"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	resourcev1client "k8s.io/client-go/kubernetes/typed/resource/v1"
	clienttesting "k8s.io/client-go/testing"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

// A pod's claims go to its node with it, by the names that its status gives them.
func TestClaimsOfDevicesGoWithAPod(t *testing.T) {
	direct, template, made := "direct", "template", "made"
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p"}, Spec: corev1.PodSpec{ResourceClaims: []corev1.PodResourceClaim{
		{Name: "a", ResourceClaimName: &direct}, {Name: "b", ResourceClaimTemplateName: &template}, {Name: "c", ResourceClaimTemplateName: &template},
		{Name: "d", ResourceClaimTemplateName: &template}}}}
	e := newEncoder(nil)
	hash := func() fleet.Hash {
		o, err := e.describe(ref{"Pod", "ns", "p"}, pod, pod, object{})
		if err != nil {
			t.Fatal(err)
		}
		return o.hash
	}
	before := hash()
	pod.Status.ResourceClaimStatuses = []corev1.PodResourceClaimStatus{{Name: "b", ResourceClaimName: &made}, {Name: "c"}}
	pod.Status.ExtendedResourceClaimStatus = &corev1.PodExtendedResourceClaimStatus{ResourceClaimName: "extended"}
	if hash() == before {
		t.Error("a node isn't told what a pod's claims are called")
	}
	var got []string
	for r := range references(pod) {
		got = append(got, r.kind+" "+r.namespace+"/"+r.name)
	}
	slices.Sort(got)
	if want := []string{"ResourceClaim ns/direct", "ResourceClaim ns/extended", "ResourceClaim ns/made"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestWhatChangesOfAClaimWithoutConcerningNodes(t *testing.T) {
	e := newEncoder(nil)
	claim := &resourcev1.ResourceClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "c", UID: "u"}, Status: resourcev1.ResourceClaimStatus{
		Allocation: &resourcev1.AllocationResult{Devices: resourcev1.DeviceAllocationResult{Results: []resourcev1.DeviceRequestAllocationResult{{Request: "r", Driver: "d", Pool: "p", Device: "x"}}}}}}
	hash := func() fleet.Hash {
		o, err := e.describe(ref{kindDevices, "ns", "c"}, claim, claim, object{})
		if err != nil {
			t.Fatal(err)
		}
		return o.hash
	}
	before := hash()
	claim.ResourceVersion = "7"
	claim.Status.Devices = []resourcev1.AllocatedDeviceStatus{{Driver: "d", Pool: "p", Device: "x"}}
	claim.Status.Allocation.Devices.Config = []resourcev1.DeviceAllocationConfiguration{{Source: resourcev1.AllocationConfigSourceClaim}}
	if hash() != before {
		t.Error("what the driver writes, and reads itself, is sent again")
	}
	claim.Status.ReservedFor = []resourcev1.ResourceClaimConsumerReference{{Resource: "pods", Name: "p", UID: "pu"}}
	if hash() == before {
		t.Error("who may use it isn't sent")
	}
	before = hash()
	claim.Status.Allocation.Devices.Results[0].Device = "y"
	if hash() == before {
		t.Error("another allocation isn't sent")
	}
	before = hash()
	claim.Status.Allocation = nil
	if hash() == before {
		t.Error("that it isn't allocated isn't sent")
	}
}

// What a driver that is gone from a node has offered is removed once; each time that it
// goes again, and again after a failure.
func TestSlicesOfDriversThatAreGone(t *testing.T) {
	client := fake.NewClientset(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "board"}})
	var asked []string
	var fails error
	client.PrependReactor("delete-collection", "resourceslices", func(a clienttesting.Action) (bool, runtime.Object, error) {
		asked = append(asked, a.(clienttesting.DeleteCollectionAction).GetListRestrictions().Fields.String())
		return true, nil, fails
	})
	h := &Hub{log: slog.New(slog.DiscardHandler), c: Config{NodeResources: func(string) (resourcev1client.ResourceV1Interface, error) { return client.ResourceV1(), nil }}}
	n := newNode("board")
	report := func(gone ...string) error {
		asked = nil
		said := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "board", Annotations: map[string]string{}}}
		if len(gone) > 0 {
			raw, err := json.Marshal(gone)
			if err != nil {
				t.Fatal(err)
			}
			said.Annotations[fleet.AnnotationGoneDrivers] = string(raw)
		}
		raw, err := said.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := takeStorage(said); err != nil || len(said.Annotations) > 0 {
			t.Errorf("the Node would have %q, %v", said.Annotations, err)
		}
		return h.writeStorage(t.Context(), n, &fleet.NodeReport{Node: raw})
	}
	a, b := "spec.driver=a,spec.nodeName=board", "spec.driver=b,spec.nodeName=board"
	for i, c := range []struct {
		gone, want []string
		fails      error
	}{
		{nil, nil, nil}, {[]string{"a"}, []string{a}, nil}, {[]string{"a"}, nil, nil}, {[]string{"a", "b"}, []string{b}, errors.New("no")},
		{[]string{"a", "b"}, []string{b}, nil}, {[]string{"b"}, nil, nil}, {[]string{"a", "b"}, []string{a}, nil},
	} {
		fails = c.fails
		if err := report(c.gone...); (err != nil) != (c.fails != nil) || !slices.Equal(asked, c.want) {
			t.Errorf("%d: %q is gone, asked for %q, want %q; %v", i, c.gone, asked, c.want, err)
		}
	}
}
