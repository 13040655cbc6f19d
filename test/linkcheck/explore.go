package linkcheck

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// Options of an exploration.
type Options struct {
	// Depth is how many steps from the start are taken.
	Depth int
	// Faults, if not 0, is how many things may go wrong on one way, of all kinds
	// together.
	Faults uint8
	// Workers work at once; the result doesn't depend on how many.
	Workers int
	// MaxStates ends an exploration that becomes too large for the memory, as an
	// error. 40 million if 0.
	MaxStates int
}

// Result of an exploration.
type Result struct {
	Scenario string
	Depth    int
	Faults   uint8 // at most so many on one way; 0 is no bound
	// States are the different ones seen, Steps the transitions between them.
	States, Steps uint64
	// New states by depth, the start's first. The last is 0 if there was nothing
	// beyond: then all that can happen within the scenario's limits was seen.
	New []int
	// Farthest is the longest way back into step from any state, and what it
	// takes there at most.
	Farthest     int
	FarthestTime time.Duration
	Took         time.Duration
	Violation    *Violation
}

// Complete is true if nothing is left beyond the depth.
func (r Result) Complete() bool { return r.Violation == nil && r.New[len(r.New)-1] == 0 }

func (r Result) String() string {
	faults, all := "", ""
	if r.Faults > 0 {
		faults = fmt.Sprintf(" with at most %d faults", r.Faults)
	}
	if r.Complete() {
		all = ", which are all"
	}
	return fmt.Sprintf("%-16s to depth %2d%s: %d states, %d steps%s; in step again after at most %d steps, %v; took %v",
		r.Scenario, r.Depth, faults, r.States, r.Steps, all, r.Farthest, r.FarthestTime, r.Took.Round(100*time.Millisecond))
}

const chunk = 1024 // states that are expanded before what came of them is sorted

// found is a state that is to be expanded.
type found struct {
	w  *World
	id uint32
}

// successor of the state with that place in a chunk.
type successor struct {
	w     *World
	key   Key // full
	place int
	nth   uint16
}

type explorer struct {
	s       *Scenario
	o       Options
	seen    *table
	settled *table   // steps+1 << 16 | seconds, by the key without limits
	parents []uint32 // by id
	nths    []uint16
	result  Result
}

// Explore goes breadth first through everything that can happen in a scenario,
// and checks each state. It returns an error if ctx ends or the states are too
// many; a violation is a result.
func Explore(ctx context.Context, s *Scenario, o Options) (Result, error) {
	if o.MaxStates == 0 {
		o.MaxStates = 40_000_000
	}
	o.Workers = max(o.Workers, 1)
	e := &explorer{s: s, o: o, seen: newTable(), settled: newTable(), result: Result{Scenario: s.Name, Faults: o.Faults}}
	began := time.Now()
	err := e.run(ctx)
	e.result.States, e.result.Took = uint64(e.seen.used), time.Since(began)
	return e.result, err
}

func (e *explorer) run(ctx context.Context) error {
	w, err := e.begin()
	if err != nil {
		return err
	}
	k := w.fullKey(w.key())
	e.seen.put(k, 1)
	e.remember(0, 0)
	e.result.New = []int{1}
	if v := e.check([]successor{{w: w, key: k}}); v != nil {
		e.result.Violation = v.Violation
		return nil
	}
	frontier := []found{{w, 0}}
	for depth := 1; depth <= e.o.Depth && len(frontier) > 0; depth++ {
		e.result.Depth = depth
		var next []found
		fresh := 0
		for len(frontier) > 0 {
			if err := ctx.Err(); err != nil {
				return fmt.Errorf("scenario %s at depth %d with %d states: %w", e.s.Name, depth, e.seen.used, err)
			}
			n := min(chunk, len(frontier))
			part := frontier[:n:n]
			news := e.sort(e.expand(part))
			fresh += len(news)
			if v := e.check(news); v != nil {
				e.result.New = append(e.result.New, fresh)
				e.result.Violation = e.trace(part[v.place].id, v.nth, v.Violation)
				return nil
			}
			if e.seen.used > e.o.MaxStates {
				return fmt.Errorf("scenario %s: more than %d states at depth %d; it needs a smaller one", e.s.Name, e.o.MaxStates, depth)
			}
			if depth < e.o.Depth {
				for _, n := range news {
					next = append(next, found{n.w, e.remember(part[n.place].id, n.nth)})
				}
			}
			clear(part) // for the collector
			frontier = frontier[n:]
		}
		e.result.New = append(e.result.New, fresh)
		frontier = next
	}
	return nil
}

func (e *explorer) begin() (*World, error) {
	w, err := e.s.begin()
	if err == nil {
		w.faults = e.o.Faults
	}
	return w, err
}

func (e *explorer) remember(parent uint32, nth uint16) uint32 {
	e.parents, e.nths = append(e.parents, parent), append(e.nths, nth)
	return uint32(len(e.parents) - 1)
}

// parallel calls work with each number below n.
func (e *explorer) parallel(n int, work func(int)) {
	var group sync.WaitGroup
	for i := range e.o.Workers {
		group.Go(func() {
			for j := i; j < n; j += e.o.Workers {
				work(j)
			}
		})
	}
	group.Wait()
}

// expand returns the successors of each state that weren't seen before.
func (e *explorer) expand(part []found) [][]successor {
	out := make([][]successor, len(part))
	steps := make([]uint64, len(part))
	e.parallel(len(part), func(i int) {
		nth := uint16(0)
		part[i].w.next(func(_ action, w *World) bool {
			steps[i]++
			if k := w.fullKey(w.key()); e.seen.get(k) == 0 {
				out[i] = append(out[i], successor{w, k, i, nth})
			}
			nth++
			return true
		})
	})
	for _, n := range steps {
		e.result.Steps += n
	}
	return out
}

// sort keeps the first of each new state.
func (e *explorer) sort(all [][]successor) []successor {
	var out []successor
	for _, successors := range all {
		for _, n := range successors {
			if e.seen.put(n.key, 1) {
				out = append(out, n)
			}
		}
	}
	return out
}

type broken struct {
	*Violation
	place int
	nth   uint16
}

// check returns the first of these states that breaks an invariant: in the step
// to it, or on the way on from it.
func (e *explorer) check(news []successor) *broken {
	type way struct {
		key  Key
		rest settled
	}
	ways := make([][]way, len(news))
	violations := make([]*Violation, len(news))
	e.parallel(e.o.Workers, func(worker int) {
		mine := map[Key]settled{}
		known := func(k Key) (settled, bool) {
			if s, ok := mine[k]; ok {
				return s, true
			}
			v := e.settled.get(k)
			return settled{uint16(v >> 16), uint16(v)}, v != 0
		}
		for i := worker; i < len(news); i += e.o.Workers {
			if violations[i] = news[i].w.failure; violations[i] != nil {
				continue
			}
			_, violations[i] = news[i].w.settle(known, func(k Key, s settled) {
				mine[k] = s
				ways[i] = append(ways[i], way{k, s})
			})
		}
	})
	for i := range news {
		if violations[i] != nil {
			return &broken{violations[i], news[i].place, news[i].nth}
		}
		for _, s := range ways[i] {
			e.settled.put(s.key, uint32(s.rest.steps)<<16|uint32(s.rest.time))
			e.result.Farthest = max(e.result.Farthest, int(s.rest.steps)-1)
			e.result.FarthestTime = max(e.result.FarthestTime, time.Duration(s.rest.time)*time.Second)
		}
	}
	return nil
}

// trace finds the steps to the nth successor of a state again, and what each was.
func (e *explorer) trace(id uint32, nth uint16, v *Violation) *Violation {
	nths := []uint16{nth}
	for ; id != 0; id = e.parents[id] {
		nths = append(nths, e.nths[id])
	}
	slices.Reverse(nths)
	w, err := e.begin()
	if err != nil {
		return v
	}
	var steps []string
	for _, nth := range nths {
		i := uint16(0)
		w.next(func(a action, n *World) bool {
			if i++; i <= nth {
				return true
			}
			steps = append(steps, w.describe(a))
			w = n
			return false
		})
	}
	if len(v.Trace) > 0 {
		steps = append(steps, "--- from here on nothing goes wrong any more")
	}
	return &Violation{v.Invariant, v.What, append(steps, v.Trace...)}
}

// Table is the results, one a line.
func Table(results []Result) string {
	var b strings.Builder
	var states, steps uint64
	for _, r := range results {
		fmt.Fprintln(&b, r)
		states, steps = states+r.States, steps+r.Steps
	}
	fmt.Fprintf(&b, "%d scenarios, %d states, %d steps", len(results), states, steps)
	return b.String()
}
