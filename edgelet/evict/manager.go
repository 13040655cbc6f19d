package evict

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	resourcehelper "k8s.io/component-helpers/resource"
)

const (
	// Period is how often the node is looked at, as a kubelet's monitoring interval.
	Period = 10 * time.Second
	// DefaultTransition is how long a condition stays after its cause was last seen.
	DefaultTransition = 5 * time.Minute
	// DefaultLocalPeriod is how often pods with limits of ephemeral storage are
	// counted; it reads folders.
	DefaultLocalPeriod = 30 * time.Second
	// storesFresh is how long it is believed where the runtime keeps images, and
	// storesRetry when it is asked again that didn't say.
	storesFresh = time.Hour
	storesRetry = time.Minute
	// endTimeout bounds what is waited for a pod's end beyond its grace.
	endTimeout = 30 * time.Second
	// hardGrace is what pods have to end under a hard threshold, in seconds.
	hardGrace = 1

	reason = "Evicted"
)

// Pod is one that runs.
type Pod struct {
	Namespace, Name, UID string
	Static               bool
	Spec                 func() (*v1.Pod, error)
}

// Verdict is how a pod is to end.
type Verdict struct {
	Reason, Message string
	// Disruption is the message of its condition DisruptionTarget, empty without.
	Disruption string
	Grace      int64 // seconds
}

// Pods is what is done with pods.
type Pods interface {
	// Running lists those that aren't over.
	Running() []Pod
	// End ends one, and returns when nothing of it runs or ctx is over.
	End(ctx context.Context, uid string, v Verdict) error
	// Measure says what they use; counted says that folders are counted, too. With
	// only it is asked for those it returns true for.
	Measure(ctx context.Context, counted bool, only func(uid string) bool) ([]*Candidate, error)
}

// Collector frees what nobody uses.
type Collector interface {
	DeleteDeadContainers(context.Context) error
	DeleteUnusedImages(context.Context) error
}

// Config of a [Manager]. Sources and Pods are required.
type Config struct {
	Thresholds []Threshold
	Sources    Sources
	Pods       Pods
	// Collector may be nil.
	Collector Collector
	// Transition, LocalPeriod and Period are the defaults above if 0.
	Transition, LocalPeriod, Period time.Duration
	// MaxGrace bounds the grace under a soft threshold, in seconds, as
	// --eviction-max-pod-grace-period.
	MaxGrace int64
	// Changed is told when the conditions did; may be nil.
	Changed func()
	// Event is told what a kubelet tells of its node; may be nil.
	Event func(eventType, reason, message string)
	// Wake is signalled when the kernel says that memory is short; may be nil.
	Wake <-chan struct{}
	Log  *slog.Logger
}

// Manager keeps watch. Its methods are safe for concurrent use.
type Manager struct {
	Config

	// Of Run's goroutine.
	first           map[thresholdKey]time.Time
	under           []Threshold     // met when last looked, graces over
	local           time.Time       // when folders were last counted
	limited         map[string]bool // whether a pod has a limit of ephemeral storage, which never changes
	storesAsk       time.Time       // when to ask again
	images, layers  string
	separate, split bool

	mu         sync.Mutex
	lastSeen   map[v1.NodeConditionType]time.Time
	conditions []v1.NodeConditionType
	evictions  map[Signal]int64
}

type thresholdKey struct {
	signal Signal
	grace  time.Duration
	value  string
}

func (t *Threshold) key() thresholdKey { return thresholdKey{t.Signal, t.Grace, t.Value.String()} }

// New returns a Manager that has looked at nothing yet.
func New(c Config) *Manager {
	if c.Transition == 0 {
		c.Transition = DefaultTransition
	}
	if c.LocalPeriod == 0 {
		c.LocalPeriod = DefaultLocalPeriod
	}
	if c.Period == 0 {
		c.Period = Period
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	// What all pods may take together is a threshold as hard as the node's own.
	for _, t := range c.Thresholds {
		if t.Signal == MemoryAvailable && t.hard() {
			t.Signal = AllocatableMemory
			c.Thresholds = append(slices.Clip(c.Thresholds), t)
			break
		}
	}
	return &Manager{Config: c, first: map[thresholdKey]time.Time{}, lastSeen: map[v1.NodeConditionType]time.Time{}, evictions: map[Signal]int64{}}
}

// Run looks until ctx ends. After a pod was evicted it looks again at once.
func (m *Manager) Run(ctx context.Context) error {
	ticker := time.NewTicker(m.Period)
	defer ticker.Stop()
	for {
		for ctx.Err() == nil && m.Check(ctx) {
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		case <-m.Wake:
		}
	}
}

// Conditions are the pressures that the node has now, or had within Transition.
func (m *Manager) Conditions() []v1.NodeConditionType {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.conditions)
}

// Evictions by signal since the start.
func (m *Manager) Evictions() map[Signal]int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make(map[Signal]int64, len(m.evictions))
	for s, n := range m.evictions {
		out[s] = n
	}
	return out
}

// Gate says why a pod that is new to the node can't be taken under pressure
// (upstream: eviction_manager.go, Admit); an empty reason lets it in.
func (m *Manager) Gate(pod *v1.Pod, static bool, qos v1.PodQOSClass) (string, string) {
	conditions := m.Conditions()
	c := Candidate{Pod: pod, Static: static}
	if len(conditions) == 0 || c.critical() {
		return "", ""
	}
	if len(conditions) == 1 && conditions[0] == v1.NodeMemoryPressure {
		if qos != v1.PodQOSBestEffort || tolerates(pod, v1.TaintNodeMemoryPressure) {
			return "", ""
		}
	}
	return reason, fmt.Sprintf("The node had condition: %v. ", conditions)
}

func tolerates(pod *v1.Pod, taint string) bool {
	return slices.ContainsFunc(pod.Spec.Tolerations, func(t v1.Toleration) bool {
		effect := t.Effect == "" || t.Effect == v1.TaintEffectNoSchedule
		exists := t.Operator == v1.TolerationOpExists && (t.Key == "" || t.Key == taint)
		equal := (t.Operator == "" || t.Operator == v1.TolerationOpEqual) && t.Key == taint && t.Value == ""
		return effect && (exists || equal)
	})
}

// Check looks once, and frees or ends what has to be. It returns true if a pod
// went, so that it is worth looking again at once.
func (m *Manager) Check(ctx context.Context) bool {
	now := time.Now()
	seen := m.observe(ctx)
	under := met(m.Thresholds, seen, false)
	for _, t := range met(m.under, seen, true) { // not enough was freed yet
		if !slices.ContainsFunc(under, func(have Threshold) bool { return have.key() == t.key() }) {
			under = append(under, t)
		}
	}
	first := map[thresholdKey]time.Time{}
	var over []Threshold // whose grace is
	for i := range under {
		key := under[i].key()
		at, known := m.first[key]
		if !known {
			at = now
			m.short(&under[i], seen[under[i].Signal])
		}
		first[key] = at
		if now.Sub(at) >= under[i].Grace {
			over = append(over, under[i])
		}
	}
	m.first, m.under = first, over
	m.condition(under, now)
	if m.checkLocal(ctx, now) {
		return true
	}
	if len(over) == 0 {
		return false
	}
	// Memory first: without it nothing can be done about the rest.
	slices.SortStableFunc(over, func(a, b Threshold) int { return order(a.Signal) - order(b.Signal) })
	if m.Event != nil {
		k, _ := over[0].Signal.kind()
		m.Event(v1.EventTypeWarning, "EvictionThresholdMet", fmt.Sprintf("Attempting to reclaim %s", k.resource))
	}
	if m.reclaim(ctx, over[0].Signal) {
		return false
	}
	return m.evictOne(ctx, over, seen)
}

// short logs what the node runs short of and, if that is a disk, which.
func (m *Manager) short(t *Threshold, o observation) {
	about := []any{"signal", t.Signal, "threshold", t.Value, "available", o.available, "grace", t.Grace}
	if o.where != "" {
		about = append(about, "disk of", o.where)
	}
	m.Log.Warn("the node runs short", about...)
}

func order(s Signal) int {
	if s == MemoryAvailable || s == AllocatableMemory {
		return 0
	}
	return 1
}

// condition notes which pressures there are.
func (m *Manager) condition(under []Threshold, now time.Time) {
	m.mu.Lock()
	for i := range under {
		k, _ := under[i].Signal.kind()
		m.lastSeen[k.condition] = now
	}
	var holds []v1.NodeConditionType
	for _, c := range []v1.NodeConditionType{v1.NodeMemoryPressure, v1.NodeDiskPressure, v1.NodePIDPressure} {
		if at, ok := m.lastSeen[c]; ok && now.Sub(at) < m.Transition {
			holds = append(holds, c)
		} else if ok {
			delete(m.lastSeen, c)
			m.Log.Info("the node has enough again", "condition", c)
		}
	}
	changed := !slices.Equal(holds, m.conditions)
	m.conditions = holds
	m.mu.Unlock()
	if changed && m.Changed != nil {
		m.Changed()
	}
}

// reclaim frees what nobody uses, and says whether that was enough.
func (m *Manager) reclaim(ctx context.Context, s Signal) bool {
	containers, images := m.reclaims(s)
	if m.Collector == nil || !containers && !images {
		return false
	}
	m.Log.Info("freeing what nobody uses", "signal", s)
	if containers {
		if err := m.Collector.DeleteDeadContainers(ctx); err != nil {
			m.Log.Warn("dead containers were not removed", "err", err)
		}
	}
	if images {
		if err := m.Collector.DeleteUnusedImages(ctx); err != nil {
			m.Log.Warn("unused images were not removed", "err", err)
		}
	}
	return len(met(m.Thresholds, m.observe(ctx), true)) == 0
}

// evictOne ends the first pod that may go.
func (m *Manager) evictOne(ctx context.Context, over []Threshold, seen observations) bool {
	t := over[0]
	k, _ := t.Signal.kind()
	disk := k.condition == v1.NodeDiskPressure
	pods, err := m.Pods.Measure(ctx, disk, nil)
	if err != nil {
		m.Log.Error("the node is short and what pods use can't be told", "signal", t.Signal, "err", err)
		return false
	}
	rank(pods, k.resource, m.placesOf(t.Signal))
	for _, c := range pods {
		if c.critical() {
			continue
		}
		grace := int64(hardGrace)
		if !t.hard() {
			if grace = m.MaxGrace; c.Pod.Spec.TerminationGracePeriodSeconds != nil {
				grace = min(grace, *c.Pod.Spec.TerminationGracePeriodSeconds)
			}
		}
		text := message(c, k.resource, over, seen)
		return m.end(ctx, c, t.Signal, Verdict{Reason: reason, Message: text, Disruption: text, Grace: grace})
	}
	m.Log.Error("the node is short, and there is no pod to evict", "signal", t.Signal, "available", seen[t.Signal].available)
	return false
}

// end ends one pod and waits for it.
func (m *Manager) end(ctx context.Context, c *Candidate, why Signal, v Verdict) bool {
	m.Log.Warn("evicting a pod", "pod", c.Namespace+"/"+c.Name, "uid", c.UID, "signal", why, "message", v.Message)
	m.mu.Lock()
	m.evictions[why]++
	m.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, endTimeout+time.Duration(v.Grace)*time.Second)
	defer cancel()
	if err := m.Pods.End(ctx, c.UID, v); err != nil && !errors.Is(err, context.Canceled) {
		m.Log.Warn("a pod that was evicted still ends", "pod", c.Namespace+"/"+c.Name, "err", err)
		return false // look again with the next tick, or the next one would go because this is slow
	}
	return true
}

// stores is where the runtime keeps images and layers. Once it said so, it isn't
// asked again for an hour: the answer costs it a count of its store, and while the
// agent runs they don't move.
func (m *Manager) stores(ctx context.Context) (images, layers string) {
	if m.storesAsk.IsZero() || time.Now().After(m.storesAsk) {
		m.storesAsk = time.Now().Add(storesRetry)
		if i, l := m.Sources.Stores(ctx); i != "" {
			m.images, m.layers, m.storesAsk = i, l, time.Now().Add(storesFresh)
		}
	}
	return m.images, m.layers
}

// Signals of evictions by the pods' own limits, by upstream's names in its metric.
const (
	emptyDirLimit  Signal = "emptydirfs.limit"
	podLimit       Signal = "ephemeralpodfs.limit"
	containerLimit Signal = "ephemeralcontainerfs.limit"
)

// checkLocal ends pods that take more ephemeral storage than they may. Only those
// with a limit are counted.
func (m *Manager) checkLocal(ctx context.Context, now time.Time) bool {
	if !m.local.IsZero() && now.Sub(m.local) < m.LocalPeriod {
		return false
	}
	m.local = now
	known, any := map[string]bool{}, false
	for _, p := range m.Pods.Running() {
		limit, ok := m.limited[p.UID]
		if !ok {
			pod, err := p.Spec()
			if err != nil {
				continue
			}
			limit = hasLocalLimit(pod)
		}
		known[p.UID], any = limit, any || limit
	}
	m.limited = known
	if !any {
		return false
	}
	pods, err := m.Pods.Measure(ctx, true, func(uid string) bool { return known[uid] })
	if err != nil {
		m.Log.Warn("what pods take of the disk can't be told", "err", err)
		return false
	}
	gone := false
	for _, c := range pods {
		if !c.Measured || c.critical() {
			continue
		}
		if why, text := exceeds(c, m.separate); text != "" {
			gone = m.end(ctx, c, why, Verdict{Reason: reason, Message: text, Grace: hardGrace}) || gone
		}
	}
	return gone
}

func hasLocalLimit(pod *v1.Pod) bool {
	for i := range pod.Spec.Volumes {
		if e := pod.Spec.Volumes[i].EmptyDir; e != nil && e.SizeLimit != nil && e.SizeLimit.Sign() > 0 && e.Medium == v1.StorageMediumDefault {
			return true
		}
	}
	_, ok := resourcehelper.PodLimits(pod, resourcehelper.PodResourcesOptions{})[v1.ResourceEphemeralStorage]
	return ok
}

// exceeds says which limit of its own a pod exceeds, in upstream's words
// (eviction_manager.go, localStorageEviction).
func exceeds(c *Candidate, separate bool) (Signal, string) {
	for i := range c.Pod.Spec.Volumes {
		v := &c.Pod.Spec.Volumes[i]
		if v.EmptyDir == nil || v.EmptyDir.SizeLimit == nil || v.EmptyDir.SizeLimit.Sign() <= 0 {
			continue
		}
		if used, ok := c.EmptyDirs[v.Name]; ok && used > v.EmptyDir.SizeLimit.Value() {
			return emptyDirLimit, fmt.Sprintf("Usage of EmptyDir volume %q exceeds the limit %q. ", v.Name, v.EmptyDir.SizeLimit.String())
		}
	}
	if limit, ok := resourcehelper.PodLimits(c.Pod, resourcehelper.PodResourcesOptions{})[v1.ResourceEphemeralStorage]; ok && c.Ephemeral > limit.Value() {
		return podLimit, fmt.Sprintf("Pod ephemeral local storage usage exceeds the total limit of containers %s. ", limit.String())
	}
	for _, use := range c.Containers {
		i := slices.IndexFunc(c.Pod.Spec.Containers, func(s v1.Container) bool { return s.Name == use.Name })
		if i < 0 {
			continue
		}
		limit, ok := c.Pod.Spec.Containers[i].Resources.Limits[v1.ResourceEphemeralStorage]
		if !ok || limit.IsZero() {
			continue
		}
		used := int64(0)
		if use.Log != nil {
			used += *use.Log
		}
		if use.Layer != nil && !separate {
			used += *use.Layer
		}
		if used > limit.Value() {
			return containerLimit, fmt.Sprintf("Container %s exceeded its local ephemeral storage limit %q. ", use.Name, limit.String())
		}
	}
	return "", ""
}
