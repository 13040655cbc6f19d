package devices

import (
	"maps"
	"slices"

	v1 "k8s.io/api/core/v1"
	resourcehelper "k8s.io/component-helpers/resource"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"github.com/coracle-edge/coracle/edgelet/affinity"
)

// Which NUMA nodes devices are near, as their plugins say (upstream:
// devicemanager/topology_hints.go). A plugin that says nothing has no preference.

// nearOf are the nodes of devices that are near some.
func nearOf(list []*pluginapi.Device) (out map[string]affinity.Nodes) {
	for _, d := range list {
		var nodes affinity.Nodes
		for _, n := range d.GetTopology().GetNodes() {
			if n.GetID() >= 0 && n.GetID() < 64 {
				nodes |= 1 << n.GetID()
			}
		}
		if nodes == 0 {
			continue
		}
		if out == nil {
			out = map[string]affinity.Nodes{}
		}
		out[d.ID] = nodes
	}
	return out
}

// nearLocked are those of ids that are near a node of these. m.mu is held.
func (a *Allocation) nearLocked(name string, ids []string, nodes affinity.Nodes) (out []string) {
	if nodes == 0 {
		return nil
	}
	k := a.m.resources[name]
	for _, id := range ids {
		if k.near[id]&nodes != 0 && !a.reuse[name][id] {
			out = append(out, id)
		}
	}
	return out
}

// Hints implements [affinity.Devices].
func (a *Allocation) Hints(c *v1.Container) affinity.Hints {
	return a.hints(c.Name, c.Resources.Limits)
}

// PodHints implements [affinity.Devices].
func (a *Allocation) PodHints() affinity.Hints {
	return a.hints("", resourcehelper.PodLimits(a.spec, resourcehelper.PodResourcesOptions{ExcludeOverhead: true}))
}

func (a *Allocation) hints(container string, limits v1.ResourceList) affinity.Hints {
	out := affinity.Hints{}
	for name, q := range limits {
		if n := q.Value(); n > 0 && a.m.isPlugins(string(name)) {
			out[string(name)] = a.hintsOf(container, string(name), n)
		}
	}
	return out
}

func (a *Allocation) hintsOf(container, name string, n int64) []affinity.Hint {
	a.m.mu.Lock()
	defer a.m.mu.Unlock()
	k := a.m.resources[name]
	if k == nil || len(k.near) == 0 {
		return nil
	}
	free, reused := a.freeLocked(name)
	if had, has := a.pod[container][name]; has {
		free, reused = had.IDs, nil // what it has it keeps
	}
	if int64(len(free)) < n {
		return []affinity.Hint{}
	}
	var all affinity.Nodes
	for _, nodes := range k.near {
		all |= nodes
	}
	count := func(ids []string, nodes affinity.Nodes) (sum int64) {
		for _, id := range ids {
			if k.near[id]&nodes != 0 {
				sum++
			}
		}
		return sum
	}
	every := slices.Collect(maps.Keys(k.devices))
	return affinity.AsHints(a.m.cfg.Nodes&all, func(nodes affinity.Nodes) (ever, now bool) {
		for _, id := range reused {
			if k.near[id] != 0 && k.near[id]&nodes == 0 {
				return count(every, nodes) >= n, false
			}
		}
		return count(every, nodes) >= n, count(free, nodes) >= n
	})
}

// Held is one device, of a container or free.
type Held struct {
	Resource, ID string
	Nodes        affinity.Nodes // that it is near; none: nobody said
}

// Holds are the devices that a container has, sorted.
func (m *Manager) Holds(podUID, container string) (out []Held) {
	m.mu.Lock()
	defer m.mu.Unlock()
	had := m.held[podUID][container]
	for _, name := range slices.Sorted(maps.Keys(had)) {
		for _, id := range slices.Sorted(slices.Values(had[name].IDs)) {
			out = append(out, m.deviceLocked(name, id))
		}
	}
	return out
}

// Allocatable are all devices that are well, whether a container has them or not,
// sorted.
func (m *Manager) Allocatable() (out []Held) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(m.resources)) {
		k := m.resources[name]
		for _, id := range slices.Sorted(maps.Keys(k.devices)) {
			if k.devices[id] && k.stopped.IsZero() {
				out = append(out, m.deviceLocked(name, id))
			}
		}
	}
	return out
}

func (m *Manager) deviceLocked(name, id string) Held {
	h := Held{Resource: name, ID: id}
	if k := m.resources[name]; k != nil {
		h.Nodes = k.near[id]
	}
	return h
}
