package affinity

import (
	"cmp"
	"fmt"
	"slices"
)

// take chooses n of the free processors, those that lie together: whole nodes and
// packages if so many are wanted, else whole cores, else threads, each time from
// where the fewest are free, so that what is free stays together (upstream:
// cpumanager/cpu_assignment.go, takeByTopologyNUMAPacked). spread takes a thread of
// each core first instead.
//
// Groups are as large as they are: upstream divides the number of processors by
// that of cores and packages, which is wrong where cores differ.
func (t *Topology) take(free Set, n int, spread bool) (Set, error) {
	a := &taking{t: t, free: free, need: n}
	if n > len(free) {
		return nil, fmt.Errorf("not enough cpus available to satisfy request: requested=%d, available=%d", n, len(free))
	}
	levels := t.levels()
	for depth := 1; depth <= 2 && a.need > 0; depth++ {
		a.whole(levels[:depth])
	}
	if !spread && a.need > 0 {
		a.whole(levels)
	}
	if a.need > 0 {
		a.threads(levels, spread)
	}
	return a.got, nil
}

// level is what group a processor is in.
type level func(CPU) int

func byNode(c CPU) int   { return c.Node }
func bySocket(c CPU) int { return c.Socket }
func byCore(c CPU) int   { return c.Core }

// levels are what processors lie in, the widest first.
func (t *Topology) levels() []level {
	sockets, nodes := map[int]bool{}, map[int]bool{}
	for _, c := range t.CPUs {
		sockets[c.Socket], nodes[c.Node] = true, true
	}
	if len(sockets) >= len(nodes) {
		return []level{byNode, bySocket, byCore}
	}
	return []level{bySocket, byNode, byCore}
}

type taking struct {
	t    *Topology
	free Set
	got  Set
	need int
}

func (a *taking) take(s Set) {
	a.got, a.free = a.got.Union(s), a.free.Minus(s)
	a.need -= len(s)
}

// groups are the free processors within s by group of the last level, in order:
// within each group of the level before, those with the fewest free first.
func (a *taking) groups(within Set, levels []level) []Set {
	byGroup := map[int]Set{}
	for _, id := range within {
		g := levels[0](*a.t.cpu(id))
		byGroup[g] = append(byGroup[g], id)
	}
	order := make([]int, 0, len(byGroup))
	for g := range byGroup {
		order = append(order, g)
	}
	slices.SortFunc(order, func(x, y int) int {
		return cmp.Or(cmp.Compare(len(byGroup[x]), len(byGroup[y])), cmp.Compare(x, y))
	})
	var out []Set
	for _, g := range order {
		if len(levels) == 1 {
			out = append(out, byGroup[g])
		} else {
			out = append(out, a.groups(byGroup[g], levels[1:])...)
		}
	}
	return out
}

// whole takes groups that are free as a whole, as long as they aren't more than is
// needed.
func (a *taking) whole(levels []level) {
	last := levels[len(levels)-1]
	for _, g := range a.groups(a.free, levels) {
		id := last(*a.t.cpu(g[0]))
		all := a.t.which(func(c CPU) bool { return last(c) == id })
		if len(all) <= a.need && all.Within(a.free) {
			a.take(all)
		}
	}
}

// threads takes what is still needed, one by one.
func (a *taking) threads(levels []level, spread bool) {
	depth := len(levels)
	if spread {
		depth = slices.IndexFunc(levels[:2], func(l level) bool { return l(CPU{Socket: 1}) == 1 }) + 1
	}
	for _, g := range a.groups(a.free, levels[:depth]) {
		if spread {
			g = slices.Clone(g)
			slices.SortFunc(g, func(x, y int) int { return cmp.Or(cmp.Compare(a.t.thread(x), a.t.thread(y)), cmp.Compare(x, y)) })
		}
		for _, id := range g {
			if a.need == 0 {
				return
			}
			a.take(Set{id})
		}
	}
}

// thread is which of its core's threads a processor is, from 0.
func (t *Topology) thread(id int) int {
	core := t.cpu(id).Core
	return slices.Index(t.which(func(c CPU) bool { return c.Core == core }), id)
}
