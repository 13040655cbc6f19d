package csi

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/coracle-edge/coracle/edgelet/pluginwatch"
)

// ErrNoDriver is returned when a volume's driver isn't registered on this node.
// It may come: what needs it is tried again.
var ErrNoDriver = errors.New("not found in the list of registered CSI drivers")

// callTimeout bounds one call of a driver: a kubelet's (csi_plugin.go).
const callTimeout = 2 * time.Minute

// driver is a registered driver.
type driver struct {
	name, endpoint string
	version        [2]int
	info           Info
	caps           capabilities
	silent         time.Time // until when it isn't asked for figures; under Manager.mu
}

// Driver is what the node tells the cluster of a driver.
type Driver struct {
	Name string
	Info
}

var _ pluginwatch.Handler = (*Manager)(nil)

// Register implements [pluginwatch.Handler]: it asks the driver who this node is
// to it and what it can.
func (m *Manager) Register(ctx context.Context, p pluginwatch.Plugin) error {
	version, ok := highest(p.Versions)
	if !ok {
		return fmt.Errorf("CSI driver %q: none of its versions %q is supported, this node speaks 1.x", p.Name, p.Versions)
	}
	m.mu.Lock()
	have := m.drivers[p.Name]
	m.mu.Unlock()
	if have != nil && have.endpoint != p.Endpoint && slices.Compare(have.version[:], version[:]) >= 0 {
		return fmt.Errorf("CSI driver %q: another driver of that name is registered with version %d.%d", p.Name, have.version[0], have.version[1])
	}
	d := &driver{name: p.Name, endpoint: p.Endpoint, version: version}
	ctx, cancel := context.WithTimeout(ctx, registerTimeout)
	defer cancel()
	raw, err := d.call(ctx, "NodeGetInfo", nil)
	if err == nil {
		d.info, err = decodeInfo(raw)
	}
	if err != nil {
		return fmt.Errorf("CSI driver %q: NodeGetInfo: %w", p.Name, err)
	}
	if raw, err = d.call(ctx, "NodeGetCapabilities", nil); err == nil {
		d.caps, err = decodeCapabilities(raw)
	}
	if err != nil {
		return fmt.Errorf("CSI driver %q: NodeGetCapabilities: %w", p.Name, err)
	}
	m.mu.Lock()
	m.drivers[p.Name] = d
	m.mu.Unlock()
	m.changed(true)
	return nil
}

// registerTimeout is short: one driver at a time registers.
const registerTimeout = 10 * time.Second

// Deregister implements [pluginwatch.Handler].
func (m *Manager) Deregister(p pluginwatch.Plugin) {
	m.mu.Lock()
	if d := m.drivers[p.Name]; d != nil && d.endpoint == p.Endpoint {
		delete(m.drivers, p.Name)
	}
	m.mu.Unlock()
	m.changed(true)
}

func (m *Manager) changed(drivers bool) {
	if m.Changed != nil {
		m.Changed(drivers)
	}
}

// Drivers are those registered now, by name.
func (m *Manager) Drivers() []Driver {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []Driver
	for _, name := range slices.Sorted(maps.Keys(m.drivers)) {
		out = append(out, Driver{name, m.drivers[name].info})
	}
	return out
}

func (m *Manager) driver(name string) (*driver, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if d := m.drivers[name]; d != nil {
		return d, nil
	}
	return nil, fmt.Errorf("driver name %s %w", name, ErrNoDriver)
}

// highest is the highest 1.x among versions such as 1.0.0 or v1.2.
func highest(versions []string) (best [2]int, ok bool) {
	for _, v := range versions {
		major, rest, _ := strings.Cut(strings.TrimPrefix(v, "v"), ".")
		minor, _, _ := strings.Cut(rest, ".")
		a, err := strconv.Atoi(major)
		b, err2 := strconv.Atoi(cmp.Or(minor, "0"))
		if err == nil && err2 == nil && a == 1 && (!ok || b > best[1]) {
			best, ok = [2]int{a, b}, true
		}
	}
	return best, ok
}
