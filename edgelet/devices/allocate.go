package devices

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"github.com/coracle-edge/coracle/edgelet/affinity"
)

// Allocate gives the containers of a pod the devices that they ask for, and
// returns when that is durable. What a container has it keeps: asking again costs
// nothing and changes nothing. If it fails, the pod has none that it didn't have.
//
// What an init container had, later containers may have, but not what a sidecar
// has.
func (m *Manager) Allocate(ctx context.Context, pod *v1.Pod) error {
	a := m.Begin(pod)
	defer a.Release()
	for _, list := range [][]v1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			if err := a.Give(ctx, &list[i], 0); err != nil {
				return err
			}
		}
	}
	return a.Keep()
}

// Begin begins an allocation that others have a say in: a container after the
// other is given its devices, then they are kept, and in any case it is released.
func (m *Manager) Begin(pod *v1.Pod) *Allocation {
	a := &Allocation{m: m, spec: pod, uid: string(pod.UID), pod: podHeld{}, reuse: map[string]map[string]bool{}, taken: map[string]map[string]bool{}}
	m.mu.Lock()
	defer m.mu.Unlock()
	for c, resources := range m.held[a.uid] {
		a.pod[c] = maps.Clone(resources)
	}
	return a
}

// Keep makes what was given durable.
func (a *Allocation) Keep() error {
	if !a.changed {
		return nil
	}
	if err := a.m.cfg.Store.PutDeviceRecord(a.uid, a.pod.encode()); err != nil {
		return fmt.Errorf("keeping which devices it has: %w", err)
	}
	a.m.mu.Lock()
	defer a.m.mu.Unlock()
	a.m.held[a.uid] = a.pod
	return nil
}

// Allocation is one pod's asking. It is one goroutine's.
type Allocation struct {
	m       *Manager
	spec    *v1.Pod
	uid     string
	pod     podHeld
	changed bool
	reuse   map[string]map[string]bool // what init containers had, by resource
	taken   map[string]map[string]bool // reserved by this allocation
}

var _ affinity.Devices = (*Allocation)(nil)

// Release gives back the reservations: by now the devices are in Manager.held, or
// nobody's.
func (a *Allocation) Release() {
	a.m.mu.Lock()
	defer a.m.mu.Unlock()
	for name, ids := range a.taken {
		for id := range ids {
			delete(a.m.reserved[name], id)
		}
	}
}

// Give implements [affinity.Devices]. Extended resources are never overcommitted,
// so a container's limits say all.
func (a *Allocation) Give(ctx context.Context, c *v1.Container, near affinity.Nodes) error {
	reusable := a.isOverLater(c.Name)
	names := slices.Sorted(maps.Keys(c.Resources.Limits))
	for _, n := range names {
		name, want := string(n), c.Resources.Limits[n]
		if want.IsZero() || !a.m.isPlugins(name) {
			continue
		}
		had, has := a.pod[c.Name][name]
		if has && int64(len(had.IDs)) != want.Value() {
			return fmt.Errorf("pod %q container %q changed request for resource %q from %d to %d", a.uid, c.Name, name, len(had.IDs), want.Value())
		}
		if !has {
			g, err := a.ask(ctx, c.Name, name, int(want.Value()), near)
			if err != nil {
				return err
			}
			if a.pod[c.Name] == nil {
				a.pod[c.Name] = map[string]given{}
			}
			a.pod[c.Name][name], a.changed, had = g, true, g
		}
		for _, id := range had.IDs {
			if !reusable {
				delete(a.reuse[name], id)
				continue
			}
			if a.reuse[name] == nil {
				a.reuse[name] = map[string]bool{}
			}
			a.reuse[name][id] = true
		}
	}
	return nil
}

// isOverLater reports whether a container is an init container that has ended when
// later ones begin.
func (a *Allocation) isOverLater(name string) bool {
	for i := range a.spec.Spec.InitContainers {
		if c := &a.spec.Spec.InitContainers[i]; c.Name == name {
			return c.RestartPolicy == nil || *c.RestartPolicy != v1.ContainerRestartPolicyAlways
		}
	}
	return false
}

// isPlugins reports whether a resource is one that a plugin has or that was given
// before; others are the cluster's own to count.
func (m *Manager) isPlugins(name string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.resources[name] != nil {
		return true
	}
	for _, pod := range m.held {
		for _, c := range pod {
			if _, ok := c[name]; ok {
				return true
			}
		}
	}
	return false
}

// ask chooses devices and has the plugin prepare them.
func (a *Allocation) ask(ctx context.Context, container, name string, n int, near affinity.Nodes) (given, error) {
	p, err := a.m.plugin(name)
	if err != nil {
		return given{}, fmt.Errorf("no healthy devices present; cannot allocate unhealthy devices %s: %w", name, err)
	}
	ids, err := a.choose(ctx, p, name, n, near)
	if err != nil {
		return given{}, err
	}
	call, cancel := context.WithTimeout(ctx, a.m.allocLimit)
	defer cancel()
	resp, err := p.api.Allocate(call, &pluginapi.AllocateRequest{ContainerRequests: []*pluginapi.ContainerAllocateRequest{{DevicesIds: ids}}})
	if err != nil {
		return given{}, fmt.Errorf("device plugin of %s, for container %q: %w", name, container, err)
	}
	if len(resp.ContainerResponses) == 0 {
		return given{}, fmt.Errorf("no containers return in allocation response of the device plugin of %s", name)
	}
	raw, err := proto.Marshal(resp.ContainerResponses[0])
	if err != nil {
		return given{}, fmt.Errorf("allocation response of the device plugin of %s: %w", name, err)
	}
	return given{IDs: ids, Response: raw, PreStart: p.options.GetPreStartRequired()}, nil
}

// choose reserves n healthy devices: first those that the pod's init containers
// had, then those of the nodes near, then those that the plugin prefers, then any.
func (a *Allocation) choose(ctx context.Context, p *plugin, name string, n int, near affinity.Nodes) ([]string, error) {
	if free, _ := a.free(name); len(free) < n {
		a.m.freeInactive()
	}
	a.m.mu.Lock()
	free, reused := a.freeLocked(name)
	if healthy := a.healthyLocked(name); healthy == 0 {
		a.m.mu.Unlock()
		return nil, fmt.Errorf("no healthy devices present; cannot allocate unhealthy devices %s", name)
	}
	if len(free) < n {
		a.m.mu.Unlock()
		return nil, fmt.Errorf("requested number of devices unavailable for %s. Requested: %d, Available: %d", name, n, len(free))
	}
	must := reused[:min(n, len(reused))]
	ask := free
	if aligned := a.nearLocked(name, free, near); len(must)+len(aligned) > n {
		ask = append(aligned, must...) // the plugin may prefer some of those
	} else {
		must = append(must, aligned...)
	}
	if len(must) == n || len(free) == n || !p.options.GetGetPreferredAllocationAvailable() {
		defer a.m.mu.Unlock()
		return a.reserveLocked(name, pick(must, ask, free, n)), nil
	}
	a.m.mu.Unlock()

	// Asked without the lock: somebody else may be faster, so what the plugin
	// prefers is only taken if it is still there.
	call, cancel := context.WithTimeout(ctx, preferLimit)
	defer cancel()
	resp, err := p.api.GetPreferredAllocation(call, &pluginapi.PreferredAllocationRequest{ContainerRequests: []*pluginapi.ContainerPreferredAllocationRequest{
		{AvailableDeviceIDs: ask, MustIncludeDeviceIDs: must, AllocationSize: int32(n)}}})
	if err != nil {
		return nil, fmt.Errorf("device plugin GetPreferredAllocation rpc failed with err: %w", err)
	}
	var preferred []string
	if len(resp.ContainerResponses) > 0 {
		preferred = resp.ContainerResponses[0].DeviceIDs
	}
	a.m.mu.Lock()
	defer a.m.mu.Unlock()
	if free, _ = a.freeLocked(name); len(free) < n {
		return nil, fmt.Errorf("requested number of devices unavailable for %s. Requested: %d, Available: %d", name, n, len(free))
	}
	must = slices.DeleteFunc(must, func(id string) bool { return !slices.Contains(free, id) })
	// Of several nodes' those that were asked for count before what is anywhere.
	preferred = slices.DeleteFunc(preferred, func(id string) bool { return !slices.Contains(ask, id) })
	return a.reserveLocked(name, pick(must, append(preferred, ask...), free, n)), nil
}

// pick takes n of must, then of preferred as far as they are free, then of free.
func pick(must, preferred, free []string, n int) []string {
	out := slices.Clone(must)
	for _, list := range [][]string{preferred, free} {
		for _, id := range list {
			if len(out) < n && !slices.Contains(out, id) && slices.Contains(free, id) {
				out = append(out, id)
			}
		}
	}
	return out
}

func (a *Allocation) reserveLocked(name string, ids []string) []string {
	for _, to := range []map[string]map[string]bool{a.m.reserved, a.taken} {
		if to[name] == nil {
			to[name] = map[string]bool{}
		}
		for _, id := range ids {
			to[name][id] = true
		}
	}
	return ids
}

func (a *Allocation) free(name string) (free, reused []string) {
	a.m.mu.Lock()
	defer a.m.mu.Unlock()
	return a.freeLocked(name)
}

func (a *Allocation) healthyLocked(name string) int {
	n := 0
	if k := a.m.resources[name]; k != nil {
		for _, well := range k.devices {
			if well {
				n++
			}
		}
	}
	return n
}

// freeLocked are the healthy devices of a resource that a container of this pod
// may have, sorted, and those of them that its init containers had.
func (a *Allocation) freeLocked(name string) (free, reused []string) {
	k := a.m.resources[name]
	if k == nil {
		return nil, nil
	}
	used := map[string]bool{}
	for id := range a.m.reserved[name] {
		used[id] = true
	}
	for _, pod := range a.m.held {
		for _, c := range pod {
			for _, id := range c[name].IDs {
				used[id] = true
			}
		}
	}
	for id, well := range k.devices {
		switch {
		case !well:
		case a.reuse[name][id]:
			reused = append(reused, id)
			free = append(free, id)
		case !used[id]:
			free = append(free, id)
		}
	}
	slices.Sort(free)
	slices.Sort(reused)
	return free, reused
}

// Given is what a container's devices add to its configuration.
type Given struct {
	Env         []*runtimeapi.KeyValue
	Mounts      []*runtimeapi.Mount
	Devices     []*runtimeapi.Device
	CDIDevices  []*runtimeapi.CDIDevice
	Annotations map[string]string
	// Resources are what it has devices of, sorted.
	Resources []string
}

// Container returns what a container of a pod was given, nil if nothing, and has
// plugins that ask for it prepare its start. Of two plugins that set the same
// thing the one whose resource comes first in the alphabet counts.
func (m *Manager) Container(ctx context.Context, podUID, container string) (*Given, error) {
	m.mu.Lock()
	has := maps.Clone(m.held[podUID][container])
	m.mu.Unlock()
	if len(has) == 0 {
		return nil, nil
	}
	out := &Given{Annotations: map[string]string{}, Resources: slices.Sorted(maps.Keys(has))}
	for _, name := range out.Resources {
		if err := m.preStart(ctx, name, has[name]); err != nil {
			return nil, err
		}
		var r pluginapi.ContainerAllocateResponse
		if err := proto.Unmarshal(has[name].Response, &r); err != nil {
			return nil, fmt.Errorf("%w: what the plugin of %s gave: %w", ErrRecord, name, err)
		}
		out.add(&r)
	}
	return out, nil
}

func (m *Manager) preStart(ctx context.Context, name string, g given) error {
	p, err := m.plugin(name)
	switch {
	case !g.PreStart && (err != nil || !p.options.GetPreStartRequired()):
		return nil
	case err != nil:
		return err
	}
	if !p.options.GetPreStartRequired() {
		return nil // another version of the plugin
	}
	call, cancel := context.WithTimeout(ctx, pluginapi.KubeletPreStartContainerRPCTimeoutInSecs*time.Second)
	defer cancel()
	if _, err := p.api.PreStartContainer(call, &pluginapi.PreStartContainerRequest{DevicesIds: g.IDs}); err != nil {
		return fmt.Errorf("device plugin PreStartContainer rpc failed with err: %w", err)
	}
	return nil
}

func (g *Given) add(r *pluginapi.ContainerAllocateResponse) {
	for _, k := range slices.Sorted(maps.Keys(r.Envs)) {
		if !slices.ContainsFunc(g.Env, func(e *runtimeapi.KeyValue) bool { return e.Key == k }) {
			g.Env = append(g.Env, &runtimeapi.KeyValue{Key: k, Value: []byte(r.Envs[k])})
		}
	}
	for _, d := range r.Devices {
		if !slices.ContainsFunc(g.Devices, func(o *runtimeapi.Device) bool { return o.ContainerPath == d.ContainerPath }) {
			g.Devices = append(g.Devices, &runtimeapi.Device{ContainerPath: d.ContainerPath, HostPath: d.HostPath, Permissions: d.Permissions})
		}
	}
	for _, mt := range r.Mounts {
		if !slices.ContainsFunc(g.Mounts, func(o *runtimeapi.Mount) bool { return o.ContainerPath == mt.ContainerPath }) {
			g.Mounts = append(g.Mounts, &runtimeapi.Mount{ContainerPath: mt.ContainerPath, HostPath: mt.HostPath, Readonly: mt.ReadOnly})
		}
	}
	for _, d := range r.CdiDevices {
		if !slices.ContainsFunc(g.CDIDevices, func(o *runtimeapi.CDIDevice) bool { return o.Name == d.Name }) {
			g.CDIDevices = append(g.CDIDevices, &runtimeapi.CDIDevice{Name: d.Name})
		}
	}
	for k, v := range r.Annotations {
		if _, has := g.Annotations[k]; !has {
			g.Annotations[k] = v
		}
	}
}
