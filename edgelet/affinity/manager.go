package affinity

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	v1 "k8s.io/api/core/v1"
)

// Store keeps what must survive the agent. A nil record deletes; both return when
// that is durable.
type Store interface {
	AffinityRecords() (map[string][]byte, error)
	PutAffinityRecord(key string, record []byte) error
}

// Config configures a [Manager].
type Config struct {
	Policies
	// Topology is this machine's, nil if it can't be read: then NotFit says why.
	Topology *Topology
	// NotFit says why no container can be bound to processors on this machine, and
	// what to do about it; empty if they can.
	NotFit string
	// MemoryKept is what of the machine's memory isn't for pods, in bytes by resource
	// name: --reserved-memory has to say the same, as with a kubelet.
	MemoryKept map[string]int64
	// Guaranteed says whether a pod's class of service is that.
	Guaranteed func(*v1.Pod) bool
	Store      Store
	// Changed is called, with no lock held, when the shared processors did; may be nil.
	Changed func()
	// Active says whether a pod is still here; what others hold is taken back when
	// there isn't enough. Nil: all are.
	Active func(uid string) bool
	Log    *slog.Logger
}

// Manager knows who has which processors and memory. Safe for concurrent use.
type Manager struct {
	cfg      Config
	log      *slog.Logger
	all      Set // that are online
	reserved Set // that nobody has for itself
	notFit   string
	// Counts are for metrics.
	Counts Counts

	mu   sync.Mutex
	pods map[string]podGiven // by UID
	// lacking are pods that were admitted and have less than they were promised, with
	// the reason last told.
	lacking map[string]string
	// unbind: containers may be bound to processors by an earlier start, and are not
	// to be any more.
	unbind bool
	now    machineRecord // to be kept once nobody is
}

// Counts are a kubelet's counters.
type Counts struct {
	CPURequests, CPUErrors, MemoryRequests, MemoryErrors, AlignRequests, AlignErrors atomic.Uint64
}

// New reads what is kept and returns a Manager, or nil if nothing is to be managed
// and no container is bound by an earlier start. That the machine has not what the
// policies need is logged and refuses pods that ask for it, not the agent's start.
func New(c Config) (*Manager, error) {
	if c.Store == nil || c.Guaranteed == nil {
		return nil, errors.New("affinity: Store and Guaranteed are required")
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Changed == nil {
		c.Changed = func() {}
	}
	if c.Active == nil {
		c.Active = func(string) bool { return true }
	}
	records, err := c.Store.AffinityRecords()
	if err != nil {
		return nil, fmt.Errorf("reading which container has which processors: %w", err)
	}
	if c.None() && len(records) == 0 {
		return nil, nil
	}
	m := &Manager{cfg: c, log: c.Log, pods: map[string]podGiven{}, notFit: c.NotFit}
	if t := c.Topology; t != nil {
		m.all = t.All()
		if err := m.fit(t); err != nil && m.notFit == "" {
			m.notFit = err.Error()
		}
	}
	if m.notFit != "" {
		m.log.Error("pods that ask for processors or memory of their own are refused on this machine", "why", m.notFit)
	}
	return m, m.restore(records)
}

// fit finds the reserved processors and says what this machine lacks.
func (m *Manager) fit(t *Topology) error {
	p := &m.cfg.Policies
	if p.Align != AlignNone && len(t.Nodes) > maxNodes {
		return fmt.Errorf("the topology manager's policy %s is unsupported on machines with more than %d NUMA Nodes", p.Align, maxNodes)
	}
	if p.CPU == CPUStatic {
		n := int((p.ReservedMilli + 999) / 1000)
		switch m.reserved = p.Reserved; {
		case len(p.Reserved) > 0 && !p.Reserved.Within(m.all):
			m.reserved = p.Reserved.And(m.all)
			return fmt.Errorf("--reserved-cpus: %s is not a subset of online-cpus: %s", p.Reserved, m.all)
		case len(p.Reserved) == 0:
			var err error
			if m.reserved, err = t.take(m.all, n, p.Spread); err != nil {
				m.reserved = m.all
				return fmt.Errorf("unable to reserve the required amount of CPUs: %w", err)
			}
		}
	}
	if p.Memory == MemoryStatic {
		return m.fitMemory(t)
	}
	return nil
}

// restore takes what is kept as far as it fits the machine.
func (m *Manager) restore(records map[string][]byte) error {
	now := machineRecord{CPU: m.cfg.CPU, Memory: m.cfg.Memory, Online: m.all.String(), Reserved: m.reserved.String()}
	var before machineRecord
	if raw, has := records[machineKey]; has {
		var err error
		if before, err = decodeMachine(raw); err != nil {
			m.log.Error("going on without what the machine was before", "err", err)
		}
		before.Version = 0
		if before != now {
			m.log.Warn("policies or processors are others than at the last start; what still fits is kept", "before", before, "now", now)
		}
	}
	delete(records, machineKey)
	taken := m.reserved
	for _, uid := range slices.Sorted(maps.Keys(records)) {
		pod, err := decodePod(records[uid])
		if err != nil {
			m.log.Error("going on without the processors of a pod; it is given others", "uid", uid, "err", err)
			continue
		}
		var its Set
		for _, name := range slices.Sorted(maps.Keys(pod)) {
			g := pod[name]
			if m.cfg.CPU != CPUStatic || m.notFit != "" || !g.CPUs.Within(m.all.Minus(taken)) {
				if len(g.CPUs) > 0 {
					m.log.Warn("a container can't keep the processors that it had", "uid", uid, "container", name, "had", g.CPUs, "online", m.all, "reserved", m.reserved)
				}
				g.CPUs = nil
			}
			if m.cfg.Memory != MemoryStatic || m.notFit != "" {
				g.Memory = nil
			}
			its = its.Union(g.CPUs)
			pod[name] = g
		}
		taken = taken.Union(its)
		m.pods[uid] = pod
	}
	m.now = now
	m.unbind = m.cfg.CPU == CPUNone && before.CPU != CPUNone && before != now
	if m.unbind || before == now {
		return nil
	}
	if err := m.cfg.Store.PutAffinityRecord(machineKey, now.encode()); err != nil {
		return fmt.Errorf("keeping which processors there are: %w", err)
	}
	return nil
}

// Place is where a container runs.
type Place struct {
	// CPUs and Memory are lists as cpuset has them; empty: as the runtime likes.
	CPUs, Memory string
	// Exclusive says that the processors are its own: it needs no quota of them.
	Exclusive bool
}

// Place says where a container runs now.
func (m *Manager) Place(podUID, container string) Place {
	m.mu.Lock()
	defer m.mu.Unlock()
	g := m.pods[podUID][container]
	p := Place{CPUs: g.CPUs.String(), Exclusive: len(g.CPUs) > 0}
	var nodes Nodes
	for _, b := range g.Memory {
		nodes |= b.Nodes
	}
	p.Memory = NewSet(nodes.IDs()...).String()
	switch {
	case p.Exclusive:
	case m.cfg.CPU == CPUStatic && m.notFit == "":
		p.CPUs = m.sharedLocked().String()
	case m.unbind || m.cfg.CPU == CPUStatic:
		p.CPUs = m.all.String() // bound no more
	}
	return p
}

// Exclusive reports whether a container of the pod has processors for itself.
func (m *Manager) Exclusive(podUID string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, g := range m.pods[podUID] {
		if len(g.CPUs) > 0 {
			return true
		}
	}
	return false
}

// sharedLocked are the processors that nobody has for itself. Where reserved ones
// are strictly so they aren't among them, unless no other is left: with no processor
// at all containers could not run, and with all of them would be on those that are
// somebody's own.
func (m *Manager) sharedLocked() Set {
	free := m.freeLocked()
	if m.cfg.Strict && len(free) > 0 {
		return free
	}
	return free.Union(m.reserved)
}

// freeLocked are the processors that may be given.
func (m *Manager) freeLocked() Set {
	free := m.all.Minus(m.reserved)
	for _, pod := range m.pods {
		for _, g := range pod {
			free = free.Minus(g.CPUs)
		}
	}
	return free
}

// Shared are the processors of all that have none of their own.
func (m *Manager) Shared() Set {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.sharedLocked()
}

// Allocatable are the processors that containers may have for themselves, whether
// one does or not; none without the static policy, as with a kubelet.
func (m *Manager) Allocatable() Set {
	if m.cfg.CPU != CPUStatic || m.notFit != "" {
		return nil
	}
	return m.all.Minus(m.reserved)
}

// Given is what a container has for itself.
func (m *Manager) Given(podUID, container string) (Set, []Block) {
	m.mu.Lock()
	defer m.mu.Unlock()
	g := m.pods[podUID][container]
	return g.CPUs, g.Memory
}

// Used is how many processors are somebody's own, and how many are free to be given.
func (m *Manager) Used() (exclusive, free int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	free = len(m.freeLocked())
	if m.cfg.CPU != CPUStatic {
		return 0, 0
	}
	return len(m.all.Minus(m.reserved)) - free, free
}

// Free takes back what a pod that is over had.
func (m *Manager) Free(podUID string) error {
	m.mu.Lock()
	shared := m.sharedLocked().String()
	_, had := m.pods[podUID]
	delete(m.pods, podUID)
	delete(m.lacking, podUID)
	changed := shared != m.sharedLocked().String()
	m.mu.Unlock()
	if changed {
		m.cfg.Changed()
	}
	if !had {
		return nil
	}
	if err := m.cfg.Store.PutAffinityRecord(podUID, nil); err != nil {
		return fmt.Errorf("taking back the processors of pod %s: %w", podUID, err)
	}
	return nil
}

// freeInactive takes back what pods hold that aren't here any more.
func (m *Manager) freeInactive() {
	m.mu.Lock()
	uids := slices.Collect(maps.Keys(m.pods))
	m.mu.Unlock()
	for _, uid := range uids {
		if m.cfg.Active(uid) {
			continue
		}
		if err := m.Free(uid); err != nil {
			m.log.Error("processors stay taken for now", "err", err)
		}
	}
}

// Settled says that every container of before the agent's start was told where it
// runs. That nobody is bound any more is remembered: the next start has nothing to
// do.
func (m *Manager) Settled() {
	if !m.unbind {
		return
	}
	err := error(nil)
	if !m.cfg.None() {
		err = m.cfg.Store.PutAffinityRecord(machineKey, m.now.encode())
	} else {
		m.mu.Lock()
		uids := slices.Sorted(maps.Keys(m.pods))
		clear(m.pods)
		m.mu.Unlock()
		for _, uid := range append(uids, machineKey) {
			err = errors.Join(err, m.cfg.Store.PutAffinityRecord(uid, nil))
		}
	}
	if err != nil {
		m.log.Error("the next start looks again who is bound to processors", "err", err)
	}
}

// keep makes what a pod has durable, unless it is so.
func (m *Manager) keep(uid string, before []byte) error {
	m.mu.Lock()
	now := m.pods[uid].encode()
	m.mu.Unlock()
	if bytes.Equal(before, now) {
		return nil
	}
	if err := m.cfg.Store.PutAffinityRecord(uid, now); err != nil {
		return fmt.Errorf("keeping which processors it has: %w", err)
	}
	return nil
}
