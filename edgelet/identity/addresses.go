package identity

import (
	"slices"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

// Addresses are where the control planes are, as last said.
func (id *Identity) Addresses() *fleet.Addresses {
	c := id.Cluster()
	return &fleet.Addresses{Mqtt: c.MQTT, Fleet: c.Fleet, Api: c.API}
}

// Learn takes other addresses over, durably: they replace what was granted. What
// isn't said or can't be right changes nothing.
func (id *Identity) Learn(a *fleet.Addresses) error {
	if err := a.Check(); err != nil {
		return err
	}
	id.renewMu.Lock()
	defer id.renewMu.Unlock()
	id.mu.RLock()
	next := id.grant
	id.mu.RUnlock()
	c := &next.Cluster
	if slices.Equal(c.MQTT, a.GetMqtt()) && slices.Equal(c.Fleet, a.GetFleet()) && slices.Equal(c.API, a.GetApi()) {
		return nil
	}
	c.MQTT, c.Fleet, c.API = a.GetMqtt(), a.GetFleet(), a.GetApi()
	if err := id.accept(next); err != nil {
		return err
	}
	id.opts.Logger.Info("the control plane's addresses changed", "mqtt", c.MQTT, "fleet", c.Fleet)
	return nil
}
