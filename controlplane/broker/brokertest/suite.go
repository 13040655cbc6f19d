package brokertest

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

// Transport is what the hub uses; see fleethub.Transport.
type Transport interface {
	Run(ctx context.Context, message func(node string, d fleet.Direction, payload []byte), link func(up bool)) error
	Publish(node string, payload []byte) error
}

// Subject is one broker under test, with the hub's way to it.
type Subject struct {
	PKI       *PKI
	Addr      string // where nodes connect
	Transport Transport
}

type received struct {
	node    string
	d       fleet.Direction
	payload string
}

// Run runs the suite; make is called once per test.
func Run(t *testing.T, make func(t *testing.T) Subject) {
	for _, test := range []struct {
		name string
		run  func(t *testing.T, s *Running)
	}{
		{"UpIsDelivered", testUp},
		{"DownReachesItsNodeOnly", testDown},
		{"NothingIsQueuedForTheAbsent", testNoQueue},
		{"ForeignTopicsAreClosed", testACL},
		{"WillSpeaksForTheBroken", testWill},
		{"WillIsSilentAfterGoodbye", testNoWill},
		{"LargestMessagePasses", testLargest},
		{"AFleetThatComesBackIsHeard", testBurst},
		{"StrangersAreRefused", testStrangers},
		{"TheTableOfPermissionsHolds", testTable},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.run(t, Start(t, make(t)))
		})
	}
}

// Running is a subject whose transport runs.
type Running struct {
	Subject
	mu  sync.Mutex
	got []received
}

// Start runs the subject's transport until the test ends.
func Start(t *testing.T, s Subject) *Running {
	t.Helper()
	r := &Running{Subject: s}
	ctx, cancel := context.WithCancel(context.Background())
	up := make(chan struct{})
	var once sync.Once
	done := make(chan error, 1)
	go func() {
		done <- s.Transport.Run(ctx, func(node string, d fleet.Direction, payload []byte) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.got = append(r.got, received{node, d, string(payload)})
		}, func(isUp bool) {
			if isUp {
				once.Do(func() { close(up) })
			}
		})
	}()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("Run didn't end with its context")
		}
	})
	select {
	case <-up:
	case err := <-done:
		t.Fatalf("Run ended: %v", err)
	case <-time.After(10 * time.Second):
		t.Fatal("no link")
	}
	return r
}

func (r *Running) await(t *testing.T, want received) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for time.Now().Before(deadline) {
		if r.has(want) {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	t.Fatalf("the hub didn't get %.60q; it got %d messages", want, len(r.got))
}

func (r *Running) has(want received) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, g := range r.got {
		if g == want {
			return true
		}
	}
	return false
}

// client is a bare MQTT client that says it is node, with a certificate of user.
type client struct {
	paho.Client
	conn net.Conn
	mu   sync.Mutex
	got  map[string][]string // by topic
}

func (r *Running) connect(id, will string, conf *tls.Config) (*client, error) {
	c := &client{got: map[string][]string{}}
	o := paho.NewClientOptions().AddBroker("ssl://" + r.Addr).SetClientID(id).
		SetProtocolVersion(4).SetCleanSession(true).SetAutoReconnect(false).SetKeepAlive(10 * time.Second).SetConnectTimeout(5 * time.Second)
	if will != "" {
		node, _ := fleet.NodeOfUser(id)
		o.SetBinaryWill(fleet.Topic(node, fleet.DirWill), []byte(will), fleet.QoS, false)
	}
	o.SetCustomOpenConnectionFn(func(*url.URL, paho.ClientOptions) (net.Conn, error) {
		conn, err := net.DialTimeout("tcp", r.Addr, 5*time.Second)
		if err != nil {
			return nil, err
		}
		c.conn = conn
		secure := tls.Client(conn, conf)
		return secure, secure.Handshake()
	})
	o.SetDefaultPublishHandler(func(_ paho.Client, m paho.Message) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.got[m.Topic()] = append(c.got[m.Topic()], string(m.Payload()))
	})
	c.Client = paho.NewClient(o)
	token := c.Connect()
	if !token.WaitTimeout(8 * time.Second) {
		return nil, fmt.Errorf("no CONNACK")
	}
	return c, token.Error()
}

// Connects says whether a client with a certificate of user and this client id
// gets a connection.
func (r *Running) Connects(user, id string) bool {
	c, err := r.connect(id, "", r.PKI.Client(user))
	if err != nil {
		return false
	}
	c.Disconnect(10)
	return true
}

func (r *Running) node(t *testing.T, name, will string) *client {
	t.Helper()
	c, err := r.connect(fleet.NodeUserPrefix+name, will, r.PKI.Client(fleet.NodeUserPrefix+name))
	if err != nil {
		t.Fatalf("node %s: %v", name, err)
	}
	t.Cleanup(func() { c.Disconnect(10) })
	return c
}

func (c *client) subscribe(t *testing.T, topic string) {
	t.Helper()
	token := c.Subscribe(topic, fleet.QoS, nil)
	if !token.WaitTimeout(5*time.Second) || token.Error() != nil {
		t.Fatalf("subscribe %s: %v", topic, token.Error())
	}
}

func (c *client) say(topic, payload string) {
	c.Publish(topic, fleet.QoS, false, payload).WaitTimeout(2 * time.Second)
}

func (c *client) all() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []string
	for _, m := range c.got {
		out = append(out, m...)
	}
	return out
}

func (c *client) await(t *testing.T, want string) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		for _, m := range c.all() {
			if m == want {
				return
			}
		}
	}
	t.Fatalf("node didn't get %.60q, but %.200q", want, c.all())
}

func testUp(t *testing.T, r *Running) {
	a := r.node(t, "board-a", "")
	for i := range 20 {
		a.say(fleet.Topic("board-a", fleet.DirUp), fmt.Sprint("hello ", i))
	}
	r.await(t, received{"board-a", fleet.DirUp, "hello 19"})
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, g := range r.got {
		if g.payload != fmt.Sprint("hello ", i) {
			t.Fatalf("message %d is %q: order is not kept", i, g.payload)
		}
	}
}

const burstNodes = 20

// Nodes are the names of those that the suite connects, for a broker that must know
// each.
func Nodes() []string {
	names := []string{"board-a", "board-b"}
	for i := range burstNodes {
		names = append(names, fmt.Sprint("board-", i))
	}
	return names
}

// testBurst has many nodes speak while the hub is busy: none of it is lost, and
// nobody's connection is.
func testBurst(t *testing.T, r *Running) {
	const nodes, each = burstNodes, 20
	var clients []*client
	for i := range nodes {
		clients = append(clients, r.node(t, fmt.Sprint("board-", i), ""))
	}
	r.mu.Lock() // the hub takes nothing until it is unlocked
	var tokens []paho.Token
	for i, c := range clients {
		for k := range each {
			tokens = append(tokens, c.Publish(fleet.Topic(fmt.Sprint("board-", i), fleet.DirUp), fleet.QoS, false, fmt.Sprint(k)))
		}
	}
	// A broker that hands over before it answers doesn't answer yet.
	for deadline := time.After(2 * time.Second); len(tokens) > 0; tokens = tokens[1:] {
		select {
		case <-tokens[0].Done():
			continue
		case <-deadline:
		}
		break
	}
	r.mu.Unlock()
	for i, c := range clients {
		for k := range each {
			r.await(t, received{fmt.Sprint("board-", i), fleet.DirUp, fmt.Sprint(k)})
		}
		if !c.IsConnectionOpen() {
			t.Errorf("board-%d lost its connection", i)
		}
	}
}

func testDown(t *testing.T, r *Running) {
	a, b := r.node(t, "board-a", ""), r.node(t, "board-b", "")
	a.subscribe(t, fleet.Topic("board-a", fleet.DirDown))
	b.subscribe(t, fleet.Topic("board-b", fleet.DirDown))
	if err := r.Transport.Publish("board-a", []byte("for a")); err != nil {
		t.Fatal(err)
	}
	if err := r.Transport.Publish("board-b", []byte("for b")); err != nil {
		t.Fatal(err)
	}
	a.await(t, "for a")
	b.await(t, "for b")
	if got := a.all(); len(got) != 1 {
		t.Errorf("a got %q", got)
	}
}

func testNoQueue(t *testing.T, r *Running) {
	a := r.node(t, "board-a", "")
	a.subscribe(t, fleet.Topic("board-a", fleet.DirDown))
	a.Disconnect(50)
	time.Sleep(50 * time.Millisecond)
	for range 3 {
		_ = r.Transport.Publish("board-a", []byte("while away"))
	}
	time.Sleep(100 * time.Millisecond)
	back := r.node(t, "board-a", "")
	back.subscribe(t, fleet.Topic("board-a", fleet.DirDown))
	time.Sleep(100 * time.Millisecond)
	_ = r.Transport.Publish("board-a", []byte("now"))
	back.await(t, "now")
	if got := back.all(); len(got) != 1 {
		t.Errorf("got %q", got)
	}
}

func testACL(t *testing.T, r *Running) {
	victim := r.node(t, "board-b", "")
	victim.subscribe(t, fleet.Topic("board-b", fleet.DirDown))
	for _, topic := range []string{
		fleet.Topic("board-b", fleet.DirUp), fleet.Topic("board-b", fleet.DirWill),
		fleet.Topic("board-b", fleet.DirDown), fleet.Topic("board-a", fleet.DirDown),
		// What NATS stores messages under.
		"$MQTT/msgs/" + fleet.Topic("board-b", fleet.DirDown), "$MQTT/msgs/" + fleet.Topic("board-b", fleet.DirUp),
	} {
		// A client each: a broker may end the connection of who tries.
		evil := r.node(t, "board-a", "")
		evil.say(topic, "evil")
		evil.Disconnect(10)
	}
	eavesdropper := r.node(t, "board-a", "")
	for _, filter := range []string{"#", "coracle/#", "coracle/1/+/down", fleet.Topic("board-b", fleet.DirDown), fleet.Topic("board-b", fleet.DirUp),
		"$MQTT/#", "$MQTT/msgs/#", "$MQTT/+/+", "$JS/#", "$SYS/#", "+/+/#"} {
		eavesdropper.Subscribe(filter, fleet.QoS, nil).WaitTimeout(time.Second)
	}
	_ = r.Transport.Publish("board-b", []byte("secret"))
	victim.await(t, "secret")
	victim.say(fleet.Topic("board-b", fleet.DirUp), "true word")
	r.await(t, received{"board-b", fleet.DirUp, "true word"})
	time.Sleep(100 * time.Millisecond)
	if got := eavesdropper.all(); len(got) != 0 {
		t.Errorf("another node read %q", got)
	}
	if got := victim.all(); len(got) != 1 {
		t.Errorf("a node was sent %q by another", got)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, g := range r.got {
		if g.payload == "evil" {
			t.Errorf("the hub got what board-a said as %s/%s", g.node, g.d)
		}
	}
}

func testWill(t *testing.T, r *Running) {
	a := r.node(t, "board-a", "gone")
	began := time.Now()
	_ = a.conn.Close()
	r.await(t, received{"board-a", fleet.DirWill, "gone"})
	if d := time.Since(began); d > time.Second {
		t.Errorf("a broken connection was noticed after %s", d)
	}
}

func testNoWill(t *testing.T, r *Running) {
	a := r.node(t, "board-a", "gone")
	a.Disconnect(100)
	time.Sleep(200 * time.Millisecond)
	if r.has(received{"board-a", fleet.DirWill, "gone"}) {
		t.Error("a will after a clean goodbye")
	}
}

func testLargest(t *testing.T, r *Running) {
	a := r.node(t, "board-a", "")
	a.subscribe(t, fleet.Topic("board-a", fleet.DirDown))
	big := string(bytes.Repeat([]byte{7}, fleet.MaxMessage))
	a.say(fleet.Topic("board-a", fleet.DirUp), big)
	r.await(t, received{"board-a", fleet.DirUp, big})
	if err := r.Transport.Publish("board-a", []byte(big)); err != nil {
		t.Fatal(err)
	}
	a.await(t, big)
	a.say(fleet.Topic("board-a", fleet.DirUp), big+big)
	time.Sleep(100 * time.Millisecond)
	if r.has(received{"board-a", fleet.DirUp, big + big}) {
		t.Error("a message of twice the limit was delivered")
	}
}

func testStrangers(t *testing.T, r *Running) {
	none := r.PKI.Client(fleet.NodeUserPrefix + "board-a")
	none.Certificates = nil
	other := NewPKI(t).Client(fleet.NodeUserPrefix + "board-a")
	other.RootCAs = r.PKI.Pool()
	for name, conf := range map[string]*tls.Config{"no certificate": none, "another authority": other} {
		if c, err := r.connect(fleet.NodeUserPrefix+"board-a", "", conf); err == nil {
			c.Disconnect(1)
			t.Errorf("%s: connected", name)
		}
	}
}
