package claims

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
)

// Store is the node's durable state, as far as claims are concerned.
type Store interface {
	ClaimRecords() (map[string][]byte, error)
	// PutClaimRecords returns when the records are durable; nil deletes one.
	PutClaimRecords(map[string][]byte) error
	// PutClaimRecordsLater makes them so soon, with whatever else is written.
	PutClaimRecordsLater(map[string][]byte)
}

// Objects finds what the control plane sent with the pods.
type Objects interface {
	Object(kind, namespace, name string) (raw []byte, found bool, err error)
}

// Config configures a [Manager]. Store, Objects and Boot are required.
type Config struct {
	Store   Store
	Objects Objects
	// Boot is different for every boot of the machine.
	Boot string
	// Changed is called when a driver came, went or stays away; may be nil.
	Changed func()
	// HealthChanged is called with the UIDs of pods when the health of a device of theirs
	// changed; may be nil.
	HealthChanged func(pods []string)
	// WipingDelay is how long a driver may be away before it counts as gone:
	// [DefaultWipingDelay] if 0.
	WipingDelay time.Duration
	// CallTimeout bounds one call of a driver: [DefaultCallTimeout] if 0.
	CallTimeout time.Duration
	Log         *slog.Logger
}

// A kubelet's (pkg/kubelet/cm/dra/manager.go, plugin/dra_plugin.go).
const (
	DefaultWipingDelay = 30 * time.Second
	DefaultCallTimeout = 45 * time.Second
)

// Manager has claims prepared. Calls for one pod may not overlap, those for
// different pods may.
type Manager struct {
	Config
	calls calls

	mu      sync.Mutex
	over    bool // Run ended
	drivers map[string]*driver
	claims  map[string]*claim        // by namespace/name
	busy    map[string]chan struct{} // locks of claims, by the same
	wg      sync.WaitGroup
}

// New returns a Manager that knows what is prepared.
func New(c Config) (*Manager, error) {
	if c.Store == nil || c.Objects == nil || c.Boot == "" {
		return nil, errors.New("claims: Store, Objects and Boot are required")
	}
	if c.WipingDelay == 0 {
		c.WipingDelay = DefaultWipingDelay
	}
	if c.CallTimeout == 0 {
		c.CallTimeout = DefaultCallTimeout
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	m := &Manager{Config: c, drivers: map[string]*driver{}, claims: map[string]*claim{}, busy: map[string]chan struct{}{}}
	return m, m.load()
}

// lock keeps pods that share claims from preparing and unpreparing them at once.
// keys are sorted.
func (m *Manager) lock(ctx context.Context, keys []string) (unlock func(), err error) {
	var held []string
	unlock = func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		for _, key := range held {
			close(m.busy[key])
			delete(m.busy, key)
		}
	}
	for _, key := range keys {
		for {
			m.mu.Lock()
			other := m.busy[key]
			if other == nil {
				m.busy[key] = make(chan struct{})
				m.mu.Unlock()
				held = append(held, key)
				break
			}
			m.mu.Unlock()
			select {
			case <-other:
			case <-ctx.Done():
				unlock()
				return nil, fmt.Errorf("waiting for another pod's use of ResourceClaim %s: %w", key, ctx.Err())
			}
		}
	}
	return unlock, nil
}

// Prepare has the claims of a pod prepared that aren't in this boot of the machine.
// It is idempotent. fresh says that the pod is to get a sandbox: only then is it
// looked whether it may still use what is prepared for it.
func (m *Manager) Prepare(ctx context.Context, pod *v1.Pod, fresh bool) error {
	if !Has(pod) {
		return nil
	}
	refs, err := Of(pod)
	if err == nil && !fresh && m.ready(pod, refs) {
		return nil
	}
	if err == nil {
		began := time.Now()
		err = m.prepare(ctx, pod, refs)
		m.calls.operation("PrepareResources", began, err)
	}
	if err != nil {
		return fmt.Errorf("prepare dynamic resources: %w", err)
	}
	return nil
}

// ready reports whether everything is prepared for a pod.
func (m *Manager) ready(pod *v1.Pod, refs []Reference) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range refs {
		if c := m.claims[pod.Namespace+"/"+r.Name]; c == nil || c.Boot != m.Boot || !c.usedBy(string(pod.UID)) {
			return false
		}
	}
	return true
}

func (m *Manager) prepare(ctx context.Context, pod *v1.Pod, refs []Reference) error {
	var keys []string
	for _, r := range refs {
		keys = append(keys, pod.Namespace+"/"+r.Name)
	}
	slices.Sort(keys)
	unlock, err := m.lock(ctx, slices.Compact(keys))
	if err != nil {
		return err
	}
	defer unlock()
	// Everything is looked at before anything is noted: a pod that can't be prepared
	// leaves nothing to be undone by a driver that may never come.
	var using, todo []*claim
	for _, r := range refs {
		c, had, err := m.examine(pod, r)
		if err != nil {
			return err
		}
		if !had {
			using = append(using, c)
		}
		if c.Boot != m.Boot && !slices.ContainsFunc(todo, func(t *claim) bool { return t.UID == c.UID }) {
			todo = append(todo, c)
		}
	}
	if err := m.replace(false, using...); err != nil {
		return err
	}
	if len(todo) == 0 {
		return nil
	}
	got, err := m.callPrepare(ctx, todo)
	if err != nil {
		return err
	}
	for i, c := range todo {
		done := *c
		done.Boot, done.Drivers = m.Boot, got[c.UID]
		todo[i] = &done
	}
	return m.replace(true, todo...)
}

// examine says how a pod uses a claim from now on, and whether that is recorded.
func (m *Manager) examine(pod *v1.Pod, r Reference) (_ *claim, recorded bool, _ error) {
	raw, found, err := m.Objects.Object(Kind, pod.Namespace, r.Name)
	if err == nil && !found {
		err = fmt.Errorf("resourceclaims.resource.k8s.io %q %w", r.Name, ErrNotFound)
	}
	if err != nil {
		return nil, false, fmt.Errorf("fetch ResourceClaim %s: %w", r.Name, err)
	}
	o, err := decodeObject(raw)
	if err == nil {
		err = o.check(pod, r)
	}
	if err != nil {
		return nil, false, err
	}
	m.mu.Lock()
	have := m.claims[pod.Namespace+"/"+r.Name]
	m.mu.Unlock()
	switch {
	case have == nil:
		have = &claim{Version: recordVersion, UID: string(o.UID), Namespace: pod.Namespace, Name: r.Name}
	case have.UID != string(o.UID):
		return nil, false, have.replaced()
	case have.Allocation != o.allocation && (len(have.Pods) > 1 || !have.usedBy(string(pod.UID))):
		return nil, false, fmt.Errorf("ResourceClaim %s was allocated anew, and a pod that used it before still ends here (previous pod force-deleted?!)", r.Name)
	}
	used := have.usedBy(string(pod.UID))
	if used && have.Boot == m.Boot && have.Allocation == o.allocation {
		return have, true, nil
	}
	for _, name := range o.drivers {
		if _, err := m.plugin(name); err != nil {
			return nil, false, err
		}
	}
	next := have.with(string(pod.UID))
	if have.Boot != m.Boot || have.Allocation != o.allocation {
		next.Boot, next.Allocation, next.Drivers = "", o.allocation, map[string][]device{}
		for _, name := range o.drivers {
			next.Drivers[name] = nil
		}
	}
	return next, used && have.Allocation == o.allocation, nil
}

// Blocked is what Prepare would say of a pod whose claim has the name of one that is
// still prepared for a pod of before; nil if there is no such.
func (m *Manager) Blocked(pod *v1.Pod) error {
	refs, _ := Of(pod)
	for _, r := range refs {
		raw, found, err := m.Objects.Object(Kind, pod.Namespace, r.Name)
		if err != nil || !found {
			continue
		}
		o, err := decodeObject(raw)
		if err != nil {
			continue
		}
		m.mu.Lock()
		have := m.claims[pod.Namespace+"/"+r.Name]
		m.mu.Unlock()
		if have != nil && have.UID != string(o.UID) {
			return fmt.Errorf("prepare dynamic resources: %w", have.replaced())
		}
	}
	return nil
}

// callPrepare asks each driver for all of its claims, and returns their devices by
// claim and driver.
func (m *Manager) callPrepare(ctx context.Context, claims []*claim) (map[string]map[string][]device, error) {
	got := map[string]map[string][]device{}
	for _, c := range claims {
		got[c.UID] = map[string][]device{}
	}
	for _, name := range driversOf(claims) {
		p, err := m.plugin(name)
		if err != nil {
			return nil, err
		}
		its := claimsOf(claims, name)
		raw, err := m.call(ctx, p, "NodePrepareResources", request(its))
		if err != nil {
			return nil, fmt.Errorf("NodePrepareResources: DRA driver %s: %w", name, err)
		}
		results, err := decodeResults(raw, errorOfPrepare)
		if err != nil {
			return nil, fmt.Errorf("NodePrepareResources: DRA driver %s: %w", name, err)
		}
		if err := answered("NodePrepareResources", its, results, nil); err != nil {
			return nil, err
		}
		for uid, r := range results {
			got[uid][name] = r.devices
		}
	}
	return got, nil
}

// answered checks that a driver said something of each claim and of no other. What
// it failed at is an error, or is added to failed if that isn't nil.
func answered(method string, asked []named, results map[string]result, failed map[string]error) error {
	for _, uid := range slices.Sorted(maps.Keys(results)) {
		i := slices.IndexFunc(asked, func(n named) bool { return n.uid == uid })
		if i < 0 {
			return fmt.Errorf("%s returned result for unknown claim UID %s", method, uid)
		}
		if results[uid].failure == "" {
			continue
		}
		err := fmt.Errorf("%s failed for ResourceClaim %s: %s", method, asked[i].name, results[uid].failure)
		if failed == nil {
			return err
		}
		failed[uid] = err
	}
	if n := len(asked) - len(results); n != 0 {
		return fmt.Errorf("%s skipped %d ResourceClaims", method, n)
	}
	return nil
}

func driversOf(claims []*claim) []string {
	names := map[string]bool{}
	for _, c := range claims {
		for name := range c.Drivers {
			names[name] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}

func claimsOf(claims []*claim, driver string) (out []named) {
	for _, c := range claims {
		if _, has := c.Drivers[driver]; has {
			out = append(out, c.named())
		}
	}
	return out
}

// Unprepare has what was prepared for a pod undone, as far as no other pod uses it.
// It is idempotent, and an error leaves what it is about for the next call.
func (m *Manager) Unprepare(ctx context.Context, podUID string) error {
	m.mu.Lock()
	var keys []string
	for key, c := range m.claims {
		if c.usedBy(podUID) {
			keys = append(keys, key)
		}
	}
	m.mu.Unlock()
	if len(keys) == 0 {
		return nil
	}
	slices.Sort(keys)
	unlock, err := m.lock(ctx, keys)
	if err == nil {
		defer unlock()
		began := time.Now()
		err = m.unprepare(ctx, podUID, keys)
		m.calls.operation("UnprepareResources", began, err)
	}
	if err != nil {
		return fmt.Errorf("unprepare dynamic resources: %w", err)
	}
	return nil
}

func (m *Manager) unprepare(ctx context.Context, podUID string, keys []string) error {
	var left, last []*claim
	m.mu.Lock()
	for _, key := range keys {
		switch c := m.claims[key]; {
		case c == nil || !c.usedBy(podUID):
		case len(c.Pods) > 1:
			left = append(left, c.without(podUID))
		default:
			last = append(last, c)
		}
	}
	m.mu.Unlock()
	if err := m.replace(true, left...); err != nil {
		return err
	}
	failed := map[string]error{}
	fail := func(claims []named, err error) {
		for _, c := range claims {
			failed[c.uid] = err
		}
	}
	for _, name := range driversOf(last) {
		its := claimsOf(last, name)
		p, err := m.plugin(name)
		if err != nil {
			fail(its, err)
			continue
		}
		raw, err := m.call(ctx, p, "NodeUnprepareResources", request(its))
		var results map[string]result
		if err == nil {
			results, err = decodeResults(raw, errorOfUnprepare)
		}
		if err != nil {
			fail(its, fmt.Errorf("NodeUnprepareResources: DRA driver %s: %w", name, err))
			continue
		}
		if err := answered("NodeUnprepareResources", its, results, failed); err != nil {
			fail(its, err)
		}
	}
	var undone []*claim
	var errs []string
	for _, c := range last {
		if err := failed[c.UID]; err == nil {
			undone = append(undone, c.without(podUID))
		} else if !slices.Contains(errs, err.Error()) {
			errs = append(errs, err.Error())
		}
	}
	if err := m.replace(true, undone...); err != nil {
		return err
	}
	if len(errs) > 0 {
		return errors.New(strings.Join(errs, "; "))
	}
	return nil
}

// Pods are the UIDs that have claims here.
func (m *Manager) Pods() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	uids := map[string]bool{}
	for _, c := range m.claims {
		for _, uid := range c.Pods {
			uids[uid] = true
		}
	}
	return slices.Sorted(maps.Keys(uids))
}

// Uses reports whether a pod has claims here.
func (m *Manager) Uses(podUID string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.claims {
		if c.usedBy(podUID) {
			return true
		}
	}
	return false
}
