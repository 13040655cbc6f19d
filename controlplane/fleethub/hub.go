package fleethub

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	resourcev1client "k8s.io/client-go/kubernetes/typed/resource/v1"
	storagev1client "k8s.io/client-go/kubernetes/typed/storage/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	nodelisters "k8s.io/client-go/listers/node/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/controlplane/api/trace"
)

const (
	orderWorkers = 4
	writeWorkers = 8
	component    = "fleethub"
)

var (
	// ErrAway is returned for a node that has no session.
	ErrAway = errors.New("node is away")
	// ErrUnknownNode is returned by Keys for a node that hasn't joined.
	ErrUnknownNode = errors.New("unknown node")
)

// Transport carries envelopes; package broker has two.
type Transport interface {
	// Run serves until ctx ends. message gets what nodes publish, and their
	// wills, in order per node; link is told when the way opens and breaks.
	// Neither blocks.
	Run(ctx context.Context, message func(node string, d fleet.Direction, payload []byte), link func(up bool)) error
	// Publish hands an envelope over for a node and doesn't wait. It may be
	// lost; an error says that it surely is.
	Publish(node string, payload []byte) error
	// Disconnect ends a node's connection, if the transport can.
	Disconnect(node string)
}

// NodeKeys are the public keys of a node, and the Node object that stands for it.
type NodeKeys struct {
	Sign    ed25519.PublicKey
	Seal    []byte // X25519, for HPKE
	NodeUID string // empty if none was registered yet
}

// Config of a Hub.
type Config struct {
	// Client is the hub's own: its record, conditions of nodes that are away.
	Client kubernetes.Interface
	// NodeClient acts as a node (user system:node:NAME, group system:nodes); see
	// NodeClients. It must not limit its rate.
	NodeClient func(node string) (corev1client.CoreV1Interface, error)
	// NodeResources acts as a node, for its ResourceSlices; nil: there are none.
	NodeResources func(node string) (resourcev1client.ResourceV1Interface, error)
	// NodeStorage acts as a node, too, for its CSINode; nil: there are none.
	NodeStorage func(node string) (storagev1client.StorageV1Interface, error)
	// Factory is shared and started by the caller, after New. Its objects have
	// no managed fields.
	Factory   informers.SharedInformerFactory
	Transport Transport
	// Keys returns ErrUnknownNode, or another error, for who may not speak; keys that
	// come with enrollment.ErrRevoked, ErrCloned or ErrRemoved are those of a node
	// that is told so.
	Keys func(ctx context.Context, node string) (NodeKeys, error)
	// Members names all that have an identity, once they are known: each is asked for
	// a Hello when the hub begins. Nil: those only that the API knows as a Node or
	// by their pods.
	Members func(ctx context.Context) ([]string, error)
	// Records is where Keys come from; nil: nothing is kept of nodes that were removed or cloned.
	// Restored says whether etcd was put back to an earlier time; nil: never. It is
	// asked once, before the epoch is raised.
	Restored func(ctx context.Context) (*Restore, error)
	Records  Records
	Key      ed25519.PrivateKey
	Chain    func() [][]byte

	// TrustID names the roots that nodes should trust now; nil: nothing is said of
	// them. RootsChanged is to be called when it changes.
	TrustID func() []byte

	// Classes of links. fleet.DefaultClasses if nil.
	Classes fleet.LinkClasses
	// Keepalive, WillGrace and ReconnectJitter, where they aren't zero, take the
	// place of every class's own.
	Keepalive, WillGrace, ReconnectJitter time.Duration
	// Hold says that no node is to be called away now, because it may be this hub that
	// is cut off; may be nil. A node that comes back meanwhile never was away.
	Hold func() bool
	// FleetURL is https://host:port of the fleet endpoint, for tunnels and
	// large objects.
	FleetURL func() string
	// Addresses of all control planes, for nodes that know others; may be nil, and
	// return nil. When they change, call Greet.
	Addresses func() *fleet.Addresses
	// Events that a node may have stored at once; then one more per
	// EventInterval. 100, a kubelet's burst, and 200 ms if zero.
	Events        int
	EventInterval time.Duration

	// Counters count what is sent and received; its own if nil. Whoever has the
	// sockets counts into the same.
	Counters *fleet.Counters
	// TunnelRefused is told what a node says to a request for a tunnel; may be nil.
	TunnelRefused func(node, id, reason string)

	Trace  *trace.Recorder
	Logger *slog.Logger
	Now    func() time.Time
}

// Hub is the fleet hub.
type Hub struct {
	c       Config
	log     *slog.Logger
	codec   *fleet.Codec
	started time.Time
	classes fleet.LinkClasses
	reign   reign
	encoder *encoder

	podLister     corelisters.PodLister
	nodeLister    corelisters.NodeLister
	mapLister     corelisters.ConfigMapLister
	secretList    corelisters.SecretLister
	classLister   nodelisters.RuntimeClassLister
	serviceLister corelisters.ServiceLister
	storage       storageLists
	synced        []cache.InformerSynced

	work     workqueue.TypedDelayingInterface[string]
	writes   workqueue.TypedRateLimitingInterface[writeKey]
	revision atomic.Uint64
	counters *fleet.Counters
	stats    stats
	live     atomic.Bool // Run has raised the epoch and synced
	way      atomic.Bool // there is one to the broker
	follow   atomic.Bool // nodes of before a restore are adopted as they come
	deposed  atomic.Bool // a later hub has begun

	// mu guards the maps; a node's own state is its own.
	mu    sync.Mutex
	nodes map[string]*node
	bound map[string]map[types.NamespacedName]*corev1.Pod // by node
	// released are the volumes whose folders nodes are to remove, by node.
	released map[string]map[ref]bool
	users    map[ref]map[string]bool // nodes whose pods refer to it
}

// New registers the hub's informers with the factory; nothing is sent before Run.
func New(c Config) (*Hub, error) {
	if c.Client == nil || c.NodeClient == nil || c.Factory == nil || c.Transport == nil || c.Keys == nil || c.Key == nil {
		return nil, errors.New("fleethub: Client, NodeClient, Factory, Transport, Keys and Key are needed")
	}
	classes, err := c.classes()
	if err != nil {
		return nil, fmt.Errorf("fleethub: %w", err)
	}
	if c.EventInterval == 0 {
		c.EventInterval = 200 * time.Millisecond
	}
	if c.Events == 0 {
		c.Events = 100
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Counters == nil {
		c.Counters = &fleet.Counters{}
	}
	if c.FleetURL == nil {
		c.FleetURL = func() string { return "" }
	}
	h := &Hub{
		c: c, log: c.Logger, codec: fleet.NewCodec(), started: c.Now(), classes: classes, counters: c.Counters,
		nodes: map[string]*node{}, bound: map[string]map[types.NamespacedName]*corev1.Pod{},
		released: map[string]map[ref]bool{}, users: map[ref]map[string]bool{},
		work: workqueue.NewTypedDelayingQueue[string](),
		writes: workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[writeKey](
			20*time.Millisecond, 30*time.Second)),
	}
	core := c.Factory.Core().V1()
	h.podLister, h.nodeLister = core.Pods().Lister(), core.Nodes().Lister()
	h.mapLister, h.secretList = core.ConfigMaps().Lister(), core.Secrets().Lister()
	h.classLister, h.serviceLister = c.Factory.Node().V1().RuntimeClasses().Lister(), core.Services().Lister()
	h.storage = newStorageLists(c.Factory)
	type source struct {
		informer cache.SharedIndexInformer
		handler  cache.ResourceEventHandler
	}
	sources := []source{
		{core.Pods().Informer(), podHandler{h}},
		{core.Nodes().Informer(), nodeHandler{h}},
		{core.ConfigMaps().Informer(), refHandler{h, "ConfigMap"}},
		{core.Secrets().Informer(), refHandler{h, "Secret"}},
		{core.Services().Informer(), serviceHandler{h}},
		{c.Factory.Node().V1().RuntimeClasses().Informer(), refHandler{h, "RuntimeClass"}},
	}
	for kind, informer := range h.storage.informers(c.Factory) {
		sources = append(sources, source{informer, refHandler{h, kind}})
	}
	for _, s := range sources {
		registration, err := s.informer.AddEventHandler(s.handler)
		if err != nil {
			return nil, fmt.Errorf("fleethub: %w", err)
		}
		h.synced = append(h.synced, registration.HasSynced)
	}
	return h, nil
}

// classes are the configured ones with what is the same for all put in.
func (c *Config) classes() (fleet.LinkClasses, error) {
	from := c.Classes
	if from == nil {
		from = fleet.DefaultClasses()
	}
	out := fleet.LinkClasses{}
	for name, class := range from {
		if c.Keepalive != 0 {
			class.Keepalive, class.Retry = c.Keepalive, min(class.Retry, c.Keepalive*2/3)
		}
		class.Grace = cmp.Or(c.WillGrace, class.Grace)
		class.Jitter = cmp.Or(c.ReconnectJitter, class.Jitter)
		if err := class.Validate(); err != nil {
			return nil, err
		}
		out[name] = class
	}
	if _, ok := out[fleet.DefaultClass]; !ok {
		return nil, fmt.Errorf("%w %s is missing", fleet.ErrClass, fleet.DefaultClass)
	}
	return out, nil
}

// Run raises the epoch, waits for the informers and serves until ctx ends.
func (h *Hub) Run(ctx context.Context) error {
	if err := h.begin(ctx); err != nil {
		return err
	}
	if !cache.WaitForCacheSync(ctx.Done(), h.synced...) {
		return nil
	}
	h.expectNodes(ctx)
	h.live.Store(true)
	if record, err := h.secretList.Secrets(Namespace).Get(RecordName); err == nil {
		h.seeRecord(record) // it may have changed while the informers synced
	}
	h.log.Info("fleet hub begins", "epoch", h.reign.Number, "incarnation", fmt.Sprintf("%x", h.reign.Incarnation))
	if r := h.reign.restore; r != nil && !h.reign.confirmed {
		h.log.Warn("etcd was put back to an earlier time: nodes keep what they run until `coracle restore adopt` or `coracle restore confirm`",
			"snapshot", r.Snapshot, "revision", r.Revision, "at", r.At)
	}

	ctx, cancel := context.WithCancel(ctx)
	var group sync.WaitGroup
	for range orderWorkers {
		group.Go(func() { h.orderLoop(ctx) })
	}
	for range writeWorkers {
		group.Go(func() { h.writeLoop(ctx) })
	}
	err := h.c.Transport.Run(ctx, h.message, h.link)
	cancel()
	h.work.ShutDown()
	h.writes.ShutDown()
	group.Wait()
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, n := range h.nodes {
		n.stopTimer()
	}
	return err
}

// begin raises the epoch, however long the API takes to be there.
func (h *Hub) begin(ctx context.Context) error {
	for wait := 50 * time.Millisecond; ; wait = min(wait*2, 5*time.Second) {
		r, err := h.raise(ctx)
		if err == nil {
			h.reign, h.encoder = r, newEncoder(r.hashKey)
			h.follow.Store(r.confirmed)
			h.see(r.revision)
			return nil
		}
		if errors.Is(err, ErrRecord) || apierrors.IsForbidden(err) || ctx.Err() != nil {
			return err
		}
		h.log.Warn("fleet hub waits for the API", "error", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

func (h *Hub) raise(ctx context.Context) (reign, error) {
	var restored *Restore
	if h.c.Restored != nil {
		var err error
		if restored, err = h.c.Restored(ctx); err != nil {
			return reign{}, err
		}
	}
	return raiseEpoch(ctx, h.c.Client, restored)
}

// Incarnation of the cluster, hex; empty before Run has read it.
func (h *Hub) Incarnation() string {
	if !h.live.Load() {
		return ""
	}
	return fmt.Sprintf("%x", h.reign.Incarnation)
}

// Live is true once the hub has raised its epoch and synced.
func (h *Hub) Live() bool { return h.live.Load() }

// Counters of messages and bytes.
func (h *Hub) Counters() *fleet.Counters { return h.counters }

// Reach is what this hub has of its nodes now.
type Reach struct {
	// Sessions that stand and are confirmed.
	Sessions int
	// Keepalive is the shortest of theirs; zero: there are none.
	Keepalive time.Duration
	// Heard is when any node was last heard; zero: never.
	Heard time.Time
	// Broker: there is a way to it.
	Broker bool
}

// Reach of this hub, from memory.
func (h *Hub) Reach() Reach {
	h.mu.Lock()
	nodes := slices.Collect(maps.Values(h.nodes))
	h.mu.Unlock()
	r := Reach{Broker: h.way.Load()}
	for _, n := range nodes {
		if n.confirmed.Load() {
			r.Sessions++
			if k := time.Duration(n.keepalive.Load()); k > 0 && (r.Keepalive == 0 || k < r.Keepalive) {
				r.Keepalive = k
			}
		}
		if at := h.heardOf(n); at.After(r.Heard) {
			r.Heard = at
		}
	}
	return r
}

// Liveness of a node, from memory.
type Liveness struct {
	Presence Presence
	// Heard is when the node last gave a sign of life: a message, or a keepalive
	// where the broker tells of it. Where it doesn't, now while its connection
	// stands.
	Heard time.Time
}

// Liveness returns what is known of a node; false if nothing.
func (h *Hub) Liveness(name string) (Liveness, bool) {
	n := h.find(name)
	if n == nil {
		return Liveness{}, false
	}
	return Liveness{Presence: Presence(n.presence.Load()), Heard: h.heardOf(n)}, true
}

// RequestTunnel asks a node to dial the tunnel with this id for this purpose. It
// returns when the request is on its way; ErrAway if the node has no session.
func (h *Hub) RequestTunnel(_ context.Context, name, id, purpose string) error {
	n := h.find(name)
	if n == nil || !n.confirmed.Load() {
		return fmt.Errorf("tunnel to node %s: %w", name, ErrAway)
	}
	request := &fleet.TunnelRequest{Id: id, Purpose: purpose}
	if base := h.c.FleetURL(); base != "" {
		request.Url = base + "/v1/tunnel/" + id
	}
	n.mu.Lock()
	full := len(n.tunnels) >= 256
	if !full {
		n.tunnels = append(n.tunnels, request)
	}
	n.mu.Unlock()
	if full {
		return fmt.Errorf("tunnel to node %s: too many requests wait", name)
	}
	h.work.Add(name)
	return nil
}

// RootsChanged has nodes told which roots to trust. It doesn't block.
func (h *Hub) RootsChanged() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for name := range h.nodes {
		h.work.Add(name)
	}
}

// AdoptNode moves a node of another incarnation into this one, with all that it
// runs. Only an operator's word may cause it.
func (h *Hub) AdoptNode(name string) error {
	n := h.find(name)
	if n == nil || !n.confirmed.Load() {
		return fmt.Errorf("adopting node %s: %w", name, ErrAway)
	}
	n.mu.Lock()
	n.adopt = true
	n.mu.Unlock()
	h.work.Add(name)
	return nil
}

// ForeignNodes lists nodes that are there and belong to another incarnation.
func (h *Hub) ForeignNodes() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []string
	for name, n := range h.nodes {
		if n.foreign.Load() != nil && n.confirmed.Load() {
			out = append(out, name)
		}
	}
	return out
}

// Greet asks those nodes for a Hello that know other addresses than ours, because a
// Welcome says them.
func (h *Hub) Greet() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for name, n := range h.nodes {
		n.mu.Lock()
		n.greets = maxGreets
		n.mu.Unlock()
		h.work.Add(name)
	}
}

// chain is the certificate that the hub signs by.
func (h *Hub) chain() [][]byte {
	if h.c.Chain == nil {
		return nil
	}
	return h.c.Chain()
}

// knows says whether the node needs no certificate.
func (h *Hub) knows(hello *fleet.Hello) bool {
	id := fleet.KeyID(h.c.Key.Public().(ed25519.PublicKey))
	return slices.ContainsFunc(hello.GetKnownKeys(), func(k []byte) bool { return bytes.Equal(k, id) })
}

func (h *Hub) now() time.Duration { return h.c.Now().Sub(h.started) }

func (h *Hub) find(name string) *node {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.nodes[name]
}

// size is how many nodes are known.
func (h *Hub) size() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.nodes)
}

// see raises the newest revision that was seen.
func (h *Hub) see(revision uint64) {
	for {
		old := h.revision.Load()
		if revision <= old || h.revision.CompareAndSwap(old, revision) {
			return
		}
	}
}

// expectNodes makes a peer of every node of ours that the API knows, as a Node,
// because pods are bound to it or because it joined: each is asked for a Hello, and has time to show
// up before it is called away.
func (h *Hub) expectNodes(ctx context.Context) {
	h.mu.Lock()
	names := make([]string, 0, len(h.nodes))
	for name := range h.nodes {
		names = append(names, name)
	}
	for name := range h.bound {
		if h.nodes[name] == nil {
			names = append(names, name)
		}
	}
	h.mu.Unlock()
	if h.c.Members != nil {
		// Etcd may know nothing of a node but that it joined: behind a broker of its own
		// the node keeps its session with the hub before, and says nothing by itself.
		members, err := h.c.Members(ctx)
		if err != nil {
			h.log.Warn("nodes that joined can't be listed; one that has no Node is heard when it connects again", "error", err)
		}
		names = append(names, members...)
	}
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		h.expect(ctx, name)
	}
}
