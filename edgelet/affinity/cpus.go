package affinity

import (
	"errors"
	"fmt"

	v1 "k8s.io/api/core/v1"
)

// wholeCPUs is how many processors of its own a container of the pod is to have: a
// whole number that it asks for, in a Guaranteed pod. Pods that ask as a whole are
// left alone, as a kubelet leaves them by default (PodLevelResourceManagers is alpha).
func (a *giving) wholeCPUs(c *v1.Container) int {
	if a.m.cfg.CPU != CPUStatic || a.pod.Spec.Resources != nil && len(a.pod.Spec.Resources.Requests)+len(a.pod.Spec.Resources.Limits) > 0 || !a.m.cfg.Guaranteed(a.pod) {
		return 0
	}
	q := c.Resources.Requests[v1.ResourceCPU]
	if q.MilliValue()%1000 != 0 || q.Value() > maxID {
		return 0
	}
	return int(q.Value())
}

func (a *giving) giveCPUs(c *v1.Container, later bool, nodes Nodes) error {
	n := a.wholeCPUs(c)
	if n <= 0 {
		return nil
	}
	if a.counts {
		a.m.Counts.CPURequests.Add(1)
	}
	got, err := a.takeCPUs(c.Name, n, nodes)
	if err != nil {
		if a.counts {
			a.m.Counts.CPUErrors.Add(1)
		}
		return err
	}
	if later {
		a.reuse = a.reuse.Union(got)
	} else {
		a.reuse = a.reuse.Minus(got)
	}
	return nil
}

// takeCPUs returns the processors that a container has, or has now.
func (a *giving) takeCPUs(container string, n int, nodes Nodes) (Set, error) {
	if a.m.notFit != "" {
		return nil, errors.New(a.m.notFit)
	}
	got, err := a.tryCPUs(container, n, nodes)
	if err != nil {
		// Of pods that are gone something may be left.
		a.m.freeInactive()
		got, err = a.tryCPUs(container, n, nodes)
	}
	return got, err
}

func (a *giving) tryCPUs(container string, n int, nodes Nodes) (Set, error) {
	m, t := a.m, a.m.cfg.Topology
	m.mu.Lock()
	defer m.mu.Unlock()
	g := m.pods[a.uid][container]
	if len(g.CPUs) == n {
		return g.CPUs, nil
	}
	free := m.freeLocked().Union(a.reuse)
	if m.cfg.FullCores {
		free = t.wholeCores(free)
		if err := m.fullCores(n, free); err != nil {
			return nil, err
		}
	}
	var got Set
	if nodes != 0 {
		near := free.And(t.in(nodes))
		var err error
		if got, err = t.take(near, min(n, len(near)), m.cfg.Spread); err != nil {
			return nil, err
		}
	}
	rest, err := t.take(free.Minus(got), n-len(got), m.cfg.Spread)
	if err != nil {
		return nil, err
	}
	g.CPUs = got.Union(rest)
	a.put(container, g)
	return g.CPUs, nil
}

// fullCores refuses what isn't whole cores (upstream: SMTAlignmentError).
func (m *Manager) fullCores(n int, free Set) error {
	const reason = "SMTAlignmentError"
	threads := m.cfg.Topology.threads()
	if n%threads != 0 {
		return &Refusal{reason, fmt.Sprintf("SMT Alignment Error: requested %d cpus not multiple cpus per core = %d", n, threads)}
	}
	if n > len(free) {
		return &Refusal{reason, fmt.Sprintf("SMT Alignment Error: not enough free physical CPUs: available physical CPUs = %d, requested CPUs = %d, CPUs per core = %d", len(free), n, threads)}
	}
	return nil
}

// cpuHints are the nodes that a container's processors can come from; of a nil
// container the whole pod's.
func (a *giving) cpuHints(c *v1.Container) Hints {
	n := 0
	if c != nil {
		n = a.wholeCPUs(c)
	} else {
		n = int(a.podSum(func(c *v1.Container) int64 { return int64(a.wholeCPUs(c)) }))
	}
	if n <= 0 {
		return nil
	}
	m, t := a.m, a.m.cfg.Topology
	m.mu.Lock()
	free, has := m.freeLocked(), a.reuse
	for name, g := range m.pods[a.uid] {
		if c == nil || name == c.Name {
			has = has.Union(g.CPUs)
		}
		if c != nil && name == c.Name && len(g.CPUs) == n {
			free, has = nil, g.CPUs // what it has it keeps
			break
		}
	}
	m.mu.Unlock()
	return Hints{string(v1.ResourceCPU): AsHints(t.nodes(), func(nodes Nodes) (ever, now bool) {
		near := t.in(nodes)
		return len(near) >= n, has.Within(near) && len(free.Union(has).And(near)) >= n
	})}
}

// podSum is what a pod takes of something at most at any time: what its containers
// and sidecars have together, or an init container beside the sidecars before it.
func (a *giving) podSum(of func(*v1.Container) int64) int64 {
	var init, sidecars, apps int64
	for i := range a.pod.Spec.InitContainers {
		c := &a.pod.Spec.InitContainers[i]
		if c.RestartPolicy != nil && *c.RestartPolicy == v1.ContainerRestartPolicyAlways {
			sidecars += of(c)
		} else {
			init = max(init, sidecars+of(c))
		}
	}
	for i := range a.pod.Spec.Containers {
		apps += of(&a.pod.Spec.Containers[i])
	}
	return max(init, sidecars+apps)
}
