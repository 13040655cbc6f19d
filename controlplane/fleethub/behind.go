package fleethub

import (
	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

// behind compares what the node said last, by its Hello, with what the API has.
// Reports that were answered for aren't said again by themselves, so after etcd
// was restored to an earlier time the API would be wrong until something changes.
// It returns the UIDs of pods to be asked for, and whether the node's own report
// is.
func (h *Hub) behind(n *node, store string, hello *fleet.Hello) (pods []string, node bool) {
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
			node = err == nil && isBehind(have.Annotations[AnnotationReport], stamp)
			continue
		}
		// What is gone was never answered for, so it is said anyway.
		if annotation, exists := written[r.GetUid()]; exists && !r.GetGone() && isBehind(annotation, stamp) {
			pods = append(pods, r.GetUid())
		}
	}
	return pods, node
}

func isBehind(annotation string, said fleet.StampID) bool {
	before, err := fleet.ParseStamp(annotation)
	return err != nil || said != before && said.Obsoletes(before)
}
