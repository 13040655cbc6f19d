package pods

import (
	"cmp"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
)

// waitingResize is a resize that is deferred for want of room.
type waitingResize struct {
	worker   *worker
	wanted   *v1.Pod
	has      v1.ResourceList // what was promised to it
	priority int32
	class    v1.PodQOSClass
	since    time.Time
}

func newWaitingResize(w *worker, wanted *v1.Pod, since time.Time) *waitingResize {
	return &waitingResize{worker: w, wanted: wanted, has: requests(w.pod),
		priority: deref(wanted.Spec.Priority, 0), class: qosClass(wanted), since: since}
}

// before is upstream's order (sortPendingResizes in
// pkg/kubelet/allocation/allocation_manager.go): priority, then guaranteed pods,
// then who waits the longest. What doesn't grow waits for nothing, here as there.
func (r *waitingResize) before(o *waitingResize) bool {
	rank := func(c v1.PodQOSClass) int {
		if c == v1.PodQOSGuaranteed {
			return 0
		}
		return 1
	}
	return cmp.Or(cmp.Compare(o.priority, r.priority), cmp.Compare(rank(r.class), rank(o.class)),
		r.since.Compare(o.since), cmp.Compare(r.worker.uid, o.worker.uid)) < 0
}

// resizeShortages is what the node lacks for a resize. Only what grows can be
// refused: the pod is here, and keeps what it has. m.admission is held.
func (m *Manager) resizeShortages(r *waitingResize) []shortage {
	return slices.DeleteFunc(m.shortages(r.worker, r.wanted), func(s shortage) bool {
		return s.requested <= amount(r.has, s.name) || s.name == v1.ResourcePods
	})
}

// grantBefore gives the resizes whose turn comes before this one the room that they
// wait for and that there is now, so that whoever happens to look first doesn't take
// it. Their workers, which it wakes, make promises of it. m.admission is held.
func (m *Manager) grantBefore(r *waitingResize) {
	var first []*waitingResize
	for _, o := range m.resizes {
		if o.worker != r.worker && o.before(r) {
			first = append(first, o)
		}
	}
	slices.SortFunc(first, func(a, b *waitingResize) int {
		if a.before(b) {
			return -1
		}
		return 1
	})
	for _, o := range first {
		if len(m.resizeShortages(o)) == 0 {
			o.worker.claim(o.wanted)
			o.worker.signal()
		}
	}
}

// notWaiting forgets the deferred resize of a pod.
func (m *Manager) notWaiting(uid string) {
	m.admission.Lock()
	defer m.admission.Unlock()
	delete(m.resizes, uid)
}

// retryDeferred wakes the pods whose resize waits for room.
func (m *Manager) retryDeferred() {
	m.admission.Lock()
	defer m.admission.Unlock()
	for _, r := range m.resizes {
		r.worker.signal()
	}
}
