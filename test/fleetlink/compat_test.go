package fleetlink

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"flag"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/controlplane/broker"
	"github.com/coracle-edge/coracle/controlplane/fleethub"
	"github.com/coracle-edge/coracle/edgelet/state"
)

var record = flag.Bool("record", false, "record the conversation, if there is none")

// said gathers points and can wait for one.
type said struct {
	mu     sync.Mutex
	points []string
	more   chan struct{}
}

func newSaid() *said { return &said{more: make(chan struct{}, 1)} }

func (s *said) add(points []string) {
	s.mu.Lock()
	s.points = append(s.points, points...)
	s.mu.Unlock()
	select {
	case s.more <- struct{}{}:
	default:
	}
}

func (s *said) has(want string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Contains(s.points, want)
}

func (s *said) await(t *testing.T, want string) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	for !s.has(want) {
		select {
		case <-s.more:
		case <-deadline:
			s.mu.Lock()
			defer s.mu.Unlock()
			t.Fatalf("nobody said %q, but\n%s", want, strings.Join(s.points, "\n"))
		}
	}
}

func trust(key ed25519.PrivateKey) fleet.KeyFunc {
	public := key.Public().(ed25519.PublicKey)
	return func(id []byte, _ [][]byte) (ed25519.PublicKey, error) {
		if !bytes.Equal(id, fleet.KeyID(public)) {
			return nil, fleet.ErrUnknownKey
		}
		return public, nil
	}
}

// recorder is a transport that writes down what goes through it.
type recorder struct {
	fleethub.Transport
	mu   sync.Mutex
	into *conversation
	up   *said
	down *said
}

func (r *recorder) note(kind string, payload []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.into.steps = append(r.into.steps, step{kind: kind, raw: bytes.Clone(payload)})
}

func (r *recorder) Publish(node string, payload []byte) error {
	r.note("down", payload)
	var d fleet.Down
	if fleet.NewCodec().Decode(fleet.DirDown, node, payload, trust(fixtureKey('h')), &d) == nil {
		r.down.add(downPoints(&d))
	}
	return r.Transport.Publish(node, payload)
}

func (r *recorder) Run(ctx context.Context, message func(string, fleet.Direction, []byte), link func(bool)) error {
	return r.Transport.Run(ctx, func(node string, d fleet.Direction, payload []byte) {
		if d == fleet.DirUp {
			r.note("up", payload)
		}
		message(node, d, payload)
	}, link)
}

// TestRecordConversation makes the fixture of a version, once.
func TestRecordConversation(t *testing.T) {
	if _, err := os.Stat(firstConversation); err == nil || !*record {
		t.Skip("recorded for good; -record makes one that doesn't exist")
	}
	c := fixtureCluster(t)
	c.startBroker(embedded)
	talk := &conversation{state: newState(t)}
	rec := &recorder{Transport: c.transport(), into: talk, up: newSaid(), down: newSaid()}
	c.script = rec
	b := c.fixtureBoard(talk.state)
	do := func(kind, what string) {
		rec.mu.Lock()
		talk.steps = append(talk.steps, step{kind: kind, text: what})
		rec.mu.Unlock()
		if kind == "api" {
			c.api(what)
		} else {
			b.does(what)
		}
	}
	settled := func() {
		eventually(t, "in step", func() bool {
			for _, r := range b.store.Reports() {
				if !r.Acked {
					return false
				}
			}
			return !b.store.HasJournal()
		})
		time.Sleep(500 * time.Millisecond) // the last acknowledgements
	}
	do("api", "objects")
	do("api", "pod one")
	c.startHub()
	defer func() { c.stopHub() }()
	eventually(t, "the hub lives", c.hub.Live)
	do("node", "start")
	b.hasPods(t, "one")
	do("node", "register")
	settled()
	do("node", "one runs")
	settled()
	do("node", "journal")
	settled()
	do("api", "change conf")
	eventually(t, "changed", func() bool {
		o, _, _ := b.store.Get(state.KindConfigMap, "default", "conf")
		return bytes.Contains(o.Raw, []byte("changed"))
	})
	settled()
	do("api", "pod two")
	b.hasPods(t, "one", "two")
	settled()
	do("api", "tunnel")
	<-b.tunnels
	do("api", "end one")
	time.Sleep(time.Second)
	settled()
	do("node", "one is gone")
	b.hasPods(t, "two")
	settled()
	do("node", "stop")
	time.Sleep(500 * time.Millisecond)
	talk.write(t)
}

// peers are how a peer of another version speaks.
func peers() map[string]func(proto.Message) {
	return map[string]func(proto.Message){
		"as recorded": nil,
		"newer": func(m proto.Message) {
			unknown(m.ProtoReflect())
			switch m := m.(type) {
			case *fleet.Up:
				if m.Hello != nil {
					m.Hello.Protocol = 7
				}
			case *fleet.Down:
				if m.Welcome != nil {
					m.Welcome.Protocol = 7
				}
			}
		},
		"older": func(m proto.Message) {
			switch m := m.(type) {
			case *fleet.Up:
				if h := m.Hello; h != nil {
					h.LinkClass, h.Addresses, h.BootId, h.AgentVersion, h.Features, h.KnownKeys, h.Keepalive, h.Protocol = "", nil, nil, "", nil, nil, 0, 0
				}
				for _, p := range m.GetReport().GetPods() {
					p.Trace, p.Elapsed = nil, 0
				}
			case *fleet.Down:
				if w := m.Welcome; w != nil {
					w.Link, w.Addresses, w.ObjectsUrl, w.Time, w.Protocol = nil, nil, "", 0, 0
				}
			}
		},
	}
}

// unknown adds fields that nobody knows to a message and all in it.
func unknown(m protoreflect.Message) {
	var more []byte
	more = protowire.AppendTag(more, 1999, protowire.VarintType)
	more = protowire.AppendVarint(more, 42)
	more = protowire.AppendTag(more, 2000, protowire.BytesType)
	more = protowire.AppendString(more, "of a later version")
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.Message() == nil:
		case f.IsList():
			for i := range v.List().Len() {
				unknown(v.List().Get(i).Message())
			}
		default:
			unknown(v.Message())
		}
		return true
	})
	m.SetUnknown(append(m.GetUnknown(), more...))
}

// retold is a recorded envelope as a peer of another version would have sent it.
func retold(t *testing.T, codec *fleet.Codec, d fleet.Direction, key ed25519.PrivateKey, raw []byte, m proto.Message, change func(proto.Message)) []byte {
	t.Helper()
	if err := codec.Decode(d, speaker, raw, trust(key), m); err != nil {
		t.Fatalf("an envelope of the fixture: %v", err)
	}
	if change == nil {
		return raw
	}
	change(m)
	out, err := codec.Encode(d, speaker, key, m, nil)
	if err != nil {
		t.Fatal(err)
	}
	var env fleet.Envelope
	if err := proto.Unmarshal(out, &env); err != nil {
		t.Fatal(err)
	}
	unknown(env.ProtoReflect())
	if out, err = proto.Marshal(&env); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestNodeWithAnotherHub: today's node, with the hub of the fixture's version and
// those before and after it, does and says what the node of that time did.
func TestNodeWithAnotherHub(t *testing.T) {
	t.Parallel()
	for name, change := range peers() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			talk := readConversation(t)
			c := fixtureCluster(t)
			c.startBroker(embedded)
			hub := c.transport().(*broker.Embedded)
			heard, codec := newSaid(), fleet.NewCodec()
			ctx, cancel := context.WithCancel(t.Context())
			done, up := make(chan error, 1), make(chan struct{})
			go func() {
				done <- hub.Run(ctx, func(node string, d fleet.Direction, payload []byte) {
					var u fleet.Up
					if d != fleet.DirUp {
						return
					}
					if err := codec.Decode(d, node, payload, trust(fixtureKey('n')), &u); err != nil {
						t.Errorf("the node said what can't be read: %v", err)
						return
					}
					if h := u.GetHello(); h != nil && h.GetProtocol() != fleet.ProtocolVersion {
						t.Errorf("the node says that it speaks %d", h.GetProtocol())
					}
					heard.add(upPoints(&u))
				}, func(bool) { close(up) })
			}()
			defer func() {
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
			}()
			<-up
			b := c.fixtureBoard(talk.state)
			for _, s := range talk.steps {
				switch s.kind {
				case "node":
					if s.text == "stop" {
						verifyNode(t, b, name)
					}
					b.does(s.text)
				case "up":
					var u fleet.Up
					if err := codec.Decode(fleet.DirUp, speaker, s.raw, trust(fixtureKey('n')), &u); err != nil {
						t.Fatalf("an envelope of the fixture: %v", err)
					}
					for _, p := range upPoints(&u) {
						heard.await(t, p)
					}
				case "down":
					if err := hub.Publish(speaker, retold(t, codec, fleet.DirDown, c.hubKey, s.raw, &fleet.Down{}, change)); err != nil {
						t.Fatal(err)
					}
				}
			}
		})
	}
}

func verifyNode(t *testing.T, b *board, peer string) {
	t.Helper()
	b.hasPods(t, "two")
	for _, o := range []struct{ kind, name, has string }{{state.KindConfigMap, "conf", "changed"}, {state.KindSecret, "pull", "tr0ub4dor&3"}} {
		obj, ok, err := b.store.Get(o.kind, "default", o.name)
		if err != nil || !ok || !bytes.Contains(obj.Raw, []byte(o.has)) {
			t.Errorf("%s %s on the node: %v, %v", o.kind, o.name, ok, err)
		}
	}
	select {
	case r := <-b.tunnels:
		if r.GetId() != "id1" {
			t.Errorf("tunnel %v", r)
		}
	case <-time.After(10 * time.Second):
		t.Error("no tunnel was asked for")
	}
	s := b.link.Status()
	if s.Class != "wifi" || s.Keepalive != 10*time.Second {
		t.Errorf("link %s with keepalive %s", s.Class, s.Keepalive)
	}
	// Where an older hub says nothing of the class, what was known stays.
	if retry := b.store.Setting("link.retry"); (retry == "") != (peer == "older") {
		t.Errorf("retry is kept as %q", retry)
	}
}

// script is a hub's transport whose node is a recording.
type script struct {
	message chan func(string, fleet.Direction, []byte)
	said    *said
	t       *testing.T
	codec   *fleet.Codec
	mu      sync.Mutex
	hub     []byte // its random name
}

func (s *script) Run(ctx context.Context, message func(string, fleet.Direction, []byte), link func(bool)) error {
	s.message <- message
	link(true)
	<-ctx.Done()
	return nil
}

func (s *script) Disconnect(string) {}

func (s *script) Publish(node string, payload []byte) error {
	var d fleet.Down
	if err := s.codec.Decode(fleet.DirDown, node, payload, trust(fixtureKey('h')), &d); err != nil {
		s.t.Errorf("the hub said what can't be read: %v", err)
		return nil
	}
	if w := d.GetWelcome(); w != nil {
		s.mu.Lock()
		s.hub = w.GetVersion().GetHub()
		s.mu.Unlock()
		if w.GetProtocol() != fleet.ProtocolVersion {
			s.t.Errorf("the hub says that it speaks %d", w.GetProtocol())
		}
	}
	s.said.add(downPoints(&d))
	return nil
}

// TestHubWithAnotherNode: today's hub, with the node of the fixture's version and
// those before and after it, writes and says what the hub of that time did.
func TestHubWithAnotherNode(t *testing.T) {
	t.Parallel()
	for name, change := range peers() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			talk := readConversation(t)
			c := fixtureCluster(t)
			s := &script{message: make(chan func(string, fleet.Direction, []byte), 1), said: newSaid(), t: t, codec: fleet.NewCodec()}
			c.script = s
			var hub []byte // of the recording
			var recorded []string
			var say func(string, fleet.Direction, []byte)
			for _, step := range talk.steps {
				switch step.kind {
				case "api":
					c.api(step.text)
				case "node":
					if step.text == "start" {
						c.startHub()
						defer func() { c.stopHub() }()
						eventually(t, "the hub lives", c.hub.Live)
						say = <-s.message
					}
					if step.text == "stop" {
						verifyHub(t, c, name)
					}
				case "down":
					var d fleet.Down
					if err := s.codec.Decode(fleet.DirDown, speaker, step.raw, trust(c.hubKey), &d); err != nil {
						t.Fatalf("an envelope of the fixture: %v", err)
					}
					if w := d.GetWelcome(); w != nil {
						hub = w.GetVersion().GetHub()
					}
					for _, p := range downPoints(&d) {
						s.said.await(t, p)
						recorded = append(recorded, p)
					}
				case "up":
					s.mu.Lock()
					now := s.hub
					s.mu.Unlock()
					// The hub's name is random: the recording's is replaced by it.
					say(speaker, fleet.DirUp, retold(t, s.codec, fleet.DirUp, fixtureKey('n'), step.raw, &fleet.Up{}, func(m proto.Message) {
						if change != nil {
							change(m)
						}
						raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
						if err != nil {
							t.Fatal(err)
						}
						if hub != nil {
							raw = bytes.ReplaceAll(raw, hub, now)
						}
						if err := proto.Unmarshal(raw, m); err != nil {
							t.Fatal(err)
						}
					}))
				}
			}
			s.said.mu.Lock()
			points := slices.Clone(s.said.points)
			s.said.mu.Unlock()
			for _, p := range points {
				if strings.HasPrefix(p, "order") && !slices.Contains(recorded, p) {
					t.Errorf("the hub gave another order than then: %s", p)
				}
			}
			eventually(t, "away after its Bye", func() bool { return c.readiness(speaker) == corev1.ConditionUnknown })
		})
	}
}

func verifyHub(t *testing.T, c *cluster, peer string) {
	t.Helper()
	eventually(t, "one is deleted, two stays", func() bool { return c.pod("one") == nil && c.pod("two") != nil })
	if r := c.readiness(speaker); r != corev1.ConditionTrue {
		t.Errorf("the node is %q", r)
	}
	events, err := c.client.CoreV1().Events("default").List(ctx, metav1.ListOptions{})
	if err != nil || len(events.Items) != 1 || events.Items[0].Message != "Started container main" {
		t.Errorf("events %v, %v", events.Items, err)
	}
	nodes := c.hub.Nodes(speaker)
	if len(nodes) != 1 || !nodes[0].Session {
		t.Fatalf("the hub says %+v", nodes)
	}
	// A node that says no class has a lan's, and no label.
	want, class := "wifi", "wifi"
	if peer == "older" {
		want, class = "", "lan"
	}
	if label := c.node(speaker).Labels[fleet.LabelLinkClass]; label != want || nodes[0].LinkClass != class {
		t.Errorf("label %q, class %q; want %q, %q", label, nodes[0].LinkClass, want, class)
	}
}
