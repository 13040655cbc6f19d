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
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/client-go/kubernetes"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	resourcev1client "k8s.io/client-go/kubernetes/typed/resource/v1"
	storagev1client "k8s.io/client-go/kubernetes/typed/storage/v1"
	"k8s.io/client-go/rest"

	"github.com/coracle-edge/coracle/controlplane/api/enrollment"
	fleetapi "github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/controlplane/api/trace"
	"github.com/coracle-edge/coracle/controlplane/apiserver"
	"github.com/coracle-edge/coracle/controlplane/apiserver/nodelease"
	"github.com/coracle-edge/coracle/controlplane/broker"
	"github.com/coracle-edge/coracle/controlplane/datastore"
	"github.com/coracle-edge/coracle/controlplane/fleethub"
	"github.com/coracle-edge/coracle/controlplane/join"
	"github.com/coracle-edge/coracle/controlplane/join/noderecord"
	"github.com/coracle-edge/coracle/controlplane/nodetoken"
	"github.com/coracle-edge/coracle/controlplane/pki"
	"github.com/coracle-edge/coracle/controlplane/poddial"
	"github.com/coracle-edge/coracle/controlplane/restoration"
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
	pods    *poddial.Dialer
	clients *nodetoken.Connections // of the API server
	records *noderecord.Directory  // made by extend
	hub     atomic.Pointer[fleethub.Hub]
	store   *datastore.Store
	duty    *duty
	// endpoints is the ConfigMap of all control planes' addresses, from memory.
	endpoints func() map[string]string
	member    string
	relayTLS  *tls.Config // towards another control plane's fleet endpoint
	// audience is the API's own, that nodes sign pods' tokens for.
	audience string
	// counters are those of the hub, the broker and the tunnels together.
	counters *fleetapi.Counters
}

func newFleet(store *datastore.Store, authority *pki.Authority, kubelet *pki.Leaf, l *listeners, o options, onDuty *duty, recorder *trace.Recorder, logger *slog.Logger) *fleet {
	f := &fleet{store: store, duty: onDuty, authority: authority, listeners: l, opts: o, trace: recorder, logger: logger, counters: &fleetapi.Counters{}, clients: nodetoken.NewConnections()}
	f.relayTLS = &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: authority.RootPool(), GetClientCertificate: kubelet.GetClientCertificate}
	f.tunnels = tunnel.New(tunnel.Config{Asker: f, Count: f.countStream, Logger: logger})
	f.pods = poddial.New(poddial.Config{Stream: f.stream, Direct: o.podRoutes, Logger: logger, TLS: func() *tls.Config {
		return &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: authority.RootPool(), GetClientCertificate: kubelet.GetClientCertificate}
	}})
	return f
}

// RequestTunnel implements tunnel.Asker: tunnels are made before the hub is.
func (f *fleet) RequestTunnel(ctx context.Context, node, id, purpose string) error {
	hub := f.hub.Load()
	if hub == nil {
		return errors.New("the fleet hub hasn't begun yet")
	}
	if !f.duty.active() {
		return f.duty.elsewhere(ctx)
	}
	return hub.RequestTunnel(ctx, node, id, purpose)
}

// NodeLeases implements nodelease.Source.
func (f *fleet) NodeLeases() ([]nodelease.Lease, bool) {
	hub := f.hub.Load()
	if hub == nil {
		return nil, false
	}
	list, known := hub.NodeLeases()
	out := make([]nodelease.Lease, 0, len(list))
	for _, l := range list {
		out = append(out, nodelease.Lease(l))
	}
	return out, known
}

// countStream counts a stream for all nodes and for its own.
func (f *fleet) countStream(node, purpose string) func(sent, received int) {
	all, own := f.counters.Stream(purpose), f.nodeCounters(node).Stream(purpose)
	return func(sent, received int) {
		all.Add(sent, received)
		own.Add(sent, received)
	}
}

// nodeCounters are the hub's; before there is one nobody asks for them.
func (f *fleet) nodeCounters(node string) *fleetapi.Counters {
	if hub := f.hub.Load(); hub != nil {
		return hub.NodeCounters(node)
	}
	return &fleetapi.Counters{}
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
	if f.member, err = memberID(f.opts.dataDir); err != nil {
		return nil, err
	}
	transport, err := f.transport(hubKey)
	if err != nil {
		return nil, err
	}
	client, err := typedClient(f.duty.gate(server.ClientConfig(hubUser)))
	if err != nil {
		return nil, err
	}
	hub, err := fleethub.New(fleethub.Config{
		Client:     client,
		NodeClient: f.nodeClients(server),
		NodeStorage: func(node string) (storagev1client.StorageV1Interface, error) {
			return storagev1client.NewForConfig(inProtobuf(f.duty.gate(server.ClientConfig(enrollment.NodeUserPrefix+node, "system:nodes"))))
		},
		NodeResources: func(node string) (resourcev1client.ResourceV1Interface, error) {
			return resourcev1client.NewForConfig(inProtobuf(f.duty.gate(server.ClientConfig(enrollment.NodeUserPrefix+node, "system:nodes"))))
		},
		Factory:   server.Informers(),
		Transport: carried(transport, f.duty.active),
		Keys:      f.keys,
		Members:   f.records.Names,
		Records:   noderecord.Store{Client: client},
		Restored:  f.restored,
		Key:       signer,
		Chain:     func() [][]byte { return hubKey.Current().Certificate },
		TrustID:   f.authority.TrustID,
		Classes:   f.opts.linkClasses,
		Keepalive: f.opts.nodeKeepalive,
		FleetURL:  func() string { return f.listeners.urls("https", f.listeners.fleet)[0] },
		Addresses: f.nodeAddresses,
		Counters:  f.counters, TunnelRefused: f.tunnels.Refused, Hold: f.duty.hold,
		Trace:  f.trace,
		Logger: f.logger,
	})
	if err != nil {
		return nil, err
	}
	f.hub.Store(hub)
	if err := server.RegisterMetrics(hub.Metrics()); err != nil {
		return nil, err
	}
	server.Handle(fleethub.NodesPath, hub.NodesHandler())
	if err := f.records.OnChange(f.recordChanged); err != nil {
		return nil, err
	}
	if err := f.watchAddresses(server, hub); err != nil {
		return nil, err
	}
	endpoint, err := f.endpoint(server, hub, hubKey)
	if err != nil {
		return nil, err
	}
	return []part{
		{name: "node records", run: f.records.Run, always: true},
		{name: "fleet hub", run: hub.Run, fatal: true},
		{name: "nodes in reach", run: func(ctx context.Context) error { return f.duty.watch(ctx, hub) }, fatal: true},
		{name: "fleet endpoint", fatal: true, always: true, run: func(ctx context.Context) error { return endpoint.Serve(ctx, f.listeners.fleet) }},
		{name: "addresses", fatal: true, always: true, run: func(ctx context.Context) error { return f.publish(ctx, hub, endpoint) }},
		{name: "join tokens", run: endpoint.Tend},
	}, nil
}

// restored tells the hub whether etcd was put back.
func (f *fleet) restored(ctx context.Context) (*fleethub.Restore, error) {
	m, err := f.store.Mark(ctx)
	if err != nil || m == nil {
		return nil, err
	}
	return &fleethub.Restore{ID: m.ID, Incarnation: m.Incarnation, Snapshot: m.Snapshot, Revision: m.Revision, At: m.At}, nil
}

// restoration settles restores through the hub, once there is one.
func (f *fleet) restoration(server *apiserver.Server) (*restoration.Service, error) {
	nodes, err := server.NodeTransport()
	if err != nil {
		return nil, err
	}
	return restoration.New(restoration.Config{
		Hub: func() restoration.Hub {
			if hub := f.hub.Load(); hub != nil && f.duty.active() {
				return hub
			}
			return nil
		},
		ClientConfig: server.ClientConfig, Former: apiserver.WithFormerIdentity, Nodes: nodes, Logger: f.logger,
	})
}

// transport is the embedded broker, or a client of the external one.
func (f *fleet) transport(hubKey *pki.Leaf) (fleethub.Transport, error) {
	if f.opts.mqttURL != "" {
		return broker.NewExternal(broker.ExternalConfig{
			URLs:     list(f.opts.mqttURL),
			TLS:      &tls.Config{MinVersion: tls.VersionTLS12, GetClientCertificate: hubKey.GetClientCertificate},
			Roots:    f.authority.RootPool,
			Counters: f.counters, Logger: f.logger,
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
		Admit:    f.admit,
		Counters: f.counters, NodeCounters: f.nodeCounters,
		Active: f.duty.active,
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
	return join.New(join.Config{
		Authority: f.authority,
		Serving:   serving,
		Client:    client,
		Records:   f.records,
		Cluster: func() enrollment.Cluster {
			all := f.allAddresses()
			return enrollment.Cluster{Incarnation: hub.Incarnation(), Audience: f.audience, API: all.API, MQTT: all.MQTT, Fleet: all.Fleet}
		},
		Hub:      hubKey,
		Tunnels:  f.tunnels,
		Relay:    f.tunnels,
		Objects:  f.duty.only(hub.ObjectsHandler(func(req *http.Request) string { return join.NodeFrom(req.Context()) })),
		PodToken: f.podTokens(server),
		Logger:   f.logger,
	})
}

// podTokens asks the API for tokens as the node that wants one, so that the Node
// authorizer and NodeRestriction decide: a pod of its own, an audience that the pod
// names.
func (f *fleet) podTokens(server *apiserver.Server) func(context.Context, string, enrollment.PodTokenRequest) (enrollment.PodTokenAnswer, error) {
	clients := f.nodeClients(server)
	return func(ctx context.Context, node string, r enrollment.PodTokenRequest) (enrollment.PodTokenAnswer, error) {
		client, err := clients(node)
		if err != nil {
			return enrollment.PodTokenAnswer{}, err
		}
		ask := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
			Audiences:      []string{r.Audience},
			BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: r.Pod, UID: types.UID(r.PodUID)},
		}}
		if r.Seconds > 0 {
			ask.Spec.ExpirationSeconds = &r.Seconds
		}
		given, err := client.ServiceAccounts(r.Namespace).CreateToken(ctx, r.ServiceAccount, ask, metav1.CreateOptions{})
		if err != nil {
			return enrollment.PodTokenAnswer{}, err
		}
		expires := given.Status.ExpirationTimestamp.Time
		return enrollment.PodTokenAnswer{Token: given.Status.Token, Expires: expires, Seconds: int64(time.Until(expires) / time.Second)}, nil
	}
}

// nodeClients makes clients that act as a node. They share what they are built
// of, so one per request costs nothing to keep.
func (f *fleet) nodeClients(server *apiserver.Server) func(node string) (corev1client.CoreV1Interface, error) {
	return func(node string) (corev1client.CoreV1Interface, error) {
		return corev1client.NewForConfig(inProtobuf(f.duty.gate(server.ClientConfig(enrollment.NodeUserPrefix+node, "system:nodes"))))
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
