package linkcheck

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/coracle-edge/coracle/edgelet/link"
	"github.com/coracle-edge/coracle/test/linkcheck/play"
)

// Walk takes one way through a scenario, chosen by seed, that is far longer than
// what can be explored: what may go wrong there goes wrong again and again, what
// should be changes by itself, and timers fire late, too. Every so often it must be
// able to come back into step.
func Walk(s *Scenario, seed uint64, steps int) (*Violation, error) {
	rnd := rand.New(rand.NewPCG(seed, 1))
	endless := *s
	for b, n := range s.Limits {
		// One restore: the next of the same snapshot would be told by nothing.
		if n > 0 && b != restores && b != rollbacks {
			endless.Limits[b] = 255
		}
	}
	endless.Script = script(s, rnd, steps/4)
	w, err := endless.begin()
	if err != nil {
		return nil, err
	}
	t := &walker{rnd: rnd, w: w}
	for i := range steps {
		if v := t.step(); v != nil {
			return v, nil
		}
		if i%40 != 39 {
			continue
		}
		if v := t.settles(); v != nil {
			return v, nil
		}
	}
	return nil, nil
}

// script has so many changes, of the kinds that the scenario's has.
func script(s *Scenario, rnd *rand.Rand, n int) []Change {
	has := func(is func(Change) bool) bool { return slices.ContainsFunc(s.Script, is) }
	sizes := []int{small, small, small, half}
	if has(func(c Change) bool { return c.Object != nil && c.Object.Size > half }) {
		sizes = append(sizes, large)
	}
	deletes := has(func(c Change) bool { return c.Object != nil && c.Object.Deleting })
	var uids []string
	for uid := range s.Objects {
		uids = append(uids, uid)
	}
	slices.Sort(uids)
	var out []Change
	for i := range n {
		switch size := sizes[rnd.IntN(len(sizes))]; {
		case len(uids) < 2 || len(uids) < 5 && rnd.IntN(2) == 0:
			uids = append(uids, fmt.Sprint("p", i)) // a UID never comes again
			out = append(out, set(uids[len(uids)-1], sized(play.Pod, uids[len(uids)-1], i, size)))
		case rnd.IntN(2) == 0:
			k := rnd.IntN(len(uids))
			if deletes && rnd.IntN(2) == 0 {
				out = append(out, set(uids[k], play.NewObject(play.Pod, uids[k], i, small, true)))
			} else {
				out = append(out, gone(uids[k]))
			}
			uids = slices.Delete(uids, k, k+1)
		default:
			k := rnd.IntN(len(uids))
			out = append(out, set(uids[k], sized(play.Pod, uids[k], i, size)))
		}
	}
	return out
}

// walker remembers the last steps of a walk.
type walker struct {
	rnd  *rand.Rand
	w    *World
	last []string
}

func (t *walker) note(text string) {
	if t.last = append(t.last, text); len(t.last) > 60 {
		t.last = t.last[1:]
	}
}

func (t *walker) broken(v *Violation) *Violation {
	return &Violation{v.Invariant, v.What, slices.Concat(t.last, v.Trace)}
}

// step does something, mostly what a network does.
func (t *walker) step() *Violation {
	t.w.spent = [budgets]uint8{restores: t.w.spent[restores], rollbacks: t.w.spent[rollbacks], clocks: t.w.spent[clocks]}
	if t.rnd.IntN(8) == 0 {
		t.pass()
	}
	all := t.w.actions()
	if len(all) == 0 {
		return nil
	}
	a := all[t.rnd.IntN(len(all))]
	if ordinary := slices.DeleteFunc(slices.Clone(all), unusual); len(ordinary) > 0 && t.rnd.IntN(4) != 0 {
		a = ordinary[t.rnd.IntN(len(ordinary))]
	}
	t.note(t.w.describe(a))
	n := t.w.apply(a)
	if n.node != t.w.node && n.node.Stored > 0 && t.rnd.IntN(5) == 0 {
		a.outcome = play.Outcome(1 + t.rnd.IntN(3))
		if a.outcome == play.Full && t.w.may(fulls) || a.outcome != play.Full && t.w.may(crashes) {
			t.note("or rather: " + t.w.describe(a))
			n = t.w.apply(a)
		}
	}
	t.w = n
	if n.failure != nil {
		return t.broken(n.failure)
	}
	return nil
}

// unusual is what nobody would call the work of the link.
func unusual(a action) bool {
	switch a.kind {
	case deliverUp, deliverDown, connect, fetched, write, observe, mend, adopt, say, note, change:
		return a.fails
	}
	return true
}

// pass lets some time pass, on both sides; what is due meanwhile is late.
func (t *walker) pass() {
	wait := []time.Duration{100 * time.Millisecond, 3 * time.Second, 20 * time.Second, 2 * time.Minute}[t.rnd.IntN(4)]
	t.note(fmt.Sprintf("%v pass", wait))
	t.w = t.w.clone()
	t.w.changeNode(func(n *play.Node) { n.Now += wait })
	for i, h := range t.w.hubs {
		if h != nil {
			t.w.changeHub(i, func(h *play.Hub) { h.Now += wait })
		}
	}
	if at, ok := t.w.node.Machine.Deadline(); ok && at <= t.w.node.Now && t.w.node.Machine.Phase() != link.Offline && t.rnd.IntN(2) == 0 {
		t.w.nodeTimer()
	}
}

// settles says whether the way back into step is open, and sometimes goes it.
func (t *walker) settles() *Violation {
	known := func(Key) (settled, bool) { return settled{}, false }
	if _, v := t.w.settle(known, func(Key, settled) {}); v != nil {
		t.note("--- from here on nothing goes wrong any more")
		return t.broken(v)
	}
	if t.rnd.IntN(2) == 0 {
		if w, err := t.w.calmed(); err == nil {
			t.note("--- all is in step again")
			t.w = w
		}
	}
	return nil
}
