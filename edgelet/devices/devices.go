package devices

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
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"github.com/coracle-edge/coracle/edgelet/affinity"
)

var (
	// ErrName is returned for a resource that no plugin may have.
	ErrName = errors.New("not the name of an extended resource")
	// ErrStopped is returned when a device's plugin is not connected.
	ErrStopped = errors.New("has been stopped")
)

// Limits and deadlines. The deadline of PreStartContainer is the API's, the
// others are ours: a kubelet waits for ever.
const (
	// DefaultDir is where plugins look for the kubelet's socket.
	DefaultDir = "/var/lib/kubelet/device-plugins"

	// stopGrace is how long a resource whose plugin is gone is still told, with no
	// device to have, as a kubelet does: plugins are updated.
	stopGrace    = 5 * time.Minute
	dialTimeout  = 10 * time.Second
	optionsLimit = 10 * time.Second
	allocLimit   = time.Minute
	preferLimit  = 10 * time.Second
	// maxDevices bounds what is believed of one plugin.
	maxDevices = 1 << 16
	// maxResources bounds how many plugins may be registered.
	maxResources = 256
)

// Store keeps what must survive the agent. A nil record deletes; both return when
// that is durable.
type Store interface {
	DeviceRecords() (map[string][]byte, error)
	PutDeviceRecord(key string, record []byte) error
}

// Config configures a [Manager]. Store is required.
type Config struct {
	// Dir is where kubelet.sock is and plugins put their own sockets; [DefaultDir]
	// if empty.
	Dir   string
	Store Store
	// Changed is called, with no lock held, when capacity or allocatable did; may be
	// nil.
	Changed func()
	// PodsChanged is called with the UIDs of pods one of whose devices became well
	// or ill; may be nil.
	PodsChanged func(uids []string)
	// Nodes are the machine's NUMA nodes, for hints; none: nobody asks for hints.
	Nodes affinity.Nodes
	// Active says whether a pod is still here; what others hold is taken back when
	// there isn't enough. Nil: all are.
	Active func(uid string) bool
	Log    *slog.Logger
}

// Manager knows the node's devices. Safe for concurrent use.
type Manager struct {
	cfg Config
	log *slog.Logger
	wg  sync.WaitGroup // who follows plugins
	// allocLimit is the constant of that name; tests don't wait as long.
	allocLimit time.Duration

	mu        sync.Mutex
	ctx       context.Context   // of Run; nil before
	expiry    *time.Timer       // has the node look again when a resource is no more
	resources map[string]*known // by resource name
	held      map[string]podHeld
	reserved  map[string]map[string]bool // resource, device: given, but not yet kept
}

// known is a resource that a plugin has, or had.
type known struct {
	devices map[string]bool // by ID: whether it is healthy
	// near are the NUMA nodes of those that are near some, by ID; nil if none is.
	near    map[string]affinity.Nodes
	plugin  *plugin   // nil if it was never connected since the agent's start
	stopped time.Time // when the plugin went, zero while it is here
}

// New reads what is kept and returns a Manager. A record that can't be read is
// left out and logged: its pod asks anew.
func New(c Config) (*Manager, error) {
	if c.Store == nil {
		return nil, errors.New("devices: Store is required")
	}
	if c.Dir == "" {
		c.Dir = DefaultDir
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Changed == nil {
		c.Changed = func() {}
	}
	if c.PodsChanged == nil {
		c.PodsChanged = func([]string) {}
	}
	if c.Active == nil {
		c.Active = func(string) bool { return true }
	}
	m := &Manager{cfg: c, log: c.Log, allocLimit: allocLimit, resources: map[string]*known{}, held: map[string]podHeld{}, reserved: map[string]map[string]bool{}}
	records, err := c.Store.DeviceRecords()
	if err != nil {
		return nil, fmt.Errorf("reading which container has which device: %w", err)
	}
	for key, raw := range records {
		if key == resourcesKey {
			names, err := decodeResources(raw)
			if err != nil {
				m.log.Error("going on without the names of the resources that plugins had", "err", err)
			}
			for _, name := range names {
				m.resources[name] = &known{devices: map[string]bool{}, stopped: time.Now()}
			}
			continue
		}
		pod, err := decodeRecord(raw)
		if err != nil {
			m.log.Error("going on without the devices of a pod", "uid", key, "err", err)
			continue
		}
		m.held[key] = pod
	}
	return m, nil
}

// Resources returns what of extended resources the node has, and what of it is
// well. A resource whose plugin is gone has nothing to give, and after five
// minutes it is there no more: 0 of it, which tells it from a resource that the
// cluster counts by itself.
func (m *Manager) Resources() (capacity, allocatable v1.ResourceList) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.resources) == 0 {
		return nil, nil
	}
	capacity, allocatable = v1.ResourceList{}, v1.ResourceList{}
	for name, k := range m.resources {
		if !k.stopped.IsZero() && time.Since(k.stopped) > stopGrace {
			clear(k.devices)
			k.near = nil
		}
		well := 0
		for _, ok := range k.devices {
			if ok && k.stopped.IsZero() {
				well++
			}
		}
		capacity[v1.ResourceName(name)] = *resource.NewQuantity(int64(len(k.devices)), resource.DecimalSI)
		allocatable[v1.ResourceName(name)] = *resource.NewQuantity(int64(well), resource.DecimalSI)
	}
	return capacity, allocatable
}

// checkName is v1helper.IsExtendedResourceName of upstream.
func checkName(name string) error {
	if !strings.Contains(name, "/") || strings.Contains(name, v1.ResourceDefaultNamespacePrefix) ||
		strings.HasPrefix(name, v1.DefaultResourceRequestsPrefix) ||
		len(validation.IsQualifiedName(v1.DefaultResourceRequestsPrefix+name)) > 0 {
		return fmt.Errorf("the ResourceName %q is invalid: %w; one is VENDOR-DOMAIN/NAME, as in example.org/camera", name, ErrName)
	}
	return nil
}

// connected makes p the plugin of its resource. The one before, if any, is gone.
func (m *Manager) connected(p *plugin) error {
	m.mu.Lock()
	k := m.resources[p.resource]
	isNew := k == nil
	if isNew {
		if len(m.resources) >= maxResources {
			m.mu.Unlock()
			return fmt.Errorf("%d plugins are registered, which is as many as this node takes", maxResources)
		}
		k = &known{devices: map[string]bool{}}
		m.resources[p.resource] = k
	}
	before := k.plugin
	k.plugin, k.stopped = p, time.Time{}
	m.mu.Unlock()
	if before != nil {
		before.close()
	}
	if isNew {
		m.keepResources()
	}
	m.log.Info("device plugin", "resource", p.resource, "socket", p.socket)
	return nil
}

// listed takes the list of devices that a plugin says it has now.
func (m *Manager) listed(p *plugin, list []*pluginapi.Device) {
	if len(list) > maxDevices {
		m.log.Error("a device plugin lists more devices than are believed", "resource", p.resource, "devices", len(list), "taken", maxDevices)
		list = list[:maxDevices]
	}
	m.mu.Lock()
	k := m.resources[p.resource]
	if k == nil || k.plugin != p {
		m.mu.Unlock()
		return
	}
	devices := make(map[string]bool, len(list))
	for _, d := range list {
		devices[d.ID] = d.Health == pluginapi.Healthy
	}
	changed := !maps.Equal(devices, k.devices)
	var pods []string
	for uid, pod := range m.held {
		if pod.any(p.resource, func(id string) bool {
			was, had := k.devices[id]
			return !had || was != devices[id]
		}) {
			pods = append(pods, uid)
		}
	}
	k.devices, k.near = devices, nearOf(list)
	m.mu.Unlock()
	if changed {
		m.log.Info("devices", "resource", p.resource, "all", len(devices))
		m.cfg.Changed()
	}
	if len(pods) > 0 {
		m.cfg.PodsChanged(pods)
	}
}

// disconnected says that a plugin is gone. Containers that run keep what they
// have.
func (m *Manager) disconnected(p *plugin, why error) {
	p.close()
	m.mu.Lock()
	k := m.resources[p.resource]
	current := k != nil && k.plugin == p && k.stopped.IsZero()
	if current {
		k.stopped = time.Now()
		m.forgetLater()
	}
	m.mu.Unlock()
	if current {
		m.log.Warn("a device plugin is gone; no pod gets a device of it until it registers again", "resource", p.resource, "why", why)
		m.cfg.Changed()
	}
}

// keepResources makes the names of the resources durable, so that a pod that asks
// for one after a restart is not taken to ask for something the cluster counts by
// itself.
func (m *Manager) keepResources() {
	m.mu.Lock()
	names := slices.Sorted(maps.Keys(m.resources))
	m.mu.Unlock()
	if err := m.cfg.Store.PutDeviceRecord(resourcesKey, encodeResources(names)); err != nil {
		m.log.Error("the names of device plugins' resources are not durable", "err", err)
	}
}

// plugin of a resource, if it is connected.
func (m *Manager) plugin(name string) (*plugin, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if k := m.resources[name]; k != nil && k.plugin != nil && k.stopped.IsZero() {
		return k.plugin, nil
	}
	return nil, fmt.Errorf("device plugin of %s %w; it is waited for to register again", name, ErrStopped)
}

// Health is what is known of the devices that a container has, sorted; nil if it
// has none.
func (m *Manager) Health(podUID, container string) []v1.ResourceStatus {
	m.mu.Lock()
	defer m.mu.Unlock()
	given := m.held[podUID][container]
	var out []v1.ResourceStatus
	for _, name := range slices.Sorted(maps.Keys(given)) {
		s := v1.ResourceStatus{Name: v1.ResourceName(name)}
		for _, id := range slices.Sorted(slices.Values(given[name].IDs)) {
			health := v1.ResourceHealthStatusHealthy
			if k := m.resources[name]; k != nil {
				if well, listed := k.devices[id]; listed && !well {
					health = v1.ResourceHealthStatusUnhealthy
				}
			}
			s.Resources = append(s.Resources, v1.ResourceHealth{ResourceID: v1.ResourceID(id), Health: health})
		}
		out = append(out, s)
	}
	return out
}

// Free takes back what a pod that is over had.
func (m *Manager) Free(podUID string) error {
	m.mu.Lock()
	_, had := m.held[podUID]
	delete(m.held, podUID)
	m.mu.Unlock()
	if !had {
		return nil
	}
	if err := m.cfg.Store.PutDeviceRecord(podUID, nil); err != nil {
		return fmt.Errorf("taking back the devices of pod %s: %w", podUID, err)
	}
	return nil
}

// freeInactive takes back what pods hold that aren't here any more.
func (m *Manager) freeInactive() {
	m.mu.Lock()
	uids := slices.Collect(maps.Keys(m.held))
	m.mu.Unlock()
	for _, uid := range uids {
		if m.cfg.Active(uid) {
			continue
		}
		if err := m.Free(uid); err != nil {
			m.log.Error("devices stay taken for now", "err", err)
		}
	}
}
