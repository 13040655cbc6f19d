package fleethub

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/controlplane/api/trace"
)

// maxInbox bounds what waits of one node's messages; more is dropped and comes
// again.
const maxInbox = 64

type message struct {
	direction fleet.Direction
	payload   []byte
	at        time.Time
	heard     time.Time // the sign of life that this is, or follows
}

// report waits to be written.
type report struct {
	*fleet.PodReport
	at   time.Time // it came in
	sent time.Time // its pod was ordered; zero if not by this hub
}

// journal waits to be written.
type journal struct {
	*fleet.Journal
	store string // that it came from: boots and sequences are that one's
}

// node is the shell around one Peer.
type node struct {
	name string

	// The worker's own: the queue hands a node to one at a time.
	peer      *Peer
	objects   map[string]object
	refs      map[ref]bool
	revision  uint64
	order     *fleet.Order // under way
	ordered   map[string]time.Time
	knowsKey  bool
	trust     []byte // names the roots it trusts, as its Hello said
	toldTrust []byte // those it was told of in this session
	big       bigObjects
	settings  linkSettings  // in force
	told      linkSettings  // in the last Welcome
	retellAt  time.Duration // not asked again before
	wrong     string        // what was last found wrong with the Node's word on its link
	// addresses is the hash of those that it knows, of its Hello.
	addresses []byte
	standing  standing
	cutAt     time.Duration // when the connection is to be ended; 0 is not
	refuseAt  time.Duration // no refusal before

	counters  fleet.Counters
	inForce   atomic.Pointer[linkSettings] // for others to read
	presence  atomic.Int32
	confirmed atomic.Bool
	foreign   atomic.Pointer[string] // the incarnation that it belongs to, if not ours
	known     atomic.Bool            // the API knows it, or it has spoken
	spoke     atomic.Bool            // a Hello came since this hub began
	bare      atomic.Bool            // it has no driver, and no CSINode that says otherwise
	heard     atomic.Int64
	keepalive atomic.Int64 // of its connection, nanoseconds; 0: not known

	mu         sync.Mutex
	inbox      []message
	stale      bool // desired must be computed
	recheck    bool // standing must be looked at
	clones     string
	expected   bool // the API knows the node
	linkUp     bool
	linkDown   bool
	adopt      bool
	contradict bool // the API says that it's away
	reports    map[string]*report
	node       *fleet.NodeReport
	journal    *journal
	verdicts   []*fleet.ReportVerdict
	jack       *fleet.JournalAck
	answer     time.Duration // how long these wait for others
	answerAt   time.Duration // when they are due; 0: none wait
	said       string        // link class by the node's own word
	ask        []string      // UIDs of reports to be asked for; empty: the node's own
	greets     int           // how often to ask it for a Hello, until it knows our addresses
	greetAt    time.Time
	// Of a node of another incarnation: what it runs, and whether to ask it for all
	// of its reports.
	runs      *runs
	resendAll bool
	tunnels   []*fleet.TunnelRequest
	went      string // reason to be written
	last      *lastWords
	client    corev1client.CoreV1Interface
	written   map[string]*corev1.Pod // newer than the informer's
	tokens    float64                // events that may be stored
	filled    time.Time
	timer     *time.Timer
	store     string // of its session
	// Large objects that were ordered, by UID.
	fetchable map[string]*object
	wiped     []string // DRA drivers that are gone and whose slices were removed
}

func newNode(name string) *node {
	n := &node{name: name, objects: map[string]object{}, ordered: map[string]time.Time{},
		reports: map[string]*report{}, written: map[string]*corev1.Pod{}, fetchable: map[string]*object{}}
	n.presence.Store(int32(Away))
	return n
}

func (n *node) stopTimer() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.timer != nil {
		n.timer.Stop()
	}
}

// message takes what a node published. It doesn't block.
func (h *Hub) message(name string, d fleet.Direction, payload []byte) {
	n := h.get(name)
	m := message{direction: d, payload: payload, at: h.c.Now()}
	m.heard = m.at
	if d == fleet.DirWill {
		// The broker's own; the node may have been silent for long.
		if at, ok := h.ear(name); ok {
			m.heard = at
		}
	}
	n.mu.Lock()
	if len(n.inbox) < maxInbox {
		n.inbox = append(n.inbox, m)
	} else {
		h.stats.drop(dropFull)
	}
	n.mu.Unlock()
	h.work.Add(name)
}

// link takes the broker's state. It doesn't block.
func (h *Hub) link(up bool) {
	h.way.Store(up)
	h.mu.Lock()
	defer h.mu.Unlock()
	for name, n := range h.nodes {
		n.mu.Lock()
		n.linkUp, n.linkDown = up, n.linkDown || !up
		n.mu.Unlock()
		h.work.Add(name)
	}
}

func (h *Hub) orderLoop(ctx context.Context) {
	for {
		name, quit := h.work.Get()
		if quit || ctx.Err() != nil {
			return
		}
		if n := h.find(name); n != nil {
			h.turn(ctx, n)
		}
		h.work.Done(name)
	}
}

// turn does all that there is to do for one node, and sends what comes of it.
func (h *Hub) turn(ctx context.Context, n *node) {
	n.mu.Lock()
	inbox, recheck, expected, linkUp, linkDown, adopt, ask, contradict := n.inbox, n.recheck, n.expected, n.linkUp, n.linkDown, n.adopt, n.ask, n.contradict
	t := &turn{h: h, n: n, ctx: ctx, stale: n.stale}
	n.inbox, n.stale, n.recheck, n.linkUp, n.linkDown, n.adopt, n.ask, n.contradict = nil, false, false, false, false, false, nil, false
	n.mu.Unlock()
	now := h.now()
	fresh := n.peer == nil
	if fresh {
		if len(inbox) == 0 && !expected {
			return
		}
		n.known.Store(true)
		h.adjust(n)
		n.peer = NewPeer(now, h.reign.Epoch, Timing{n.settings.Keepalive, n.settings.Grace, h.window(n.settings.LinkClass)}, expected)
	}
	h.adjust(n)
	if h.deposed.Load() {
		n.peer.Depose()
	}
	defer t.publishState()
	if t.judge(recheck || fresh || !n.standing.judged) {
		t.refuseAll(inbox)
		t.cut()
		return
	}
	if fresh {
		n.peer.SetDesired(now, h.compute(n), n.revision)
		t.stale = false
	}
	t.cut()
	if linkDown {
		n.peer.LinkDown()
	}
	if linkUp {
		t.do(n.peer.LinkUp(now))
	}
	for _, m := range inbox {
		t.receive(m)
	}
	if t.stale {
		t.do(n.peer.SetDesired(now, h.compute(n), n.revision))
		t.forget()
	}
	if adopt {
		t.do(n.peer.Adopt(now))
	}
	for _, uid := range ask {
		t.do(n.peer.Ask(now, uid))
	}
	if contradict {
		t.contradict()
	}
	t.do(n.peer.Tick(h.now()))
	t.settle()
	t.gather()
	t.send()
	t.retell()
	if t.greet {
		t.rebirth(n.peer.Timing().Jitter)
	}
}

// publishState is what others see of the peer, and when it wants to be looked at again.
func (t *turn) publishState() {
	h, n := t.h, t.n
	n.presence.Store(int32(n.peer.Presence()))
	n.confirmed.Store(n.peer.Confirmed())
	n.keepalive.Store(int64(n.peer.Timing().Keepalive))
	h.arm(n)
}

// arm has the node's next turn come when something is due.
func (h *Hub) arm(n *node) {
	at, ok := n.peer.Deadline()
	if n.outdated() && (!ok || n.retellAt < at) {
		at, ok = n.retellAt, true
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.answerAt != 0 && n.peer.Open() && (!ok || n.answerAt < at) {
		at, ok = n.answerAt, true
	}
	if !ok {
		return
	}
	wait := max(at-h.now(), time.Millisecond)
	if n.timer == nil {
		name := n.name
		n.timer = time.AfterFunc(wait, func() { h.work.Add(name) })
	} else {
		n.timer.Reset(wait)
	}
}

// turn gathers what is to be sent to one node into as few messages as possible.
type turn struct {
	h     *Hub
	n     *node
	ctx   context.Context
	stale bool
	down  *fleet.Down
	chain bool
	greet bool
}

// part returns the message to add a part to.
func (t *turn) part() *fleet.Down {
	if t.down == nil {
		t.down = t.n.peer.Header()
	}
	return t.down
}

func (t *turn) receive(m message) {
	h, n := t.h, t.n
	refuse := func(err error) {
		h.counters.Refused()
		n.counters.Refused()
		h.stats.drop(dropRefused)
		h.log.Warn("message refused", "node", n.name, "direction", m.direction, "error", err)
	}
	if m.direction == fleet.DirWill {
		var w fleet.Will
		if err := h.codec.Decode(m.direction, n.name, m.payload, t.keys, &w); err != nil {
			refuse(err)
			return
		}
		h.received(n, &w, len(m.payload))
		if n.peer.Confirmed() && n.peer.Session().SameConn(fleet.SessionFrom(w.GetSession())) {
			n.heard.Store(m.heard.UnixNano())
		}
		// Only the embedded broker says when a node was heard; one that is there is
		// heard once a keepalive.
		if m.at.Sub(m.heard) > n.peer.Timing().Keepalive*5/4 {
			n.peer.Silent(h.now(), fleet.SessionFrom(w.GetSession()))
		} else {
			n.peer.Will(h.now(), fleet.SessionFrom(w.GetSession()))
		}
		return
	}
	var u fleet.Up
	if err := h.codec.Decode(m.direction, n.name, m.payload, t.keys, &u); err != nil {
		refuse(err)
		return
	}
	h.received(n, &u, len(m.payload))
	outputs, accept := n.peer.Up(h.now(), &u)
	if !accept {
		t.do(outputs)
		h.counters.Refused()
		n.counters.Refused()
		h.stats.drop(dropStray)
		h.log.Debug("message not accepted", "node", n.name, "session", fleet.SessionFrom(u.GetSession()), "seq", u.GetSeq())
		return
	}
	if hello := u.GetHello(); hello != nil {
		h.stats.hellos.Add(1)
		t.hello(&u)
	} else {
		n.heard.Store(m.at.UnixNano())
	}
	t.take(&u, m.at)
	t.do(outputs)
}

// keys is a fleet.KeyFunc.
func (t *turn) keys(keyID []byte, _ [][]byte) (ed25519.PublicKey, error) {
	k, err := t.h.c.Keys(t.ctx, t.n.name)
	if k, err = verifiable(k, err); err != nil {
		return nil, err
	}
	if !bytes.Equal(fleet.KeyID(k.Sign), keyID) {
		return nil, fleet.ErrUnknownKey
	}
	return k.Sign, nil
}

// hello begins a session: what was to be said in the one before is void.
func (t *turn) hello(u *fleet.Up) {
	n := t.n
	n.spoke.Store(true)
	t.down = nil
	n.knowsKey = t.h.knows(u.GetHello())
	n.trust, n.toldTrust = u.GetHello().GetTrust(), nil
	store := string(u.GetSession().GetStore())
	for _, uid := range t.h.behind(n, store, u.GetHello()) {
		n.peer.Ask(t.h.now(), uid) // once the session is confirmed
	}
	n.mu.Lock()
	n.verdicts, n.jack, n.answerAt, n.tunnels = nil, nil, 0, nil
	n.store = store
	n.said = u.GetHello().GetLinkClass()
	n.mu.Unlock()
	n.order = nil
	n.addresses = u.GetHello().GetAddresses()
	var theirs *string
	if n.runs, n.resendAll = nil, false; n.peer.IsForeign() {
		incarnation := n.peer.Theirs().Incarnation
		theirs = &incarnation
		n.foreignHello(u.GetHello())
	}
	// Of an earlier hub, or of before the node came back.
	if t.h.pendingDiffers(n.name, theirs) {
		t.h.writes.Add(writeKey{n.name, writePending, ""})
	}
	t.h.adjust(n)
}

// take has reports and journal written.
func (t *turn) take(u *fleet.Up, at time.Time) {
	h, n := t.h, t.n
	var keys []writeKey
	n.mu.Lock()
	for _, r := range u.GetReport().GetPods() {
		if r.GetUid() == "" || r.GetStamp() == nil {
			continue
		}
		n.foreignReport(r)
		n.reports[r.GetUid()] = &report{r, at, n.ordered[r.GetUid()]}
		keys = append(keys, writeKey{n.name, writePod, r.GetUid()})
	}
	if r := u.GetReport().GetNode(); r != nil {
		n.node = r
		keys = append(keys, writeKey{n.name, writeNode, ""})
	}
	if j := u.GetJournal(); j != nil {
		n.journal = &journal{j, n.store}
		keys = append(keys, writeKey{n.name, writeJournal, ""})
	}
	n.mu.Unlock()
	for _, k := range keys {
		h.writes.Forget(k)
		h.writes.Add(k)
	}
	if a := u.GetTunnel(); a.GetError() != "" {
		h.log.Warn("node opens no tunnel", "node", n.name, "id", a.GetId(), "reason", a.GetError())
		if h.c.TunnelRefused != nil {
			h.c.TunnelRefused(n.name, a.GetId(), a.GetError())
		}
	}
	if a := u.GetAck(); a != nil && n.order != nil && fleet.VersionFrom(a.GetVersion()) == fleet.VersionFrom(n.order.GetVersion()) {
		h.stats.ack(a.GetStatus())
	}
}

// do carries out what the peer decided.
func (t *turn) do(outputs []Output) {
	h, n := t.h, t.n
	for _, o := range outputs {
		switch o := o.(type) {
		case SendWelcome:
			t.part().Welcome = &fleet.Welcome{
				Version: n.peer.Version().Proto(), InSync: o.InSync, Protocol: fleet.ProtocolVersion,
				Keepalive:       uint32(n.settings.Keepalive / time.Second),
				ReconnectJitter: uint32(n.peer.Timing().Jitter / time.Millisecond),
				Time:            h.c.Now().UnixNano(), ObjectsUrl: h.c.FleetURL(), Link: n.link(), Addresses: h.addressesFor(n),
			}
			n.told = n.settings
			t.chain = t.chain || !n.knowsKey
			if n.standing.removed() {
				t.part().Standing = n.standing.proto()
			}
		case SendProbe:
			t.probe(o)
		case Cloned:
			t.cloned(o)
		case SendOrder:
			t.order(o)
		case SendAdopt:
			t.part().Adopt = &fleet.Adopt{From: []byte(o.From), To: o.To.Proto()}
		case SendRebirth:
			h.stats.rebirths.Add(1)
			t.rebirth(n.peer.Timing().Jitter)
		case SendResend:
			t.part().Resend = &fleet.Resend{Uids: o.UIDs, Node: o.Node}
		case Came:
			h.stats.came.Add(1)
			h.log.Info("node is there", "node", n.name, "first", o.First)
			t.came()
		case Went:
			h.stats.went.Add(1)
			h.log.Info("node is away", "node", n.name, "reason", o.Reason)
			n.mu.Lock()
			n.went = o.Reason
			n.client = nil
			n.mu.Unlock()
			h.writes.Add(writeKey{n.name, writeAway, ""})
		case Foreign:
			h.log.Error("node belongs to another incarnation of the cluster: it keeps what it runs and gets no orders until it is adopted",
				"node", n.name, "node's", o.Version, "ours", n.peer.Version())
		case Deposed:
			h.log.Error("node obeys a later hub: this one gives it no orders", "node", n.name, "node's", o.Version, "ours", n.peer.Version())
		case Trouble:
			h.log.Warn("order not carried out", "node", n.name, "status", o.Status, "reason", o.Message)
		case InSync:
			n.order = nil
			h.log.Debug("node is in step", "node", n.name, "order", o.Version)
		}
	}
}

const (
	maxGreets = 3
	// greetEvery is above the time within which a node obeys one of two rebirths.
	greetEvery = 10 * time.Second
)

// greeting asks for a Hello as long as the node doesn't know our addresses; n.mu is
// held.
func (t *turn) greeting() {
	h, n := t.h, t.n
	if n.greets == 0 {
		return
	}
	if h.addressesFor(n) == nil {
		n.greets = 0
		return
	}
	now := h.c.Now()
	if now.Before(n.greetAt) {
		return
	}
	n.greets--
	n.greetAt = now.Add(greetEvery)
	t.greet = true
	h.work.AddAfter(n.name, greetEvery)
}

// addressesFor are nil if the node knows them, or takes none.
func (h *Hub) addressesFor(n *node) *fleet.Addresses {
	if h.c.Addresses == nil || len(n.addresses) == 0 {
		return nil
	}
	a := h.c.Addresses()
	if a == nil || bytes.Equal(a.Hash(), n.addresses) {
		return nil
	}
	return a
}

// came has the API say that the node is there, if it doesn't.
func (t *turn) came() {
	n := t.n
	n.mu.Lock()
	n.went = ""
	has, last := n.node != nil, n.last != nil
	n.mu.Unlock()
	switch {
	case has: // its own report will say it
	case last:
		t.h.writes.Add(writeKey{n.name, writeBack, ""})
	case !t.h.ready(n.name):
		t.do(n.peer.Ask(t.h.now(), ""))
	}
}

// contradict has the API say that the node is there, because it says that it's
// away: another hub wrote that, or this one a moment ago.
func (t *turn) contradict() {
	n := t.n
	n.mu.Lock()
	last := n.last != nil
	n.mu.Unlock()
	switch {
	case !last:
		t.do(n.peer.Ask(t.h.now(), "")) // as soon as it is surely there
	case n.peer.Presence() == Present:
		t.h.writes.Add(writeKey{n.name, writeBack, ""})
	}
}

// ready says what the API says.
func (h *Hub) ready(name string) bool {
	o, err := h.nodeLister.Get(name)
	if err != nil {
		return false
	}
	for _, c := range o.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// order puts objects to the names that the peer ordered.
func (t *turn) order(o SendOrder) {
	h, n := t.h, t.n
	if n.order == nil || fleet.VersionFrom(n.order.GetVersion()) != o.Version {
		built, err := h.build(t.ctx, n, o)
		if err != nil {
			h.log.Error("order can't be made", "node", n.name, "error", err)
			n.peer.Abandon(h.now())
			return
		}
		n.order = built
		h.stats.ordersSent.Add(1)
	} else {
		h.stats.ordersRepeated.Add(1)
	}
	now := h.c.Now()
	for _, obj := range n.order.GetUpserts() {
		if _, again := n.ordered[obj.GetUid()]; obj.GetKind() == "Pod" && !again {
			n.ordered[obj.GetUid()] = now
			h.c.Trace.Record(obj.GetUid(), trace.Event{Step: trace.Ordered, Component: component, Time: now, Detail: n.name + " " + o.Version.String()})
		}
	}
	t.part().Order = n.order
}

// forget drops what isn't needed of pods that went.
func (t *turn) forget() {
	n := t.n
	for uid := range n.ordered {
		if _, ok := n.objects[uid]; !ok {
			delete(n.ordered, uid)
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for uid := range n.fetchable {
		if o, ok := n.objects[uid]; !ok || o.hash != n.fetchable[uid].hash {
			delete(n.fetchable, uid)
		}
	}
	for uid := range n.written {
		if _, ok := n.objects[uid]; !ok {
			delete(n.written, uid)
		}
	}
}

// build makes an order's message.
func (h *Hub) build(ctx context.Context, n *node, o SendOrder) (*fleet.Order, error) {
	out := &fleet.Order{Version: o.Version.Proto(), Synced: h.live.Load(), Removes: o.Removes}
	if o.List != nil {
		out.List, out.Entries = true, o.List.Entries()
		digest := o.List.Digest()
		out.Digest = digest[:]
		return out, nil
	}
	out.Base, out.Digest, out.More = o.Base[:], o.Digest[:], o.More
	for _, uid := range o.Upserts {
		obj, ok := n.objects[uid]
		if !ok {
			return nil, errors.New("object " + uid + " is gone")
		}
		msg, err := h.wire(ctx, n, obj)
		if err != nil {
			return nil, err
		}
		out.Upserts = append(out.Upserts, msg)
	}
	return out, nil
}

// wire is an object as it travels.
func (h *Hub) wire(ctx context.Context, n *node, o object) (*fleet.Object, error) {
	msg := &fleet.Object{Kind: o.kind, Namespace: o.namespace, Name: o.name, Uid: o.uid, Hash: o.hash[:]}
	raw, err := h.encoder.raw(o)
	if err != nil {
		return nil, err
	}
	if o.kind == "Secret" {
		keys, err := h.c.Keys(ctx, n.name)
		if err != nil {
			return nil, err // a node that was removed is ordered nothing
		}
		if raw, err = fleet.Seal(keys.Seal, n.name, o.uid, o.hash, raw); err != nil {
			return nil, err
		}
	}
	switch {
	case o.size > fleet.MaxInline:
		msg.Size = uint64(len(raw))
		n.big.put(o.uid, o.hash, raw, o.kind == "Secret")
		n.mu.Lock()
		n.fetchable[o.uid] = &o
		n.mu.Unlock()
	case o.kind == "Secret":
		msg.Sealed = raw
	default:
		msg.Raw = raw
	}
	return msg, nil
}

// gather adds what waits besides orders.
func (t *turn) gather() {
	n := t.n
	if !n.peer.Open() {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.answerAt != 0 && (t.down != nil || t.h.now() >= n.answerAt) {
		if len(n.verdicts) > 0 {
			t.part().ReportAck = &fleet.ReportAck{Verdicts: n.verdicts}
		}
		if n.jack != nil {
			t.part().JournalAck = n.jack
		}
		n.verdicts, n.jack, n.answerAt = nil, nil, 0
	}
	if !n.peer.Confirmed() {
		return
	}
	t.trust()
	if n.resendAll {
		down := t.part()
		if down.Resend == nil {
			down.Resend = &fleet.Resend{}
		}
		down.Resend.All, n.resendAll = true, false
	}
	t.greeting()
	for _, request := range n.tunnels {
		t.part().Tunnel = request
		t.send()
	}
	n.tunnels = nil
}

// renewWithin is the wait before a renewal that each node adds to that of all: a
// renewal costs a signature and a write.
const renewWithin = 20 * time.Millisecond

// trust tells a node that trusts other roots than the control plane's. One that
// doesn't say what it trusts is too old to be told.
func (t *turn) trust() {
	h, n := t.h, t.n
	if h.c.TrustID == nil || len(n.trust) == 0 {
		return
	}
	now := h.c.TrustID()
	if bytes.Equal(now, n.trust) || bytes.Equal(now, n.toldTrust) {
		return
	}
	n.toldTrust = now
	jitter := max(time.Duration(h.size())*renewWithin, h.c.ReconnectJitter)
	t.part().Trust = &fleet.Trust{Id: now, Jitter: uint32(jitter / time.Millisecond)}
}

func (t *turn) send() {
	if t.down == nil {
		return
	}
	down := t.down
	t.down = nil
	var chain [][]byte
	if t.chain {
		chain, t.chain = t.h.chain(), false
	}
	t.h.publish(t.n, down, chain)
}

func (t *turn) rebirth(jitter time.Duration) {
	h, n := t.h, t.n
	h.publish(n, &fleet.Down{Rebirth: &fleet.Rebirth{
		Version: n.peer.Version().Proto(), Jitter: uint32(jitter / time.Millisecond),
	}}, h.chain())
}

// probe is no message of the current session.
func (t *turn) probe(o SendProbe) {
	t.h.publish(t.n, &fleet.Down{Session: o.Session.Proto(), Grant: o.Grant.Proto(), Probe: &fleet.Probe{BootId: []byte(o.Boot)}}, t.h.chain())
}

func (h *Hub) publish(n *node, down *fleet.Down, chain [][]byte) {
	payload, err := h.codec.Encode(fleet.DirDown, n.name, h.c.Key, down, chain)
	if errors.Is(err, fleet.ErrTooLarge) && down.GetOrder() != nil && (down.GetWelcome() != nil || down.GetReportAck() != nil) {
		// Alone it fits.
		alone := n.peer.Header()
		alone.Order, down.Order = down.Order, nil
		h.publish(n, down, chain)
		h.publish(n, alone, nil)
		return
	}
	if err != nil {
		h.stats.drop(dropTooLarge)
		h.log.Error("message not sent", "node", n.name, "error", err)
		return
	}
	if err := h.c.Transport.Publish(n.name, payload); err != nil {
		h.stats.drop(dropNotSent)
		h.log.Debug("message not sent", "node", n.name, "error", err)
		return
	}
	h.counters.Sent(down, len(payload))
	n.counters.Sent(down, len(payload))
}

func (h *Hub) received(n *node, msg proto.Message, bytes int) {
	h.counters.Received(msg, bytes)
	n.counters.Received(msg, bytes)
}
