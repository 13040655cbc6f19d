package fleethub

import (
	"maps"
	"slices"
	"time"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

const (
	orderRetry    = 15 * time.Second // unanswered; then doubled
	orderRetryMax = 2 * time.Minute
	failedRetry   = 10 * time.Second // refused for the moment; then doubled
	failedMax     = 10 * time.Minute
	confirmWithin = 10 * time.Second // from Welcome to the first word that answers it
	askMax        = 5 * time.Minute  // between questions to a node that may hear us
	maxAsks       = 8                // from then on the wait is the longest
	askAfter      = 3 * time.Second  // from a Hello until a node is asked for what it may say by itself
	resendRetry   = 30 * time.Second // a report that was asked for didn't come; then doubled
	resendTries   = 6                // in one session
)

// Epoch is one reign of one hub.
type Epoch struct {
	Incarnation string // raw bytes
	Number      uint64
	Hub         string // raw bytes
}

// Item is an object that a node should have.
type Item struct {
	Hash  fleet.Hash
	Size  int  // bytes of the object
	Later bool // comes after what it refers to: pods
}

// Desired is what a node should have, by UID. It is never changed in place.
type Desired map[string]Item

// Set of the UIDs and hashes.
func (d Desired) Set() fleet.Set {
	set := make(fleet.Set, len(d))
	for uid, i := range d {
		set[uid] = i.Hash
	}
	return set
}

// Presence of a node.
type Presence int

const (
	Unsure  Presence = iota // since the hub started or the broker was lost
	Present                 // it speaks
	Away                    // it was said to be away
)

func (p Presence) String() string { return [...]string{"unsure", "present", "away"}[p] }

// sent is the order under way.
type sent struct {
	order  SendOrder
	result fleet.Set // of a delta; never changed in place
	adopt  *SendAdopt
	due    time.Duration
	tries  int
}

type failure struct {
	hash  fleet.Hash    // that failed; another one is tried at once
	until time.Duration // 0: it is tried
	tries int
}

// Timing of a Peer.
type Timing struct {
	Keepalive time.Duration // of the node's connection
	WillGrace time.Duration // from a will to Away
	Jitter    time.Duration // reconnects come within
}

// silence is how long nothing may be concluded after the hub or the broker came
// back.
func (t Timing) silence() time.Duration { return t.Keepalive*3/2 + t.Jitter }

// Peer is the hub's side of one node. Its methods are its transitions: they look
// at no clock and do no I/O; now is monotonic time since any fixed moment. Not
// safe for concurrent use.
type Peer struct {
	epoch   Epoch
	timing  Timing
	deposed bool

	// The session.
	session   fleet.SessionID
	open      bool // a Hello came
	confirmed bool // and it wasn't a recording
	board     Board
	boots     boots
	grant     fleet.GrantID
	grants    uint64
	upSeq     uint64
	downSeq   uint64

	// What the node has.
	known   bool
	has     fleet.Set // never changed in place
	foreign bool
	theirs  fleet.OrderVersion // by its own word
	adopt   bool               // an operator wants it adopted

	desired  Desired // nil: not computed yet
	revision uint64
	counter  uint64
	sent     *sent
	failed   map[string]failure
	pause    time.Duration // no order before
	pauses   int
	inSync   bool // as last said

	// Reports to be asked for, by UID; empty: the node's own.
	wanted   map[string]bool
	askFrom  time.Duration // what the node says by itself has come
	askDue   time.Duration
	askTries int

	presence Presence
	awayAt   time.Duration // 0: not running
	reason   string
	reborn   time.Duration // when to ask for a Hello (again); 0 is never
	asks     int           // since it was called away
	askAgain time.Duration // a stray message before this isn't answered
}

// NewPeer knows nothing of its node yet. If unsure, the node is expected to show
// up within 1.5 keepalives or be called away.
func NewPeer(now time.Duration, epoch Epoch, timing Timing, unsure bool) *Peer {
	p := &Peer{epoch: epoch, timing: timing, failed: map[string]failure{}, wanted: map[string]bool{}, presence: Away}
	if unsure {
		p.presence = Unsure
		p.await(now)
	}
	return p
}

// Clone copies the peer's state.
func (p *Peer) Clone() *Peer {
	c := *p
	c.failed, c.wanted = maps.Clone(p.failed), maps.Clone(p.wanted)
	if p.sent != nil {
		s := *p.sent
		c.sent = &s
	}
	c.boots.seen = slices.Clone(p.boots.seen)
	return &c
}

// Presence, Session of the peer; whether a session is open, and whether it was
// confirmed.
func (p *Peer) Presence() Presence         { return p.presence }
func (p *Peer) Session() fleet.SessionID   { return p.session }
func (p *Peer) Open() bool                 { return p.open }
func (p *Peer) Confirmed() bool            { return p.open && p.confirmed }
func (p *Peer) IsForeign() bool            { return p.foreign }
func (p *Peer) Desired() Desired           { return p.desired }
func (p *Peer) Has() (fleet.Set, bool)     { return p.has, p.known }
func (p *Peer) Timing() Timing             { return p.timing }
func (p *Peer) SetTiming(t Timing)         { p.timing = t }
func (p *Peer) Theirs() fleet.OrderVersion { return p.theirs }

// Version of the newest order.
func (p *Peer) Version() fleet.OrderVersion {
	return fleet.OrderVersion{Incarnation: p.epoch.Incarnation, Epoch: p.epoch.Number, Counter: p.counter, Hub: p.epoch.Hub, Revision: p.revision}
}

// Header begins a message of this session.
func (p *Peer) Header() *fleet.Down {
	p.downSeq++
	return &fleet.Down{Session: p.session.Proto(), Seq: p.downSeq, Grant: p.grant.Proto()}
}

// await calls the node away if it doesn't show up, after asking twice.
func (p *Peer) await(now time.Duration) {
	p.awayAt = now + p.timing.silence()
	p.reborn, p.asks = now+p.timing.silence()/3, 0
	p.reason = "not heard of since the control plane started"
}

// Depose tells a hub that another one reigns, for good. It still takes what the
// node reports, and otherwise leaves the node alone: it gives no orders, asks for
// nothing and calls nobody away.
func (p *Peer) Depose() {
	p.deposed = true
	p.sent = nil
	if p.presence == Present {
		p.presence = Unsure
	}
}

// LinkUp is the way to the broker being there (again). All sessions are void:
// the node is asked for a Hello.
func (p *Peer) LinkUp(now time.Duration) []Output {
	p.open, p.confirmed, p.sent = false, false, nil
	if p.deposed {
		return nil
	}
	if p.presence == Present {
		p.presence = Unsure
	}
	if p.presence == Unsure {
		p.await(now)
		p.reason = "not heard of since the broker came back"
	} else {
		p.reborn, p.asks = now+confirmWithin, 0
	}
	return []Output{SendRebirth{}}
}

// LinkDown is the way to the broker being lost: nothing can be known, so nobody
// is called away.
func (p *Peer) LinkDown() {
	p.open, p.confirmed, p.sent = false, false, nil
	p.awayAt, p.reborn = 0, 0
	if p.presence == Present {
		p.presence = Unsure
	}
}

// Up takes a message whose signature was found good. accept says whether its
// reports and journal are to be handled; a Hello's content is always the shell's
// to read if accept.
func (p *Peer) Up(now time.Duration, u *fleet.Up) (out []Output, accept bool) {
	session := fleet.SessionFrom(u.GetSession())
	if h := u.GetHello(); h != nil {
		return p.hello(now, session, u.GetSeq(), h)
	}
	if out, ok := p.probed(u, session); ok {
		return out, false
	}
	p.superseded(now, session, fleet.GrantFrom(u.GetGrant()))
	if !p.open && now >= p.askAgain && !p.deposed {
		// It speaks in a session that this hub never heard of, or has closed.
		p.askAgain = now + confirmWithin
		return []Output{SendRebirth{}}, false
	}
	if !p.open || session != p.session || u.GetSeq() <= p.upSeq || fleet.GrantFrom(u.GetGrant()) != p.grant {
		return nil, false
	}
	p.upSeq = u.GetSeq()
	if !p.confirmed {
		p.confirmed = true
		p.awayAt, p.reborn = 0, 0
		if was := p.presence; was != Present && !p.deposed {
			p.presence = Present
			out = append(out, Came{First: was == Unsure})
		}
		out = append(out, p.proven(p.board)...)
	}
	for _, r := range u.GetReport().GetPods() {
		delete(p.wanted, r.GetUid())
	}
	if u.GetReport().GetNode() != nil {
		delete(p.wanted, "")
	}
	if a := u.GetAck(); a != nil {
		out = append(out, p.ack(now, a)...)
	}
	if b := u.GetBye(); b != nil {
		p.gone(now, "the node said goodbye: "+b.GetReason(), time.Duration(b.GetBackIn())*time.Second)
	}
	out = append(out, p.resend(now)...)
	return append(out, p.plan(now)...), true
}

// superseded closes a session that the node has left without this hub's knowing: for
// a later one, whose Hello was lost on its way here, or for a hub of a later epoch,
// which may be of a past that etcd lost. Neither can be a recording of a session
// before this one.
func (p *Peer) superseded(now time.Duration, session fleet.SessionID, grant fleet.GrantID) {
	later, followed := session.After(p.session), session == p.session && grant.Epoch > p.grant.Epoch
	if !p.open || p.deposed || !later && !followed {
		return
	}
	p.open, p.confirmed, p.sent = false, false, nil
	p.reborn, p.asks = now+confirmWithin, 0
	if followed {
		// A hub that was deposed learns of it meanwhile, and asks for nothing.
		p.reborn = now + max(confirmWithin, p.timing.silence()/3)
		p.askAgain = p.reborn
	}
	p.awayAt, p.reason = max(p.awayAt, p.reborn+p.timing.silence()), "it went on without this hub"
}

func (p *Peer) hello(now time.Duration, session fleet.SessionID, seq uint64, h *fleet.Hello) ([]Output, bool) {
	// A Hello that was seen, or of an earlier time of this state file, is an echo.
	if p.session.Store == session.Store && !session.After(p.session) {
		if p.deposed {
			return nil, false
		}
		return p.suspect(now, session, h), false
	}
	p.session, p.open, p.confirmed = session, true, false
	p.board, p.boots.probe = Board{string(h.GetBootId()), h.GetBoard()}, nil
	p.upSeq, p.downSeq, p.sent = seq, 0, nil
	p.grants++
	p.grant = fleet.GrantID{Epoch: p.epoch.Number, Hub: p.epoch.Hub, Number: p.grants}
	p.pause, p.pauses = 0, 0
	p.askFrom = now + askAfter
	p.askDue, p.askTries = p.askFrom, 0
	clear(p.failed)
	if k := time.Duration(h.GetKeepalive()) * time.Second; k > 0 {
		p.timing.Keepalive = k
	}
	// It may be a recording: the node must confirm it, or it isn't there.
	if p.awayAt == 0 {
		p.awayAt, p.reason = now+p.timing.silence(), "its Hello was not confirmed"
	}
	p.awayAt = max(p.awayAt, now+confirmWithin)
	p.reborn, p.asks = now+confirmWithin, 0
	p.theirs = fleet.VersionFrom(h.GetVersion())
	p.inSync = false
	out := p.judge()
	p.learn(h.GetDigest())
	synced := p.desired != nil && p.known && !p.foreign && maps.Equal(p.has, p.desired.Set())
	out = append(out, SendWelcome{InSync: synced})
	return append(out, p.plan(now)...), true
}

// judge says whose orders the node obeys.
func (p *Peer) judge() []Output {
	p.foreign = false
	mine := p.Version()
	mine.Counter = p.theirs.Counter + 1 // what the next order would be
	if p.theirs.Incarnation == mine.Incarnation && p.theirs.Epoch == mine.Epoch && p.theirs.Hub == mine.Hub {
		p.counter = max(p.counter, p.theirs.Counter)
	}
	switch fleet.Compare(p.theirs, mine) {
	case fleet.Foreign:
		p.foreign = true
		return []Output{Foreign{p.theirs}}
	case fleet.Older, fleet.Same:
		p.foreign = true
		return []Output{Deposed{p.theirs}}
	}
	return nil
}

// learn takes the node's digest: either it has what we know, or what it should
// have, or it isn't known what it has.
func (p *Peer) learn(digest []byte) {
	d, err := fleet.HashFrom(digest)
	if err == nil {
		if p.known && p.has.Digest() == d {
			return
		}
		if p.desired != nil {
			if set := p.desired.Set(); set.Digest() == d {
				p.known, p.has = true, set
				return
			}
		}
		if d == (fleet.Set{}).Digest() {
			p.known, p.has = true, fleet.Set{}
			return
		}
	}
	p.known, p.has = false, nil
}

// Will takes the broker's word that a connection broke.
func (p *Peer) Will(now time.Duration, session fleet.SessionID) {
	if !p.session.SameConn(session) || !p.open {
		return // of a connection that was replaced
	}
	p.gone(now, "its connection broke", 0)
}

// Silent takes the broker's word that a connection brought nothing for 1.5
// keepalives. A node that is there would have come back meanwhile: there is no
// grace. It leads to nothing that Will and a Tick after the grace don't.
func (p *Peer) Silent(now time.Duration, session fleet.SessionID) {
	if !p.session.SameConn(session) || !p.open {
		return
	}
	p.gone(now, "its connection fell silent", 0)
	p.awayAt = now
	p.reborn = p.awayAt + askMax
}

func (p *Peer) gone(now time.Duration, reason string, backIn time.Duration) {
	p.open, p.confirmed, p.sent = false, false, nil
	p.awayAt = now + max(p.timing.WillGrace, min(backIn, 5*time.Minute))
	// It comes back by itself, unless it's here and it was we who didn't hear it.
	p.reborn, p.asks = p.awayAt+askMax, maxAsks
	p.reason = reason
}

// SetDesired says what the node should have now, as of this revision of etcd.
func (p *Peer) SetDesired(now time.Duration, d Desired, revision uint64) []Output {
	p.desired = d
	p.revision = max(p.revision, revision)
	return p.plan(now)
}

// Adopt is an operator's word that the node belongs here, with what it runs.
func (p *Peer) Adopt(now time.Duration) []Output {
	p.adopt = true
	return p.plan(now)
}

// Ask has the node asked for its report of a pod, or of itself (empty), until it
// comes: once a session is confirmed, and again in the next one.
func (p *Peer) Ask(now time.Duration, uid string) []Output {
	if !p.wanted[uid] {
		p.wanted[uid] = true
		p.askDue, p.askTries = p.askFrom, 0
	}
	return p.resend(now)
}

// resend asks for what is wanted, if it is due.
func (p *Peer) resend(now time.Duration) []Output {
	if !p.Confirmed() || p.deposed || len(p.wanted) == 0 || p.askTries > resendTries || now < p.askDue {
		return nil
	}
	p.askDue = now + backoff(resendRetry, askMax, p.askTries)
	p.askTries++
	if p.askTries > resendTries {
		return nil // it has no such report
	}
	out := SendResend{Node: p.wanted[""]}
	for _, uid := range slices.Sorted(maps.Keys(p.wanted)) {
		if uid != "" {
			out.UIDs = append(out.UIDs, uid)
		}
	}
	return []Output{out}
}

// Tick does what is due; see Deadline.
func (p *Peer) Tick(now time.Duration) []Output {
	if p.deposed {
		return nil
	}
	var out []Output
	// What was waited for needs no timer any more.
	if now >= p.pause {
		p.pause = 0
	}
	for uid, f := range p.failed {
		if f.until != 0 && now >= f.until {
			f.until = 0
			p.failed[uid] = f
		}
	}
	if p.reborn != 0 && now >= p.reborn {
		p.reborn = 0
		if !p.confirmed {
			// Until it answers: a node that has nothing to say may hold a session
			// for good that nobody here knows.
			out = append(out, SendRebirth{})
			wait := max(confirmWithin, p.timing.silence()/3)
			p.reborn = now + backoff(wait, max(wait, askMax), p.asks)
			if p.awayAt <= now {
				p.asks = min(p.asks+1, maxAsks)
			}
		}
	}
	if p.awayAt != 0 && now >= p.awayAt {
		p.awayAt = 0
		if !p.Confirmed() && p.presence != Away {
			p.presence = Away
			out = append(out, Went{p.reason})
		}
	}
	out = append(out, p.resend(now)...)
	if s := p.sent; s != nil && now >= s.due {
		s.tries++
		s.due = now + backoff(orderRetry, orderRetryMax, s.tries)
		if s.adopt != nil {
			out = append(out, *s.adopt)
		} else {
			out = append(out, s.order)
		}
	}
	return append(out, p.plan(now)...)
}

// Deadline is when Tick has to be called next; false is never.
func (p *Peer) Deadline() (time.Duration, bool) {
	var at time.Duration
	earliest := func(t time.Duration) {
		if t != 0 && (at == 0 || t < at) {
			at = t
		}
	}
	if p.deposed {
		return 0, false
	}
	earliest(p.awayAt)
	earliest(p.reborn)
	if p.Confirmed() && len(p.wanted) > 0 && p.askTries <= resendTries {
		earliest(p.askDue)
	}
	if p.sent != nil {
		earliest(p.sent.due)
	} else if p.open {
		earliest(p.pause)
		for _, f := range p.failed {
			earliest(f.until)
		}
	}
	return at, at != 0
}

// ack takes the answer to the order under way.
func (p *Peer) ack(now time.Duration, a *fleet.Ack) []Output {
	before := p.theirs
	p.theirs = fleet.VersionFrom(a.GetCurrent())
	if p.sent == nil && p.theirs != before {
		// Since its Hello it has carried out an order of another hub.
		p.learn(a.GetDigest())
		return p.judge()
	}
	if p.sent == nil || fleet.VersionFrom(a.GetVersion()) != p.sent.version() {
		return nil // of an order that doesn't matter any more, or of a Welcome
	}
	s := p.sent
	p.sent = nil
	var out []Output
	switch a.GetStatus() {
	case fleet.AckStatus_APPLIED, fleet.AckStatus_DUPLICATE:
		p.pause, p.pauses = 0, 0
		p.applied(s, a)
		return nil
	case fleet.AckStatus_MISMATCH:
		p.known, p.has = false, nil
	case fleet.AckStatus_OTHER_INCARNATION:
		p.foreign = true
		return []Output{Foreign{p.theirs}}
	case fleet.AckStatus_STALE:
		if p.theirs.Epoch > p.epoch.Number {
			p.foreign = true
			return []Output{Deposed{p.theirs}}
		}
		p.counter = max(p.counter, p.theirs.Counter)
		p.learn(a.GetDigest())
	default: // FAILED, NOT_SYNCED and what a later version says
		for _, uid := range a.GetFailed() {
			f := p.failed[uid]
			f.hash = p.desired[uid].Hash
			f.until = now + backoff(failedRetry, failedMax, f.tries)
			f.tries++
			p.failed[uid] = f
		}
		p.learn(a.GetDigest())
		if len(a.GetFailed()) > 0 {
			return []Output{Trouble{a.GetStatus(), a.GetMessage()}}
		}
	}
	if p.pauses > 0 || a.GetStatus() == fleet.AckStatus_FAILED {
		p.pause = now + backoff(failedRetry, failedMax, p.pauses)
		out = append(out, Trouble{a.GetStatus(), a.GetMessage()})
	}
	p.pauses++
	return out
}

// applied learns from the answer what the node has now.
func (p *Peer) applied(s *sent, a *fleet.Ack) {
	if s.adopt != nil {
		p.foreign, p.adopt = false, false
		p.learn(a.GetDigest())
		return
	}
	result := s.result
	if s.order.List != nil {
		result = s.order.List.Clone()
		for _, w := range a.GetWant() {
			if len(w.GetHave()) == 0 {
				delete(result, w.GetUid())
				continue
			}
			if have, err := fleet.HashFrom(w.GetHave()); err == nil {
				result[w.GetUid()] = have
			}
		}
	}
	if digest := result.Digest(); string(a.GetDigest()) == string(digest[:]) {
		p.known, p.has = true, result
	} else {
		p.known, p.has = false, nil
		p.learn(a.GetDigest())
	}
}

func (s *sent) version() fleet.OrderVersion {
	if s.adopt != nil {
		return s.adopt.To
	}
	return s.order.Version
}

// Abandon gives up the order under way because it can't be sent, and tries
// another later.
func (p *Peer) Abandon(now time.Duration) {
	p.sent = nil
	p.pause = now + backoff(failedRetry, failedMax, p.pauses)
	p.pauses++
}

// plan sends the next order, if there is need and nothing is under way.
func (p *Peer) plan(now time.Duration) []Output {
	if !p.open || p.deposed || p.sent != nil || p.desired == nil || now < p.pause {
		return nil
	}
	if p.foreign {
		if !p.adopt {
			return nil
		}
		p.counter++
		a := SendAdopt{From: p.theirs.Incarnation, To: p.Version()}
		p.sent = &sent{adopt: &a, due: now + orderRetry}
		return []Output{a}
	}
	want := p.desired.Set()
	if !p.known {
		p.inSync = false
		return p.order(now, SendOrder{List: want}, nil)
	}
	if o, result := p.delta(now); len(o.Upserts)+len(o.Removes) > 0 {
		p.inSync = false
		return p.order(now, o, result)
	}
	if !p.inSync && p.confirmed && maps.Equal(p.has, want) {
		p.inSync = true
		return []Output{InSync{p.Version()}}
	}
	return nil
}

func (p *Peer) order(now time.Duration, o SendOrder, result fleet.Set) []Output {
	p.counter++
	o.Version = p.Version()
	p.sent = &sent{order: o, result: result, due: now + orderRetry}
	return []Output{o}
}

// delta is the next step from what the node has to what it should have: what is
// referred to before what refers to it, no more than fits into a message, and
// what has to go with the last step. The order is empty if there is none.
func (p *Peer) delta(now time.Duration) (SendOrder, fleet.Set) {
	var add []string
	for uid, item := range p.desired {
		if p.has[uid] == item.Hash {
			continue
		}
		if f, ok := p.failed[uid]; ok && f.hash == item.Hash && now < f.until {
			continue
		}
		add = append(add, uid)
	}
	rank := func(uid string) int {
		switch item := p.desired[uid]; {
		case item.Size > fleet.MaxInline:
			return 2 // fetched: nothing else shall wait for it
		case item.Later:
			return 1
		}
		return 0
	}
	slices.SortFunc(add, func(a, b string) int {
		if d := rank(a) - rank(b); d != 0 {
			return d
		}
		if a < b {
			return -1
		}
		return 1
	})
	o := SendOrder{Base: p.has.Digest()}
	result := p.has.Clone()
	size, complete := 0, true
	for i, uid := range add {
		item := p.desired[uid]
		n := 200 // names and hash
		if item.Size <= fleet.MaxInline {
			n += item.Size
		}
		big := item.Size > fleet.MaxInline
		if i > 0 && (size+n > fleet.MaxOrderObjects || big) {
			complete = false
			break
		}
		size += n
		o.Upserts = append(o.Upserts, uid)
		result[uid] = item.Hash
		if big {
			complete = i == len(add)-1
			break
		}
	}
	if complete || allBig(add[len(o.Upserts):], rank) {
		for _, uid := range slices.Sorted(maps.Keys(p.has)) {
			if _, ok := p.desired[uid]; ok {
				continue
			}
			if size += len(uid) + 4; size > fleet.MaxOrderObjects {
				break // the next order takes the rest
			}
			o.Removes = append(o.Removes, uid)
			delete(result, uid)
		}
	}
	for uid, item := range p.desired {
		_, has := result[uid]
		o.More = o.More || item.Later && !has
	}
	o.Digest = result.Digest()
	return o, result
}

// allBig: what has to go doesn't wait for what has to be fetched.
func allBig(rest []string, rank func(string) int) bool {
	for _, uid := range rest {
		if rank(uid) != 2 {
			return false
		}
	}
	return true
}

func backoff(base, most time.Duration, tries int) time.Duration {
	return min(base<<min(tries, 8), most)
}
