package claims

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coracle-edge/coracle/edgelet/pluginwatch"
	"github.com/coracle-edge/coracle/edgelet/rawcall"
)

// ErrNotRegistered is returned when a claim's driver isn't registered on this node.
// It may come: what needs it is tried again.
var ErrNotRegistered = errors.New("is not registered")

// driver is a DRA driver that is or was here, with the plugins that speak for it:
// two during a rolling update.
type driver struct {
	name    string
	plugins []*plugin // the newest last
	// away runs while no plugin is connected; gone says that it was so for too long.
	away *time.Timer
	gone bool
	// healths are what it says of its devices.
	healths map[deviceKey]deviceHealth
}

// plugin is one program that registered.
type plugin struct {
	driver, endpoint string
	service          string
	healthy          bool // it says how its devices are
	conn             *rawcall.Conn
	connected        bool // under Manager.mu
	cancel           context.CancelFunc
}

var _ pluginwatch.Handler = (*Manager)(nil)

// Register implements [pluginwatch.Handler]; ctx is the watcher's life.
func (m *Manager) Register(ctx context.Context, p pluginwatch.Plugin) error {
	i := slices.IndexFunc(p.Versions, func(v string) bool { return v == serviceV1 || v == serviceV1beta1 })
	if i < 0 {
		err := errors.New("empty list of supported gRPC services (aka supported versions)")
		if len(p.Versions) > 0 {
			err = fmt.Errorf("none of services supported by the plugin (%q) are supported by the kubelet (%q)", p.Versions, []string{serviceV1, serviceV1beta1})
		}
		return fmt.Errorf("invalid supported gRPC versions of DRA driver plugin %s at endpoint %s: %w", p.Name, p.Endpoint, err)
	}
	if len(p.Name) > maxText {
		return fmt.Errorf("DRA driver plugin at endpoint %s: its name has %d bytes", p.Endpoint, len(p.Name))
	}
	conn, err := rawcall.Dial(p.Endpoint)
	if err != nil {
		return fmt.Errorf("create gRPC connection to DRA driver %s plugin at endpoint %s: %w", p.Name, p.Endpoint, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	n := &plugin{driver: p.Name, endpoint: p.Endpoint, service: p.Versions[i], healthy: slices.Contains(p.Versions, serviceHealth), conn: conn, cancel: cancel}
	before, err := m.add(n)
	if err != nil {
		cancel()
		conn.Close()
		return err
	}
	if before != nil {
		before.close()
	}
	m.follow(ctx, n)
	m.changed()
	return nil
}

// add takes a plugin in, and returns the one whose endpoint it has.
func (m *Manager) add(n *plugin) (before *plugin, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	d := m.drivers[n.driver]
	switch {
	case m.over:
		return nil, fmt.Errorf("DRA driver %s: the agent is ending", n.driver)
	case d == nil && len(m.drivers) >= maxDrivers && !m.forgetOneLocked():
		return nil, fmt.Errorf("DRA driver %s: this node has %d drivers, which is all it takes", n.driver, maxDrivers)
	case d == nil:
		d = &driver{name: n.driver}
		m.drivers[n.driver] = d
		m.Store.PutClaimRecordsLater(map[string][]byte{driversKey: encodeDrivers(slices.Sorted(maps.Keys(m.drivers)))})
	}
	if i := slices.IndexFunc(d.plugins, func(p *plugin) bool { return p.endpoint == n.endpoint }); i >= 0 {
		before = d.plugins[i]
		d.plugins = slices.Delete(d.plugins, i, i+1)
	}
	d.plugins = append(d.plugins, n)
	m.lookLocked(d)
	return before, nil
}

// forgetOneLocked makes room by forgetting a driver that is gone and has no claims.
func (m *Manager) forgetOneLocked() bool {
	for name, d := range m.drivers {
		used := slices.ContainsFunc(slices.Collect(maps.Values(m.claims)), func(c *claim) bool { _, has := c.Drivers[name]; return has })
		if d.gone && !used {
			delete(m.drivers, name)
			return true
		}
	}
	return false
}

func (p *plugin) close() {
	p.cancel()
	p.conn.Close()
}

// follow keeps the connection of a plugin, in goroutines that Run waits for.
func (m *Manager) follow(ctx context.Context, p *plugin) {
	m.wg.Go(func() {
		stop := context.AfterFunc(ctx, p.conn.Close)
		defer stop()
		up := make(chan struct{}, 1)
		if p.healthy {
			m.wg.Go(func() { m.watchHealth(ctx, p, up) })
		}
		p.conn.Follow(ctx, func(connected bool) {
			m.connected(p, connected)
			if connected {
				select {
				case up <- struct{}{}:
				default:
				}
			}
		})
	})
}

func (m *Manager) connected(p *plugin, now bool) {
	m.mu.Lock()
	p.connected = now
	d := m.drivers[p.driver]
	stale := d == nil || !slices.Contains(d.plugins, p)
	if !stale {
		m.lookLocked(d)
	}
	m.mu.Unlock()
	if stale {
		return
	}
	m.Log.Info("DRA driver", "driver", p.driver, "endpoint", p.endpoint, "connected", now)
	m.changed()
}

// Deregister implements [pluginwatch.Handler].
func (m *Manager) Deregister(gone pluginwatch.Plugin) {
	m.mu.Lock()
	d := m.drivers[gone.Name]
	var p *plugin
	if d != nil {
		if i := slices.IndexFunc(d.plugins, func(p *plugin) bool { return p.endpoint == gone.Endpoint }); i >= 0 {
			p = d.plugins[i]
			d.plugins = slices.Delete(d.plugins, i, i+1)
			m.lookLocked(d)
		}
	}
	m.mu.Unlock()
	if p != nil {
		p.close()
		m.changed()
	}
}

// lookLocked begins or ends the time that a driver may be away.
func (m *Manager) lookLocked(d *driver) {
	usable := slices.ContainsFunc(d.plugins, func(p *plugin) bool { return p.connected })
	switch {
	case usable && d.away != nil:
		d.away.Stop()
		d.away = nil
		d.gone = false
	case usable:
		d.gone = false
	case d.away == nil && !d.gone && !m.over:
		var t *time.Timer
		t = time.AfterFunc(m.WipingDelay, func() { m.stayedAway(d, &t) })
		d.away = t
	}
}

// stayedAway is what the timer of a driver calls.
func (m *Manager) stayedAway(d *driver, timer **time.Timer) {
	m.mu.Lock()
	late := d.away == nil || d.away != *timer || m.over
	if !late {
		d.away, d.gone = nil, true
	}
	m.mu.Unlock()
	if late {
		return
	}
	m.Log.Warn("a DRA driver stays away, its devices are not offered any more", "driver", d.name, "since", m.WipingDelay)
	m.changed()
}

func (m *Manager) changed() {
	if m.Changed != nil {
		m.Changed()
	}
}

// Run lets drivers of before come back, and waits for all that it has begun when
// ctx ends.
func (m *Manager) Run(ctx context.Context) error {
	m.mu.Lock()
	for _, d := range m.drivers {
		m.lookLocked(d)
	}
	m.mu.Unlock()
	<-ctx.Done()
	m.mu.Lock()
	m.over = true
	var all []*plugin
	for _, d := range m.drivers {
		all = append(all, d.plugins...)
		if d.away != nil {
			d.away.Stop()
		}
	}
	m.mu.Unlock()
	for _, p := range all {
		p.close()
	}
	m.wg.Wait()
	return nil
}

// Gone are the drivers that were here and stay away, sorted: nothing that they
// offered may be allocated.
func (m *Manager) Gone() (names []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(m.drivers)) {
		if m.drivers[name].gone {
			names = append(names, name)
		}
	}
	return names
}

// plugin is who to ask of a driver: the newest that is connected, else the newest.
func (m *Manager) plugin(name string) (*plugin, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	d := m.drivers[name]
	if d == nil || len(d.plugins) == 0 {
		return nil, fmt.Errorf("DRA driver %s %w", name, ErrNotRegistered)
	}
	for _, p := range slices.Backward(d.plugins) {
		if p.connected {
			return p, nil
		}
	}
	return d.plugins[len(d.plugins)-1], nil
}

// call asks a driver, and says in an error what it has to do with.
func (m *Manager) call(ctx context.Context, p *plugin, method string, in rawcall.Message) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, m.CallTimeout)
	defer cancel()
	began := time.Now()
	out, err := p.conn.Call(ctx, methodOf(p.service, method), in)
	m.calls.call(p.driver, methodOf(p.service, method), status.Code(err), began)
	if status.Code(err) == codes.DeadlineExceeded { // by whoever's clock
		return nil, fmt.Errorf("no answer within %s: %w", m.CallTimeout, err)
	}
	return out, err
}
