package claims

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
)

const (
	// defaultHealthTimeout is how long what a driver says of a device holds
	// (pkg/kubelet/cm/dra/healthinfo.go).
	defaultHealthTimeout = 30 * time.Second
	// healthRetry is when a stream that broke is asked for again.
	healthRetry = 5 * time.Second
)

type deviceKey struct{ pool, device string }

type deviceHealth struct {
	state   uint64
	message string
	at      time.Time
	timeout time.Duration
}

// watchHealth follows what a plugin says of its devices, each time it is connected
// anew, until ctx ends.
func (m *Manager) watchHealth(ctx context.Context, p *plugin, up <-chan struct{}) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-up:
		}
		for ctx.Err() == nil && m.isConnected(p) {
			err := p.conn.Stream(ctx, methodWatch, nil, func(raw []byte) error {
				said, err := decodeHealth(raw)
				if err == nil {
					m.heard(p.driver, said)
				}
				return err
			})
			m.forgetHealth(p.driver)
			if ctx.Err() != nil || status.Code(err) == codes.Unimplemented {
				break
			}
			m.Log.Info("a DRA driver doesn't say any more how its devices are, asking again", "driver", p.driver, "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(healthRetry):
			}
		}
	}
}

func (m *Manager) isConnected(p *plugin) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return p.connected
}

// heard notes the health of devices and has the pods told that have one whose
// health changed.
func (m *Manager) heard(name string, said []health) {
	now := time.Now()
	m.mu.Lock()
	d := m.drivers[name]
	if d == nil {
		m.mu.Unlock()
		return
	}
	if d.healths == nil {
		d.healths = map[deviceKey]deviceHealth{}
	}
	changed := map[deviceKey]bool{}
	said = said[:min(len(said), maxDevices)]
	for _, h := range said {
		key := deviceKey{h.pool, h.device}
		next := deviceHealth{h.state, shorten(h.message), now, defaultHealthTimeout}
		if h.timeout > 0 {
			next.timeout = time.Duration(min(h.timeout, int64(24*time.Hour/time.Second))) * time.Second
		}
		before, known := d.healths[key]
		changed[key] = !known || before.state != next.state || before.message != next.message || before.timeout != next.timeout
		if known || len(d.healths) < maxDevices {
			d.healths[key] = next
		}
	}
	for key, before := range d.healths {
		if _, again := changed[key]; !again && now.Sub(before.at) > before.timeout {
			delete(d.healths, key)
			changed[key] = true
		}
	}
	pods := m.havingLocked(name, changed)
	m.mu.Unlock()
	m.tellHealth(pods)
}

// forgetHealth: a driver that says nothing any more isn't believed any longer.
func (m *Manager) forgetHealth(name string) {
	m.mu.Lock()
	d := m.drivers[name]
	var pods []string
	if d != nil {
		changed := map[deviceKey]bool{}
		for key := range d.healths {
			changed[key] = true
		}
		d.healths = nil
		pods = m.havingLocked(name, changed)
	}
	m.mu.Unlock()
	m.tellHealth(pods)
}

func (m *Manager) tellHealth(pods []string) {
	if m.HealthChanged != nil && len(pods) > 0 {
		m.HealthChanged(pods)
	}
}

// havingLocked are the pods that have one of a driver's devices.
func (m *Manager) havingLocked(name string, devices map[deviceKey]bool) (pods []string) {
	for _, c := range m.claims {
		if slices.ContainsFunc(c.Drivers[name], func(d device) bool { return devices[deviceKey{d.Pool, d.Device}] }) {
			pods = append(pods, c.Pods...)
		}
	}
	slices.Sort(pods)
	return slices.Compact(pods)
}

// shorten makes a message fit for the API (v1.ResourceHealthMessageMaxLength).
func shorten(message string) string {
	if len(message) > v1.ResourceHealthMessageMaxLength {
		message = strings.ToValidUTF8(message[:v1.ResourceHealthMessageMaxLength-3], "") + "..."
	}
	return message
}

// healthLocked is what is known now of a device.
func (m *Manager) healthLocked(name string, d device) (v1.ResourceHealthStatus, *string) {
	k := m.drivers[name]
	if k == nil {
		return v1.ResourceHealthStatusUnknown, nil
	}
	h, known := k.healths[deviceKey{d.Pool, d.Device}]
	if !known || time.Since(h.at) > h.timeout {
		return v1.ResourceHealthStatusUnknown, nil
	}
	var message *string
	if h.message != "" {
		message = &h.message
	}
	switch h.state {
	case healthGood:
		return v1.ResourceHealthStatusHealthy, message
	case healthBad:
		return v1.ResourceHealthStatusUnhealthy, message
	}
	return v1.ResourceHealthStatusUnknown, message
}

// Health is what a container's status says of the devices of its claims (KEP-4680),
// nil if it has none.
func (m *Manager) Health(pod *v1.Pod, c *v1.Container) (out []v1.ResourceStatus) {
	if len(c.Resources.Claims) == 0 {
		return nil
	}
	refs, _ := Of(pod)
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, want := range c.Resources.Claims {
		i := slices.IndexFunc(refs, func(r Reference) bool { return r.Of == want.Name })
		if i < 0 {
			continue
		}
		have := m.claims[pod.Namespace+"/"+refs[i].Name]
		if have == nil {
			continue
		}
		s := v1.ResourceStatus{Name: v1.ResourceName("claim:" + want.Name)}
		if want.Request != "" {
			s.Name = v1.ResourceName(fmt.Sprintf("claim:%s/%s", want.Name, want.Request))
		}
		for _, name := range driversOf([]*claim{have}) {
			for _, d := range have.Drivers[name] {
				if !d.serves(want.Request) {
					continue
				}
				id := v1.ResourceID(fmt.Sprintf("%s/%s/%s", name, d.Pool, d.Device))
				if len(d.CDI) > 0 {
					id = v1.ResourceID(d.CDI[0])
				}
				if slices.ContainsFunc(s.Resources, func(r v1.ResourceHealth) bool { return r.ResourceID == id }) {
					continue
				}
				r := v1.ResourceHealth{ResourceID: id}
				r.Health, r.Message = m.healthLocked(name, d)
				s.Resources = append(s.Resources, r)
			}
		}
		if len(s.Resources) > 0 && !slices.ContainsFunc(out, func(o v1.ResourceStatus) bool { return o.Name == s.Name }) {
			out = append(out, s)
		}
	}
	return out
}
