package play

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/controlplane/fleethub"
)

// Journal is the key of the journal among what a hub has to write; Away of the
// transition to away.
const (
	Journal = "/journal"
	Away    = "/away"
)

// Writing waits to be written into etcd.
type Writing struct {
	Key     string // a pod's UID; empty: the node's own report; Journal; Away
	Report  Report
	Journal *fleet.Journal
	Store   string // of a journal
}

// Letter is a message of a hub to the node.
type Letter struct {
	Down *fleet.Down
	From *Origin
}

// HubWatcher is told of what a hub writes.
type HubWatcher interface {
	// Wrote a report over another one.
	Wrote(before, after Written, uid string)
	// WroteEvent, or found it written (before isn't 0).
	WroteEvent(name string, before, content uint32)
	// WentAway says that a hub calls the node away.
	WentAway(h *Hub)
}

// Hub is one hub, with one node. It is copied by Clone.
type Hub struct {
	Transitions *Transitions `canon:"-"`
	Watch       HubWatcher   `canon:"-"`

	Reign    int // hubs in the order in which they began
	Epoch    fleethub.Epoch
	Peer     *fleethub.Peer
	Now      time.Duration // its monotonic clock
	Unix     int64         // its wall clock
	Live     bool          // its informers have synced
	View     *View         // what they show
	Linked   bool          // to the broker
	Deposed  bool          // it has seen that a later hub began
	Operator bool          // the node is to be adopted
	Writes   []Writing     // by key; never changed in place
	// Expires, if not 0, is how long orders live, in seconds.
	Expires int64 `canon:"-"`
	// Alone sends every part in a message of its own.
	Alone bool `canon:"-"`

	store     string // of the session
	order     *fleet.Order
	orderFrom *Origin
	// Unable to make the next order: the node's key can't be read, say.
	Unable bool

	// Sent is what was published, for who plays the network.
	Sent []Letter `canon:"-"`

	down *fleet.Down `canon:"-"`
	etcd *Etcd       `canon:"-"`
}

// NewHub begins a reign: the epoch was raised in e. A hub that hasn't synced sees
// nothing of what should be.
func NewHub(t *Transitions, e *Etcd, reign int, live bool, timing fleethub.Timing) *Hub {
	h := &Hub{Transitions: t, Reign: reign, Live: live, View: e.View, Linked: true}
	h.Epoch = fleethub.Epoch{Incarnation: e.Incarnation, Number: e.View.Epoch, Hub: fmt.Sprint("hub", reign)}
	if !live {
		h.View = e.View.Blind()
	}
	h.Peer = fleethub.NewPeer(0, h.Epoch, timing, true)
	h.Transitions.SetDesired(h.Peer, h.Now, h.View.Desired(), h.View.Revision)
	return h
}

// Clone copies the hub.
func (h *Hub) Clone() *Hub {
	c := *h
	c.Peer = h.Peer.Clone()
	c.Sent = nil
	return &c
}

// event handles one thing, does what is due and sends what has gathered.
func (h *Hub) event(e *Etcd, handle func()) {
	h.etcd = e
	handle()
	h.do(h.Transitions.HubTick(h.Peer, h.Now))
	h.send()
	h.etcd = nil
}

// Begin is the first sight of the broker.
func (h *Hub) Begin(e *Etcd) {
	h.event(e, func() { h.do(h.Transitions.LinkUp(h.Peer, h.Now)) })
}

// Tick does what is due.
func (h *Hub) Tick(e *Etcd) { h.event(e, func() {}) }

// Observe is the informers' showing of a view; with it they have synced.
func (h *Hub) Observe(e *Etcd, v *View) {
	h.event(e, func() {
		h.Live, h.View = true, v
		if v.Epoch > h.Epoch.Number {
			h.Transitions.Depose(h.Peer)
			h.Deposed = true
			h.unqueue(Away)
		}
		if v.Away {
			h.ask("") // it may be there
		}
		h.do(h.Transitions.SetDesired(h.Peer, h.Now, v.Desired(), v.Revision))
	})
}

// Adopt is an operator's word.
func (h *Hub) Adopt(e *Etcd) {
	h.event(e, func() {
		h.Operator = true
		h.do(h.Transitions.Adopt(h.Peer, h.Now))
	})
}

// Cut is the way to the broker lost, Mend found again.
func (h *Hub) Cut(e *Etcd) {
	h.event(e, func() {
		h.Linked = false
		h.Transitions.LinkDown(h.Peer)
	})
}

// Mend is the opposite of Cut.
func (h *Hub) Mend(e *Etcd) {
	h.Linked = true
	h.Begin(e)
}

// Will is the broker's word that a connection broke.
func (h *Hub) Will(e *Etcd, s fleet.SessionID) {
	h.event(e, func() { h.Transitions.Will(h.Peer, h.Now, s) })
}

// Receive a message of the node.
func (h *Hub) Receive(e *Etcd, u *fleet.Up) {
	h.event(e, func() {
		outputs, accept := h.Transitions.Up(h.Peer, h.Now, u)
		if accept {
			if u.GetHello() != nil {
				h.down, h.order = nil, nil // of the session before
				h.store = string(u.GetSession().GetStore())
				h.behind(u.GetHello())
			}
			h.take(u)
		}
		h.do(outputs)
	})
}

// behind has the node asked for reports that etcd doesn't have any more.
func (h *Hub) behind(hello *fleet.Hello) {
	for _, r := range hello.GetRunning() {
		uid, said := r.GetUid(), fleet.StampFrom(r.GetStamp())
		_, exists := h.View.Objects[uid]
		have, written := h.etcd.Reports[uid]
		behind := !written || said != have.Stamp && said.Obsoletes(have.Stamp)
		if uid == "" && (behind || h.View.Away) || uid != "" && exists && behind && !r.GetGone() {
			h.ask(uid)
		}
	}
}

// ask the node for a report.
func (h *Hub) ask(uid string) { h.do(h.Transitions.Ask(h.Peer, h.Now, uid)) }

// take has reports and journal written, some time.
func (h *Hub) take(u *fleet.Up) {
	for _, r := range u.GetReport().GetPods() {
		h.queue(Writing{Key: r.GetUid(), Report: Report{UID: r.GetUid(), Stamp: fleet.StampFrom(r.GetStamp()), Content: contentOf(r.GetStatus()), Gone: r.GetGone()}})
	}
	if r := u.GetReport().GetNode(); r != nil {
		h.queue(Writing{Key: "", Report: Report{Stamp: fleet.StampFrom(r.GetStamp()), Content: contentOf(r.GetNode())}})
	}
	if j := u.GetJournal(); j != nil {
		h.queue(Writing{Key: Journal, Journal: j, Store: h.store})
	}
	if h.Transitions.Early {
		for _, w := range h.Writes {
			if w.Key == Journal {
				h.part().JournalAck = upTo(w.Journal)
			} else if w.Key != Away {
				h.verdict(w.Key, w.Report, fleet.Verdict_STORED)
			}
		}
	}
}

func contentOf(b []byte) uint32 { return binary.BigEndian.Uint32(b) }

func (h *Hub) find(key string) (int, bool) {
	return slices.BinarySearchFunc(h.Writes, key, func(w Writing, key string) int { return strings.Compare(w.Key, key) })
}

func (h *Hub) queue(w Writing) {
	i, ok := h.find(w.Key)
	if ok {
		h.Writes = slices.Clone(h.Writes)
		h.Writes[i] = w
		return
	}
	h.Writes = slices.Insert(slices.Clone(h.Writes), i, w)
}

func (h *Hub) unqueue(key string) {
	if i, ok := h.find(key); ok {
		h.Writes = slices.Delete(slices.Clone(h.Writes), i, i+1)
	}
}

// part is the message that gathers.
func (h *Hub) part() *fleet.Down {
	if h.Alone {
		h.send()
	}
	if h.down == nil {
		h.down = h.Peer.Header()
	}
	return h.down
}

func (h *Hub) send() {
	if h.down != nil {
		h.publish(h.down)
		h.down = nil
	}
}

func (h *Hub) publish(d *fleet.Down) {
	if !h.Linked {
		return
	}
	from := h.origin()
	switch {
	case d.GetOrder() != nil:
		from = h.orderFrom // it may be older than this message
	case d.GetAdopt() != nil:
		from.Adopts, from.Counter = true, d.GetAdopt().GetTo().GetCounter()
	}
	h.Sent = append(h.Sent, Letter{d, from})
}

func (h *Hub) origin() *Origin {
	return &Origin{Reign: h.Reign, Incarnation: h.Epoch.Incarnation, Timeline: h.View.Timeline, Revision: h.View.Revision,
		Live: h.Live, Operator: h.Operator, View: h.View}
}

// do carries out what the peer decided.
func (h *Hub) do(outputs []fleethub.Output) {
	for _, o := range outputs {
		switch o := o.(type) {
		case fleethub.SendWelcome:
			h.part().Welcome = &fleet.Welcome{Version: h.Peer.Version().Proto(), InSync: o.InSync, Keepalive: 60}
		case fleethub.SendOrder:
			if h.order == nil || fleet.VersionFrom(h.order.GetVersion()) != o.Version {
				if h.Unable {
					h.Unable = false
					h.Peer.Abandon(h.Now)
					continue
				}
				h.order, h.orderFrom = h.build(o), h.origin()
				h.orderFrom.Counter, h.orderFrom.Expires = o.Version.Counter, h.order.GetExpires()
			}
			h.part().Order = h.order
		case fleethub.SendAdopt:
			h.part().Adopt = &fleet.Adopt{From: []byte(o.From), To: o.To.Proto()}
		case fleethub.SendRebirth:
			h.publish(&fleet.Down{Rebirth: &fleet.Rebirth{Version: h.Peer.Version().Proto(), Jitter: 1000}})
		case fleethub.SendResend:
			h.part().Resend = &fleet.Resend{Uids: o.UIDs, Node: o.Node}
		case fleethub.Came:
			h.unqueue(Away)
			if _, has := h.find(""); !has && h.View.Away {
				h.ask("")
			}
		case fleethub.Went:
			if h.Watch != nil {
				h.Watch.WentAway(h)
			}
			h.queue(Writing{Key: Away})
		case fleethub.InSync:
			h.order = nil
		case fleethub.Foreign, fleethub.Deposed, fleethub.Trouble: // for people
		default:
			panic(fmt.Sprintf("play: say here what controlplane/fleethub does with a %T", o))
		}
	}
}

func (h *Hub) build(o fleethub.SendOrder) *fleet.Order {
	out := &fleet.Order{Version: o.Version.Proto(), Synced: h.Transitions.Synced(h.Live), Removes: o.Removes}
	if h.Expires != 0 {
		out.Expires = h.Unix + h.Expires
	}
	if o.List != nil {
		out.List, out.Entries = true, o.List.Entries()
		return out
	}
	out.Base, out.Digest, out.More = o.Base[:], o.Digest[:], o.More
	for _, uid := range o.Upserts {
		from := h.View.Objects[uid]
		obj := &fleet.Object{Kind: from.Kind, Namespace: "default", Name: uid, Uid: uid, Hash: from.Hash[:]}
		if from.Size > fleet.MaxInline {
			obj.Size = uint64(from.Size)
		} else {
			obj.Raw = []byte(from.Raw)
		}
		out.Upserts = append(out.Upserts, obj)
	}
	return out
}

// verdict answers a report, if there is a session to answer in. What isn't said
// is asked for again.
func (h *Hub) verdict(uid string, r Report, v fleet.Verdict) {
	if v = h.Transitions.Answer(v); v == fleet.Verdict_VERDICT_UNKNOWN || !h.Peer.Open() {
		return
	}
	d := h.part()
	if d.ReportAck == nil {
		d.ReportAck = &fleet.ReportAck{}
	}
	d.ReportAck.Verdicts = append(d.ReportAck.Verdicts, &fleet.ReportVerdict{Uid: uid, Stamp: r.Stamp.Proto(), Verdict: v})
}

// Write does one of Writes and answers; refuse is an API server that will never
// take it.
func (h *Hub) Write(e *Etcd, key string, refuse bool) *Etcd {
	i, ok := h.find(key)
	if !ok {
		return e
	}
	w := h.Writes[i]
	h.unqueue(key)
	h.event(e, func() {
		switch {
		case key == Away:
			e = e.away(true)
		case key == Journal:
			e = h.writeJournal(e, w)
		case refuse:
			h.verdict(key, w.Report, fleet.Verdict_REJECTED)
		default:
			var v fleet.Verdict
			e, v = h.writeReport(e, key, w.Report)
			h.verdict(key, w.Report, v)
		}
	})
	return e
}

func (h *Hub) writeReport(e *Etcd, uid string, r Report) (*Etcd, fleet.Verdict) {
	object, ok := e.View.Objects[uid]
	if !ok && uid != "" {
		return e, fleet.Verdict_OBSOLETE
	}
	before, written := e.Reports[uid]
	switch {
	case written && before.Stamp == r.Stamp: // it was written, the answer was lost
	case written && !h.Transitions.Obsoletes(r.Stamp, before.Stamp):
		return e, fleet.Verdict_OBSOLETE
	default:
		after := Written{r.Stamp, r.Content}
		if h.Watch != nil {
			h.Watch.Wrote(before, after, uid)
		}
		e = e.wrote(uid, after)
	}
	switch {
	case uid == "":
		e = e.away(false)
	case r.Gone && !object.Deleting:
		return e, fleet.Verdict_OBSOLETE
	case r.Gone:
		e = e.Delete(uid)
	}
	return e, fleet.Verdict_STORED
}

func (h *Hub) writeJournal(e *Etcd, w Writing) *Etcd {
	for _, g := range w.Journal.GetGaps() {
		e = e.lost(eventName(w.Store, g.GetBoot(), g.GetFrom()))
	}
	for _, entry := range w.Journal.GetEntries() {
		name := h.Transitions.EventName(h.Reign, w.Store, entry.GetBoot(), entry.GetSeq())
		before := e.Events[name]
		if h.Watch != nil {
			h.Watch.WroteEvent(name, before, entry.GetCount())
		}
		if before == 0 {
			e = e.event(name, entry.GetCount())
		}
	}
	if h.Peer.Open() && h.Transitions.SameFile(w.Store, h.store) {
		h.part().JournalAck = upTo(w.Journal)
	}
	return e
}

// upTo is the place that answers for all of a journal's message.
func upTo(j *fleet.Journal) *fleet.JournalAck {
	var m Mark
	raise := func(o Mark) {
		if !o.UpTo(m) {
			m = o
		}
	}
	for _, g := range j.GetGaps() {
		raise(Mark{g.GetBoot(), g.GetTo()})
	}
	for _, e := range j.GetEntries() {
		raise(Mark{e.GetBoot(), e.GetSeq()})
	}
	return &fleet.JournalAck{Boot: m.Boot, Seq: m.Seq}
}
