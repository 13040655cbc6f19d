package devices

import (
	"errors"
	"fmt"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"k8s.io/apimachinery/pkg/util/sets"
	resourcelisters "k8s.io/client-go/listers/resource/v1"
	"k8s.io/dynamic-resource-allocation/resourceclaim"
	"k8s.io/dynamic-resource-allocation/structured"
)

// unseen is for how long a claim that was written and that the informer doesn't
// show is taken to be on its way.
const unseen = 2 * time.Minute

// claims are the cluster's resource claims as they are or are about to be: what
// the informer shows, what was written and isn't shown yet, and what is promised
// and isn't written yet. All three are looked at under one lock, so that no device
// is seen free on its way from one to the next.
type claims struct {
	lister     resourcelisters.ResourceClaimLister
	consumable bool

	mu       sync.Mutex
	written  map[string]written                          // by namespace/name
	promised map[types.UID]*resourceapi.AllocationResult // by the claim's UID
	changed  chan struct{}                               // closed at the next change
}

type written struct {
	claim *resourceapi.ResourceClaim
	at    time.Time
}

func newClaims(lister resourcelisters.ResourceClaimLister, consumable bool) *claims {
	return &claims{
		lister: lister, consumable: consumable,
		written: map[string]written{}, promised: map[types.UID]*resourceapi.AllocationResult{}, changed: make(chan struct{}),
	}
}

func keyOf(c *resourceapi.ResourceClaim) string { return c.Namespace + "/" + c.Name }

// get returns a claim, which must not be changed; the lister's error if there is
// none.
func (s *claims) get(namespace, name string) (*resourceapi.ResourceClaim, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, err := s.lister.ResourceClaims(namespace).Get(name)
	if err != nil {
		return nil, err
	}
	return s.latest(c), nil
}

// list returns all claims.
func (s *claims) list() ([]*resourceapi.ResourceClaim, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all()
}

// of returns the claims that the pod's spec names, but for those that the claim
// controller decided not to make. The error is [awaited] if one isn't there yet.
func (s *claims) of(pod *v1.Pod) ([]*resourceapi.ResourceClaim, error) {
	found := make([]*resourceapi.ResourceClaim, 0, len(pod.Spec.ResourceClaims))
	for i := range pod.Spec.ResourceClaims {
		name, generated, err := resourceclaim.Name(pod, &pod.Spec.ResourceClaims[i])
		if errors.Is(err, resourceclaim.ErrClaimNotFound) {
			return nil, awaited{err}
		}
		if err != nil {
			return nil, err
		}
		if name == nil {
			continue
		}
		c, err := s.get(pod.Namespace, *name)
		if apierrors.IsNotFound(err) {
			return nil, awaited{err}
		}
		if err != nil {
			return nil, fmt.Errorf("resourceclaim %q: %w", *name, err)
		}
		if c.DeletionTimestamp != nil {
			return nil, fmt.Errorf("resourceclaim %q is being deleted", c.Name)
		}
		if generated {
			if err := resourceclaim.IsForPod(pod, c, false); err != nil {
				return nil, err
			}
		}
		found = append(found, c)
	}
	return found, nil
}

// awaited says that a claim isn't there yet.
type awaited struct{ error }

func (a awaited) Unwrap() error { return a.error }

// taken returns what is allocated, on its way or promised.
func (s *claims) taken() (structured.AllocatedState, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	state := structured.AllocatedState{
		AllocatedDevices:         sets.New[structured.DeviceID](),
		AllocatedSharedDeviceIDs: sets.New[structured.SharedDeviceID](),
		AggregatedCapacity:       structured.NewConsumedCapacityCollection(),
	}
	all, err := s.all()
	if err != nil {
		return state, err
	}
	for _, c := range all {
		s.count(&state, c.Status.Allocation)
	}
	for _, allocation := range s.promised {
		s.count(&state, allocation)
	}
	return state, nil
}

// count adds the devices of one claim. Those for administration are shared with
// whoever else has them.
func (s *claims) count(state *structured.AllocatedState, allocation *resourceapi.AllocationResult) {
	if allocation == nil {
		return
	}
	for i := range allocation.Devices.Results {
		r := &allocation.Devices.Results[i]
		if r.AdminAccess != nil && *r.AdminAccess {
			continue
		}
		id := structured.MakeDeviceID(r.Driver, r.Pool, r.Device)
		if !s.consumable || r.ShareID == nil {
			state.AllocatedDevices.Insert(id)
			continue
		}
		state.AllocatedSharedDeviceIDs.Insert(structured.MakeSharedDeviceID(id, r.ShareID))
		if r.ConsumedCapacity != nil {
			state.AggregatedCapacity.Insert(structured.NewDeviceConsumedCapacity(id, r.ConsumedCapacity))
		}
	}
}

// isPromised says whether an allocation of the claim is yet to be written.
func (s *claims) isPromised(uid types.UID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.promised[uid] != nil
}

func (s *claims) promise(uid types.UID, allocation *resourceapi.AllocationResult) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.promised[uid] = allocation
}

func (s *claims) release(uid types.UID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.promised, uid)
}

// wrote takes a claim as the API server answered. It keeps the promise of that UID.
func (s *claims) wrote(c *resourceapi.ResourceClaim, promise types.UID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.written[keyOf(c)] = written{c, time.Now()}
	delete(s.promised, promise)
}

// seen hears what the informer shows, nil for absent.
func (s *claims) seen(before, after *resourceapi.ResourceClaim) {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.changed)
	s.changed = make(chan struct{})
	if after == nil {
		if w, ok := s.written[keyOf(before)]; ok && w.claim.UID == before.UID {
			delete(s.written, keyOf(before))
		}
		return
	}
	if w, ok := s.written[keyOf(after)]; ok && !newer(w.claim, after, false) {
		delete(s.written, keyOf(after))
	}
}

// next returns a channel that is closed when the informer shows another change.
func (s *claims) next() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// all needs the lock.
func (s *claims) all() ([]*resourceapi.ResourceClaim, error) {
	shown, err := s.lister.List(labels.Everything())
	if err != nil {
		return nil, err
	}
	out := make([]*resourceapi.ResourceClaim, 0, len(shown))
	for _, c := range shown {
		out = append(out, s.latest(c))
	}
	for key, w := range s.written {
		if _, err := s.lister.ResourceClaims(w.claim.Namespace).Get(w.claim.Name); err == nil {
			continue
		}
		if time.Since(w.at) > unseen {
			delete(s.written, key) // gone before the informer saw it
			continue
		}
		out = append(out, w.claim)
	}
	return out, nil
}

// latest needs the lock.
func (s *claims) latest(shown *resourceapi.ResourceClaim) *resourceapi.ResourceClaim {
	if w, ok := s.written[keyOf(shown)]; ok && newer(w.claim, shown, true) {
		return w.claim
	}
	return shown
}

// newer compares two versions of one claim; undecided is the answer if they can't
// be compared.
func newer(a, b *resourceapi.ResourceClaim, undecided bool) bool {
	order, err := resourceversion.CompareResourceVersion(a.ResourceVersion, b.ResourceVersion)
	if err != nil {
		return undecided
	}
	return order > 0
}
