package claims

import (
	"testing"

	"google.golang.org/protobuf/proto"
	v1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	drahealth "k8s.io/kubelet/pkg/apis/dra-health/v1alpha1"
	drapb "k8s.io/kubelet/pkg/apis/dra/v1"

	"github.com/coracle-edge/coracle/edgelet/pods/kubeobj"
)

// Whatever a driver answers is bounded.
func FuzzAnswers(f *testing.F) {
	share := "s"
	for _, m := range []proto.Message{
		&drapb.NodePrepareResourcesResponse{Claims: map[string]*drapb.NodePrepareResourceResponse{"u": {Devices: []*drapb.Device{
			{RequestNames: []string{"r/s"}, PoolName: "p", DeviceName: "d", CdiDeviceIds: []string{"v/c=n"}, ShareId: &share}}}, "w": {Error: "e\xff"}}},
		&drapb.NodeUnprepareResourcesResponse{Claims: map[string]*drapb.NodeUnprepareResourceResponse{"u": {Error: "e"}}},
		&drahealth.NodeWatchResourcesResponse{Devices: []*drahealth.DeviceHealth{{Device: &drahealth.DeviceIdentifier{PoolName: "p", DeviceName: "d"},
			Health: 2, Message: "m", HealthCheckTimeoutSeconds: -1}}},
	} {
		raw, err := proto.MarshalOptions{AllowPartial: true}.Marshal(m)
		if err != nil {
			raw = []byte("\x0a\x03\x0a\x01u")
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		for _, field := range []int32{errorOfPrepare, errorOfUnprepare} {
			results, err := decodeResults(raw, 1)
			if field == errorOfPrepare {
				results, err = decodeResults(raw, errorOfPrepare)
			}
			for uid, r := range results {
				if err == nil && len(r.devices) > maxDevices {
					t.Errorf("claim %q has %d devices", uid, len(r.devices))
				}
			}
		}
		said, err := decodeHealth(raw)
		if err == nil && len(said) > maxDevices {
			t.Errorf("%d devices", len(said))
		}
		m := &Manager{drivers: map[string]*driver{"d": {}}}
		m.heard("d", said)
		for _, h := range m.drivers["d"].healths {
			if len(h.message) > v1.ResourceHealthMessageMaxLength {
				t.Errorf("a message of %d bytes", len(h.message))
			}
		}
	})
}

// Objects of the control plane and records of another agent.
func FuzzObject(f *testing.F) {
	c := &resourceapi.ResourceClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "n", UID: "u"}, Status: resourceapi.ResourceClaimStatus{
		Allocation:  &resourceapi.AllocationResult{Devices: resourceapi.DeviceAllocationResult{Results: []resourceapi.DeviceRequestAllocationResult{{Request: "r", Driver: "d", Pool: "p", Device: "x"}}}},
		ReservedFor: []resourceapi.ResourceClaimConsumerReference{{Resource: "pods", Name: "p", UID: "pu"}}}}
	raw, err := c.Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(kubeobj.Join(kubeobj.Header{APIVersion: "resource.k8s.io/v1", Kind: Kind}, raw))
	f.Add((&claim{Version: recordVersion, UID: "u", Namespace: "ns", Name: "n", Pods: []string{"p"}, Drivers: map[string][]device{"d": nil}}).encode())
	f.Add(encodeDrivers([]string{"a", ""}))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if o, err := decodeObject(raw); err == nil && (o.Name == "" || o.UID == "") {
			t.Errorf("%+v", o)
		}
		if c, err := decodeRecord(raw); err == nil && (c.UID == "" || len(c.Pods) == 0) {
			t.Errorf("%+v", c)
		}
		if names, err := decodeDrivers(raw); err == nil && len(names) > maxDrivers {
			t.Errorf("%d drivers", len(names))
		}
	})
}
