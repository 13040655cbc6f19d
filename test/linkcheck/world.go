package linkcheck

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/controlplane/fleethub"
	"github.com/coracle-edge/coracle/edgelet/link"
	"github.com/coracle-edge/coracle/test/linkcheck/play"
)

const (
	slots    = 2 // hubs that live at once
	capacity = 4 // messages that the network holds of one sender for one receiver

	// NodeItself is how a scenario names the node's own report.
	NodeItself = ""
)

var timing = fleethub.Timing{Keepalive: time.Minute, WillGrace: time.Second, Jitter: 2 * time.Second}

// letter is a message on its way. It is never changed.
type letter struct {
	up   *fleet.Up
	will *fleet.SessionID
	down *fleet.Down
	from *play.Origin
	key  Key
}

// order is what is known of the order that made the node's set what it is.
type order struct {
	incarnation string
	timeline    int
	revision    uint64
	reign       int
	counter     uint64
	none        bool // it was never given any
}

// fork is where a timeline left another.
type fork struct {
	parent int
	at     uint64 // revision
}

// known is what only the checker knows.
type known struct {
	reigns    int // hubs that began
	reigning  int // the one that did last on the present etcd
	timelines int
	forks     [4]fork // by timeline
	unix      int64   // the wall clock
	files     int     // state files that were lost
	said      uint32  // contents of reports and journal
	last      order
	refused   map[string]uint32 // by UID, what the API server will never take; never changed in place
}

// World is a state of everything: etcd, up to two hubs, the node, and what is on
// its way between them. Its parts are shared between states and never changed in
// place; who changes one takes a copy first.
type World struct {
	s    *Scenario
	keys *keys

	etcd  *play.Etcd
	saved *play.Etcd // a snapshot
	hubs  [slots]*play.Hub
	node  *play.Node
	up    [slots][]letter // to each hub, in the order of sending
	down  [slots][]letter // of each hub

	known

	// What was done so far, which bounds what still may be.
	script int // changes
	spent  [budgets]uint8
	faults uint8 // how many there may be in all; 0 is no bound

	failure *Violation // found while the last step was done

	nodeKey, etcdKey, savedKey Key
	hubKey                     [slots]Key
}

// start is the scenario's first state.
func start(s *Scenario) *World {
	objects := map[string]play.Object{}
	for uid, o := range s.Objects {
		objects[uid] = o
	}
	w := &World{s: s, keys: newKeys(), etcd: play.NewEtcd("A", objects)}
	w.last.none = true
	for i := range w.forks {
		w.forks[i].parent = -1
	}
	w.etcdKey = w.keys.etcd.key(0, w.etcd)
	w.node = play.NewNode(s.Transitions, "s0", s.Running...)
	w.node.MaxEntries, w.node.PerMessage = cmp.Or(s.JournalRoom, 100), cmp.Or(s.JournalPerMessage, 100)
	w.sealNode()
	if slices.Contains(s.Running, NodeItself) {
		w.say(NodeItself)
	}
	w.startHub(0, true)
	w.connect()
	return w
}

func (w *World) clone() *World {
	c := *w
	c.failure = nil
	return &c
}

// fail notes the first violation.
func (w *World) fail(i Invariant, format string, args ...any) {
	if w.failure == nil {
		w.failure = &Violation{Invariant: i, What: fmt.Sprintf(format, args...)}
	}
}

// changeNode lets something happen to the node.
func (w *World) changeNode(what func(*play.Node)) {
	w.node = w.node.Clone()
	w.node.Watch = w
	what(w.node)
	w.sealNode()
}

// sealNode takes what the node published to the network.
func (w *World) sealNode() {
	n := w.node
	n.Watch = nil
	for _, id := range n.Wills {
		id := id
		w.publishUp(letter{will: &id, key: w.keys.will.key(0, &id)})
	}
	for _, u := range n.Sent {
		w.publishUp(letter{up: u, key: w.keys.up.key(0, &struct{ *fleet.Up }{u})})
	}
	n.Sent, n.Wills, n.Outcome = nil, nil, play.Done
	w.nodeKey = w.keys.node.key(n.Now, n)
	w.sweep()
}

func (w *World) publishUp(l letter) {
	for i, h := range w.hubs {
		if h != nil && h.Linked {
			w.up[i] = put(w.up[i], l)
		}
	}
}

// put appends; a network that is full loses the oldest.
func put(queue []letter, l letter) []letter {
	if n := len(queue); n >= capacity {
		queue = queue[n-capacity+1:]
	}
	return append(queue[:len(queue):len(queue)], l)
}

// take returns a queue without its i-th letter.
func take(queue []letter, i int) []letter {
	return append(queue[:i:i], queue[i+1:]...)
}

// changeHub lets something happen to a hub.
func (w *World) changeHub(i int, what func(*play.Hub)) {
	h := w.hubs[i].Clone()
	w.hubs[i] = h
	h.Watch = hubWatch{w, i}
	what(h)
	h.Watch = nil
	for _, sent := range h.Sent {
		w.down[i] = put(w.down[i], letter{down: sent.Down, from: sent.From, key: w.keys.down.key(0, &sent)})
	}
	h.Sent = nil
	w.hubKey[i] = w.keys.hub.key(h.Now, h)
	w.sweep()
}

// setEtcd replaces etcd.
func (w *World) setEtcd(e *play.Etcd) {
	if e != w.etcd {
		w.etcd, w.etcdKey = e, w.keys.etcd.key(0, e)
	}
}

func (w *World) startHub(i int, live bool) {
	w.setEtcd(w.etcd.RaiseEpoch(w.s.Transitions.NextEpoch))
	w.reigns++
	w.reigning = w.reigns
	h := play.NewHub(w.s.Transitions, w.etcd, w.reigns, live, timing)
	h.Alone, h.Expires, h.Unix = w.s.Alone, w.s.Expires, w.unix
	w.hubs[i], w.up[i] = h, nil
	w.changeHub(i, func(h *play.Hub) { h.Begin(w.etcd) })
}

// killHub ends a hub's process; what it sent is still on its way.
func (w *World) killHub(i int) {
	w.hubs[i], w.up[i], w.hubKey[i] = nil, nil, Key{}
}

func (w *World) connect() { w.changeNode((*play.Node).Connect) }

// sweep drops messages that the node will never look at: those of a session
// before its present one, because sessions don't come back. That nothing comes of
// them is tried, not taken for granted.
func (w *World) sweep() {
	for i := range w.down {
		for j := len(w.down[i]) - 1; j >= 0; j-- {
			if w.isDead(w.down[i][j].down) {
				w.down[i] = take(w.down[i], j)
			}
		}
	}
}

func (w *World) isDead(d *fleet.Down) bool {
	if d.GetSession() == nil || w.node.Machine.Phase() != link.Live {
		return false
	}
	id, now := fleet.SessionFrom(d.GetSession()), w.node.Machine.Session()
	if id.Store == now.Store && !now.After(id) {
		return false
	}
	m := w.node.Machine.Clone()
	for _, o := range w.s.Transitions.Down(m, w.node.Now, w.node.Unix, 0, d) {
		if _, refused := o.(link.Refused); !refused {
			return false
		}
	}
	return true
}

// current is the slot of the hub that reigns on the present etcd, -1 if it died.
func (w *World) current() int {
	for i, h := range w.hubs {
		if w.attached(i) && h.Reign == w.reigning {
			return i
		}
	}
	return -1
}

// attached says whether a hub's etcd is the present one.
func (w *World) attached(i int) bool {
	return w.hubs[i] != nil && w.hubs[i].View.Timeline == w.etcd.View.Timeline
}

// key of everything that decides what happens if nothing goes wrong any more.
func (w *World) key() Key {
	e := encoder{out: make([]byte, 0, 512)}
	for _, k := range []Key{w.nodeKey, w.etcdKey, w.hubKey[0], w.hubKey[1]} {
		e.out = append(e.out, k[:]...)
	}
	for i := range slots {
		for _, queue := range [][]letter{w.up[i], w.down[i]} {
			e.number(uint64(len(queue)))
			for _, l := range queue {
				e.out = append(e.out, l.key[:]...)
			}
		}
	}
	k := w.keys.known.key(0, &w.known)
	e.out = append(e.out, k[:]...)
	return e.sum()
}

// fullKey is the key of that and of what still may go wrong.
func (w *World) fullKey(k Key) Key {
	e := encoder{out: append(make([]byte, 0, 128), k[:]...)}
	e.out = append(e.out, w.savedKey[:]...)
	e.out = append(e.out, w.spent[:]...)
	e.number(uint64(w.script))
	return e.sum()
}
