package linkcheck

import (
	"fmt"
	"strings"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/edgelet/link"
	"github.com/coracle-edge/coracle/test/linkcheck/play"
)

// Invariant is what must hold in every state that can be reached.
type Invariant string

// The invariants. Each is checked by the function of its name below, or in
// settle.go for those that say what must come to pass.
const (
	// Converges: once nothing goes wrong any more the node has, within a bounded
	// number of steps, what the newest hub of its incarnation says it should have.
	Converges Invariant = "the node converges to the newest order of its incarnation"
	// NoOlderOrder: what the node carries out is always newer than what it has
	// carried out, and of the same past.
	NoOlderOrder Invariant = "no older order is ever carried out"
	// StopsOnlyByOrder: absence stops a pod only if a synced hub of the node's own
	// incarnation says so; only an operator moves it into another.
	StopsOnlyByOrder Invariant = "a pod stops only because a synced hub of the node's incarnation said so"
	// NothingLostOrTwice: what the node was answered for is in etcd, once, and
	// nothing older replaced it.
	NothingLostOrTwice Invariant = "no accepted report or journal entry is lost or applied twice"
	// NoSlotHeld: once nothing goes wrong any more each report and entry is
	// answered for.
	NoSlotHeld Invariant = "no outbox slot is held for ever"
	// NoTimerSpins: a timer that was served isn't due again at once.
	NoTimerSpins Invariant = "no timer is due again at once"
	// NewestSaysAway: a hub that has seen that another one began calls nobody away.
	NewestSaysAway Invariant = "no hub calls a node away that knows of a newer hub"
)

// Violation of an invariant, and the way to it.
type Violation struct {
	Invariant Invariant
	What      string
	Trace     []string // steps from the scenario's start
}

func (v *Violation) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "broken: %s\n", v.Invariant)
	for i, step := range v.Trace {
		fmt.Fprintf(&b, "%4d  %s\n", i+1, step)
	}
	fmt.Fprintf(&b, "      %s", v.What)
	return b.String()
}

// Storing implements [play.Watcher].
func (w *World) Storing(n *play.Node, o link.StoreOrder, from *play.Origin) {
	now := order{incarnation: from.Incarnation, timeline: from.Timeline, revision: from.Revision, reign: from.Reign, counter: from.Counter}
	if from.Adopts {
		w.onlyOperatorsAdopt(o, from)
	} else {
		w.noOlderOrder(now)
		if from.Expires != 0 && n.Unix >= from.Expires {
			w.fail(NoOlderOrder, "an order of hub %d is carried out that has expired", from.Reign)
		}
		w.removesOnlyWhatIsNotWanted(o.Removes, from)
	}
	w.last = now
}

func (w *World) onlyOperatorsAdopt(o link.StoreOrder, from *play.Origin) {
	switch {
	case !from.Operator:
		w.fail(StopsOnlyByOrder, "hub %d adopts the node without an operator's word", from.Reign)
	case len(o.Removes)+len(o.Upserts) > 0:
		w.fail(StopsOnlyByOrder, "adoption by hub %d changes what the node has", from.Reign)
	}
}

// noOlderOrder compares what is known of who gave the orders, not the versions
// that they bear.
func (w *World) noOlderOrder(now order) {
	was := w.last
	switch {
	case was.none:
	case now.incarnation != was.incarnation:
		w.fail(NoOlderOrder, "an order of incarnation %q is carried out after one of %q", now.incarnation, was.incarnation)
	case !w.descends(was, now):
		w.fail(NoOlderOrder, "an order of hub %d is carried out, whose etcd doesn't know the order of hub %d before it", now.reign, was.reign)
	case now.reign < was.reign:
		w.fail(NoOlderOrder, "an order of hub %d is carried out after one of hub %d", now.reign, was.reign)
	case now.reign == was.reign && now.counter <= was.counter:
		w.fail(NoOlderOrder, "order %d of hub %d is carried out after order %d", now.counter, now.reign, was.counter)
	}
}

// descends says whether the past of an order knows the one before it.
func (w *World) descends(was, now order) bool {
	f := w.forks[now.timeline]
	return was.timeline == now.timeline || f.parent == was.timeline && was.revision <= f.at
}

func (w *World) removesOnlyWhatIsNotWanted(removes []string, from *play.Origin) {
	for _, uid := range removes {
		w.stopsOnlyByOrder(uid, from)
	}
}

// Stopping implements [play.Watcher].
func (w *World) Stopping(_ *play.Node, uid string, from *play.Origin) {
	w.stopsOnlyByOrder(uid, from)
}

func (w *World) stopsOnlyByOrder(uid string, from *play.Origin) {
	if !from.Live {
		w.fail(StopsOnlyByOrder, "%s goes by an order of hub %d, which has not synced", uid, from.Reign)
	} else if _, wanted := from.View.Objects[uid]; wanted {
		w.fail(StopsOnlyByOrder, "%s goes by an order of hub %d, which wants it", uid, from.Reign)
	}
}

// Released implements [play.Watcher].
func (w *World) Released(_ *play.Node, r play.Report, v fleet.Verdict, from *play.Origin) {
	if v == fleet.Verdict_REJECTED && w.refused[r.UID] == r.Content {
		return
	}
	if from == nil || from.Timeline == w.etcd.View.Timeline { // else etcd itself forgot
		w.reportIsWritten(r, v)
	}
}

func (w *World) reportIsWritten(r play.Report, v fleet.Verdict) {
	if _, ok := w.etcd.View.Objects[r.UID]; !ok && r.UID != NodeItself {
		return
	}
	if have := w.etcd.Reports[r.UID]; have.Content < r.Content {
		w.fail(NothingLostOrTwice, "report %d of %q is released (%s), etcd has %d", r.Content, r.UID, v, have.Content)
	}
}

// JournalReleased implements [play.Watcher].
func (w *World) JournalReleased(n *play.Node, from, to play.Mark, by *play.Origin) {
	if to.UpTo(from) || by.Timeline != w.etcd.View.Timeline {
		return
	}
	if newest := (play.Mark{Boot: n.Disk.Boot, Seq: n.Seq}); !to.UpTo(newest) {
		w.fail(NothingLostOrTwice, "the journal is released up to %v; it has only come to %v", to, newest)
	}
	for _, e := range n.Memory.Entries {
		if !e.UpTo(from) && e.UpTo(to) && !w.hasEvent(e.Content) && !w.etcd.Lost[play.EventName(n.Disk.Store, e.Mark)] {
			w.fail(NothingLostOrTwice, "journal entry %v is released; etcd doesn't have it", e.Mark)
		}
	}
}

func (w *World) hasEvent(content uint32) bool {
	for _, c := range w.etcd.Events {
		if c == content {
			return true
		}
	}
	return false
}

// hubWatch is told of what hubs write.
type hubWatch struct {
	w *World
	i int
}

// Wrote implements [play.HubWatcher].
func (h hubWatch) Wrote(before, after play.Written, uid string) {
	switch {
	case after.Content < before.Content:
		h.w.fail(NothingLostOrTwice, "report %d of %q replaces the newer %d", after.Content, uid, before.Content)
	case after == before:
		h.w.fail(NothingLostOrTwice, "report %d of %q is applied twice", after.Content, uid)
	}
}

// WroteEvent implements [play.HubWatcher].
func (h hubWatch) WroteEvent(name string, before, content uint32) {
	switch {
	case before != 0 && before != content:
		h.w.fail(NothingLostOrTwice, "journal entry %d is taken for entry %d, which has the name %s, too", content, before, name)
	case before == 0 && h.w.hasEvent(content):
		h.w.fail(NothingLostOrTwice, "journal entry %d is applied twice, now as %s", content, name)
	}
}

// WentAway implements [play.HubWatcher].
func (h hubWatch) WentAway(old *play.Hub) {
	if old.View.Epoch > old.Epoch.Number {
		h.w.fail(NewestSaysAway, "hub %d calls the node away and has seen epoch %d", old.Reign, old.View.Epoch)
	}
}
