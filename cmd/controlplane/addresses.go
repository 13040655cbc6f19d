package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/coracle-edge/coracle/controlplane/api/enrollment"
	wire "github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/controlplane/apiserver"
	"github.com/coracle-edge/coracle/controlplane/fleethub"
	"github.com/coracle-edge/coracle/controlplane/join"
	"github.com/coracle-edge/coracle/controlplane/leadership"
	"github.com/coracle-edge/coracle/controlplane/tunnel"
)

// ownAddresses are where this control plane is reached.
func (f *fleet) ownAddresses() join.Addresses {
	a := join.Addresses{
		API: f.listeners.urls("https", f.listeners.api), Fleet: f.listeners.urls("https", f.listeners.fleet), MQTT: list(f.opts.mqttURL),
	}
	if f.listeners.mqtt != nil {
		a.MQTT = f.listeners.urls("tls", f.listeners.mqtt)
	}
	return a
}

// allAddresses are those of all control planes, this one's first.
func (f *fleet) allAddresses() join.Addresses {
	if all := join.AllAddresses(f.endpoints(), f.member); len(all.MQTT) > 0 && len(all.Fleet) > 0 {
		return all
	}
	return f.ownAddresses() // they are published in a moment
}

// nodeAddresses are what nodes that know others are told; nil as long as they aren't
// published.
func (f *fleet) nodeAddresses() *wire.Addresses {
	all := join.AllAddresses(f.endpoints(), f.member)
	a := &wire.Addresses{Mqtt: all.MQTT, Fleet: all.Fleet, Api: all.API}
	if a.Check() != nil {
		return nil
	}
	return a
}

// publish makes this control plane known to nodes and token creators, and fails for
// good if its keys aren't the cluster's.
func (f *fleet) publish(ctx context.Context, hub *fleethub.Hub, endpoint *join.Server) error {
	wait := 100 * time.Millisecond
	for {
		changed := f.authority.Changed()
		hub.RootsChanged()
		err := endpoint.Publish(ctx, join.Member{ID: f.member, Addresses: f.ownAddresses(), Alone: f.duty.lead == nil})
		if err == nil {
			wait = 100 * time.Millisecond
			select {
			case <-ctx.Done():
				return nil
			case <-changed:
			}
			continue
		}
		if errors.Is(err, join.ErrOtherRoot) || ctx.Err() != nil {
			return err
		}
		f.logger.Warn("addresses not published yet", "err", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
			wait = min(2*wait, 10*time.Second)
		}
	}
}

// watchAddresses keeps them in memory, and has nodes told when they change.
func (f *fleet) watchAddresses(server *apiserver.Server, hub *fleethub.Hub) error {
	all := server.Informers().Core().V1().ConfigMaps()
	f.endpoints = func() map[string]string {
		m, err := all.Lister().ConfigMaps(join.EndpointNamespace).Get(join.EndpointMap)
		if err != nil {
			return nil
		}
		return m.Data
	}
	_, err := all.Informer().AddEventHandler(cache.FilteringResourceEventHandler{
		FilterFunc: func(obj any) bool {
			m, ok := obj.(*corev1.ConfigMap)
			return ok && m.Namespace == join.EndpointNamespace && m.Name == join.EndpointMap
		},
		Handler: cache.ResourceEventHandlerFuncs{UpdateFunc: func(old, now any) {
			if !sameData(old, now) && hub.Live() {
				hub.Greet()
			}
		}},
	})
	return err
}

func sameData(a, b any) bool {
	x, ok1 := a.(*corev1.ConfigMap)
	y, ok2 := b.(*corev1.ConfigMap)
	return ok1 && ok2 && maps.Equal(x.Data, y.Data)
}

// dialNode reaches a node's API.
func (f *fleet) dialNode(ctx context.Context, _, address string) (net.Conn, error) {
	node, err := tunnel.NodeOf(address)
	if err != nil {
		return nil, err
	}
	return f.stream(ctx, node, enrollment.PurposeKubelet)
}

// stream opens one to a node: through its own tunnel on duty, and through the
// control plane that is on duty otherwise.
func (f *fleet) stream(ctx context.Context, node, purpose string) (net.Conn, error) {
	if f.duty.active() {
		return f.tunnels.Dial(ctx, node, purpose)
	}
	leader, err := f.duty.lead.Leader(ctx)
	if err != nil {
		return nil, fmt.Errorf("node %q: %w", node, err)
	}
	if leader.Self {
		return nil, fmt.Errorf("node %q: %w (any more)", node, leadership.ErrNotActive)
	}
	return tunnel.DialRelay(ctx, leader.Fleet, f.relayTLS, node, purpose)
}
