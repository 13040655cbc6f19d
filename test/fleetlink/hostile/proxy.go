package hostile

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

// Malice is something that a proxy does to messages.
type Malice int

const (
	Drop    Malice = iota
	Delay          // up to MaxDelay, so that others overtake it
	Repeat         // send it twice
	Replay         // send an older one of the same topic
	Swap           // send what was meant for or said by another node
	Corrupt        // damage some bytes, or cut it short
	Forge          // send one of the proxy's own making
	Will           // say that the node's connection broke
	Cut            // end the connection
	malices
)

func (m Malice) String() string {
	return [...]string{"drop", "delay", "repeat", "replay", "swap", "corrupt", "forge", "will", "cut"}[m]
}

// Rates are probabilities per message.
type Rates [malices]float64

// Storm is bad enough that little gets through unharmed.
func Storm() Rates {
	return Rates{Drop: 0.08, Delay: 0.3, Repeat: 0.15, Replay: 0.3, Swap: 0.15, Corrupt: 0.05, Forge: 0.4, Will: 0.1, Cut: 0.06}
}

const (
	// MaxDelay of a message that is delayed or repeated.
	MaxDelay  = 300 * time.Millisecond
	remember  = 64   // messages per topic
	maxQueued = 1024 // packets per direction of a connection; more are dropped
	patience  = 10 * time.Second
)

// Config of a Proxy. All is needed but Forger.
type Config struct {
	// Listener is without TLS; the proxy closes it.
	Listener net.Listener
	// Server is TLS towards clients, Client towards the broker with the
	// certificate of the client in whose place it speaks.
	Server *tls.Config
	Client func(commonName string) *tls.Config
	// Broker is host:port.
	Broker string
	Seed   uint64
	Rates  Rates
	Forger *Forger
}

// Proxy is a hop between clients and a broker.
type Proxy struct {
	c      Config
	honest atomic.Bool
	did    [malices]atomic.Int64

	mu    sync.Mutex
	hops  map[*hop]bool
	count uint64
	seen  map[string][][]byte // by topic, the last ones
	all   []string            // topics of seen, in order of appearance
}

// New returns a proxy; it accepts no connection before Run.
func New(c Config) *Proxy {
	return &Proxy{c: c, hops: map[*hop]bool{}, seen: map[string][][]byte{}}
}

// Addr is where clients connect.
func (p *Proxy) Addr() string { return p.c.Listener.Addr().String() }

// Did says how often it did it.
func (p *Proxy) Did(m Malice) int64 { return p.did[m].Load() }

// Report lists all it did.
func (p *Proxy) Report() string {
	var b strings.Builder
	for m := range malices {
		fmt.Fprintf(&b, "%s %d, ", m, p.Did(m))
	}
	return strings.TrimSuffix(b.String(), ", ")
}

// Reform has the proxy be honest from now on. If cut is set it ends all
// connections as its last malice, so that nobody waits for what was dropped.
func (p *Proxy) Reform(cut bool) {
	p.honest.Store(true)
	if !cut {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for h := range p.hops {
		h.close()
	}
}

// Run serves until ctx ends.
func (p *Proxy) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		_ = p.c.Listener.Close()
		p.mu.Lock()
		defer p.mu.Unlock()
		for h := range p.hops {
			h.close()
		}
	})
	defer stop()
	for {
		conn, err := p.c.Listener.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return fmt.Errorf("proxy: %w", err)
		}
		wg.Go(func() { p.serve(ctx, conn) })
	}
}

// serve is one client's connection and the one to the broker in its place.
func (p *Proxy) serve(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	shake, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	client := tls.Server(conn, p.c.Server)
	if client.HandshakeContext(shake) != nil {
		return
	}
	name := client.ConnectionState().PeerCertificates[0].Subject.CommonName
	dialer := tls.Dialer{Config: p.c.Client(name)}
	broker, err := dialer.DialContext(shake, "tcp", p.c.Broker)
	if err != nil {
		return
	}
	defer broker.Close()
	h := &hop{p: p, client: newLeg(client), broker: newLeg(broker)}
	p.mu.Lock()
	if ctx.Err() != nil {
		p.mu.Unlock()
		return
	}
	p.count++
	up, down := rand.New(rand.NewPCG(p.c.Seed, 2*p.count)), rand.New(rand.NewPCG(p.c.Seed, 2*p.count+1))
	p.hops[h] = true
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.hops, h)
	}()
	var wg sync.WaitGroup
	for _, l := range []*leg{h.client, h.broker} {
		wg.Go(func() { l.write(h.close) })
	}
	wg.Go(func() { h.pump(h.client, h.broker, up) })
	wg.Go(func() { h.pump(h.broker, h.client, down) })
	wg.Wait()
}

// hop is a client's way to the broker.
type hop struct {
	p              *Proxy
	client, broker *leg

	mu   sync.Mutex
	will message // of CONNECT; none if the topic is empty
}

type message struct {
	topic   string
	payload []byte
}

func (h *hop) close() {
	h.client.close()
	h.broker.close()
}

// pump carries packets from one side to the other. Of PUBLISH it makes what it
// likes and acknowledges it in any case: on the other side all goes with QoS 0, so
// that nobody but the proxy decides what arrives how often.
func (h *hop) pump(from, to *leg, r *rand.Rand) {
	defer h.close()
	in := bufio.NewReader(from.conn)
	for {
		pk, raw, err := readPacket(in)
		if err != nil {
			return
		}
		switch pk.FixedHeader.Type {
		case packets.Puback: // of nothing that the other side sent
		case packets.Connect:
			if pk.Connect.WillFlag {
				h.mu.Lock()
				h.will = message{pk.Connect.WillTopic, pk.Connect.WillPayload}
				h.mu.Unlock()
			}
			to.send(raw, 0)
		case packets.Publish:
			if pk.FixedHeader.Qos > 0 {
				from.send(encode(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Puback}, PacketID: pk.PacketID}), 0)
			}
			if !h.p.abuse(h, message{pk.TopicName, pk.Payload}, from == h.client, to, r) {
				return
			}
		default:
			to.send(raw, 0)
		}
	}
}

// abuse sends on what the proxy makes of m, and says whether the connection is
// to stand.
func (p *Proxy) abuse(h *hop, m message, up bool, to *leg, r *rand.Rand) bool {
	send := func(m message, after time.Duration) {
		to.send(encode(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Publish}, TopicName: m.topic, Payload: m.payload}), after)
	}
	old, others := p.note(m, r)
	if p.honest.Load() {
		send(m, 0)
		return true
	}
	does := func(what Malice) bool {
		if r.Float64() >= p.c.Rates[what] {
			return false
		}
		p.did[what].Add(1)
		return true
	}
	late := func() time.Duration { return time.Duration(r.Int64N(int64(MaxDelay))) }
	if !does(Drop) {
		sent, after := m, time.Duration(0)
		if does(Corrupt) {
			sent.payload = corrupt(m.payload, r)
		}
		if does(Delay) {
			after = late()
		}
		send(sent, after)
	}
	if does(Repeat) {
		send(m, late())
	}
	if old != nil && does(Replay) {
		send(message{m.topic, old}, late())
	}
	if others != nil && does(Swap) {
		send(message{m.topic, others}, late())
	}
	if p.c.Forger != nil && does(Forge) {
		send(message{m.topic, p.c.Forger.forge(m, r)}, late())
	}
	h.mu.Lock()
	will := h.will
	h.mu.Unlock()
	if up && will.topic != "" && does(Will) {
		send(will, late())
	}
	return !does(Cut)
}

// note remembers m and picks an older message of its topic, and one of another
// topic, if there are.
func (p *Proxy) note(m message, r *rand.Rand) (old, others []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	had := p.seen[m.topic]
	if had == nil {
		p.all = append(p.all, m.topic)
	}
	if len(had) > 0 {
		old = had[r.IntN(len(had))]
	}
	if topic := p.all[r.IntN(len(p.all))]; topic != m.topic {
		others = p.seen[topic][r.IntN(len(p.seen[topic]))]
	}
	if len(had) == remember {
		had = had[1:]
	}
	p.seen[m.topic] = append(had, m.payload)
	return old, others
}

func corrupt(payload []byte, r *rand.Rand) []byte {
	out := append([]byte{}, payload...)
	if len(out) == 0 {
		return []byte{byte(r.Uint32())}
	}
	if r.IntN(4) == 0 {
		return out[:r.IntN(len(out))]
	}
	for range 1 + r.IntN(3) {
		out[r.IntN(len(out))] ^= byte(1 + r.IntN(255))
	}
	return out
}

// direction of a topic; false if it is none of the fleet's.
func direction(topic string) (node string, d fleet.Direction, ok bool) {
	node, d, err := fleet.ParseTopic(topic)
	return node, d, err == nil
}
