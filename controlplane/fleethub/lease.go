package fleethub

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
)

// NodeLease is what a Lease of a node says, in truth: when the node was last
// heard, and how long that means that it is there.
type NodeLease struct {
	Node     string
	UID      types.UID
	Created  time.Time
	Renewed  time.Time // zero: not known
	Duration time.Duration
}

// NodeLeases returns one for each Node of ours; false as long as the hub doesn't
// know them.
func (h *Hub) NodeLeases() ([]NodeLease, bool) {
	if !h.live.Load() {
		return nil, false
	}
	nodes, err := h.nodeLister.List(labels.Everything())
	if err != nil {
		return nil, false
	}
	out := make([]NodeLease, 0, len(nodes))
	for _, o := range nodes {
		n := h.find(o.Name)
		if n == nil || !n.confirmed.Load() && o.Annotations[AnnotationReport] == "" {
			continue // somebody else's node
		}
		l := NodeLease{Node: o.Name, UID: o.UID, Created: o.CreationTimestamp.Time, Renewed: h.heardOf(n)}
		if k := n.keepalive.Load(); k != 0 {
			l.Duration = time.Duration(k) * 3 / 2
		} else {
			l.Duration = h.classes.Of().Keepalive * 3 / 2
		}
		if l.Renewed.IsZero() {
			l.Renewed = h.lastSaid(n, o)
		}
		out = append(out, l)
	}
	return out, true
}

// lastSaid is when a node was there that this hub hasn't heard. One that is
// expected, and that the API calls ready, was there to the end of the hub before:
// it would have been called away otherwise.
func (h *Hub) lastSaid(n *node, o *corev1.Node) time.Time {
	ready := nodeCondition(o.Status.Conditions, corev1.NodeReady)
	switch {
	case ready == nil:
		return time.Time{}
	case Presence(n.presence.Load()) == Unsure && ready.Status == corev1.ConditionTrue:
		return h.started
	}
	return ready.LastHeartbeatTime.Time
}
