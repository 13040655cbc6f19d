package framework

import (
	"fmt"
	"sort"
	"strings"
)

// FitError is returned when no node takes a pod. Its text is upstream's, which
// people and tools know: per reason, how many nodes gave it.
type FitError struct {
	NumNodes int
	// PreFilter is set if one plugin refused the pod for all nodes at once.
	PreFilter *Status
	// Verdicts are by node name.
	Verdicts map[string]*Status
	// PostFilter is what the post filters said, "" if there are none.
	PostFilter string
}

// Plugins returns the names of the plugins that refused the pod.
func (e *FitError) Plugins() map[string]bool {
	names := map[string]bool{}
	if e.PreFilter != nil {
		names[e.PreFilter.Plugin] = true
	}
	for _, s := range e.Verdicts {
		names[s.Plugin] = true
	}
	return names
}

// Error counts the reasons: "0/3 nodes are available: 1 Insufficient cpu, 2
// node(s) were unschedulable."
func (e *FitError) Error() string {
	if e.NumNodes == 0 && e.PreFilter == nil {
		return "no nodes available to schedule pods"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "0/%d nodes are available:", e.NumNodes)
	if e.PreFilter != nil {
		fmt.Fprintf(&b, " %s.", strings.Join(e.PreFilter.Reasons, ", "))
	} else {
		count := map[string]int{}
		for _, s := range e.Verdicts {
			for _, r := range s.Reasons {
				count[r]++
			}
		}
		lines := make([]string, 0, len(count))
		for r, n := range count {
			lines = append(lines, fmt.Sprintf("%d %s", n, r))
		}
		sort.Strings(lines)
		if len(lines) > 0 {
			fmt.Fprintf(&b, " %s.", strings.Join(lines, ", "))
		}
	}
	if e.PostFilter != "" {
		b.WriteString(" " + e.PostFilter)
	}
	return b.String()
}
