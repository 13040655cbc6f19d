package fleethub

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// lastWords are what a node had said when it was called away: what the API had
// in the place of Unknown, and the stamp of the report that it came from.
type lastWords struct {
	stamp      string
	conditions []corev1.NodeCondition
}

// called notes what writeAway took the place of, and has it put back at once if
// the node returned while it was written.
func (h *Hub) called(n *node, before *corev1.Node) {
	n.mu.Lock()
	n.last = &lastWords{before.Annotations[AnnotationReport], before.DeepCopy().Status.Conditions}
	back := n.went == ""
	n.mu.Unlock()
	if back {
		h.writes.Add(writeKey{n.name, writeBack, ""})
	}
}

// of is true if this hub knows what the node said before it was written to be away.
func (l *lastWords) of(have *corev1.Node) bool {
	return l != nil && l.stamp == have.Annotations[AnnotationReport]
}

// writeBack says that a node is there again, in its own last words: if it has
// others, it sends them by itself. That saves it a report of a kilobyte after
// each absence. If this hub doesn't know them, the node is asked.
func (h *Hub) writeBack(ctx context.Context, n *node) error {
	n.mu.Lock()
	last, moot := n.last, n.went != "" || n.node != nil
	n.mu.Unlock()
	if moot {
		return nil // away again, or its own report says it
	}
	for try := 0; ; try++ {
		have, err := h.c.Client.CoreV1().Nodes().Get(ctx, n.name, metav1.GetOptions{}) // the informer may be behind our own writing
		if err != nil && !apierrors.IsNotFound(err) {
			return err
		}
		if err == nil && !isAway(have) {
			return nil
		}
		if err != nil || !last.of(have) {
			n.mu.Lock()
			n.ask = append(n.ask, "")
			n.mu.Unlock()
			h.work.Add(n.name)
			return nil
		}
		_, err = h.c.Client.CoreV1().Nodes().UpdateStatus(ctx, backNode(have, last, metav1.NewTime(h.c.Now())), metav1.UpdateOptions{})
		if err == nil || !apierrors.IsConflict(err) || try == maxConflicts {
			return err
		}
	}
}

// isAway is true of what awayNode made.
func isAway(o *corev1.Node) bool {
	ready := nodeCondition(o.Status.Conditions, corev1.NodeReady)
	return ready == nil || ready.Status == corev1.ConditionUnknown
}

// backNode undoes awayNode.
func backNode(have *corev1.Node, last *lastWords, now metav1.Time) *corev1.Node {
	out := have.DeepCopy()
	for i := range out.Status.Conditions {
		c := &out.Status.Conditions[i]
		said := nodeCondition(last.conditions, c.Type)
		if said == nil || c.Status != corev1.ConditionUnknown || c.Reason != awayReason {
			continue
		}
		*c = *said
		c.LastHeartbeatTime, c.LastTransitionTime = now, now
	}
	return out
}
