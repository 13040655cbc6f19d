package affinity

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	v1 "k8s.io/api/core/v1"
)

// Memory is promised in groups of nodes. A node that gives memory alone doesn't do
// so together with others, and one of a group only with that group (upstream:
// memorymanager/policy_static.go, "single and cross NUMA node allocations"). So what
// is free in a group is what its nodes have without the blocks of just that group.

// fitMemory checks what is kept from pods against what --reserved-memory says, and
// fills that in where there is only one node that it can be kept on.
func (m *Manager) fitMemory(t *Topology) error {
	p := &m.cfg.Policies
	if len(p.ReservedMemory) == 0 && len(t.Nodes) == 1 {
		p.ReservedMemory = []ReservedMemory{{Node: t.Nodes[0].ID, Limits: maps.Clone(m.cfg.MemoryKept)}}
	}
	sum := map[string]int64{}
	for _, r := range p.ReservedMemory {
		if !t.nodes().Has(r.Node) {
			return fmt.Errorf("--reserved-memory: the reserved memory configuration references a NUMA node %d that does not exist on this machine", r.Node)
		}
		for name, n := range r.Limits {
			sum[name] += n
		}
	}
	for _, name := range slices.Sorted(maps.Keys(union(sum, m.cfg.MemoryKept))) {
		if sum[name] != m.cfg.MemoryKept[name] {
			return fmt.Errorf("--reserved-memory: the total amount %d of type %q is not equal to the value %d determined by Node Allocatable feature: what --kube-reserved, --system-reserved and --eviction-hard keep", sum[name], name, m.cfg.MemoryKept[name])
		}
	}
	if sum["memory"] <= 0 {
		return errors.New("you should specify the system reserved memory: with --system-reserved memory=AMOUNT")
	}
	return nil
}

func union(a, b map[string]int64) map[string]int64 {
	out := maps.Clone(a)
	maps.Copy(out, b)
	return out
}

// AllocatableMemory is what of each node's memory can be promised.
func (m *Manager) AllocatableMemory() (out []Block) {
	if m.cfg.Memory != MemoryStatic || m.notFit != "" {
		return nil
	}
	for _, n := range m.cfg.Topology.Nodes {
		for _, name := range append([]string{"memory"}, slices.Sorted(maps.Keys(n.HugePages))...) {
			out = append(out, Block{name, m.memoryOf(n, name), 1 << n.ID})
		}
	}
	return out
}

// memoryOf is what a node has for pods.
func (m *Manager) memoryOf(n Node, name string) uint64 {
	have := n.HugePages[name]
	if name == "memory" {
		have = n.Memory
		for _, pool := range n.HugePages {
			have -= min(have, pool)
		}
	}
	for _, r := range m.cfg.ReservedMemory {
		if r.Node == n.ID {
			have -= min(have, uint64(max(r.Limits[name], 0)))
		}
	}
	return have
}

// wantedMemory is what a container of the pod is to be promised, in bytes by
// resource name.
func (a *giving) wantedMemory(c *v1.Container) map[string]int64 {
	if a.m.cfg.Memory != MemoryStatic || a.pod.Spec.Resources != nil && len(a.pod.Spec.Resources.Requests)+len(a.pod.Spec.Resources.Limits) > 0 || !a.m.cfg.Guaranteed(a.pod) {
		return nil
	}
	out := map[string]int64{}
	for name, q := range c.Resources.Requests {
		if isMemory(string(name)) && q.Value() > 0 {
			out[string(name)] = q.Value()
		}
	}
	return out
}

// ways are the groups of nodes that can promise so much. m.mu is held.
func (a *giving) ways(want map[string]int64) []Hint {
	t := a.m.cfg.Topology
	used := map[Nodes]map[string]uint64{}
	for _, pod := range a.m.pods {
		for _, g := range pod {
			for _, b := range g.Memory {
				if used[b.Nodes] == nil {
					used[b.Nodes] = map[string]uint64{}
				}
				used[b.Nodes][b.Type] += b.Bytes
			}
		}
	}
	return AsHints(t.nodes(), func(group Nodes) (ever, now bool) {
		ever, now = true, true
		for other := range used {
			if other != group && other&group != 0 {
				now = false
			}
		}
		for name, n := range want {
			have := uint64(0)
			for _, node := range t.Nodes {
				if group.Has(node.ID) {
					have += a.m.memoryOf(node, name)
				}
			}
			ever = ever && have >= uint64(n)
			free := have - min(have, used[group][name]) + a.reusable(group, name)
			now = now && free >= uint64(n)
		}
		return ever, now
	})
}

// reusable is what the pod's init containers, over by then, were promised. m.mu is
// held.
func (a *giving) reusable(group Nodes, name string) (sum uint64) {
	for i := range a.inits {
		for _, b := range a.m.pods[a.uid][a.inits[i]].Memory {
			if b.Nodes == group && b.Type == name {
				sum += b.Bytes
			}
		}
	}
	return sum
}

func (a *giving) giveMemory(c *v1.Container, later bool, nodes Nodes) error {
	want := a.wantedMemory(c)
	if len(want) == 0 {
		return nil
	}
	if a.counts {
		a.m.Counts.MemoryRequests.Add(1)
	}
	err := a.takeMemory(c.Name, want, nodes)
	if err != nil {
		a.m.freeInactive()
		err = a.takeMemory(c.Name, want, nodes)
	}
	if err != nil && a.counts {
		a.m.Counts.MemoryErrors.Add(1)
	}
	if err == nil && later {
		a.inits = append(a.inits, c.Name)
	}
	return err
}

func (a *giving) takeMemory(container string, want map[string]int64, nodes Nodes) error {
	if a.m.notFit != "" {
		return errors.New(a.m.notFit)
	}
	a.m.mu.Lock()
	defer a.m.mu.Unlock()
	g := a.m.pods[a.uid][container]
	if len(g.Memory) > 0 {
		return nil
	}
	var best Hint
	for _, h := range a.ways(want) {
		if h.Nodes&nodes == nodes && (best.Nodes == 0 || h.Preferred && !best.Preferred || h.Preferred == best.Preferred && h.Nodes.narrower(best.Nodes)) {
			best = h
		}
	}
	switch {
	case best.Nodes == 0 && nodes == 0:
		return errors.New("[memorymanager] failed to get the default NUMA affinity, no NUMA nodes with enough memory is available")
	case best.Nodes == 0:
		return errors.New("[memorymanager] failed to find NUMA nodes to extend the current topology hint")
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		n := uint64(want[name])
		g.Memory = append(g.Memory, Block{name, n, best.Nodes})
		a.handOver(best.Nodes, name, n)
	}
	a.put(container, g)
	return nil
}

// handOver takes from init containers what a later one has now, so that blocks add
// up to what the pod was promised. m.mu is held.
func (a *giving) handOver(group Nodes, name string, n uint64) {
	for _, init := range a.inits {
		g := a.m.pods[a.uid][init]
		g.Memory = slices.Clone(g.Memory)
		for i := range g.Memory {
			if b := &g.Memory[i]; b.Nodes == group && b.Type == name {
				part := min(b.Bytes, n)
				b.Bytes, n = b.Bytes-part, n-part
			}
		}
		a.put(init, g)
	}
}

// memoryHints are the nodes that a container's memory can come from; of a nil
// container the whole pod's.
func (a *giving) memoryHints(c *v1.Container) Hints {
	want := map[string]int64{}
	if c != nil {
		want = a.wantedMemory(c)
	} else {
		for name := range a.memoryNames() {
			if n := a.podSum(func(c *v1.Container) int64 { return a.wantedMemory(c)[name] }); n > 0 {
				want[name] = n
			}
		}
	}
	if len(want) == 0 {
		return nil
	}
	a.m.mu.Lock()
	defer a.m.mu.Unlock()
	ways := a.ways(want)
	for name, g := range a.m.pods[a.uid] {
		if len(g.Memory) > 0 && (c == nil || name == c.Name) {
			ways = []Hint{{g.Memory[0].Nodes, true}} // what it has it keeps
		}
	}
	if len(ways) == 0 {
		return nil // upstream's calculateHints: that there isn't enough is said by who gives it
	}
	out := Hints{}
	for name := range want {
		out[name] = ways
	}
	return out
}

func (a *giving) memoryNames() map[string]bool {
	out := map[string]bool{}
	for c := range a.containers() {
		for name := range a.wantedMemory(c) {
			out[name] = true
		}
	}
	return out
}

// put sets what a container has. m.mu is held.
func (a *giving) put(container string, g given) {
	if a.m.pods[a.uid] == nil {
		a.m.pods[a.uid] = podGiven{}
	}
	a.m.pods[a.uid][container] = g
}
