package affinity

import (
	"context"
	"errors"
	"fmt"
	"maps"

	v1 "k8s.io/api/core/v1"
)

// Refusal is why a pod isn't taken, with a kubelet's reason.
type Refusal struct{ Reason, Message string }

func (r *Refusal) Error() string { return r.Message }

// ReasonUnexpected is a kubelet's for what went wrong while it gave.
const ReasonUnexpected = "UnexpectedAdmissionError"

func unexpected(err error) *Refusal {
	var own *Refusal
	if errors.As(err, &own) {
		return own
	}
	return &Refusal{ReasonUnexpected, fmt.Sprintf("Allocate failed due to %v, which is unexpected", err)}
}

// Devices gives the devices of plugins to one pod, a container after the other.
type Devices interface {
	// Hints are the ways to give a container its devices.
	Hints(*v1.Container) Hints
	// PodHints are those of the pod as a whole.
	PodHints() Hints
	// Give gives a container its devices, from these nodes as far as possible; none:
	// from any.
	Give(context.Context, *v1.Container, Nodes) error
}

// Admit gives the containers of a pod that is new to the node the processors and
// the memory that are for themselves, and has devices give them theirs, together as
// the topology manager's policy wants it. It returns when that is durable; what a
// container has it keeps. The error is a [*Refusal], and then the pod has nothing.
func (m *Manager) Admit(ctx context.Context, pod *v1.Pod, devices Devices) error {
	uid := string(pod.UID)
	a := m.begin(pod)
	a.counts = true
	refusal := a.run(ctx, devices)
	if refusal == nil {
		if err := m.keep(uid, a.before); err != nil {
			refusal = unexpected(err)
		}
	}
	if refusal != nil {
		if err := m.Free(uid); err != nil {
			m.log.Error("the record of a refused pod's processors stays for now", "err", err)
		}
		a.told = m.Shared().String()
	}
	a.tell()
	if refusal != nil {
		return refusal
	}
	return nil
}

// giving is one pod's asking.
type giving struct {
	m      *Manager
	pod    *v1.Pod
	uid    string
	reuse  Set      // processors that its init containers had, and what comes later may have
	before []byte   // the pod's record
	told   string   // the shared processors, as everybody was last told
	inits  []string // init containers whose memory later ones may have
	counts bool     // it is a pod that is new to the node
}

func (m *Manager) begin(pod *v1.Pod) *giving {
	a := &giving{m: m, pod: pod, uid: string(pod.UID)}
	m.mu.Lock()
	defer m.mu.Unlock()
	a.told = m.sharedLocked().String()
	if its, has := m.pods[a.uid]; has {
		a.before = its.encode()
		m.pods[a.uid] = maps.Clone(its)
	}
	return a
}

// tell has everybody looked at if the shared processors are others now.
func (a *giving) tell() {
	if a.m.Shared().String() != a.told {
		a.m.cfg.Changed()
	}
}

func (a *giving) run(ctx context.Context, devices Devices) *Refusal {
	p := &a.m.cfg.Policies
	if p.Align != AlignNone {
		a.m.Counts.AlignRequests.Add(1)
	}
	var nodes Nodes
	refuse := func(err error) *Refusal {
		if p.Align != AlignNone {
			a.m.Counts.AlignErrors.Add(1)
		}
		if errors.Is(err, ErrAlign) {
			return &Refusal{"TopologyAffinityError", ErrAlign.Error()}
		}
		return unexpected(err)
	}
	if p.Align != AlignNone && a.m.notFit != "" {
		return refuse(errors.New(a.m.notFit))
	}
	if p.Align != AlignNone && p.Scope == ScopePod {
		best, ok := merge(p.Align, a.m.cfg.Topology.nodes(), []Hints{devices.PodHints(), a.cpuHints(nil), a.memoryHints(nil)})
		if !ok {
			return refuse(ErrAlign)
		}
		nodes = best.Nodes
	}
	for c, later := range a.containers() {
		if p.Align != AlignNone && p.Scope == ScopeContainer {
			best, ok := merge(p.Align, a.m.cfg.Topology.nodes(), []Hints{devices.Hints(c), a.cpuHints(c), a.memoryHints(c)})
			if !ok {
				return refuse(ErrAlign)
			}
			nodes = best.Nodes
		}
		if err := devices.Give(ctx, c, nodes); err != nil {
			return refuse(err)
		}
		if err := a.give(c, later, nodes); err != nil {
			return refuse(err)
		}
	}
	return nil
}

// give gives a container what is not a device.
func (a *giving) give(c *v1.Container, later bool, nodes Nodes) error {
	if err := a.giveCPUs(c, later, nodes); err != nil {
		return err
	}
	return a.giveMemory(c, later, nodes)
}

// containers are all that have resources, in the order in which they are given
// them, and whether later ones may have the same: those of init containers that are
// over by then.
func (a *giving) containers() func(yield func(*v1.Container, bool) bool) {
	return func(yield func(*v1.Container, bool) bool) {
		for i := range a.pod.Spec.InitContainers {
			c := &a.pod.Spec.InitContainers[i]
			if !yield(c, c.RestartPolicy == nil || *c.RestartPolicy != v1.ContainerRestartPolicyAlways) {
				return
			}
		}
		for i := range a.pod.Spec.Containers {
			if !yield(&a.pod.Spec.Containers[i], false) {
				return
			}
		}
	}
}

// Ensure gives a pod that was admitted what it has not: because the agent ran with
// another policy then, or what it had is no more. It keeps a pod that runs running:
// for what isn't there the pod has a share in all, and told says why, once.
func (m *Manager) Ensure(pod *v1.Pod) (told string, err error) {
	uid := string(pod.UID)
	if !m.cfg.Guaranteed(pod) {
		return "", nil
	}
	if m.complete(pod) {
		return "", nil
	}
	a := m.begin(pod)
	var why error
	for c, later := range a.containers() {
		if e := a.give(c, later, 0); e != nil && why == nil {
			why = fmt.Errorf("container %q was promised processors or memory of its own, and shares those of all until there are enough: %w", c.Name, e)
		}
	}
	err = m.keep(uid, a.before)
	a.tell()
	m.mu.Lock()
	defer m.mu.Unlock()
	if why == nil {
		delete(m.lacking, uid)
		return "", err
	}
	if m.lacking[uid] == why.Error() {
		return "", err
	}
	if m.lacking == nil {
		m.lacking = map[string]string{}
	}
	m.lacking[uid] = why.Error()
	return why.Error(), err
}

// complete reports whether a pod has all that it was promised.
func (m *Manager) complete(pod *v1.Pod) bool {
	a := &giving{m: m, pod: pod}
	m.mu.Lock()
	defer m.mu.Unlock()
	its := m.pods[string(pod.UID)]
	for c := range a.containers() {
		g := its[c.Name]
		if len(g.CPUs) != a.wholeCPUs(c) || len(g.Memory) == 0 && len(a.wantedMemory(c)) > 0 {
			return false
		}
	}
	return true
}

// Infeasible says why a pod can't be given other resources in place, in a
// kubelet's words; empty if it can (allocation/handlers.go).
func (m *Manager) Infeasible(was, wanted *v1.Pod) string {
	if !m.cfg.Guaranteed(wanted) {
		return ""
	}
	const text = "Resize is infeasible for Guaranteed Pods alongside %s Manager policy %q"
	if m.cfg.CPU == CPUStatic && differ(was, wanted, v1.ResourceCPU) {
		return fmt.Sprintf(text, "CPU", CPUStatic)
	}
	if m.cfg.Memory == MemoryStatic && differ(was, wanted, v1.ResourceMemory) {
		return fmt.Sprintf(text, "Memory", MemoryStatic)
	}
	return ""
}

func differ(a, b *v1.Pod, name v1.ResourceName) bool {
	have := map[string]*v1.Container{}
	both := func(p *v1.Pod, f func(*v1.Container)) {
		for _, list := range [][]v1.Container{p.Spec.InitContainers, p.Spec.Containers} {
			for i := range list {
				f(&list[i])
			}
		}
	}
	both(a, func(c *v1.Container) { have[c.Name] = c })
	out := false
	both(b, func(c *v1.Container) {
		before := have[c.Name]
		if before == nil {
			return
		}
		x, y := before.Resources.Requests[name], c.Resources.Requests[name]
		u, v := before.Resources.Limits[name], c.Resources.Limits[name]
		out = out || x.Cmp(y) != 0 || u.Cmp(v) != 0
	})
	return out
}
