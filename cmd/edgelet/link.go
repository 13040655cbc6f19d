package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/coracle-edge/coracle/controlplane/api/enrollment"
	"github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/edgelet/identity"
	"github.com/coracle-edge/coracle/edgelet/link"
	"github.com/coracle-edge/coracle/edgelet/pods"
	"github.com/coracle-edge/coracle/edgelet/tunnel"
	"github.com/coracle-edge/coracle/internal/version"
)

// linkStatus is where the admin socket finds the link.
type linkStatus struct{ of func() link.Status }

// runLink joins if need be, and keeps the node connected until ctx ends.
func (a *agent) runLink(ctx context.Context) error {
	id, err := a.ensureJoined(ctx)
	if err != nil || id == nil {
		return err
	}
	tunnels, err := a.tunnels(tunnel.Config{Identity: id})
	if err != nil {
		return err
	}
	var known []ed25519.PublicKey
	if key, err := id.HubKey(); err == nil {
		known = append(known, key)
	}
	l, err := link.New(link.Config{
		NodeName: id.NodeName, Brokers: func() []string { return id.Cluster().MQTT },
		TLS: id.ClientTLS(enrollment.MQTTServerName), Key: id.SigningKey, Trust: link.NewTrust(id.VerifyHub, known...), State: a.state,
		OnTunnel: func(r *fleet.TunnelRequest) error {
			return tunnels.Request(tunnel.Request{ID: r.GetId(), Purpose: r.GetPurpose(), URL: r.GetUrl()})
		},
		ObjectsTLS: id.ClientTLS(enrollment.FleetServerName), FleetURLs: id.FleetURLs, Counters: &a.counters, Budget: a.budget,
		Addresses: id.Addresses, Learn: func(to *fleet.Addresses) error { return a.learn(id, to) },
		OnStanding: a.standing.Told,
		TrustID:    id.TrustID, OnTrust: id.RootsAre,
		Readmission: func(ctx context.Context) bool { return a.standing.Await(ctx, id.Renew) },
		Features:    append(features(), fleet.FeatureProbe), AgentVersion: version.String(), LinkClass: a.o.linkClass,
		BootID: bootID(), Board: a.describe, Logger: a.log, Now: a.now,
	})
	if err != nil {
		return err
	}
	a.link.Store(&linkStatus{l.Status})
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return tunnels.Run(ctx) })
	g.Go(func() error { return id.Run(a.metered(ctx)) })
	g.Go(func() error { return l.Run(ctx) })
	g.Go(func() error { a.renewRejected(ctx, id, l); return nil })
	return g.Wait()
}

// metered has what the identity sends and receives in ctx counted.
func (a *agent) metered(ctx context.Context) context.Context {
	return identity.WithMeter(ctx, a.countStream(fleet.StreamIdentity))
}

// countStream counts a connection beside MQTT's.
func (a *agent) countStream(purpose string) func(sent, received int) {
	flow := a.counters.Stream(purpose)
	return func(sent, received int) {
		flow.Add(sent, received)
		a.budget.Count(sent, received)
	}
}

// renewRejected renews when the broker doesn't take the certificate: it expired,
// which a board without a clock doesn't know by itself, or the cluster's root was
// replaced while the node was away.
func (a *agent) renewRejected(ctx context.Context, id *identity.Identity, l *link.Link) {
	const first, last = 5 * time.Second, 30 * time.Minute
	wait := first
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		if s := l.Status(); s.Connected || !identity.Rejected(s.Err) {
			wait = first
			continue
		}
		if err := id.Renew(a.metered(ctx)); err != nil && ctx.Err() == nil {
			a.log.Warn("the certificate was not renewed", "err", err, "again", 2*wait)
		}
		wait = min(2*wait, last)
	}
}

// bootID is of this start of the agent and never made twice, so that two boards
// with one identity are told apart, and two agents on one machine.
func bootID() []byte {
	id := make([]byte, 8)
	_, _ = rand.Read(id) // never fails
	return id
}

// describe tells people which board this is, should another have its identity.
func (a *agent) describe() string {
	if a.o.dataDir == defaultDataDir {
		return a.node.Describe()
	}
	return a.node.Describe() + ", data in " + a.o.dataDir
}

// podLogs tells the tunnel where logs are.
type podLogs struct{ pods *pods.Manager }

// ContainerLog implements tunnel.Pods.
func (p podLogs) ContainerLog(namespace, pod, container string, previous bool) (tunnel.Log, error) {
	l, err := p.pods.Log(namespace, pod, "", container, previous)
	switch {
	case errors.Is(err, pods.ErrNoContainer):
		return tunnel.Log{}, fmt.Errorf("%w: %w", tunnel.ErrContainerNotFound, err)
	case errors.Is(err, pods.ErrNoPod):
		return tunnel.Log{}, fmt.Errorf("%w: %w", tunnel.ErrPodNotFound, err)
	case err != nil:
		return tunnel.Log{}, err
	}
	out := tunnel.Log{Path: l.Path}
	if l.Running {
		out.Running = func() bool {
			now, err := p.pods.Log(namespace, pod, "", container, false)
			return err == nil && now.Running && now.ContainerID == l.ContainerID
		}
	}
	return out, nil
}
