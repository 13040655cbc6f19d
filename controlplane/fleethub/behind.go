package fleethub

import (
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

// behind compares what the node said last, by its Hello, with what the API has.
// Reports that were answered for aren't said again by themselves, so after etcd
// was restored to an earlier time the API would be wrong until something changes.
// It returns the UIDs of pods to be asked for; empty is the node's own report.
func (h *Hub) behind(n *node, store string, hello *fleet.Hello) (uids []string) {
	written := map[string]string{}
	h.mu.Lock()
	for _, pod := range h.bound[n.name] {
		uid := string(pod.UID)
		if isMirror(pod) {
			uid = pod.Annotations[annotationMirror]
		}
		written[uid] = pod.Annotations[AnnotationReport]
	}
	h.mu.Unlock()
	n.mu.Lock()
	last := n.last
	for uid, pod := range n.written {
		if _, exists := written[uid]; exists {
			written[uid] = pod.Annotations[AnnotationReport] // the informer may be later
		}
	}
	n.mu.Unlock()
	for _, r := range hello.GetRunning() {
		stamp := fleet.StampFrom(r.GetStamp())
		if stamp.Store == "" {
			stamp.Store = store
		}
		if r.GetUid() == "" {
			have, err := h.nodeLister.Get(n.name)
			if apierrors.IsNotFound(err) || err == nil && (isBehind(have.Annotations[AnnotationReport], stamp) || saidAway(have) && !last.of(have)) {
				uids = append(uids, "")
			}
			continue
		}
		// What is gone was never answered for, so it is said anyway.
		if annotation, exists := written[r.GetUid()]; exists && !r.GetGone() && isBehind(annotation, stamp) {
			uids = append(uids, r.GetUid())
		}
	}
	return uids
}

// saidAway: somebody wrote that the node is away.
func saidAway(node *corev1.Node) bool {
	ready := nodeCondition(node.Status.Conditions, corev1.NodeReady)
	return ready != nil && ready.Status == corev1.ConditionUnknown
}

func isBehind(annotation string, said fleet.StampID) bool {
	before, err := fleet.ParseStamp(annotation)
	return err != nil || said != before && said.Obsoletes(before)
}
