package affinity

import (
	"errors"
	"math/bits"
)

// maxNodes bounds the NUMA nodes of a machine that anything is aligned on, as
// upstream does: their combinations are looked at one by one.
const maxNodes = 8

// ErrAlign is returned for a pod that can't have all that it asks for together.
var ErrAlign = errors.New("Resources cannot be allocated with Topology locality") // a kubelet's words

// Nodes is a set of NUMA nodes, a bit for each number below 64.
type Nodes uint64

// Has reports whether a node is in the set.
func (n Nodes) Has(id int) bool { return id >= 0 && id < 64 && n&(1<<id) != 0 }

// Len is how many there are.
func (n Nodes) Len() int { return bits.OnesCount64(uint64(n)) }

// IDs are their numbers, sorted.
func (n Nodes) IDs() (out []int) {
	for m := n; m != 0; m &= m - 1 {
		out = append(out, bits.TrailingZeros64(uint64(m)))
	}
	return out
}

// narrower is upstream's order of two sets (bitmask.IsNarrowerThan): fewer nodes,
// then lower ones.
func (n Nodes) narrower(o Nodes) bool {
	if n.Len() == o.Len() {
		return n < o
	}
	return n.Len() < o.Len()
}

// Combinations calls f with every set of nodes that has at least one and none but
// those of n, small sets first.
func (n Nodes) Combinations(f func(Nodes)) {
	ids := n.IDs()
	for size := 1; size <= len(ids); size++ {
		for m := uint(1); m < 1<<len(ids); m++ {
			if bits.OnesCount(m) != size {
				continue
			}
			var set Nodes
			for i, id := range ids {
				if m&(1<<i) != 0 {
					set |= 1 << id
				}
			}
			f(set)
		}
	}
}

// Hint is one way to give a resource (upstream: topologymanager.TopologyHint).
type Hint struct {
	// Nodes it would come from; none: any would do.
	Nodes Nodes
	// Preferred: it can't be had from fewer.
	Preferred bool
}

// Hints are the ways to give resources, by name. A nil list has no preference, an
// empty one says that there is no way.
type Hints map[string][]Hint

// AsHints makes hints of the sets of nodes that are wide enough. enough says whether
// n nodes could serve the request with nobody else there, and whether they can now.
func AsHints(all Nodes, enough func(Nodes) (ever, now bool)) []Hint {
	least := all.Len()
	out := []Hint{}
	all.Combinations(func(n Nodes) {
		ever, now := enough(n)
		if ever {
			least = min(least, n.Len())
		}
		if now {
			out = append(out, Hint{Nodes: n})
		}
	})
	for i := range out {
		out[i].Preferred = out[i].Nodes.Len() == least
	}
	return out
}

// merge finds the hint that suits all resources best, and says whether the policy
// takes a pod with it (upstream: topologymanager/policy.go, HintMerger).
func merge(policy string, all Nodes, providers []Hints) (Hint, bool) {
	var lists [][]Hint
	for _, p := range providers {
		if len(p) == 0 {
			lists = append(lists, []Hint{{Preferred: true}})
		}
		for _, hints := range p {
			switch {
			case hints == nil:
				hints = []Hint{{Preferred: true}}
			case len(hints) == 0:
				hints = []Hint{{}}
			}
			if policy == AlignSingleNode {
				var single []Hint
				for _, h := range hints {
					if h.Preferred && h.Nodes.Len() <= 1 {
						single = append(single, h)
					}
				}
				hints = single
			}
			lists = append(lists, hints)
		}
	}
	// Among what isn't preferred, as many nodes as the resource needs that needs most.
	most := 0
	for _, hints := range lists {
		narrowest := Nodes(0)
		for _, h := range hints {
			if h.Nodes != 0 && (narrowest == 0 || h.Nodes.narrower(narrowest)) {
				narrowest = h.Nodes
			}
		}
		most = max(most, narrowest.Len())
	}
	best := Hint{Nodes: all}
	found := false
	permute(lists, Hint{Nodes: all, Preferred: true}, 0, func(h Hint) {
		if h.Nodes != 0 && (!found || better(h, best, most)) {
			best, found = h, true
		}
	})
	if policy == AlignSingleNode && best.Nodes == all {
		best.Nodes = 0
	}
	return best, best.Preferred || policy == AlignBestEffort
}

// permute calls f with every combination of one hint of each list. first is the
// first set of nodes that was in it: only if all are the same is it preferred.
func permute(lists [][]Hint, so Hint, first Nodes, f func(Hint)) {
	if len(lists) == 0 {
		f(so)
		return
	}
	for _, h := range lists[0] {
		next, begin := so, first
		next.Preferred = next.Preferred && h.Preferred
		if h.Nodes != 0 {
			if begin == 0 {
				begin = h.Nodes
			}
			next.Preferred = next.Preferred && h.Nodes == begin
			next.Nodes &= h.Nodes
		}
		permute(lists[1:], next, begin, f)
	}
}

// better compares a candidate with the best so far, as upstream's HintMerger does.
func better(h, best Hint, most int) bool {
	if h.Preferred != best.Preferred {
		return h.Preferred
	}
	n, b := h.Nodes.Len(), best.Nodes.Len()
	switch {
	case h.Preferred, b > most, b == most && n == most, b < most && n == b:
		return h.Nodes.narrower(best.Nodes)
	case n > most:
		return false
	default: // as many as may be
		return n > b
	}
}
