package fleetlink

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/hpke"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	k8stesting "k8s.io/client-go/testing"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/controlplane/api/trace"
	"github.com/coracle-edge/coracle/controlplane/broker"
	"github.com/coracle-edge/coracle/controlplane/broker/brokertest"
	"github.com/coracle-edge/coracle/controlplane/fleethub"
	"github.com/coracle-edge/coracle/edgelet/budget"
	"github.com/coracle-edge/coracle/edgelet/link"
	"github.com/coracle-edge/coracle/edgelet/state"
)

func logger(t testing.TB, who string) *slog.Logger {
	if os.Getenv("FLEET_LOG") == "" {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("who", who)
}

// cluster is everything of one test: keys, an API, a broker, a hub, nodes.
type cluster struct {
	t      *testing.T
	pki    *brokertest.PKI
	client *fake.Clientset
	hubKey ed25519.PrivateKey
	trace  *trace.Recorder

	restored  *fleethub.Restore
	addresses atomic.Pointer[fleet.Addresses]
	broker    outside // nil: embedded
	addr      string
	front     string             // where boards connect, if not to addr
	script    fleethub.Transport // in the place of a broker; may be nil
	hub       *fleethub.Hub
	serving   atomic.Pointer[fleethub.Hub] // hub, for those that the test does not wait for
	stopHub   func()
	tap       *tap
	objects   string // URL of the fleet endpoint
	cut       func(net.Conn) net.Conn
	configure func(*fleethub.Config) // of the next hub; may be nil

	mu   sync.Mutex
	keys map[string]fleethub.NodeKeys
}

// tap sees what goes through a transport, and can send it again.
type tap struct {
	fleethub.Transport
	mu   sync.Mutex
	down [][]byte
	up   [][]byte
	into func(node string, d fleet.Direction, payload []byte)
}

func (t *tap) Publish(node string, payload []byte) error {
	t.mu.Lock()
	t.down = append(t.down, payload)
	t.mu.Unlock()
	return t.Transport.Publish(node, payload)
}

// asked counts what went down.
func (t *tap) asked() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.down)
}

// Heard is the embedded broker's.
func (t *tap) Heard(node string) (time.Time, bool) {
	if e, ok := t.Transport.(*broker.Embedded); ok {
		return e.Heard(node)
	}
	return time.Now(), true // as the hub does where nobody knows
}

func (t *tap) Run(ctx context.Context, message func(string, fleet.Direction, []byte), link func(bool)) error {
	t.into = message
	return t.Transport.Run(ctx, func(node string, d fleet.Direction, payload []byte) {
		t.mu.Lock()
		t.up = append(t.up, payload)
		t.mu.Unlock()
		message(node, d, payload)
	}, link)
}

func newCluster(t *testing.T, kind brokerKind) *cluster {
	t.Helper()
	return newClusterWith(t, kind, nil)
}

// newClusterWith configures its hubs.
func newClusterWith(t *testing.T, kind brokerKind, configure func(*fleethub.Config)) *cluster {
	t.Helper()
	return newClusterPrepared(t, kind, func(c *cluster) { c.configure = configure })
}

// newClusterPrepared calls prepare before the first hub starts.
func newClusterPrepared(t *testing.T, kind brokerKind, prepare func(*cluster)) *cluster {
	t.Helper()
	_, hubKey, _ := ed25519.GenerateKey(rand.Reader)
	c := &cluster{t: t, pki: brokertest.NewPKI(t), client: fake.NewClientset(), hubKey: hubKey, trace: trace.NewRecorder(0), keys: map[string]fleethub.NodeKeys{}}
	lockNodes(c.client)
	c.startBroker(kind)
	if prepare != nil {
		prepare(c)
	}
	c.startHub()
	t.Cleanup(func() { c.stopHub() })
	return c
}

// lockNodes has an update of an older Node refused, as the API server does: else
// a status that is written late takes back a label that was set meanwhile.
func lockNodes(client *fake.Clientset) {
	var mu sync.Mutex
	version, tracker, nodes := 0, client.Tracker(), corev1.SchemeGroupVersion.WithResource("nodes")
	store := func(n *corev1.Node) (bool, runtime.Object, error) {
		version++
		n.ResourceVersion = strconv.Itoa(version)
		return true, n, tracker.Update(nodes, n, "")
	}
	client.PrependReactor("update", "nodes", func(a k8stesting.Action) (bool, runtime.Object, error) {
		mu.Lock()
		defer mu.Unlock()
		n := a.(k8stesting.UpdateAction).GetObject().(*corev1.Node).DeepCopy()
		have, err := tracker.Get(nodes, "", n.Name)
		if err != nil {
			return true, nil, err
		}
		if v := have.(*corev1.Node).ResourceVersion; v != n.ResourceVersion {
			return true, nil, apierrors.NewConflict(nodes.GroupResource(), n.Name, fmt.Errorf("resource version %s, now %s", n.ResourceVersion, v))
		}
		return store(n)
	})
	client.PrependReactor("patch", "nodes", func(a k8stesting.Action) (bool, runtime.Object, error) {
		mu.Lock()
		defer mu.Unlock()
		_, patched, err := k8stesting.ObjectReaction(tracker)(a)
		if err != nil {
			return true, nil, err
		}
		return store(patched.(*corev1.Node).DeepCopy())
	})
}

// members are all that have keys.
func (c *cluster) members(context.Context) ([]string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Sorted(maps.Keys(c.keys)), nil
}

func (c *cluster) transport() fleethub.Transport {
	if c.script != nil {
		return c.script
	}
	if c.broker != nil {
		e, err := broker.NewExternal(broker.ExternalConfig{URLs: []string{"mqtts://" + c.addr}, TLS: c.pki.Client(fleet.HubUser), Logger: logger(c.t, "broker")})
		if err != nil {
			c.t.Fatal(err)
		}
		return e
	}
	var l net.Listener
	for range 100 {
		var err error
		if l, err = net.Listen("tcp", c.addr); err == nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if l == nil {
		c.t.Fatalf("can't listen on %s", c.addr)
	}
	e, err := broker.NewEmbedded(broker.EmbeddedConfig{Listener: l, TLS: c.pki.Server(), Logger: logger(c.t, "broker"),
		NodeCounters: func(node string) *fleet.Counters {
			if hub := c.serving.Load(); hub != nil {
				return hub.NodeCounters(node)
			}
			return nil
		}})
	if err != nil {
		c.t.Fatal(err)
	}
	return e
}

// startHub starts a hub on c.client, as a new process would.
func (c *cluster) startHub() {
	c.t.Helper()
	factory := informers.NewSharedInformerFactory(c.client, 0)
	c.tap = &tap{Transport: c.transport()}
	config := fleethub.Config{
		Client: c.client,
		NodeClient: func(string) (corev1client.CoreV1Interface, error) {
			return c.client.CoreV1(), nil
		},
		Factory: factory, Transport: c.tap, Key: c.hubKey, Trace: c.trace, Logger: logger(c.t, "hub"),
		Keys: func(_ context.Context, node string) (fleethub.NodeKeys, error) {
			c.mu.Lock()
			defer c.mu.Unlock()
			k, ok := c.keys[node]
			if !ok {
				return k, fleethub.ErrUnknownNode
			}
			return k, nil
		},
		Members:   c.members,
		Restored:  func(context.Context) (*fleethub.Restore, error) { return c.restored, nil },
		Keepalive: 10 * time.Second, WillGrace: 300 * time.Millisecond, ReconnectJitter: 50 * time.Millisecond,
		FleetURL: func() string { return c.objects }, Addresses: c.addresses.Load,
	}
	if c.configure != nil {
		c.configure(&config)
	}
	hub, err := fleethub.New(config)
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	factory.Start(ctx.Done())
	done := make(chan error, 1)
	go func() { done <- hub.Run(ctx) }()
	c.hub = hub
	c.serving.Store(hub)
	c.stopHub = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				c.t.Errorf("hub: %v", err)
			}
		case <-time.After(10 * time.Second):
			c.t.Error("the hub doesn't end")
		}
	})
}

// serveObjects starts the fleet endpoint's part for large objects.
func (c *cluster) serveObjects() {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		c.t.Fatal(err)
	}
	if c.cut != nil {
		l = cutter{l, c.cut}
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.serving.Load().ObjectsHandler(nil).ServeHTTP(w, r)
	}), ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	go func() { _ = server.Serve(tls.NewListener(l, c.pki.Server())) }()
	c.t.Cleanup(func() { _ = server.Close() })
	c.objects = "https://localhost:" + fmt.Sprint(l.Addr().(*net.TCPAddr).Port)
}

type cutter struct {
	net.Listener
	cut func(net.Conn) net.Conn
}

func (c cutter) Accept() (net.Conn, error) {
	conn, err := c.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return c.cut(conn), nil
}

// board is a node with the real link and state, and no pods.
type board struct {
	c       *cluster
	name    string
	dir     string
	key     ed25519.PrivateKey
	seal    hpke.PrivateKey
	tls     *tls.Config
	store   *state.Store
	link    *link.Link
	stop    func()
	tunnels chan *fleet.TunnelRequest
	class   string // by its own word
	budget  *budget.Budget
	cable   *cable

	// learned are the addresses that it was told; before, it knows the broker's.
	learned atomic.Pointer[fleet.Addresses]
	lessons atomic.Int64
	first   []string           // instead of the broker's
	config  func(*link.Config) // changes it; may be nil
	ahead   atomic.Int64       // of its clock, ns
}

// later has its clock be further on.
func (b *board) later(d time.Duration) { b.ahead.Add(int64(d)) }

func (b *board) addresses() *fleet.Addresses {
	if a := b.learned.Load(); a != nil {
		return a
	}
	if b.first != nil {
		return &fleet.Addresses{Mqtt: b.first}
	}
	return &fleet.Addresses{Mqtt: []string{"mqtts://" + cmp.Or(b.c.front, b.c.addr)}}
}

func (b *board) learn(a *fleet.Addresses) error {
	b.learned.Store(a)
	b.lessons.Add(1)
	return nil
}

// cable is the board's way to the broker.
type cable struct {
	out  atomic.Bool
	mu   sync.Mutex
	last net.Conn
}

func (c *cable) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if c.out.Load() {
		return nil, errors.New("cable out")
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, address)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = conn
	return conn, err
}

// pull breaks the connection without a word of MQTT.
func (c *cable) pull() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if tcp, ok := c.last.(*net.TCPConn); ok { // Close would be taken for our own wish
		_ = tcp.CloseWrite()
		_ = tcp.CloseRead()
	}
}

func (c *cluster) board(name string) *board {
	c.t.Helper()
	public, key, _ := ed25519.GenerateKey(rand.Reader)
	seal, err := fleet.SealKEM().GenerateKey()
	if err != nil {
		c.t.Fatal(err)
	}
	b := &board{c: c, name: name, dir: c.t.TempDir(), key: key, seal: seal, tls: c.pki.Client(fleet.NodeUserPrefix + name), tunnels: make(chan *fleet.TunnelRequest, 8), cable: &cable{}}
	c.mu.Lock()
	c.keys[name] = fleethub.NodeKeys{Sign: public, Seal: seal.PublicKey().Bytes()}
	c.mu.Unlock()
	c.admit(name)
	b.start()
	c.t.Cleanup(func() { b.stop() })
	return b
}

// admit has a broker know the node that must know each by name.
func (c *cluster) admit(name string) {
	if n, ok := c.broker.(*brokertest.NATS); ok {
		n.Admit(name)
	}
}

// start opens state and runs the link, as a new process would.
func (b *board) start() {
	t := b.c.t
	t.Helper()
	store, err := state.Open(filepath.Join(b.dir, "state.db"), state.Options{
		FlushDelay: 20 * time.Millisecond, Logger: logger(t, b.name),
		Unseal: func(uid string, h fleet.Hash, sealed []byte) ([]byte, error) {
			return fleet.Unseal(b.seal, b.name, uid, h, sealed)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	b.store = store
	b.budget = budget.New(store, nil)
	_ = store.PutSetting("link.keepalive", "10")
	config := link.Config{
		NodeName: b.name, Brokers: func() []string { return b.addresses().GetMqtt() }, Addresses: b.addresses, Learn: b.learn, TLS: b.tls, Key: b.key,
		Trust: link.NewTrust(nil, b.c.hubKey.Public().(ed25519.PublicKey)), State: store, ObjectsTLS: b.tls,
		OnTunnel: func(r *fleet.TunnelRequest) error { b.tunnels <- r; return nil },
		Dial:     b.cable.dial,
		Budget:   b.budget,
		Now:      func() time.Time { return time.Now().Add(time.Duration(b.ahead.Load())) },
		BootID:   []byte("boot"), LinkClass: b.class, Logger: logger(t, b.name),
	}
	if b.config != nil {
		b.config(&config)
	}
	b.link, err = link.New(config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.link.Run(ctx) }()
	b.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("link: %v", err)
		}
		if err := store.Close(); err != nil {
			t.Errorf("state: %v", err)
		}
	})
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	eventuallyIn(t, 30*time.Second, what, ok)
}

func eventuallyIn(t *testing.T, d time.Duration, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(d); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("not within %s: %s", d, what)
}

var ctx = context.Background()

func (c *cluster) createPod(name, node string, change func(*corev1.Pod)) *corev1.Pod {
	c.t.Helper()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: types.UID("uid-" + name), CreationTimestamp: metav1.Now()},
		Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "main", Image: "registry.local/hello:1"}}},
		Status:     corev1.PodStatus{Phase: corev1.PodPending},
	}
	if change != nil {
		change(pod)
	}
	out, err := c.client.CoreV1().Pods("default").Create(ctx, pod, metav1.CreateOptions{})
	if err != nil {
		c.t.Fatal(err)
	}
	return out
}

func (c *cluster) pod(name string) *corev1.Pod {
	pod, err := c.client.CoreV1().Pods("default").Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil
	}
	return pod
}

func (b *board) pods() []string {
	pods, _ := b.store.Desired(state.KindPod)
	var out []string
	for _, p := range pods {
		out = append(out, p.Name)
	}
	return out
}

func (b *board) hasPods(t *testing.T, want ...string) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s has pods %v, it has %v", b.name, want, b.pods()), func() bool { return fmt.Sprint(b.pods()) == fmt.Sprint(want) })
}

// says reports a pod's phase.
func (b *board) says(name string, phase corev1.PodPhase) {
	b.c.t.Helper()
	status := corev1.PodStatus{Phase: phase, PodIP: "10.1.2.3", Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}
	raw, err := status.Marshal()
	if err != nil {
		b.c.t.Fatal(err)
	}
	if err := b.store.PutPodStatus("uid-"+name, state.PodReport{Namespace: "default", Name: name, UID: "uid-" + name, Status: raw}); err != nil {
		b.c.t.Fatal(err)
	}
}

func (b *board) register() {
	b.c.t.Helper()
	node := corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: b.name, Labels: map[string]string{"kubernetes.io/hostname": b.name, "coracle.dev/board": "test"}},
		Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{
			{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady"},
			{Type: corev1.NodeMemoryPressure, Status: corev1.ConditionFalse},
		}},
	}
	raw, err := node.Marshal()
	if err != nil {
		b.c.t.Fatal(err)
	}
	if err := b.store.PutNodeReport(raw); err != nil {
		b.c.t.Fatal(err)
	}
}

func (c *cluster) node(name string) *corev1.Node {
	n, err := c.client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil
	}
	return n
}

func (c *cluster) readiness(name string) corev1.ConditionStatus {
	if n := c.node(name); n != nil {
		for _, cond := range n.Status.Conditions {
			if cond.Type == corev1.NodeReady {
				return cond.Status
			}
		}
	}
	return ""
}

func (b *board) live(t *testing.T) {
	t.Helper()
	eventuallyIn(t, 20*time.Second, b.name+" is live", func() bool { return b.link.Status().Live })
}
