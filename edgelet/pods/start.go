package pods

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/controlplane/api/trace"
	"github.com/coracle-edge/coracle/edgelet/claims"
	"github.com/coracle-edge/coracle/edgelet/images"
	"github.com/coracle-edge/coracle/edgelet/volumes"
)

// Reasons a container waits, beside those of package images.
const (
	reasonCrashLoop    = "CrashLoopBackOff"
	reasonConfig       = "CreateContainerConfigError"
	reasonCreate       = "CreateContainerError"
	reasonRun          = "RunContainerError"
	reasonPostStart    = "PostStartHookError"
	reasonVolumeType   = "UnsupportedVolumeType"
	reasonFailedMount  = "FailedMount"
	reasonFailedSand   = "FailedCreatePodSandBox"
	handlerWasm        = "wasm"
	eventBackOff       = "BackOff"
	eventFailed        = "Failed"
	eventPulled        = "Pulled"
	messageSandboxGone = "Pod sandbox changed, it will be killed and re-created."
)

// showPullError is how long ErrImagePull is shown before ImagePullBackOff.
const showPullError = 2 * time.Second

// errWaiting ends a start whose reason is in worker.waiting and which is tried
// again at a known time or on an event: nothing to log as an error.
var errWaiting = errors.New("waiting")

// volumeRetry is when volumes that stay as they were are tried again.
const volumeRetry = time.Minute

// perform carries out actions. It reports whether anything was done, and when to
// look again at the latest.
func (w *worker) perform(ctx, wait context.Context, seen *observation, a actions) (did bool, next time.Time, err error) {
	if err := w.refreshVolumes(wait, a); err != nil {
		return false, time.Time{}, err
	}
	if a.none() {
		return false, time.Time{}, nil
	}
	if a.stopPod {
		if a.createSandbox {
			w.event("", v1.EventTypeNormal, "SandboxChanged", messageSandboxGone)
		}
		if err := w.stopAll(ctx, wait, seen); err != nil {
			return true, time.Time{}, err
		}
	}
	for id, order := range a.kill {
		if err := w.stopContainer(ctx, wait, seen.byID(id), order, nil); err != nil {
			return true, time.Time{}, err
		}
	}
	if err := w.resizeContainers(ctx, seen, a); err != nil {
		return true, time.Time{}, err
	}
	if err := w.m.cgroups.follow(w.pod); err != nil {
		return true, time.Time{}, err
	}
	started, next, err := w.startContainers(ctx, wait, seen, a)
	if errors.Is(err, errWaiting) {
		err = nil
	}
	return started || a.stopPod || len(a.kill)+len(a.update) > 0, next, err
}

func (o *observation) byID(id string) *observedContainer {
	for _, c := range o.containers {
		if c.id == id {
			return c
		}
	}
	return nil
}

// refreshVolumes brings a running pod's volumes up to date when what they are
// made of changed, or a token grew old. That it can't keeps nothing else of the pod
// from being done.
func (w *worker) refreshVolumes(ctx context.Context, a actions) error {
	due := !w.mounted.Refresh.IsZero() && !w.m.cfg.Now().Before(w.mounted.Refresh)
	adopted := !w.isMounted && !a.createSandbox
	if !(w.dirty.Swap(false) && w.isMounted) && !due && !adopted {
		return nil
	}
	return w.setUpVolumes(ctx)
}

func (w *worker) setUpVolumes(ctx context.Context) error {
	mounted, err := w.m.cfg.Volumes.SetUp(ctx, w.withAddresses(nil))
	if err != nil && w.isMounted && ctx.Err() == nil {
		// What is mounted stays so, and the pod's containers live and restart with it
		// (upstream: a volume that can't be mounted again is still a mounted one).
		w.eventOnce("", v1.EventTypeWarning, reasonFailedMount, err.Error())
		w.mounted.Refresh = w.m.cfg.Now().Add(volumeRetry)
		return nil
	}
	if err == nil && mounted.Stale != nil {
		w.eventOnce("", v1.EventTypeWarning, reasonFailedMount, mounted.Stale.Error())
	}
	if err != nil {
		w.dirty.Store(true)
		if ctx.Err() == nil {
			reason := reasonFailedMount
			if volume := new(volumes.Error); errors.As(err, &volume) && volume.Block {
				reason = reasonFailedMap
			}
			w.eventOnce("", v1.EventTypeWarning, reason, err.Error())
		}
		return err
	}
	w.mounted, w.isMounted = mounted, true
	return nil
}

// withAddresses is the pod with the addresses the downward API asks for.
func (w *worker) withAddresses(ips []string) *v1.Pod {
	pod := *w.pod
	pod.Status = v1.PodStatus{ResourceClaimStatuses: w.pod.Status.ResourceClaimStatuses, ExtendedResourceClaimStatus: w.pod.Status.ExtendedResourceClaimStatus}
	if pod.Spec.HostNetwork {
		ips = w.m.cfg.Node.HostIPs() // its sandbox has none of its own
	}
	if ips == nil {
		if s := w.reported.Load(); s != nil {
			pod.Status.PodIP, pod.Status.PodIPs = s.PodIP, s.PodIPs
		}
	}
	for _, ip := range ips {
		pod.Status.PodIPs = append(pod.Status.PodIPs, v1.PodIP{IP: ip})
		pod.Status.PodIP = ips[0]
	}
	for i, ip := range w.m.cfg.Node.HostIPs() {
		if i == 0 {
			pod.Status.HostIP = ip
		}
		pod.Status.HostIPs = append(pod.Status.HostIPs, v1.HostIP{IP: ip})
	}
	return &pod
}

// startContainers does what is needed for a.init and a.containers: images, then
// volumes, then the sandbox, then the containers in order. It reports whether
// anything new is there, and when to look again at the latest. A container that
// can't be started holds up those after it only if it is an init container.
func (w *worker) startContainers(ctx, wait context.Context, seen *observation, a actions) (did bool, next time.Time, err error) {
	todo, next := w.dueContainers(seen, a)
	if len(todo) == 0 {
		return false, next, errWaiting
	}
	handler, err := w.m.handler(w.pod)
	if err != nil {
		return false, next, err
	}
	pulls := pulls{}
	kind := ""
	if a.createSandbox {
		var retry time.Time
		if kind, retry, err = w.classify(wait, handler, pulls); err == nil {
			// Without any image there is nothing to make a sandbox for.
			retry, err = w.anyImage(wait, todo, handler, pulls)
		}
		if err != nil {
			w.nameVolumes(wait)
			return false, earliest(next, retry), err
		}
		w.mark(trace.ImageReady)
	}
	if !a.createSandbox {
		kind = seen.sandboxes[0].Annotations[AnnotationSandbox]
	}
	release := func() {}
	defer func() { release() }()
	// A driver that hangs must not keep other pods from starting.
	driven := claims.Has(w.pod) || volumes.Driven(w.pod)
	if !driven {
		if release, err = w.m.slot(wait, kind); err != nil {
			return false, next, err
		}
	}
	if err := w.setUpVolumes(wait); err != nil {
		w.waitForVolumes(err)
		return false, next, err
	}
	if claims.Has(w.pod) {
		if err := w.prepareClaims(wait, a.createSandbox); err != nil {
			return false, next, err
		}
	}
	if driven {
		if release, err = w.m.slot(wait, kind); err != nil {
			return false, next, err
		}
	}
	w.warnMemoryLimits(todo)
	failed := false
	if a.createSandbox && !deref(w.pod.Spec.HostUsers, true) {
		w.m.ownUsers.started.Add(1)
		defer func() {
			if failed {
				w.m.ownUsers.failed.Add(1)
			}
		}()
	}
	id, config, ips, err := w.sandbox(ctx, seen, a, kind, handler)
	if err != nil {
		failed = true
		return false, next, err
	}
	did = a.createSandbox
	for _, c := range todo {
		blocks := isInit(w.pod, c.Name) && !isSidecar(c)
		release() // a pull must not keep other pods from starting
		release = func() {}
		img, retry, err := w.image(wait, c, handler, pulls)
		if err == nil {
			retry, err = w.volumeImages(wait, c, handler)
		}
		if err == nil {
			if release, err = w.m.slot(wait, kind); err != nil {
				return did, next, err
			}
			err = w.startContainer(ctx, wait, release, seen, c, img, id, config, ips)
			w.m.counters.started(containerType(w.pod, c.Name), err)
			if err != nil {
				failed = true
				retry = w.holdOff(c.Name)
				w.m.log.Warn("a container can't be started yet", "pod", w.namespace+"/"+w.name, "container", c.Name, "err", err)
				err = errWaiting
			}
		}
		next = earliest(next, retry)
		switch {
		case err == nil:
			did = true
		case blocks, wait.Err() != nil, !errors.Is(err, errWaiting):
			return did, next, err
		}
	}
	return did, next, nil
}

// holdOff spaces attempts at a container that can't be created.
func (w *worker) holdOff(name string) time.Time {
	h := w.held[name]
	h.until = time.Now().Add(min(retryMin<<min(h.attempts, 10), crashBackOffMax))
	h.attempts++
	put(&w.held, name, h)
	return h.until
}

// slot is the right to have the runtime make something. Sandboxes of either kind
// have their own: a containerd that hangs must not keep Wasm pods from starting.
// The function gives it back; more than once does no harm.
func (m *Manager) slot(ctx context.Context, kind string) (func(), error) {
	slots := m.slots[0]
	if kind == kindWasm {
		slots = m.slots[1]
	}
	select {
	case slots <- struct{}{}:
		return sync.OnceFunc(func() { <-slots }), nil
	case <-ctx.Done():
		return func() {}, ctx.Err()
	}
}

// dueContainers are the containers to start now; those in back-off are noted as
// waiting.
func (w *worker) dueContainers(seen *observation, a actions) ([]*v1.Container, time.Time) {
	var due []*v1.Container
	var next time.Time
	held := func(c *v1.Container) bool {
		// Of one that was just killed, the run before it counts, as upstream has it.
		var until time.Time
		var message string
		if got := seen.ended(c.Name); got != nil && !got.lost {
			until, message = w.backOff(c.Name, w.exits[got.id])
		}
		if until.IsZero() {
			until = w.held[c.Name].until
			if !time.Now().Before(until) {
				return false
			}
			next = earliest(next, until)
			return true
		}
		put(&w.waiting, c.Name, waiting{reasonCrashLoop, message})
		next = earliest(next, until)
		if crash := w.crashes[c.Name]; !crash.said {
			crash.said = true
			w.event(c.Name, v1.EventTypeWarning, eventBackOff, fmt.Sprintf("Back-off restarting failed container %s in pod %s", c.Name, describe(w.pod)))
		}
		return true
	}
	for _, i := range a.ephemeral {
		if c := ephemeral(w.pod, i); !held(c) {
			due = append(due, c)
		}
	}
	for _, i := range a.init {
		c := &w.pod.Spec.InitContainers[i]
		if held(c) {
			if !isSidecar(c) {
				return due, next
			}
			continue
		}
		due = append(due, c)
	}
	for _, i := range a.containers {
		if c := &w.pod.Spec.Containers[i]; !held(c) {
			due = append(due, c)
		}
	}
	return due, next
}

// reportPending says that the pod is being worked on, before something that
// takes long. A failure to say so is said later.
func (w *worker) reportPending() {
	if w.reported.Load() == nil {
		_ = w.report(w.status(new(observation), false), false)
	}
}

// waitForVolumes notes on each container that can't be created yet why. A
// kubelet leaves the message empty; the reason is in its events only.
func (w *worker) waitForVolumes(err error) {
	reason := reasonCreating
	if errors.Is(err, volumes.ErrUnsupported) {
		reason = reasonVolumeType
	}
	w.allWait(reason, err.Error())
}

// nameVolumes says what is wrong with the volumes of a pod that waits for an image,
// too: who mends one shouldn't have to wait to hear of the other.
func (w *worker) nameVolumes(ctx context.Context) {
	for name, why := range w.waiting {
		why.message = strings.TrimPrefix(why.message, w.volumeSaid)
		w.waiting[name] = why
	}
	w.volumeSaid = ""
	if ctx.Err() != nil || w.isMounted {
		return
	}
	err := w.setUpVolumes(ctx)
	if err == nil || ctx.Err() != nil {
		return
	}
	images := maps.Clone(w.waiting)
	w.waitForVolumes(err)
	w.volumeSaid = err.Error() + "; and "
	for name, why := range images { // the image last, by which it is known again
		why.message = w.volumeSaid + why.message
		put(&w.waiting, name, why)
	}
}

func (w *worker) allWait(reason, message string) {
	for _, list := range [][]v1.Container{w.pod.Spec.InitContainers, w.pod.Spec.Containers} {
		for i := range list {
			r := reason
			if r == reasonCreating && len(w.pod.Spec.InitContainers) > 0 {
				r = reasonInitializing
			}
			put(&w.waiting, list[i].Name, waiting{r, message})
		}
	}
}

// sandbox returns the sandbox to start containers in, a new one if needed.
func (w *worker) sandbox(ctx context.Context, seen *observation, a actions, kind, handler string) (string, *runtimeapi.PodSandboxConfig, []string, error) {
	if !a.createSandbox {
		newest := seen.sandboxes[0]
		config, _, err := w.m.sandboxConfig(ctx, w.pod, a.attempt, newest.Annotations[AnnotationSandbox])
		return a.sandboxID, config, sandboxIPs(newest), err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*callTimeout) // as a kubelet: networks take their time
	defer cancel()
	config, cut, err := w.m.sandboxConfig(ctx, w.pod, a.attempt, kind)
	if err == nil {
		for _, message := range cut {
			w.eventOnce("", v1.EventTypeWarning, reasonDNS, message)
		}
		err = os.MkdirAll(config.LogDirectory, 0o755)
	}
	if err != nil {
		return "", nil, nil, w.sandboxFailed(err)
	}
	var resp *runtimeapi.RunPodSandboxResponse
	w.patiently(func() {
		resp, err = w.m.cfg.Runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: handler})
	})
	if err != nil {
		if why := w.networkMissing(ctx); why != "" {
			w.eventOnce("", v1.EventTypeWarning, reasonNetwork, why)
			w.allWait(reasonCreating, why+": "+message(err))
			return "", nil, nil, errors.New(why)
		}
		return "", nil, nil, w.sandboxFailed(err)
	}
	w.m.counters.sandbox()
	w.mark(trace.SandboxCreated)
	w.allWaitNoMore()
	st, err := w.m.cfg.Runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: resp.PodSandboxId})
	if err != nil {
		w.event("", v1.EventTypeWarning, "FailedPodSandBoxStatus", "Unable to get pod sandbox status: "+message(err))
		return "", nil, nil, fmt.Errorf("asking for the new sandbox: %w", err)
	}
	w.removeSandboxes(ctx, seen, resp.PodSandboxId)
	return resp.PodSandboxId, config, sandboxIPs(st.GetStatus()), nil
}

// slowRuntime is from when on a pod says that it waits for the runtime.
const slowRuntime = 10 * time.Second

// patiently waits for a call to the runtime to return, and has the pod say so if
// that takes long.
func (w *worker) patiently(call func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		call()
	}()
	timer := time.NewTimer(slowRuntime)
	defer timer.Stop()
	select {
	case <-done:
		return
	case <-timer.C:
	}
	w.allWait(reasonCreating, fmt.Sprintf("the container runtime did not answer to RunPodSandbox within %s; still waiting", slowRuntime))
	if err := w.report(w.status(new(observation), false), false); err != nil {
		w.m.log.Warn("a pod that waits for its runtime was not reported", "pod", w.namespace+"/"+w.name, "err", err)
	}
	<-done
}

func (w *worker) sandboxFailed(err error) error {
	text := "Failed to create pod sandbox: " + w.explained(err)
	w.eventOnce("", v1.EventTypeWarning, reasonFailedSand, text)
	w.allWait(reasonCreating, text)
	return errors.New(text)
}

// allWaitNoMore forgets what kept the sandbox from being made.
func (w *worker) allWaitNoMore() {
	for name, why := range w.waiting {
		if why.reason == reasonCreating || why.reason == reasonInitializing || why.reason == reasonVolumeType {
			delete(w.waiting, name)
		}
	}
	w.forgetSaid("", reasonFailedSand, reasonNetwork, reasonFailedMount, reasonFailedMap, reasonClaims)
}

// removeSandboxes removes the sandboxes that another one replaced, with what is
// in them. What was to be remembered of their containers is in the record.
func (w *worker) removeSandboxes(ctx context.Context, seen *observation, keep string) {
	for _, s := range seen.sandboxes {
		if s.Id == keep {
			continue
		}
		if _, err := w.m.cfg.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: s.Id}); err != nil && !isNotFound(err) {
			w.m.log.Warn("an old sandbox stays for now", "pod", w.namespace+"/"+w.name, "sandbox", s.Id, "err", err)
		}
	}
}

// startContainer creates and starts one container, and notes why it waits if
// that fails.
func (w *worker) startContainer(ctx, wait context.Context, release func(), seen *observation, c *v1.Container, img images.Image, sandbox string, sc *runtimeapi.PodSandboxConfig, ips []string) error {
	fail := func(reason string, err error) error {
		text := w.explained(err)
		put(&w.waiting, c.Name, waiting{reason, text})
		w.eventOnce(c.Name, v1.EventTypeWarning, eventFailed, "Error: "+text)
		return fmt.Errorf("container %s: %s: %w", c.Name, reason, err)
	}
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	previous := seen.find(c.Name)
	run := w.nextRun(previous, c.Name)
	if previous != nil && previous.state == stateCreated && !previous.lost {
		// It never ran, because this agent ended before: this is its run, not the next.
		if _, err := w.m.cfg.Runtime.RemoveContainer(call, &runtimeapi.RemoveContainerRequest{ContainerId: previous.id}); err != nil && !isNotFound(err) {
			return fail(reasonCreate, err)
		}
		run = previous.restartCount
	}
	pod := w.withAddresses(ips)
	config, err := w.m.containerConfig(ctx, pod, c, img, w.mounted, ips, run)
	if err == nil {
		err = joinTarget(w.pod, seen, c.Name, config, sc, img)
	}
	if err == nil {
		err = joinUserNamespace(config, sc, img)
	}
	if err != nil {
		return fail(reasonConfig, err)
	}
	created, err := w.m.cfg.Runtime.CreateContainer(call, &runtimeapi.CreateContainerRequest{PodSandboxId: sandbox, Config: config, SandboxConfig: sc})
	if err != nil {
		return fail(reasonCreate, err)
	}
	if w.m.cfg.Processors != nil {
		put(&w.placed, created.ContainerId, config.Linux.Resources.CpusetCpus)
	}
	w.mark(trace.ContainerCreated)
	w.event(c.Name, v1.EventTypeNormal, "Created", "Container created")
	w.removeOldRuns(ctx, seen, c.Name)
	if _, err := w.m.cfg.Runtime.StartContainer(call, &runtimeapi.StartContainerRequest{ContainerId: created.ContainerId}); err != nil {
		// One that the runtime couldn't start has ended, for a kubelet, and backs off as
		// one that crashes.
		w.countRestart(seen, c.Name)
		return fail(reasonRun, err)
	}
	delete(w.record.anew, c.Name)
	w.tell(created.ContainerId, c).started = time.Now()
	w.mark(trace.ContainerStarted)
	w.event(c.Name, v1.EventTypeNormal, "Started", "Container started")
	w.m.linkLog(w.namespace, w.name, w.uid, c.Name, created.ContainerId, run)
	delete(w.waiting, c.Name)
	w.forgetSaid(c.Name, eventFailed, eventPulled, eventBackOff)
	delete(w.held, c.Name)
	w.countRestart(seen, c.Name)
	if c.Lifecycle != nil && c.Lifecycle.PostStart != nil {
		// It may take as long as it likes, but not longer than the pod is wanted, and
		// keep no other from starting.
		release()
		if err := w.runHook(wait, created.ContainerId, c, c.Lifecycle.PostStart, ips); err != nil {
			if wait.Err() != nil {
				return wait.Err() // the pod ends: that stops the container, too
			}
			w.event(c.Name, v1.EventTypeWarning, "FailedPostStartHook", "PostStartHook failed")
			_ = w.stopContainer(ctx, ctx, &observedContainer{id: created.ContainerId, name: c.Name, state: stateRunning}, killOrder{message: "FailedPostStartHook"}, nil)
			return fail(reasonPostStart, err)
		}
	}
	return nil
}

// countRestart makes the back-off of a container longer that ended before and was
// started again.
func (w *worker) countRestart(seen *observation, name string) {
	if before := seen.ended(name); before != nil && !before.lost {
		w.noteRestart(name, w.exits[before.id])
	}
}

// nextRun is the number of the run about to begin. The runtime, the record and
// the log files each may know of the last one.
func (w *worker) nextRun(previous *observedContainer, name string) int32 {
	var n int32
	if previous != nil {
		n = previous.restartCount + 1
	}
	n = max(n, w.runAnew(name))
	entries, err := os.ReadDir(filepath.Join(w.m.logDir(w.namespace, w.name, w.uid), name))
	if err != nil || previous != nil && !previous.lost {
		return n
	}
	for _, e := range entries {
		n = max(n, runAfter(e.Name()))
	}
	return n
}

// runAfter is the number of the run that follows the one that a log file is of, 0
// if it is none's.
func runAfter(file string) int32 {
	run, _, _ := strings.Cut(file, ".")
	i, err := strconv.ParseInt(run, 10, 32)
	if err != nil || i < 0 || i == math.MaxInt32 {
		return 0
	}
	return int32(i) + 1
}

// removeOldRuns keeps the run that ended last beside the one just started, and
// removes those before with their logs.
func (w *worker) removeOldRuns(ctx context.Context, seen *observation, name string) {
	kept := false
	for _, c := range seen.containers {
		if c.name != name || c.state == stateRunning || c.lost {
			continue
		}
		if !kept && c.state == stateExited {
			kept = true
			continue
		}
		if _, err := w.m.cfg.Runtime.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: c.id}); err != nil && !isNotFound(err) {
			w.m.log.Warn("an old container stays for now", "pod", w.namespace+"/"+w.name, "container", name, "err", err)
			continue
		}
		w.m.removeLogs(w.namespace, w.name, w.uid, name, c.restartCount)
	}
}
