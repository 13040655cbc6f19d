package pods

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// minGrace is the shortest time a container is given to end by itself, in
// seconds, as a kubelet gives.
const minGrace = 2

// settle makes sure that nothing runs of a pod that is over, frees what it
// holds, and says so for good. Containers stay in the runtime, for their logs'
// and their exits' sake, until the pod is deleted.
func (w *worker) settle(ctx, wait context.Context, seen *observation) error {
	running := false
	for _, c := range seen.containers {
		running = running || c.state == stateRunning || c.state == stateUnknown
	}
	ready := false
	for _, s := range seen.sandboxes {
		ready = ready || s.State == runtimeapi.PodSandboxState_SANDBOX_READY
	}
	final := w.status(seen, true)
	if running {
		if err := w.stopContainers(ctx, wait, seen); err != nil {
			return err
		}
		var err error
		if seen, err = w.observe(ctx, true); err != nil {
			return err
		}
		final = w.status(seen, true)
	}
	// Before the cluster hears that the pod is over: it deallocates the claims then.
	if err := w.unprepareClaims(ctx); err != nil {
		return err
	}
	// Who is told that the pod is over may order another one for its processors.
	if err := w.freeProcessors(); err != nil {
		return err
	}
	// What a client sees must not wait for the network's teardown.
	if err := w.report(final, false); err != nil {
		return err
	}
	w.m.retryDeferred() // it holds nothing now
	if ready {
		if err := w.stopSandboxes(ctx, seen); err != nil {
			return err
		}
	}
	if w.isMounted || ready {
		if err := w.m.cfg.Volumes.TearDown(w.uid); err != nil {
			return err
		}
		w.isMounted = false
	}
	w.m.cgroups.remove(w.pod)
	return w.freeDevices()
}

// terminate ends a pod that is to be deleted or is not wanted any more: its
// containers, its sandbox, its volumes, its cgroup, its logs; then it is
// reported gone. Each step is repeated until it succeeds.
func (w *worker) terminate(ctx, wait context.Context) error {
	w.setDeadline()
	seen, err := w.stopForGood(ctx, wait)
	if err != nil {
		return err
	}
	if err := w.unprepareClaims(ctx); err != nil {
		return err
	}
	final := w.status(seen, true)
	if err := w.freeProcessors(); err != nil {
		return err
	}
	// The exits are told before the containers that tell them are removed.
	if len(seen.containers) > 0 && len(w.pod.Spec.Containers) > 0 {
		if err := w.report(final, false); err != nil {
			return err
		}
	}
	if err := w.stopSandboxes(ctx, seen); err != nil {
		return err
	}
	if err := w.removeAll(ctx, seen); err != nil {
		return err
	}
	if err := w.m.cfg.Volumes.TearDown(w.uid); err != nil {
		return err
	}
	w.m.cgroups.remove(w.pod)
	if err := os.RemoveAll(w.m.logDir(w.namespace, w.name, w.uid)); err != nil {
		return fmt.Errorf("removing the logs of pod %s/%s: %w", w.namespace, w.name, err)
	}
	w.m.unlinkLogs(w.namespace, w.name)
	w.m.cfg.Images.Forget(w.uid)
	if err := w.freeDevices(); err != nil {
		return err
	}
	if err := w.report(final, true); err != nil {
		return err
	}
	if err := w.m.cfg.Store.DeleteRecord(w.uid); err != nil {
		return err
	}
	w.finished = true
	w.served()
	return nil
}

// A runtime may say for a moment after it stopped a container that it runs; and one
// that was only made when it was looked at runs if its start was under way. So stops
// are repeated before the last status, which must not say that something runs.
const (
	maxStops  = 5
	stopPause = 100 * time.Millisecond // before the second; longer each time
)

// stopForGood stops all containers and returns what is left of them.
func (w *worker) stopForGood(ctx, wait context.Context) (*observation, error) {
	for try := 1; ; try++ {
		seen, err := w.observe(ctx, true)
		if err != nil {
			return nil, err
		}
		runs := slices.ContainsFunc(seen.containers, func(c *observedContainer) bool { return c.state == stateRunning && !c.lost })
		if try > 1 && (!runs || try > maxStops) {
			return seen, nil
		}
		if try > 1 {
			pause := time.NewTimer(time.Duration(try-1) * stopPause)
			select {
			case <-pause.C:
			case <-wait.Done():
				pause.Stop()
				return nil, wait.Err()
			}
		}
		if err := w.stopContainers(ctx, wait, seen); err != nil {
			return nil, err
		}
	}
}

// setDeadline measures the grace on the monotonic clock, from when this agent
// first heard of the end. A later word can only shorten it.
func (w *worker) setDeadline() {
	w.mu.Lock()
	secs := w.graceSecs
	w.mu.Unlock()
	w.shorten(secs)
}

// shorten bounds the grace, in seconds from now.
func (w *worker) shorten(secs int64) {
	at := time.Now().Add(time.Duration(max(secs, minGrace)) * time.Second)
	if w.deadline.IsZero() || at.Before(w.deadline) {
		w.deadline = at
	}
}

// remaining is the grace left, in whole seconds, never less than [minGrace].
func (w *worker) remaining() int64 {
	if w.deadline.IsZero() {
		return max(grace(w.pod), minGrace)
	}
	return max(int64(time.Until(w.deadline).Round(time.Second)/time.Second), minGrace)
}

// stopAll stops containers and sandboxes, keeping what they left.
func (w *worker) stopAll(ctx, wait context.Context, seen *observation) error {
	if err := w.stopContainers(ctx, wait, seen); err != nil {
		return err
	}
	return w.stopSandboxes(ctx, seen)
}

// stopContainers stops everything that runs, all at the same time, but sidecars
// after the app containers and in reverse order.
func (w *worker) stopContainers(ctx, wait context.Context, seen *observation) error {
	var running []*observedContainer
	for _, c := range seen.containers {
		if (c.state == stateRunning || c.state == stateUnknown) && !c.lost {
			running = append(running, c)
		}
	}
	if len(running) == 0 {
		return nil
	}
	order := newTerminationOrder(w.pod, running)
	errs := make([]error, len(running))
	var wg sync.WaitGroup
	for i, c := range running {
		wg.Go(func() { errs[i] = w.stopContainer(ctx, wait, c, killOrder{}, order) })
	}
	done := make(chan struct{})
	go func() {
		wg.Wait()
		close(done)
	}()
	w.reportMeanwhile(ctx, done)
	return errors.Join(errs...)
}

// reportMeanwhile tells what the readiness probes of an ending pod say until done
// is closed: who sends it traffic must hear that it takes no more.
func (w *worker) reportMeanwhile(ctx context.Context, done <-chan struct{}) {
	if !w.probed {
		<-done
		return
	}
	for woken := false; ; {
		select {
		case <-done:
			if woken {
				w.signal() // it may have been for more than this
			}
			return
		case <-w.wake:
			woken = true
			seen, err := w.observe(ctx, true)
			if err == nil {
				err = w.report(w.status(seen, false), false)
			}
			if err != nil && ctx.Err() == nil {
				w.m.log.Warn("the readiness of an ending pod was not reported", "pod", w.namespace+"/"+w.name, "err", err)
			}
		}
	}
}

// stopContainer runs the preStop hook and stops a container, both within the
// pod's grace. wait ends it early, when there is a newer word.
func (w *worker) stopContainer(ctx, wait context.Context, c *observedContainer, why killOrder, order *terminationOrder) error {
	if c == nil {
		return nil
	}
	defer order.ended(c.name)
	spec := containerSpec(w.pod, c.name)
	if why.message == "" {
		why.message = "Stopping container " + c.name
	}
	if wait.Err() == nil && !w.saidStop(c.id) {
		w.event(c.name, v1.EventTypeNormal, "Killing", why.message)
	}
	left := w.remaining()
	if why.grace != nil && w.pod.DeletionGracePeriodSeconds == nil && w.deadline.IsZero() {
		left = max(*why.grace, minGrace)
	}
	started := time.Now()
	if spec != nil && spec.Lifecycle != nil && spec.Lifecycle.PreStop != nil && c.state == stateRunning {
		hook, cancel := context.WithTimeout(wait, time.Duration(left)*time.Second)
		if err := w.runHook(hook, c.id, spec, spec.Lifecycle.PreStop, nil); err != nil && wait.Err() == nil {
			w.event(c.name, v1.EventTypeWarning, "FailedPreStopHook", "PreStopHook failed")
		}
		cancel()
	}
	order.waitForTurn(wait, c.name, time.Duration(left)*time.Second-time.Since(started))
	if err := wait.Err(); err != nil {
		return err
	}
	left = max(left-int64(time.Since(started)/time.Second), minGrace)
	call, cancel := context.WithTimeout(wait, time.Duration(left)*time.Second+callTimeout)
	defer cancel()
	_, err := w.m.cfg.Runtime.StopContainer(call, &runtimeapi.StopContainerRequest{ContainerId: c.id, Timeout: left})
	if err != nil && !isNotFound(err) {
		return fmt.Errorf("stopping container %s: %w", c.name, err)
	}
	return nil
}

// saidStop notes that the end of a container was told, and reports whether it
// was before: a grace that is shortened stops it again.
func (w *worker) saidStop(id string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stopped == nil {
		w.stopped = map[string]bool{}
	}
	before := w.stopped[id]
	w.stopped[id] = true
	return before
}

func (w *worker) stopSandboxes(ctx context.Context, seen *observation) error {
	for _, s := range seen.sandboxes {
		call, cancel := context.WithTimeout(ctx, callTimeout)
		_, err := w.m.cfg.Runtime.StopPodSandbox(call, &runtimeapi.StopPodSandboxRequest{PodSandboxId: s.Id})
		cancel()
		if err != nil && !isNotFound(err) {
			w.eventOnce("", v1.EventTypeWarning, "FailedKillPod", "error killing pod: "+message(err))
			return fmt.Errorf("stopping sandbox %s: %w", s.Id, err)
		}
	}
	return nil
}

func (w *worker) removeAll(ctx context.Context, seen *observation) error {
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	for _, c := range seen.containers {
		if c.lost {
			continue
		}
		if _, err := w.m.cfg.Runtime.RemoveContainer(call, &runtimeapi.RemoveContainerRequest{ContainerId: c.id}); err != nil && !isNotFound(err) {
			return fmt.Errorf("removing container %s: %w", c.name, err)
		}
	}
	for _, s := range seen.sandboxes {
		if _, err := w.m.cfg.Runtime.RemovePodSandbox(call, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: s.Id}); err != nil && !isNotFound(err) {
			return fmt.Errorf("removing sandbox %s: %w", s.Id, err)
		}
	}
	return nil
}

// terminationOrder lets sidecars end after the app containers, the last one
// first. A nil order lets everybody end at once.
type terminationOrder struct {
	before map[string][]string // by container: whose end it waits for
	done   map[string]chan struct{}
	once   map[string]*sync.Once
}

func newTerminationOrder(pod *v1.Pod, running []*observedContainer) *terminationOrder {
	if !hasSidecar(pod) {
		return nil
	}
	o := &terminationOrder{before: map[string][]string{}, done: map[string]chan struct{}{}, once: map[string]*sync.Once{}}
	for _, c := range running {
		o.done[c.name], o.once[c.name] = make(chan struct{}), new(sync.Once)
	}
	var after []string // what ends before the next sidecar, going backwards
	for i := range pod.Spec.Containers {
		after = append(after, pod.Spec.Containers[i].Name)
	}
	for i := len(pod.Spec.InitContainers) - 1; i >= 0; i-- {
		if c := &pod.Spec.InitContainers[i]; isSidecar(c) {
			o.before[c.Name] = append([]string(nil), after...)
			after = append(after, c.Name)
		}
	}
	return o
}

func (o *terminationOrder) waitForTurn(ctx context.Context, name string, limit time.Duration) {
	if o == nil || limit <= 0 {
		return
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for _, other := range o.before[name] {
		done := o.done[other]
		if done == nil {
			continue
		}
		select {
		case <-done:
		case <-timer.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

func (o *terminationOrder) ended(name string) {
	if o != nil && o.done[name] != nil {
		o.once[name].Do(func() { close(o.done[name]) })
	}
}

// StopAll stops every container and every sandbox of every pod, at most until
// ctx ends and each with at most this grace, and unmounts their volumes: what a
// shutdown of the machine would do. Nothing is reported as over, the pods run again with the next start.
func (m *Manager) StopAll(ctx context.Context, grace time.Duration) error {
	list, err := m.cfg.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{
		State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING}}})
	if err != nil {
		return fmt.Errorf("listing containers to stop: %w", err)
	}
	var wg sync.WaitGroup
	errs := make([]error, len(list.Containers))
	for i, c := range list.Containers {
		if c.Labels[labelPodUID] == "" {
			continue
		}
		left := parseGrace(c.Annotations)
		if left == 0 {
			left = defaultGrace
		}
		left = min(left, int64(grace/time.Second))
		wg.Go(func() {
			_, errs[i] = m.cfg.Runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: c.Id, Timeout: left})
		})
	}
	wg.Wait()
	sandboxes, err := m.cfg.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return errors.Join(append(errs, fmt.Errorf("listing sandboxes to stop: %w", err))...)
	}
	for _, s := range sandboxes.Items {
		uid := s.Labels[labelPodUID]
		if uid == "" {
			continue
		}
		if _, err := m.cfg.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: s.Id}); err != nil {
			errs = append(errs, fmt.Errorf("stopping the sandbox of pod %s/%s: %w", s.Labels[labelPodNamespace], s.Labels[labelPodName], err))
			continue
		}
		errs = append(errs, m.cfg.Volumes.Unmount(uid))
	}
	return errors.Join(errs...)
}

// parseGrace reads the grace a container was started with, 0 if it isn't there.
func parseGrace(annotations map[string]string) int64 {
	n, err := strconv.ParseInt(annotations[annTerminationGrace], 10, 64)
	if err != nil || n < 0 {
		return 0
	}
	return n
}
