package linkcheck

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/coracle-edge/coracle/controlplane/fleethub"
	"github.com/coracle-edge/coracle/edgelet/link"
	"github.com/coracle-edge/coracle/test/linkcheck/play"
)

// maxSettle bounds the way from any state to one in which all is in step, in
// steps; maxSettleTime in time.
const (
	maxSettle     = 400
	maxSettleTime = 40 * time.Minute
)

// settled is how far a state is from being in step.
type settled struct {
	steps uint16 // and one more
	time  uint16 // seconds
}

// unsettled says what isn't in step yet, by which invariant it has to be; empty
// if all is.
func (w *World) unsettled() (Invariant, string) {
	i := w.current()
	if i < 0 {
		return Converges, "there is no hub"
	}
	for j := range slots {
		if len(w.up[j])+len(w.down[j]) > 0 {
			return Converges, "messages are under way"
		}
		if w.hubs[j] != nil && len(w.hubs[j].Writes) > 0 {
			return Converges, "hubs have something to write"
		}
	}
	h, n := w.hubs[i], w.node
	has, known := h.Peer.Has()
	want := w.etcd.View.Desired().Set()
	switch {
	case h.View != w.etcd.View:
		return Converges, "the hub doesn't see etcd's present"
	case n.Machine.Phase() != link.Live:
		return Converges, "the node's session is " + n.Machine.Phase().String()
	case h.Peer.Presence() != fleethub.Present || !h.Peer.Confirmed():
		return Converges, fmt.Sprintf("for hub %d the node is %s", h.Reign, h.Peer.Presence())
	case h.Peer.IsForeign():
		return Converges, fmt.Sprintf("the node is foreign to hub %d", h.Reign)
	case !maps.Equal(n.Disk.Set, want):
		return Converges, fmt.Sprintf("the node has %d objects, other than the %d that it should have", len(n.Disk.Set), len(want))
	case !known || !maps.Equal(has, want):
		return Converges, fmt.Sprintf("hub %d doesn't know that the node has all", h.Reign)
	case len(n.Fetching) > 0:
		return Converges, "the node is fetching"
	}
	return w.slotsHeld()
}

func (w *World) slotsHeld() (Invariant, string) {
	if w.node.Memory.Waiting() {
		return NoSlotHeld, "journal entries aren't answered for"
	}
	for _, r := range w.node.Memory.Reports {
		if !r.Acked {
			return NoSlotHeld, fmt.Sprintf("report %d of %q isn't answered for", r.Content, r.UID)
		}
	}
	for _, r := range w.node.Running {
		if w.toSay(r) {
			return NoSlotHeld, fmt.Sprintf("nothing was said of %q being gone", r.UID)
		}
		_, exists := w.etcd.View.Objects[r.UID]
		if !exists && r.UID != NodeItself || r.Content == 0 || w.refused[r.UID] == r.Content {
			continue
		}
		if have := w.etcd.Reports[r.UID].Content; have != r.Content {
			return NothingLostOrTwice, fmt.Sprintf("etcd has report %d of %q, the newest is %d", have, r.UID, r.Content)
		}
		if r.UID == NodeItself && w.etcd.View.Away {
			return Converges, "etcd says that the node is away"
		}
	}
	return "", ""
}

// toSay: the pod is to be reported gone.
func (w *World) toSay(r play.Running) bool {
	if r.Unsaid {
		return true
	}
	for _, p := range w.node.Disk.Pods {
		if p.UID == r.UID && p.Deleting && !r.Gone {
			return true
		}
	}
	return false
}

// step is what a world in which nothing goes wrong does next.
type step struct {
	action
	took   time.Duration
	passes bool // time does
	none   bool // there is nothing to do
}

// describe says what a step is, in the state before it.
func (w *World) describeStep(s step) string {
	if s.passes {
		return fmt.Sprintf("%v pass", s.took)
	}
	return w.describe(s.action)
}

// onward does the next step of a world in which nothing goes wrong any more: all
// that can be done at once is done before time passes.
func (w *World) onward() (*World, step) {
	a, ok := w.onwardAction()
	if ok {
		return w.apply(a), step{action: a}
	}
	return w.pass()
}

func (w *World) onwardAction() (action, bool) {
	for i, h := range w.hubs {
		switch {
		case h == nil:
		case !w.attached(i): // its etcd is gone
			return action{kind: hubCrash, hub: uint8(i)}, true
		case !h.Linked:
			return action{kind: mend, hub: uint8(i)}, true
		case h.View != w.etcd.View:
			return action{kind: observe, hub: uint8(i)}, true
		case h.Unix < w.node.Unix:
			return action{kind: setClock, hub: uint8(i)}, true
		}
	}
	if w.current() < 0 {
		if w.free() < 0 {
			return action{kind: hubCrash}, true
		}
		return action{kind: hubStart, hub: uint8(w.free())}, true
	}
	if w.node.Machine.Phase() == link.Offline {
		return action{kind: connect}, true
	}
	for i := range uint8(slots) {
		if len(w.up[i]) > 0 {
			return action{kind: deliverUp, hub: i}, true
		}
		if len(w.down[i]) > 0 {
			return action{kind: deliverDown, hub: i}, true
		}
	}
	if len(w.node.Fetching) > 0 {
		return action{kind: fetched, fails: !w.serves()}, true
	}
	for i := slots - 1; i >= 0; i-- { // what an older hub has to write comes last
		if h := w.hubs[i]; h != nil && len(h.Writes) > 0 {
			if w.refuses(h.Writes[0]) {
				return action{kind: refuse, hub: uint8(i)}, true
			}
			return action{kind: write, hub: uint8(i)}, true
		}
	}
	for j, r := range w.node.Running {
		if w.toSay(r) {
			return action{kind: say, at: uint8(j)}, true
		}
	}
	if i := w.current(); w.timelines > 0 && w.adoptable(i) { // else nobody could know why
		return action{kind: adopt, hub: uint8(i)}, true
	}
	return action{}, false
}

// pass lets time pass, the same on all clocks, to the first timer.
func (w *World) pass() (*World, step) {
	wait := time.Duration(math.MaxInt64)
	until := func(now, at time.Duration, ok bool) {
		if ok {
			wait = min(wait, max(at-now, 0))
		}
	}
	at, ok := w.node.Machine.Deadline()
	until(w.node.Now, at, ok)
	for _, h := range w.hubs {
		if h != nil {
			at, ok := h.Peer.Deadline()
			until(h.Now, at, ok)
		}
	}
	if wait == math.MaxInt64 {
		return w, step{none: true}
	}
	c := w.clone()
	for i, h := range c.hubs {
		if h == nil {
			continue
		}
		if at, ok := h.Peer.Deadline(); ok && at <= h.Now+wait {
			c.hubTimer(i)
			continue
		}
		c.changeHub(i, func(h *play.Hub) { h.Now += wait })
	}
	if at, ok := c.node.Machine.Deadline(); ok && at <= c.node.Now+wait {
		c.nodeTimer()
	} else {
		c.changeNode(func(n *play.Node) { n.Now += wait })
	}
	return c, step{passes: true, took: wait}
}

// settle follows w until all is in step and says how far that was. known are
// states whose way is known; what is found is added to found. A violation's trace
// has the steps from w on.
func (w *World) settle(known func(Key) (settled, bool), found func(Key, settled)) (settled, *Violation) {
	type station struct {
		w   *World
		key Key
		step
	}
	var way []station
	broken := func(i Invariant, format string, args ...any) *Violation {
		v := &Violation{Invariant: i, What: fmt.Sprintf(format, args...)}
		for _, st := range way {
			if !st.none {
				v.Trace = append(v.Trace, st.w.describeStep(st.step))
			}
		}
		return v
	}
	total := time.Duration(0)
	for {
		k := w.key()
		rest, ok := known(k)
		if !ok {
			i, what := w.unsettled()
			if ok = what == ""; !ok {
				n, st := w.onward()
				way, total = append(way, station{w, k, st}), total+st.took
				switch {
				case st.none:
					return settled{}, broken(i, "nothing is left to be done, but %s", what)
				case len(way) > maxSettle || total > maxSettleTime:
					return settled{}, broken(i, "after %d steps and %v without faults: %s", len(way), total, what)
				case n.failure != nil:
					return settled{}, broken(n.failure.Invariant, "%s", n.failure.What)
				}
				w = n
				continue
			}
			way = append(way, station{w: w, key: k})
		}
		at := time.Duration(rest.time) * time.Second
		for _, st := range slices.Backward(way) {
			at += st.took
			rest = settled{rest.steps + 1, uint16(at / time.Second)}
			found(st.key, rest)
		}
		return rest, nil
	}
}
