package devices

import (
	"testing"

	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	resourcelisters "k8s.io/client-go/listers/resource/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/dynamic-resource-allocation/structured"
)

// shown is claims with an informer's store that the test fills.
func shown(t *testing.T) (*claims, cache.Indexer) {
	t.Helper()
	index := cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc})
	return newClaims(resourcelisters.NewResourceClaimLister(index), true), index
}

func claimWith(name, version string, device string) *resourceapi.ResourceClaim {
	c := &resourceapi.ResourceClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID("uid-" + name), ResourceVersion: version}}
	if device != "" {
		c.Status.Allocation = allocated(device)
	}
	return c
}

func allocated(device string) *resourceapi.AllocationResult {
	return &resourceapi.AllocationResult{Devices: resourceapi.DeviceAllocationResult{Results: []resourceapi.DeviceRequestAllocationResult{{
		Driver: "d", Pool: "p", Device: device,
	}}}}
}

func takes(t *testing.T, s *claims, device string) bool {
	t.Helper()
	state, err := s.taken()
	if err != nil {
		t.Fatal(err)
	}
	return state.AllocatedDevices.Has(structured.MakeDeviceID("d", "p", device))
}

// A device is taken at every moment from its promise to the deallocation that the
// informer shows.
func TestTakenAllTheWay(t *testing.T) {
	s, index := shown(t)
	old := claimWith("c", "10", "")
	_ = index.Add(old)
	s.seen(nil, old)
	if takes(t, s, "x") {
		t.Fatal("taken by nobody")
	}
	s.promise(old.UID, allocated("x"))
	if !takes(t, s, "x") || !s.isPromised(old.UID) {
		t.Error("promised, and free")
	}
	wrote := claimWith("c", "12", "x")
	s.wrote(wrote, old.UID)
	if !takes(t, s, "x") || s.isPromised(old.UID) {
		t.Error("written, and free or still promised")
	}
	if c, err := s.get("ns", "c"); err != nil || c != wrote {
		t.Errorf("get: %v, %v; want what was written", c, err)
	}
	// An older version comes late.
	late := claimWith("c", "11", "")
	_ = index.Update(late)
	s.seen(old, late)
	if !takes(t, s, "x") {
		t.Error("free because of an old version")
	}
	_ = index.Update(wrote)
	s.seen(late, wrote)
	if !takes(t, s, "x") || len(s.written) != 0 {
		t.Errorf("shown as written: %d kept", len(s.written))
	}
	free := claimWith("c", "13", "")
	_ = index.Update(free)
	s.seen(wrote, free)
	if takes(t, s, "x") {
		t.Error("taken after its deallocation")
	}
}

func TestPromiseTakenBack(t *testing.T) {
	s, _ := shown(t)
	s.promise("u", allocated("x"))
	s.release("u")
	if takes(t, s, "x") {
		t.Error("taken after the promise was taken back")
	}
}

// A claim that was created isn't shown yet; when it goes, its devices are free.
func TestCreatedClaim(t *testing.T) {
	s, index := shown(t)
	made := claimWith("own", "20", "x")
	s.wrote(made, "")
	if !takes(t, s, "x") {
		t.Error("created, and free")
	}
	_ = index.Add(made)
	s.seen(nil, made)
	_ = index.Delete(made)
	s.seen(made, nil)
	if takes(t, s, "x") {
		t.Error("taken by a claim that is gone")
	}
	// Deleted before it was shown.
	again := claimWith("own2", "21", "y")
	s.wrote(again, "")
	s.seen(again, nil)
	if takes(t, s, "y") {
		t.Error("taken by a claim that is gone")
	}
	// The informer never shows it: one that comes and goes while a watch is broken.
	s.wrote(claimWith("lost", "22", "z"), "")
	w := s.written["ns/lost"]
	w.at = w.at.Add(-2 * unseen)
	s.written["ns/lost"] = w
	if takes(t, s, "z") {
		t.Error("taken for ever")
	}
}

func TestWhatIsCounted(t *testing.T) {
	s, _ := shown(t)
	share := types.UID("share")
	a := allocated("admin")
	a.Devices.Results[0].AdminAccess = new(true)
	b := allocated("shared")
	b.Devices.Results[0].ShareID = &share
	b.Devices.Results[0].ConsumedCapacity = map[resourceapi.QualifiedName]resource.Quantity{"bandwidth": resource.MustParse("3")}
	s.promise("a", a)
	s.promise("b", b)
	state, err := s.taken()
	if err != nil {
		t.Fatal(err)
	}
	if len(state.AllocatedDevices) != 0 || len(state.AllocatedSharedDeviceIDs) != 1 {
		t.Errorf("%v, %v", state.AllocatedDevices, state.AllocatedSharedDeviceIDs)
	}
	used := state.AggregatedCapacity[structured.MakeDeviceID("d", "p", "shared")]["bandwidth"]
	if used == nil || used.Value() != 3 {
		t.Errorf("consumed %v", state.AggregatedCapacity)
	}
	s.consumable = false
	if !takes(t, s, "shared") || takes(t, s, "admin") {
		t.Error("without shares a device is taken as a whole, except by who administers it")
	}
}
