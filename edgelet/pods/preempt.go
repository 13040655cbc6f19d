package pods

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
)

// Preemption by the node itself, as k8s.io/kubernetes/pkg/kubelet/preemption: a
// critical pod that was bound here, or that is the node's own, finds room
// whatever else runs.

const (
	// systemCriticalPriority is scheduling.SystemCriticalPriority.
	systemCriticalPriority = 2 * 1000000000

	reasonPreempting  = "Preempting"
	messagePreempting = "Preempted in order to admit critical pod"
	messageDisrupted  = "Pod was preempted by Kubelet to accommodate a critical pod."
)

// ErrNoVictims is returned when no set of pods would make enough room.
var ErrNoVictims = errors.New("no set of running pods found to reclaim resources")

// critical: a static pod, or one of the priority of the system's own.
func critical(w *worker, pod *v1.Pod) bool {
	return w.isStatic() || deref(pod.Spec.Priority, 0) >= systemCriticalPriority
}

// victim is a pod that might go.
type victim struct {
	w        *worker
	qos      v1.PodQOSClass
	requests v1.ResourceList
}

// makeRoom ends pods until what is short suffices, and returns when they have
// ended: as few as possible, those without guarantees first.
func (m *Manager) makeRoom(ctx context.Context, w *worker, pod *v1.Pod, short []shortage) error {
	victims, err := choose(m.victims(w, pod), missing(short))
	if err != nil {
		return fmt.Errorf("preemption: error finding a set of pods to preempt: %w", err)
	}
	var ends []*ending
	for _, v := range victims {
		v.w.event("", v1.EventTypeWarning, reasonPreempting, messagePreempting)
		m.log.Warn("a pod makes room for a critical one", "pod", v.w.namespace+"/"+v.w.name, "for", w.namespace+"/"+w.name)
		ends = append(ends, v.w.sentence(Verdict{Reason: reasonPreempting, Message: messagePreempting, Disruption: messageDisrupted}))
	}
	for i, e := range ends {
		select {
		case <-e.done:
		case <-ctx.Done():
			return fmt.Errorf("waiting for pod %s/%s to end: %w", victims[i].w.namespace, victims[i].w.name, ctx.Err())
		}
	}
	return nil
}

// victims are the pods that this one may preempt.
func (m *Manager) victims(w *worker, pod *v1.Pod) []victim {
	m.mu.Lock()
	workers := make([]*worker, 0, len(m.workers))
	for _, other := range m.workers {
		if other != w {
			workers = append(workers, other)
		}
	}
	m.mu.Unlock()
	slices.SortFunc(workers, func(a, b *worker) int { return strings.Compare(a.uid, b.uid) })
	var out []victim
	for _, other := range workers {
		claims, its := other.holds(), other.decoded()
		if claims == nil || its == nil {
			continue
		}
		higher := pod.Spec.Priority != nil && its.Spec.Priority != nil && *pod.Spec.Priority > *its.Spec.Priority
		if !critical(other, its) || higher {
			out = append(out, victim{other, qosClass(its), claims.requests})
		}
	}
	return out
}

// need is how much is missing of a resource.
type need struct {
	name   v1.ResourceName
	amount int64
}

func missing(short []shortage) []need {
	var out []need
	for _, s := range short {
		out = append(out, need{s.name, s.requested - (s.capacity - s.used)})
	}
	return out
}

// choose returns the pods to end: of the guaranteed ones only what all others
// together don't free, and so on.
func choose(from []victim, needs []need) ([]victim, error) {
	class := func(q v1.PodQOSClass) (out []victim) {
		for _, v := range from {
			if v.qos == q {
				out = append(out, v)
			}
		}
		return out
	}
	best, burst, guaranteed := class(v1.PodQOSBestEffort), class(v1.PodQOSBurstable), class(v1.PodQOSGuaranteed)
	if left := without(needs, from); len(left) > 0 {
		return nil, fmt.Errorf("%w: %s", ErrNoVictims, describeNeeds(left))
	}
	g, err := nearest(guaranteed, without(needs, slices.Concat(best, burst)))
	if err != nil {
		return nil, err
	}
	u, err := nearest(burst, without(needs, slices.Concat(best, g)))
	if err != nil {
		return nil, err
	}
	b, err := nearest(best, without(needs, slices.Concat(u, g)))
	if err != nil {
		return nil, err
	}
	return slices.Concat(b, u, g), nil
}

// nearest takes the pod that comes closest to what is needed, the smaller one of
// two, until nothing is.
func nearest(from []victim, needs []need) ([]victim, error) {
	from = slices.Clone(from)
	var out []victim
	for len(needs) > 0 {
		if len(from) == 0 {
			return nil, fmt.Errorf("%w: %s", ErrNoVictims, describeNeeds(needs))
		}
		best, at := math.Inf(1), 0
		for i, v := range from {
			if d := distance(needs, v); d < best || d == best && smaller(v, from[at]) {
				best, at = d, i
			}
		}
		needs = without(needs, from[at:at+1])
		out = append(out, from[at])
		from = slices.Delete(from, at, at+1)
	}
	return out, nil
}

// frees is how much of a resource the end of a pod frees.
func (v *victim) frees(name v1.ResourceName) int64 {
	if name == v1.ResourcePods {
		return 1
	}
	return amount(v.requests, name)
}

// without is what is still needed when these pods are gone.
func without(needs []need, gone []victim) []need {
	var out []need
	for _, n := range needs {
		for i := range gone {
			n.amount -= gone[i].frees(n.name)
		}
		if n.amount > 0 {
			out = append(out, n)
		}
	}
	return out
}

// distance weighs every resource alike, whatever its unit.
func distance(needs []need, v victim) float64 {
	sum := 0.0
	for _, n := range needs {
		if left := float64(n.amount - v.frees(n.name)); left > 0 {
			sum += math.Pow(left/float64(n.amount), 2)
		}
	}
	return sum
}

func smaller(a, b victim) bool {
	for _, name := range []v1.ResourceName{v1.ResourceMemory, v1.ResourceCPU} {
		if x, y := amount(a.requests, name), amount(b.requests, name); x != y {
			return x < y
		}
	}
	return true
}

func describeNeeds(needs []need) string {
	var out strings.Builder
	out.WriteByte('[')
	for _, n := range needs {
		fmt.Fprintf(&out, "(res: %s, q: %d), ", n.name, n.amount)
	}
	out.WriteByte(']')
	return out.String()
}
