package pods

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/edgelet/pods/kubeobj"
)

// Resizing pods in place (KEP-1287) has three stages, as upstream's: what the
// spec asks for is *desired*; what this node promised is *allocated*, and durable
// in the pod's record; what the runtime was last told is *actuated*, and stands in
// the containers' statuses. A desire that doesn't fit now is deferred, and the pod
// goes on as it was allocated.

// resizeRetry is how often a deferred resize is tried again although nothing else
// ended here, as upstream.
const resizeRetry = 3 * time.Minute

// allocation is what was promised to a pod: resources of its containers by name,
// and its own.
type allocation struct {
	containers map[string]v1.ResourceRequirements
	pod        *v1.ResourceRequirements
}

func allocationOf(pod *v1.Pod) *allocation {
	a := &allocation{containers: map[string]v1.ResourceRequirements{}, pod: pod.Spec.Resources.DeepCopy()}
	for _, list := range [][]v1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			a.containers[list[i].Name] = *list[i].Resources.DeepCopy()
		}
	}
	return a
}

// applyTo sets the resources of a pod, which is the caller's own, to those that
// were promised. It reports whether any was another.
func (a *allocation) applyTo(pod *v1.Pod) bool {
	differs := !sameResources(deref(pod.Spec.Resources, v1.ResourceRequirements{}), deref(a.pod, v1.ResourceRequirements{}))
	pod.Spec.Resources = a.pod.DeepCopy()
	for _, list := range [][]v1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			if have, ok := a.containers[list[i].Name]; ok && !sameResources(have, list[i].Resources) {
				list[i].Resources, differs = *have.DeepCopy(), true
			}
		}
	}
	return differs
}

// resizable are the resources that may change in place.
func resizable() []v1.ResourceName { return []v1.ResourceName{v1.ResourceCPU, v1.ResourceMemory} }

// sameResources compares what may change in place.
func sameResources(a, b v1.ResourceRequirements) bool {
	return !slices.ContainsFunc(resizable(), func(n v1.ResourceName) bool { return differ(a, b, n) })
}

func differ(a, b v1.ResourceRequirements, name v1.ResourceName) bool {
	same := func(a, b v1.ResourceList) bool {
		x, y := a[name], b[name]
		return x.Cmp(y) == 0
	}
	return !same(a.Requests, b.Requests) || !same(a.Limits, b.Limits)
}

// resizing is what is told of a resize.
type resizing struct{ pending, inProgress *v1.PodCondition }

func (r *resizing) backfill(s *v1.PodStatus) {
	for i := range s.Conditions {
		switch c := s.Conditions[i]; c.Type {
		case v1.PodResizePending:
			r.pending = &c
		case v1.PodResizeInProgress:
			r.inProgress = &c
		}
	}
}

func resizeCondition(old *v1.PodCondition, t v1.PodConditionType, reason, message string, generation int64, now time.Time) *v1.PodCondition {
	c := &v1.PodCondition{Type: t, Status: v1.ConditionTrue, Reason: reason, Message: message, ObservedGeneration: generation,
		LastProbeTime: stamp(now), LastTransitionTime: stamp(now)}
	if old != nil && old.Reason == reason {
		c.LastTransitionTime = old.LastTransitionTime
		if old.Message == message && old.ObservedGeneration == generation {
			return old
		}
	}
	return c
}

// allocate promises the pod what its spec asks for if that fits, and has w.pod be
// what is promised. It returns when to try again, zero if not needed.
func (w *worker) allocate() (time.Time, error) {
	desired := allocationOf(w.pod)
	if w.record.allocated == nil {
		w.record.allocated = desired
		return time.Time{}, nil
	}
	wanted := w.pod.DeepCopy()
	if !w.record.allocated.applyTo(w.pod) {
		if w.resize.pending != nil {
			w.resize.pending = nil
			w.m.notWaiting(w.uid)
			w.claim(w.pod) // it may have been given the room that it wants no more
		}
		return time.Time{}, nil
	}
	if w.holds() == nil {
		w.claim(w.pod) // what it had before the agent restarted
	}
	now, generation := w.m.cfg.Now(), w.pod.Generation
	if p := w.m.cfg.Processors; p != nil {
		if text := p.Infeasible(w.pod, wanted); text != "" {
			w.m.notWaiting(w.uid)
			w.claim(w.pod)
			w.pend(v1.PodReasonInfeasible, "ResizeInfeasible", text, wanted, now)
			return time.Time{}, nil
		}
	}
	turn := newWaitingResize(w, wanted, now)
	if w.resize.pending != nil {
		turn.since = w.resize.pending.LastTransitionTime.Time
	}
	w.m.admission.Lock()
	w.m.grantBefore(turn)
	short := w.m.resizeShortages(turn)
	if len(short) == 0 {
		w.claim(wanted)
		delete(w.m.resizes, w.uid)
	} else {
		w.claim(w.pod)
		w.m.resizes[w.uid] = turn
	}
	w.m.admission.Unlock()
	if len(short) > 0 {
		s := short[0]
		text := fmt.Sprintf("Node didn't have enough resource: %s, requested: %d, used: %d, capacity: %d", s.name, s.requested, s.used, s.capacity)
		w.pend(v1.PodReasonDeferred, "ResizeDeferred", text, wanted, now)
		return time.Now().Add(resizeRetry), nil
	}
	shrinks := slices.ContainsFunc(resizable(), func(n v1.ResourceName) bool { return amount(requests(wanted), n) < amount(requests(w.pod), n) })
	before := w.record.allocated
	w.record.allocated = desired
	if err := w.keep(); err != nil { // a promise is durable before it is acted on
		w.record.allocated = before
		w.claim(w.pod)
		return time.Time{}, err
	}
	w.resize.pending = nil
	w.resize.inProgress = resizeCondition(nil, v1.PodResizeInProgress, "", "", generation, now)
	w.event("", v1.EventTypeNormal, "ResizeStarted", resizeMessage("Pod resize started", wanted, generation, ""))
	w.pod = wanted
	if shrinks {
		w.m.retryDeferred()
	}
	return time.Time{}, nil
}

// pend says why the pod isn't given what it asks for.
func (w *worker) pend(reason, event, text string, wanted *v1.Pod, now time.Time) {
	before, generation := w.resize.pending, w.pod.Generation
	w.resize.pending = resizeCondition(before, v1.PodResizePending, reason, text, generation, now)
	if before == nil || before.Reason != reason || before.ObservedGeneration != generation {
		w.event("", v1.EventTypeWarning, event, resizeMessage("Pod resize "+reason, wanted, generation, text))
	}
}

// asAllocated has w.pod be what is promised, whatever it asks for now.
func (w *worker) asAllocated() {
	if w.record.allocated != nil {
		w.record.allocated.applyTo(w.pod)
	}
}

// claimAsRecorded has a pod that was here before the agent started hold what it
// was promised, before anything new is decided. A record that can't be read is
// told of when the worker reads it.
func (w *worker) claimAsRecorded(o *Object) {
	raw, err := w.m.cfg.Store.Record(w.uid)
	if err != nil || len(raw) == 0 {
		return
	}
	r, err := decodeRecord(raw)
	if err != nil || !r.admitted || r.terminal() {
		return
	}
	pod, err := kubeobj.Pod(o.Raw)
	if err != nil {
		return
	}
	if r.allocated != nil {
		r.allocated.applyTo(pod)
	}
	w.claim(pod)
}

// resizeMessage is an event's text, with the resources as upstream lists them.
func resizeMessage(prefix string, pod *v1.Pod, generation int64, failure string) string {
	type container struct {
		Name      string                  `json:"name"`
		Resources v1.ResourceRequirements `json:"resources,omitempty"`
	}
	out := struct {
		InitContainers []container `json:"initContainers,omitempty"`
		Containers     []container `json:"containers,omitempty"`
		Generation     int64       `json:"generation"`
		Error          string      `json:"error,omitempty"`
	}{Generation: generation, Error: failure}
	for _, c := range pod.Spec.InitContainers {
		out.InitContainers = append(out.InitContainers, container{c.Name, c.Resources})
	}
	for _, c := range pod.Spec.Containers {
		out.Containers = append(out.Containers, container{c.Name, c.Resources})
	}
	raw, err := json.Marshal(out)
	if err != nil {
		return prefix
	}
	return prefix + ": " + string(raw)
}

// actuated is what the runtime was last told of a running container's resources.
func (w *worker) actuated(c *v1.Container, id string) v1.ResourceRequirements {
	if r := w.runOf(id); r != nil {
		return r.told
	}
	if s := w.lastReported(c.Name, id); s != nil && s.Resources != nil {
		return *s.Resources
	}
	return c.Resources // it was made with them
}

// resizesOf are the resources of a running container that the runtime is still to
// be told of, and whether the container wants to be restarted for that.
func (w *worker) resizesOf(c *v1.Container, id string) (update, restart bool) {
	have := w.actuated(c, id)
	for _, name := range resizable() {
		if !differ(have, c.Resources, name) {
			continue
		}
		update = true
		for _, p := range c.ResizePolicy {
			restart = restart || (p.ResourceName == name && p.RestartPolicy == v1.RestartContainer)
		}
	}
	// What the pod as a whole is limited to is a container's limit that has none.
	return update || w.podLimitOf(c, id), restart
}

func (w *worker) podLimitOf(c *v1.Container, id string) bool {
	r := w.runOf(id)
	return r != nil && !sameResources(r.toldPod, deref(w.pod.Spec.Resources, v1.ResourceRequirements{}))
}

// resizeContainers tells the runtime of changed resources: the pod's own bounds
// are widened first and narrowed last, so that no container is ever above its pod.
func (w *worker) resizeContainers(ctx context.Context, seen *observation, a actions) error {
	if len(a.update) == 0 {
		return nil
	}
	err := w.m.cgroups.resize(w.before(a.update, seen), w.pod, func() error {
		for _, name := range a.update {
			got := seen.find(name)
			if err := w.resizeContainer(ctx, seen, got, containerSpec(w.pod, name)); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		return nil
	}
	generation := w.pod.Generation
	if w.resize.inProgress != nil {
		generation = w.resize.inProgress.ObservedGeneration
	}
	before := w.resize.inProgress
	w.resize.inProgress = resizeCondition(before, v1.PodResizeInProgress, v1.PodReasonError, err.Error(), generation, w.m.cfg.Now())
	if before != w.resize.inProgress {
		w.event("", v1.EventTypeWarning, "ResizeError", resizeMessage("Pod resize error", w.pod, generation, err.Error()))
	}
	return fmt.Errorf("resizing pod %s/%s: %w", w.namespace, w.name, err)
}

// before is the pod as its containers are now.
func (w *worker) before(names []string, seen *observation) *v1.Pod {
	pod := w.pod.DeepCopy()
	for _, name := range names {
		c := containerSpec(pod, name)
		c.Resources = w.actuated(c, seen.find(name).id)
		if r := w.runOf(seen.find(name).id); r != nil && pod.Spec.Resources != nil {
			pod.Spec.Resources = r.toldPod.DeepCopy()
		}
	}
	return pod
}

func (w *worker) resizeContainer(ctx context.Context, seen *observation, got *observedContainer, c *v1.Container) error {
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	now, next := w.actuated(c, got.id), w.m.containerResources(w.pod, c)
	limit := c.Resources.Limits.Memory().Value()
	if old := now.Limits.Memory().Value(); limit > 0 && (old == 0 || limit < old) {
		if err := w.belowUsage(call, got, limit); err != nil {
			return fmt.Errorf("cannot decrease memory limits: %w", err)
		}
	}
	_, err := w.m.cfg.Runtime.UpdateContainerResources(call, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: got.id, Linux: next})
	if err != nil {
		return fmt.Errorf("container %q: %s", c.Name, message(err))
	}
	w.tell(got.id, c)
	if w.m.cfg.Processors != nil {
		put(&w.placed, got.id, next.CpusetCpus)
	}
	// For the runtime's own book-keeping; many have none.
	_, err = w.m.cfg.Runtime.UpdatePodSandboxResources(call, &runtimeapi.UpdatePodSandboxResourcesRequest{
		PodSandboxId: got.sandbox, Resources: w.m.podResources(w.pod), Overhead: overhead(w.pod)})
	if err != nil && status.Code(err) != codes.Unimplemented {
		return fmt.Errorf("failed to notify runtime for UpdatePodSandboxResources: %s", message(err))
	}
	return nil
}

// belowUsage refuses a limit that would kill the container at once.
func (w *worker) belowUsage(ctx context.Context, got *observedContainer, limit int64) error {
	resp, err := w.m.cfg.Runtime.ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{ContainerId: got.id})
	usage := resp.GetStats().GetMemory().GetUsageBytes()
	switch {
	case err != nil && status.Code(err) == codes.Unimplemented:
		return nil // the kernel decides
	case err != nil:
		return errors.New(message(err))
	case usage == nil:
		return fmt.Errorf("missing container %q memory usage", got.name)
	case usage.Value >= uint64(limit):
		return fmt.Errorf("attempting to set container %q memory limit (%d) below current usage (%d)", got.name, limit, usage.Value)
	}
	return nil
}

// concludeResize says whether a resize is under way.
func (w *worker) concludeResize(seen *observation) {
	going := false
	for _, got := range seen.containers {
		if got.state != stateRunning {
			continue
		}
		if c := containerSpec(w.pod, got.name); c != nil {
			update, _ := w.resizesOf(c, got.id)
			going = going || update
		}
	}
	switch now := w.resize.inProgress; {
	case going && now == nil:
		w.resize.inProgress = resizeCondition(nil, v1.PodResizeInProgress, "", "", w.pod.Generation, w.m.cfg.Now())
	case !going && now != nil:
		w.event("", v1.EventTypeNormal, "ResizeCompleted", resizeMessage("Pod resize completed", w.pod, now.ObservedGeneration, ""))
		w.resize.inProgress = nil
	}
}

// encodeAllocation and decodeAllocation write it into the pod that carries a record.
func encodeAllocation(a *allocation, into *v1.Pod) {
	if a == nil {
		return
	}
	into.Annotations[recordAllocated] = "true"
	into.Spec.Resources = a.pod
	for name, r := range a.containers {
		into.Spec.Containers = append(into.Spec.Containers, v1.Container{Name: name, Resources: r})
	}
	slices.SortFunc(into.Spec.Containers, func(a, b v1.Container) int { return strings.Compare(a.Name, b.Name) })
}

func decodeAllocation(from *v1.Pod) *allocation {
	if from.Annotations[recordAllocated] == "" {
		return nil
	}
	a := &allocation{containers: map[string]v1.ResourceRequirements{}, pod: from.Spec.Resources}
	for _, c := range from.Spec.Containers {
		a.containers[c.Name] = c.Resources
	}
	return a
}
