package pods

import (
	"context"
	"fmt"

	v1 "k8s.io/api/core/v1"

	"github.com/coracle-edge/coracle/edgelet/pods/kubeobj"
)

// Verdict ends a pod that nobody deleted: the node shuts down, is short of
// something, or needs the room for a critical pod.
type Verdict struct {
	// Reason and Message are the pod's, which is Failed from then on.
	Reason, Message string
	// Disruption is the message of the pod's condition DisruptionTarget; none if
	// empty.
	Disruption string
	// Grace in seconds, if it isn't the pod's own.
	Grace *int64
	// Resume: the pod isn't over. It is stopped, nothing is said of it, and it runs
	// again with the next start of the agent or after [Manager.Resume].
	Resume bool
}

// ending is a verdict under way.
type ending struct {
	Verdict
	done chan struct{} // closed when nothing of the pod runs and nothing is mounted
}

// Active is a pod that isn't over.
type Active struct {
	Namespace, Name, UID string
	Static               bool
	Priority             int32
	Grace                int64 // its own, in seconds
	RestartPolicy        v1.RestartPolicy
}

// Active lists the pods that this node has taken and that aren't over.
func (m *Manager) Active() []Active {
	m.mu.Lock()
	workers := make([]*worker, 0, len(m.workers))
	for _, w := range m.workers {
		workers = append(workers, w)
	}
	m.mu.Unlock()
	var out []Active
	for _, w := range workers {
		pod := w.decoded()
		if pod == nil || w.holds() == nil {
			continue
		}
		out = append(out, Active{Namespace: w.namespace, Name: w.name, UID: w.uid, Static: w.isStatic(), Priority: deref(pod.Spec.Priority, 0),
			Grace: grace(pod), RestartPolicy: pod.Spec.RestartPolicy})
	}
	return out
}

// Has reports whether a pod is on this node and holds what it was given: it isn't
// over.
func (m *Manager) Has(uid string) bool {
	m.mu.Lock()
	w := m.workers[uid]
	m.mu.Unlock()
	return w != nil && !w.isOver()
}

// Wake has the statuses of pods looked at again.
func (m *Manager) Wake(uids []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, uid := range uids {
		if w := m.workers[uid]; w != nil {
			w.signal()
		}
	}
}

// End carries out a verdict and returns when the pod's containers have ended and
// its volumes are unmounted, or ctx is over; the verdict stands then all the same.
// A pod that is over or deleted is left to that.
func (m *Manager) End(ctx context.Context, uid string, v Verdict) error {
	m.mu.Lock()
	w := m.workers[uid]
	m.mu.Unlock()
	if w == nil || w.isOver() {
		return nil
	}
	e := w.sentence(v)
	select {
	case <-e.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("pod %s/%s is still being stopped: %w", w.namespace, w.name, ctx.Err())
	}
}

// Resume lets the pods run again that a verdict with Resume had stopped.
func (m *Manager) Resume() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, w := range m.workers {
		w.mu.Lock()
		if w.ending != nil && w.ending.Resume {
			w.ending = nil
			w.signal()
		}
		w.mu.Unlock()
	}
}

// sentence leaves a verdict; the first one stands.
func (w *worker) sentence(v Verdict) *ending {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ending == nil {
		w.ending = &ending{Verdict: v, done: make(chan struct{})}
		if w.interrupt != nil {
			w.interrupt()
		}
		w.signal()
	}
	return w.ending
}

func (w *worker) verdict() *ending {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.ending
}

// served says that the verdict, if there is one, was carried out.
func (w *worker) served() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ending == nil {
		return
	}
	select {
	case <-w.ending.done:
	default:
		close(w.ending.done)
	}
}

// isOver: the pod has ended for good.
func (w *worker) isOver() bool {
	s := w.reported.Load()
	return s != nil && (s.Phase == v1.PodFailed || s.Phase == v1.PodSucceeded)
}

// decoded is the pod as it was last ordered, nil if there is none.
func (w *worker) decoded() *v1.Pod {
	w.mu.Lock()
	o := w.object
	w.mu.Unlock()
	if o == nil {
		return nil
	}
	pod, err := kubeobj.Pod(o.Raw)
	if err != nil {
		return nil
	}
	return pod
}

// serve carries out a verdict.
func (w *worker) serve(ctx, wait context.Context, e *ending, seen *observation) error {
	if e.Grace != nil {
		w.shorten(*e.Grace)
	}
	if !e.Resume {
		if w.record.reason == "" {
			w.record.reason, w.record.message, w.record.disruption = e.Reason, e.Message, e.Disruption
		}
		if err := w.settle(ctx, wait, seen); err != nil {
			return err
		}
		w.served()
		return nil
	}
	if err := w.stopAll(ctx, wait, seen); err != nil {
		return err
	}
	if err := w.m.cfg.Volumes.Unmount(w.uid); err != nil {
		return err
	}
	w.isMounted = false
	w.served()
	return nil
}
