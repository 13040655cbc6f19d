package linkcheck

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/edgelet/link"
	"github.com/coracle-edge/coracle/test/linkcheck/play"
)

// A budget bounds how often something happens on one way through a scenario.
// What isn't listed isn't bounded but by the depth.
const (
	losses      = iota // of messages
	copies             // of messages, delivered and kept
	reorders           // deliveries out of turn
	nodeTimers         // of the node
	hubTimers          // of the hubs
	breaks             // of the node's connection
	crashes            // of the node
	fulls              // of its disk
	stateLosses        // of its state file
	flushes            // of reports and journal to its disk
	fetchErrors        // of large objects
	says               // reports
	notes              // journal entries
	refusals           // by the API server
	changes            // of what should be, from the scenario's script
	hubCrashes         // a hub's process ends
	hubStarts          // another one begins, with a new epoch
	hubBlind           // that one begins before its informers have synced
	cuts               // of a hub from the broker
	unables            // a hub can't make an order
	restores           // of etcd from a snapshot, in a new incarnation
	rollbacks          // of etcd from a snapshot, without anybody knowing
	adoptions          // by an operator
	clocks             // jumps of the wall clock
	budgets
)

type kind uint8

const (
	deliverUp kind = iota
	copyUp
	loseUp
	deliverDown
	copyDown
	loseDown
	nodeTimer
	hubTimer
	breakConn
	connect
	crash
	loseState
	flush
	fetched
	say
	note
	write
	refuse
	change
	observe
	hubCrash
	hubStart
	cut
	mend
	unable
	snapshot
	restore
	rollback
	adopt
	clock
	setClock // of a hub, right again
)

// action is one step: of whom, on what, with which outcome of a durable write.
type action struct {
	kind    kind
	hub     uint8
	at      uint8
	outcome play.Outcome
	fails   bool
}

// may says whether a budget isn't spent.
func (w *World) may(b int) bool {
	return w.spent[b] < w.s.Limits[b] && (w.faults == 0 || !isFault(b) || w.wrong() < w.faults)
}

// isFault: what pods do, and what is wanted of them, isn't.
func isFault(b int) bool { return b != says && b != notes && b != changes }

// wrong is how much has gone wrong so far.
func (w *World) wrong() uint8 {
	n := uint8(0)
	for b, spent := range w.spent {
		if isFault(b) {
			n += spent
		}
	}
	return n
}

// actions lists what can happen next, always in the same order. Outcomes of
// durable writes are added by next.
func (w *World) actions() []action {
	out := make([]action, 0, 24)
	add := func(a action) { out = append(out, a) }
	for i := range uint8(slots) {
		for j := range w.up[i] {
			w.letterActions(add, i, uint8(j), deliverUp, copyUp, loseUp)
		}
		for j := range w.down[i] {
			w.letterActions(add, i, uint8(j), deliverDown, copyDown, loseDown)
		}
	}
	w.nodeActions(add)
	for i := range uint8(slots) {
		if w.hubs[i] != nil {
			w.hubActions(add, i)
		}
	}
	w.clusterActions(add)
	return out
}

func (w *World) letterActions(add func(action), hub, at uint8, deliver, copy, lose kind) {
	if at == 0 || w.may(reorders) {
		add(action{kind: deliver, hub: hub, at: at})
		if w.may(copies) {
			add(action{kind: copy, hub: hub, at: at})
		}
	}
	if w.may(losses) {
		add(action{kind: lose, hub: hub, at: at})
	}
}

func (w *World) nodeActions(add func(action)) {
	n := w.node
	online := n.Machine.Phase() != link.Offline
	if _, ok := n.Machine.Deadline(); ok && w.may(nodeTimers) {
		add(action{kind: nodeTimer})
	}
	if online && w.may(breaks) {
		add(action{kind: breakConn})
	}
	if !online {
		add(action{kind: connect})
	}
	if w.may(crashes) {
		add(action{kind: crash})
	}
	if w.may(stateLosses) {
		add(action{kind: loseState})
	}
	if w.may(flushes) && w.unflushed() {
		add(action{kind: flush})
	}
	if len(n.Fetching) > 0 {
		if w.serves() {
			add(action{kind: fetched})
		}
		if !w.serves() || w.may(fetchErrors) {
			add(action{kind: fetched, fails: true})
		}
	}
	if w.may(says) {
		for j, r := range n.Running {
			if !r.Gone || r.Unsaid {
				add(action{kind: say, at: uint8(j)})
			}
		}
	}
	if w.may(notes) {
		add(action{kind: note})
	}
}

func (w *World) hubActions(add func(action), i uint8) {
	h := w.hubs[i]
	if _, ok := h.Peer.Deadline(); ok && w.may(hubTimers) {
		add(action{kind: hubTimer, hub: i})
	}
	if w.attached(int(i)) {
		for j, pending := range h.Writes {
			if w.refuses(pending) {
				add(action{kind: refuse, hub: i, at: uint8(j)})
				continue
			}
			add(action{kind: write, hub: i, at: uint8(j)})
			if w.may(refusals) && pending.Key != play.Journal && pending.Key != play.Away {
				add(action{kind: refuse, hub: i, at: uint8(j)})
			}
		}
		if h.View != w.etcd.View {
			add(action{kind: observe, hub: i})
		}
	}
	if w.may(hubCrashes) {
		add(action{kind: hubCrash, hub: i})
	}
	if !h.Linked {
		add(action{kind: mend, hub: i})
	} else if w.may(cuts) {
		add(action{kind: cut, hub: i})
	}
	if w.may(unables) && !h.Unable {
		add(action{kind: unable, hub: i})
	}
	if w.may(adoptions) && w.adoptable(int(i)) {
		add(action{kind: adopt, hub: i})
	}
}

func (w *World) clusterActions(add func(action)) {
	if w.may(changes) && w.script < len(w.s.Script) {
		add(action{kind: change})
	}
	if free := w.free(); free >= 0 && w.may(hubStarts) {
		add(action{kind: hubStart, hub: uint8(free)})
		if w.may(hubBlind) {
			add(action{kind: hubStart, hub: uint8(free), fails: true})
		}
	}
	if w.saved == nil && (w.may(restores) || w.may(rollbacks)) {
		add(action{kind: snapshot})
	}
	if w.saved != nil && w.may(restores) {
		add(action{kind: restore})
	}
	if w.saved != nil && w.may(rollbacks) {
		add(action{kind: rollback})
	}
	if w.may(clocks) {
		add(action{kind: clock})
	}
}

// free is a slot without a hub, -1 if both have one.
func (w *World) free() int {
	for i, h := range w.hubs {
		if h == nil {
			return i
		}
	}
	return -1
}

// unflushed says whether the node said something that a power cut takes.
func (w *World) unflushed() bool {
	m, d := w.node.Memory, w.node.Disk.Outbox
	return m.Acked != d.Acked || !slices.Equal(m.Reports, d.Reports) || !slices.Equal(m.Entries, d.Entries) || !slices.Equal(m.Gaps, d.Gaps)
}

// refuses says whether the API server has refused that, and always will.
func (w *World) refuses(r play.Writing) bool {
	return r.Report.Content != 0 && w.refused[r.Key] == r.Report.Content
}

// serves says whether a hub still serves all that the node fetches.
func (w *World) serves() bool {
	for _, o := range w.node.Fetching {
		if _, ok := w.serve(o.GetUid(), fleet.Hash(o.GetHash())); !ok {
			return false
		}
	}
	return true
}

func (w *World) serve(uid string, hash fleet.Hash) (string, bool) {
	for _, h := range w.hubs {
		if h != nil && h.View.Objects[uid].Hash == hash {
			return h.View.Objects[uid].Raw, true
		}
	}
	return "", false
}

// adoptable: an operator adopts a node that is there and is foreign, and not
// while a hub of a past that was lost still runs.
func (w *World) adoptable(i int) bool {
	for j := range w.hubs {
		if w.hubs[j] != nil && !w.attached(j) {
			return false
		}
	}
	return w.attached(i) && w.hubs[i].Peer.Confirmed() && w.hubs[i].Peer.IsForeign() && !w.hubs[i].Operator
}

// next gives each state that can come after w to yield, until that says no.
func (w *World) next(yield func(action, *World) bool) {
	for _, a := range w.actions() {
		n := w.apply(a)
		if !yield(a, n) {
			return
		}
		if n.node.Stored == 0 || n.node == w.node {
			continue
		}
		for _, o := range []play.Outcome{play.Full, play.CrashBefore, play.CrashAfter} {
			if o == play.Full && !w.may(fulls) || o != play.Full && !w.may(crashes) {
				continue
			}
			a.outcome = o
			if !yield(a, w.apply(a)) {
				return
			}
		}
	}
}

// apply does an action to a copy of w.
func (w *World) apply(a action) *World {
	c := w.clone()
	i, j := int(a.hub), int(a.at)
	if b, ok := a.budget(); ok {
		c.spent[b]++
	}
	switch a.outcome {
	case play.Full:
		c.spent[fulls]++
	case play.CrashBefore, play.CrashAfter:
		c.spent[crashes]++
	}
	switch a.kind {
	case deliverUp, copyUp:
		l := c.up[i][j]
		if a.at > 0 {
			c.spent[reorders]++
		}
		if a.kind == deliverUp {
			c.up[i] = take(c.up[i], j)
		}
		c.changeHub(i, func(h *play.Hub) {
			if l.will != nil {
				h.Will(c.etcd, *l.will)
			} else {
				h.Receive(c.etcd, l.up)
			}
		})
	case loseUp:
		c.up[i] = take(c.up[i], j)
	case deliverDown, copyDown:
		l := c.down[i][j]
		if a.at > 0 {
			c.spent[reorders]++
		}
		if a.kind == deliverDown {
			c.down[i] = take(c.down[i], j)
		}
		c.changeNode(func(n *play.Node) {
			n.Outcome = a.outcome
			n.Receive(l.down, l.from)
		})
	case loseDown:
		c.down[i] = take(c.down[i], j)
	case nodeTimer:
		c.nodeTimer()
	case hubTimer:
		c.hubTimer(i)
	case breakConn:
		c.changeNode((*play.Node).Break)
	case connect:
		c.connect()
	case crash:
		c.changeNode((*play.Node).Crash)
	case loseState:
		c.files++
		c.last = order{none: true}
		c.changeNode(func(n *play.Node) { n.Lose(fmt.Sprint("s", c.files)) })
	case flush:
		c.changeNode((*play.Node).Flush)
	case fetched:
		c.fetched(a.outcome, a.fails)
	case say:
		c.say(c.node.Running[j].UID)
	case note:
		c.said++
		c.changeNode(func(n *play.Node) { n.Note(c.said) })
	case write:
		c.write(i, c.hubs[i].Writes[j].Key, false)
	case refuse:
		if r := c.hubs[i].Writes[j]; !c.refuses(r) {
			c.spent[refusals]++
			c.refused = maps.Clone(c.refused)
			if c.refused == nil {
				c.refused = map[string]uint32{}
			}
			c.refused[r.Key] = r.Report.Content
		}
		c.write(i, c.hubs[i].Writes[j].Key, true)
	case change:
		c.change()
	case observe:
		c.changeHub(i, func(h *play.Hub) { h.Observe(c.etcd, c.etcd.View) })
	case hubCrash:
		c.killHub(i)
	case hubStart:
		if a.fails {
			c.spent[hubBlind]++
		}
		c.startHub(i, !a.fails)
	case cut:
		c.up[i] = nil
		c.changeHub(i, func(h *play.Hub) { h.Cut(c.etcd) })
	case mend:
		c.changeHub(i, func(h *play.Hub) { h.Mend(c.etcd) })
	case unable:
		c.changeHub(i, func(h *play.Hub) { h.Unable = true })
	case snapshot:
		c.saved, c.savedKey = c.etcd, c.etcdKey
		c.setEtcd(c.etcd.Skip(1000)) // see play.Etcd.Restore
	case restore:
		c.restore("B")
	case rollback:
		c.restore("")
	case adopt:
		c.changeHub(i, func(h *play.Hub) { h.Adopt(c.etcd) })
	case clock:
		c.jump()
	case setClock:
		c.changeHub(i, func(h *play.Hub) { h.Unix = max(h.Unix, c.node.Unix) })
	}
	return c
}

// budget that an action is charged to.
func (a action) budget() (int, bool) {
	switch a.kind {
	case copyUp, copyDown:
		return copies, true
	case loseUp, loseDown:
		return losses, true
	case nodeTimer:
		return nodeTimers, true
	case hubTimer:
		return hubTimers, true
	case breakConn:
		return breaks, true
	case crash:
		return crashes, true
	case loseState:
		return stateLosses, true
	case flush:
		return flushes, true
	case fetched:
		return fetchErrors, a.fails
	case say:
		return says, true
	case note:
		return notes, true
	case change:
		return changes, true
	case hubCrash:
		return hubCrashes, true
	case hubStart:
		return hubStarts, true
	case cut:
		return cuts, true
	case unable:
		return unables, true
	case restore:
		return restores, true
	case rollback:
		return rollbacks, true
	case adopt:
		return adoptions, true
	case clock:
		return clocks, true
	}
	return 0, false
}

func (w *World) nodeTimer() {
	w.changeNode(func(n *play.Node) {
		at, _ := n.Machine.Deadline()
		n.Now = max(n.Now, at)
		n.Tick()
		if again, ok := n.Machine.Deadline(); ok && again <= n.Now {
			w.fail(NoTimerSpins, "the node's timer of %v is due again at once", at)
		}
	})
}

func (w *World) hubTimer(i int) {
	w.changeHub(i, func(h *play.Hub) {
		at, _ := h.Peer.Deadline()
		h.Now = max(h.Now, at)
		h.Tick(w.etcd)
		if again, ok := h.Peer.Deadline(); ok && again <= h.Now {
			w.fail(NoTimerSpins, "hub %d's timer of %v is due again at once", h.Reign, at)
		}
	})
}

func (w *World) fetched(outcome play.Outcome, fails bool) {
	w.changeNode(func(n *play.Node) {
		n.Outcome = outcome
		hashes := map[string]fleet.Hash{}
		for _, o := range n.Fetching {
			hashes[o.GetUid()] = fleet.Hash(o.GetHash())
		}
		n.Fetched(func(uid string) (string, bool) {
			if fails {
				return "", false
			}
			return w.serve(uid, hashes[uid])
		})
	})
}

func (w *World) say(uid string) {
	w.said++
	w.changeNode(func(n *play.Node) { n.Say(uid, w.said) })
}

func (w *World) write(i int, key string, refuse bool) {
	w.changeHub(i, func(h *play.Hub) { w.setEtcd(h.Write(w.etcd, key, refuse)) })
}

func (w *World) change() {
	c := w.s.Script[w.script]
	w.script++
	if c.Object == nil {
		w.setEtcd(w.etcd.Delete(c.UID))
		return
	}
	w.setEtcd(w.etcd.Put(c.UID, *c.Object))
}

func (w *World) restore(incarnation string) {
	w.timelines++
	w.reigning = 0
	w.forks[w.timelines] = fork{w.saved.View.Timeline, w.saved.View.Revision}
	w.setEtcd(w.saved.Restore(w.timelines, incarnation))
}

// jump sets all clocks forward, beyond what orders live; the node's only rises.
func (w *World) jump() {
	w.unix += 2 * w.s.Expires
	w.changeNode(func(n *play.Node) { n.Unix = max(n.Unix, w.unix) })
	for i := range w.hubs {
		if w.hubs[i] != nil {
			w.changeHub(i, func(h *play.Hub) { h.Unix = w.unix })
		}
	}
}

// describe says what a step is, in the state before it.
func (w *World) describe(a action) string {
	hub := func() string {
		if h := w.hubs[a.hub]; h != nil {
			return fmt.Sprintf("hub %d", h.Reign)
		}
		return fmt.Sprintf("the hub in slot %d", a.hub)
	}
	turn := ""
	if a.at > 0 {
		turn = " out of turn"
	}
	var text string
	switch a.kind {
	case deliverUp:
		text = hub() + " gets" + turn + " " + w.up[a.hub][a.at].String()
	case copyUp:
		text = hub() + " gets a copy" + turn + " of " + w.up[a.hub][a.at].String()
	case loseUp:
		text = "lost on the way to " + hub() + ": " + w.up[a.hub][a.at].String()
	case deliverDown:
		text = "the node gets" + turn + " " + w.down[a.hub][a.at].String()
	case copyDown:
		text = "the node gets a copy" + turn + " of " + w.down[a.hub][a.at].String()
	case loseDown:
		text = "lost on the way to the node: " + w.down[a.hub][a.at].String()
	case nodeTimer:
		text = "a timer of the node"
	case hubTimer:
		text = "a timer of " + hub()
	case breakConn:
		text = "the node's connection breaks"
	case connect:
		text = "the node connects"
	case crash:
		text = "power cut of the node"
	case loseState:
		text = "the node starts with its state file lost"
	case flush:
		text = "the node's outbox is on its disk"
	case fetched:
		text = "the node has fetched what is large"
		if a.fails {
			text = "the node can't fetch what is large"
		}
	case say:
		text = fmt.Sprintf("the node has to report of %q", w.node.Running[a.at].UID)
	case note:
		text = "the node writes into its journal"
	case write:
		text = fmt.Sprintf("%s writes %q", hub(), w.hubs[a.hub].Writes[a.at].Key)
	case refuse:
		text = fmt.Sprintf("the API server refuses %s %q", hub(), w.hubs[a.hub].Writes[a.at].Key)
	case change:
		c := w.s.Script[w.script]
		text = fmt.Sprintf("what should be changes: %s", c)
	case observe:
		text = hub() + "'s informers see it"
	case hubCrash:
		text = hub() + " dies"
	case hubStart:
		text = fmt.Sprintf("hub %d begins", w.reigns+1)
		if a.fails {
			text += " before its informers have synced"
		}
	case cut:
		text = hub() + " is cut from the broker"
	case mend:
		text = hub() + " is back at the broker"
	case unable:
		text = hub() + " can't make its next order"
	case snapshot:
		text = "a snapshot of etcd"
	case restore:
		text = "etcd is restored from the snapshot, as another incarnation"
	case rollback:
		text = "etcd is restored from the snapshot, and nobody says so"
	case adopt:
		text = "an operator has " + hub() + " adopt the node"
	case clock:
		text = "the clocks jump"
	case setClock:
		text = hub() + "'s clock is right again"
	}
	if a.outcome != play.Done {
		text += "; " + a.outcome.String()
	}
	return text
}

// String says what a message carries.
func (l letter) String() string {
	if l.will != nil {
		return fmt.Sprintf("the will of connection %d/%d", l.will.Boot, l.will.Conn)
	}
	var parts []string
	add := func(is bool, format string, args ...any) {
		if is {
			parts = append(parts, fmt.Sprintf(format, args...))
		}
	}
	if u := l.up; u != nil {
		s := fleet.SessionFrom(u.GetSession())
		add(u.Hello != nil, "Hello(has %s)", fleet.VersionFrom(u.GetHello().GetVersion()))
		add(u.Ack != nil, "Ack(%s %s)", fleet.VersionFrom(u.GetAck().GetVersion()), u.GetAck().GetStatus())
		for _, r := range u.GetReport().GetPods() {
			add(true, "Report(%s %d)", r.GetUid(), r.GetStamp().GetSeq())
		}
		add(u.GetReport().GetNode() != nil, "Report(node)")
		add(u.Journal != nil, "Journal(%d entries)", len(u.GetJournal().GetEntries()))
		return fmt.Sprintf("%d/%d/%d#%d[%s]", s.Boot, s.Conn, s.Hello, u.GetSeq(), strings.Join(parts, " "))
	}
	d := l.down
	s := fleet.SessionFrom(d.GetSession())
	add(d.Welcome != nil, "Welcome(%s)", fleet.VersionFrom(d.GetWelcome().GetVersion()))
	add(d.Adopt != nil, "Adopt(%s)", fleet.VersionFrom(d.GetAdopt().GetTo()))
	if o := d.GetOrder(); o.GetList() {
		add(true, "Order(%s list of %d)", fleet.VersionFrom(o.GetVersion()), len(o.GetEntries()))
	} else if o != nil {
		add(true, "Order(%s +%d -%v)", fleet.VersionFrom(o.GetVersion()), len(o.GetUpserts()), o.GetRemoves())
	}
	for _, v := range d.GetReportAck().GetVerdicts() {
		add(true, "ReportAck(%q %d %s)", v.GetUid(), v.GetStamp().GetSeq(), v.GetVerdict())
	}
	add(d.JournalAck != nil, "JournalAck(%d/%d)", d.GetJournalAck().GetBoot(), d.GetJournalAck().GetSeq())
	add(d.Resend != nil, "Resend")
	add(d.Rebirth != nil, "Rebirth(%s)", fleet.VersionFrom(d.GetRebirth().GetVersion()))
	return fmt.Sprintf("hub %d's %d/%d/%d#%d[%s]", l.from.Reign, s.Boot, s.Conn, s.Hello, d.GetSeq(), strings.Join(parts, " "))
}
