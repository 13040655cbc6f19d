package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync/atomic"

	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/client-go/kubernetes"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"

	"github.com/coracle-edge/coracle/controlplane/api/enrollment"
	"github.com/coracle-edge/coracle/controlplane/api/trace"
	"github.com/coracle-edge/coracle/controlplane/apiserver"
	"github.com/coracle-edge/coracle/controlplane/broker"
	"github.com/coracle-edge/coracle/controlplane/fleethub"
	"github.com/coracle-edge/coracle/controlplane/join"
	"github.com/coracle-edge/coracle/controlplane/join/noderecord"
	"github.com/coracle-edge/coracle/controlplane/nodetoken"
	"github.com/coracle-edge/coracle/controlplane/pki"
	"github.com/coracle-edge/coracle/controlplane/tunnel"
)

// Users of the parts; their roles are in objects.go.
const (
	hubUser   = enrollment.HubName
	fleetUser = "system:coracle:fleet"
)

// fleet is everything that faces the nodes: hub, broker, fleet endpoint, tunnels.
type fleet struct {
	authority *pki.Authority
	listeners *listeners
	opts      options
	trace     *trace.Recorder
	logger    *slog.Logger

	tunnels *tunnel.Tunnels
	clients *nodetoken.Connections // of the API server
	records *noderecord.Directory  // made by extend
	hub     atomic.Pointer[fleethub.Hub]
	// audience is the API's own, that nodes sign pods' tokens for.
	audience string
}

func newFleet(authority *pki.Authority, l *listeners, o options, recorder *trace.Recorder, logger *slog.Logger) *fleet {
	f := &fleet{authority: authority, listeners: l, opts: o, trace: recorder, logger: logger, clients: nodetoken.NewConnections()}
	f.tunnels = tunnel.New(tunnel.Config{Asker: f, Logger: logger})
	return f
}

// RequestTunnel implements tunnel.Asker: tunnels are made before the hub is.
func (f *fleet) RequestTunnel(ctx context.Context, node, id, purpose string) error {
	hub := f.hub.Load()
	if hub == nil {
		return errors.New("the fleet hub hasn't begun yet")
	}
	return hub.RequestTunnel(ctx, node, id, purpose)
}

// extend lets in pods by what their node signed, and nodes only while their record says so.
func (f *fleet) extend(host apiserver.Host) (apiserver.Extension, error) {
	client, err := typedClient(host.ClientConfig(fleetUser))
	if err != nil {
		return apiserver.Extension{}, err
	}
	f.records = noderecord.NewDirectory(client, f.logger)
	f.audience = host.Audiences[0]
	tokens, err := nodetoken.New(nodetoken.Config{Records: f.records, Objects: host.Objects, Audiences: host.Audiences})
	if err != nil {
		return apiserver.Extension{}, err
	}
	guard := func(r authenticator.Request) authenticator.Request { return nodetoken.Guard(r, f.records) }
	bound := func(r authenticator.Request) authenticator.Request { return nodetoken.Bound(r, f.records, f.clients) }
	return apiserver.Extension{Tokens: []authenticator.Token{tokens}, Certificates: guard, Requests: bound}, nil
}

// build makes hub, broker and fleet endpoint on the API of server.
func (f *fleet) build(server *apiserver.Server) ([]part, error) {
	hubKey, err := f.authority.Hub()
	if err != nil {
		return nil, err
	}
	signer, ok := hubKey.Signer().(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("hub key %s: a %T, want Ed25519", hubKey.KeyFile(), hubKey.Signer())
	}
	transport, err := f.transport(hubKey)
	if err != nil {
		return nil, err
	}
	client, err := typedClient(server.ClientConfig(hubUser))
	if err != nil {
		return nil, err
	}
	hub, err := fleethub.New(fleethub.Config{
		Client:     client,
		NodeClient: nodeClients(server),
		Factory:    server.Informers(),
		Transport:  transport,
		Keys:       f.keys,
		Records:    noderecord.Store{Client: client},
		Key:        signer,
		Chain:      func() [][]byte { return hubKey.Current().Certificate },
		TrustID:    f.authority.TrustID,
		Keepalive:  f.opts.nodeKeepalive,
		FleetURL:   func() string { return f.listeners.urls("https", f.listeners.fleet)[0] },
		Trace:      f.trace,
		Logger:     f.logger,
	})
	if err != nil {
		return nil, err
	}
	f.hub.Store(hub)
	if err := f.records.OnChange(f.recordChanged); err != nil {
		return nil, err
	}
	endpoint, err := f.endpoint(server, hub, hubKey)
	if err != nil {
		return nil, err
	}
	return []part{
		{name: "node records", run: f.records.Run},
		{name: "fleet hub", run: hub.Run, fatal: true},
		{name: "fleet endpoint", fatal: true, run: func(ctx context.Context) error { return endpoint.Serve(ctx, f.listeners.fleet) }},
		{name: "join line", run: func(ctx context.Context) error { return f.followRoots(ctx, hub, endpoint) }},
		{name: "join tokens", run: endpoint.Tend},
	}, nil
}

// transport is the embedded broker, or a client of the external one.
func (f *fleet) transport(hubKey *pki.Leaf) (fleethub.Transport, error) {
	if f.opts.mqttURL != "" {
		return broker.NewExternal(broker.ExternalConfig{
			URLs:   list(f.opts.mqttURL),
			TLS:    &tls.Config{MinVersion: tls.VersionTLS12, GetClientCertificate: hubKey.GetClientCertificate},
			Roots:  f.authority.RootPool,
			Logger: f.logger,
		})
	}
	serving, err := f.authority.Broker(f.listeners.hosts...)
	if err != nil {
		return nil, err
	}
	return broker.NewEmbedded(broker.EmbeddedConfig{
		Listener: f.listeners.mqtt,
		TLS: &tls.Config{
			MinVersion: tls.VersionTLS13, GetCertificate: serving.GetCertificate,
			ClientCAs: f.authority.RootPool(), ClientAuth: tls.RequireAndVerifyClientCert,
			GetConfigForClient: f.trusting(&tls.Config{
				MinVersion: tls.VersionTLS13, GetCertificate: serving.GetCertificate, ClientAuth: tls.RequireAndVerifyClientCert,
			}),
		},
		Admit:  f.admit,
		Logger: f.logger,
	})
}

// trusting returns base with the roots as of now; there is one configuration per
// set of roots.
func (f *fleet) trusting(base *tls.Config) func(*tls.ClientHelloInfo) (*tls.Config, error) {
	type made struct {
		trust  []byte
		config *tls.Config
	}
	var last atomic.Pointer[made]
	return func(*tls.ClientHelloInfo) (*tls.Config, error) {
		trust := f.authority.TrustID()
		if m := last.Load(); m != nil && bytes.Equal(m.trust, trust) {
			return m.config, nil
		}
		config := base.Clone()
		config.ClientCAs = f.authority.RootPool()
		last.Store(&made{trust, config})
		return config, nil
	}
}

// followRoots tells everybody whom nobody asks of a change of the roots.
func (f *fleet) followRoots(ctx context.Context, hub *fleethub.Hub, endpoint *join.Server) error {
	for {
		changed := f.authority.Changed()
		hub.RootsChanged()
		if err := endpoint.Publish(ctx, f.listeners.urls("https", f.listeners.fleet)); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}

// recordChanged lets nothing go on that began under another record.
func (f *fleet) recordChanged(node string, before, now *noderecord.Record) {
	f.hub.Load().RecordChanged(node)
	var why error
	switch {
	case now == nil:
		why = enrollment.ErrNodeUnknown
	case now.Standing() != nil:
		why = now.Standing()
	case before != nil && !now.SigningKey.Equal(before.SigningKey):
		why = enrollment.ErrNodeKey
	default:
		return
	}
	f.tunnels.End(node, why.Error())
	f.clients.End(node)
}

// admit holds a node's certificate against its record.
func (f *fleet) admit(ctx context.Context, node string, cert *x509.Certificate) error {
	record, err := f.records.Identified(ctx, node)
	if err != nil {
		return err
	}
	if key, ok := cert.PublicKey.(ed25519.PublicKey); !ok || !record.SigningKey.Equal(key) {
		return fmt.Errorf("node %q: %w", node, enrollment.ErrNodeKey)
	}
	return nil
}

// keys are returned also if the node isn't in good standing, for it to be told so.
func (f *fleet) keys(ctx context.Context, node string) (fleethub.NodeKeys, error) {
	record, err := f.records.Lookup(ctx, node)
	if err != nil {
		return fleethub.NodeKeys{}, err
	}
	return fleethub.NodeKeys{Sign: record.SigningKey, Seal: record.SealingKey, NodeUID: record.NodeUID}, record.Standing()
}

func (f *fleet) endpoint(server *apiserver.Server, hub *fleethub.Hub, hubKey *pki.Leaf) (*join.Server, error) {
	serving, err := f.authority.Fleet(f.listeners.hosts...)
	if err != nil {
		return nil, err
	}
	client, err := typedClient(server.ClientConfig(fleetUser))
	if err != nil {
		return nil, err
	}
	mqtt := list(f.opts.mqttURL)
	if f.listeners.mqtt != nil {
		mqtt = f.listeners.urls("tls", f.listeners.mqtt)
	}
	return join.New(join.Config{
		Authority: f.authority,
		Serving:   serving,
		Client:    client,
		Records:   f.records,
		Cluster: func() enrollment.Cluster {
			return enrollment.Cluster{
				Incarnation: hub.Incarnation(),
				Audience:    f.audience,
				API:         f.listeners.urls("https", f.listeners.api),
				MQTT:        mqtt,
				Fleet:       f.listeners.urls("https", f.listeners.fleet),
			}
		},
		Hub:     hubKey,
		Tunnels: f.tunnels,
		Objects: hub.ObjectsHandler(func(req *http.Request) string { return join.NodeFrom(req.Context()) }),
		Logger:  f.logger,
	})
}

// nodeClients makes clients that act as a node. They share what they are built
// of, so one per request costs nothing to keep.
func nodeClients(server *apiserver.Server) func(node string) (corev1client.CoreV1Interface, error) {
	return func(node string) (corev1client.CoreV1Interface, error) {
		return corev1client.NewForConfig(inProtobuf(server.ClientConfig(enrollment.NodeUserPrefix+node, "system:nodes")))
	}
}

func typedClient(c *rest.Config) (*kubernetes.Clientset, error) {
	return kubernetes.NewForConfig(inProtobuf(c))
}

func inProtobuf(c *rest.Config) *rest.Config {
	c.ContentType = "application/vnd.kubernetes.protobuf"
	c.AcceptContentTypes = c.ContentType + ",application/json"
	return c
}
