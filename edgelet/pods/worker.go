package pods

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"

	"github.com/coracle-edge/coracle/controlplane/api/trace"
	"github.com/coracle-edge/coracle/edgelet/pods/kubeobj"
	"github.com/coracle-edge/coracle/edgelet/volumes"
)

const (
	retryMin     = 500 * time.Millisecond
	retryMax     = 30 * time.Second
	defaultGrace = 30 // seconds
	// maxSteps bounds how often one sync looks again at once because it did something.
	maxSteps = 16
)

// worker owns one pod UID. Only its goroutine, in run, touches the runtime for
// that pod. The others leave the latest word and wake it.
type worker struct {
	m                    *Manager
	namespace, name, uid string
	orphanGrace          int64 // set before run looks at it, with remove
	wake                 chan struct{}
	dirty                atomic.Bool // what the pod refers to changed
	reported             atomic.Pointer[v1.PodStatus]
	// pending: nothing was done for this pod yet, so it may wait for its name.
	pending atomic.Bool

	mu          sync.Mutex
	object      *Object
	removed     bool
	terminating bool
	graceSecs   int64              // of the latest word, if terminating
	interrupt   context.CancelFunc // ends what waits, when the pod is to end or to end sooner
	refs        map[ref]uint64
	claims      *claimed
	ending      *ending         // a verdict that is being carried out
	stopped     map[string]bool // containers whose end was told
	sweeps      []chan struct{} // asked for, see sweep; closed when done

	// Below: the goroutine's own.
	fresh     bool // the runtime has nothing of this pod
	record    *record
	pod       *v1.Pod // decoded during a sync only
	waiting   map[string]waiting
	crashes   map[string]*crash
	exits     map[string]time.Time // by container ID: when it was first seen ended
	mounted   volumes.Mounted
	isMounted bool
	failures  int
	deadline  time.Time          // when a terminating pod's grace is over
	finished  bool               // everything is gone and reported so
	said      map[string]string  // the last event of a reason
	held      map[string]heldOff // containers that could not be created
	ran       map[string]bool    // containers that ran before this agent started
	probed    bool               // the probes know of containers of this pod
	// startedHere is when this agent started a container, by ID.
	startedHere map[string]time.Time
	resize      resizing
	told        map[string]v1.ResourceRequirements // resources the runtime was told, by container ID
	toldPod     map[string]v1.ResourceRequirements // those of the pod as a whole then
	deferred    atomic.Bool                        // a resize waits for room
}

// heldOff is until when a container that could not be created is left alone.
type heldOff struct {
	until    time.Time
	attempts int
}

func newWorker(m *Manager, namespace, name, uid string) *worker {
	w := &worker{m: m, namespace: namespace, name: name, uid: uid, wake: make(chan struct{}, 1),
		waiting: map[string]waiting{}, crashes: map[string]*crash{}, exits: map[string]time.Time{},
		ran: map[string]bool{}, held: map[string]heldOff{}, startedHere: map[string]time.Time{},
		told: map[string]v1.ResourceRequirements{}, toldPod: map[string]v1.ResourceRequirements{}}
	w.pending.Store(true)
	return w
}

func (w *worker) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// update leaves the latest word about the pod.
func (w *worker) update(o *Object) {
	w.mu.Lock()
	same := w.object != nil && w.object.Hash == o.Hash && w.object.Hash != ""
	if same && !w.removed {
		w.mu.Unlock()
		return
	}
	if w.object != nil {
		w.dirty.Store(true) // its labels and annotations may be files in it
	}
	w.object, w.removed = o, false
	w.mu.Unlock()
	w.dirty.Store(true) // labels and annotations are in volumes of the downward API
	if pod, err := kubeobj.Pod(o.Raw); err == nil {
		w.noteRefs(pod)
		if pod.DeletionTimestamp != nil {
			w.end(grace(pod))
		}
	}
	w.signal()
}

// remove says that the pod is not to be here any more.
func (w *worker) remove() {
	w.mu.Lock()
	already := w.removed
	w.removed = true
	o := w.object
	w.mu.Unlock()
	if already {
		return
	}
	secs := w.orphanGrace
	if o != nil {
		if pod, err := kubeobj.Pod(o.Raw); err == nil {
			secs = grace(pod)
		}
	}
	if secs == 0 {
		secs = defaultGrace
	}
	w.end(secs)
	w.signal()
}

// end interrupts what the worker waits for if the pod is to end, or to end
// sooner than was said before.
func (w *worker) end(graceSecs int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.terminating && graceSecs >= w.graceSecs {
		return
	}
	w.terminating, w.graceSecs = true, graceSecs
	if w.interrupt != nil {
		w.interrupt()
	}
}

func (w *worker) leaving() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.terminating
}

func (w *worker) isStatic() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.object != nil && w.object.Static
}

func (w *worker) noteRefs(pod *v1.Pod) {
	refs := map[ref]uint64{}
	for _, r := range references(pod) {
		refs[r] = w.m.hashRef(r)
	}
	w.mu.Lock()
	w.refs = refs
	w.mu.Unlock()
}

func (w *worker) refsChanged(hashes map[ref]uint64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	changed := false
	for r, old := range w.refs {
		now, ok := hashes[r]
		if !ok {
			now = w.m.hashRef(r)
			hashes[r] = now
		}
		if now != old {
			w.refs[r], changed = now, true
		}
	}
	return changed
}

// run is the worker's life.
func (w *worker) run(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case <-w.wake: // what it says is read now
		default:
		}
		next := w.sync(ctx)
		w.pod = nil
		if w.finished {
			return
		}
		timer.Stop()
		if !next.IsZero() {
			timer.Reset(max(time.Until(next), time.Millisecond))
		}
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
		case <-timer.C:
		}
	}
}

// sync looks and acts once, and returns when to look again although nothing
// happened; zero if never.
func (w *worker) sync(ctx context.Context) time.Time {
	wait, cancel := context.WithCancel(ctx)
	defer cancel()
	w.mu.Lock()
	o, removed, terminating := w.object, w.removed, w.terminating
	w.interrupt = cancel
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		w.interrupt = nil
		w.mu.Unlock()
	}()

	next, err := w.syncOnce(ctx, wait, o, removed || terminating)
	switch {
	case ctx.Err() != nil:
		return time.Time{}
	case wait.Err() != nil:
		return time.Now() // interrupted: there is a newer word
	case err != nil:
		delay := min(retryMin<<min(w.failures, 10), retryMax)
		w.failures++
		w.m.log.Warn("pod is not as it should be yet", "pod", w.namespace+"/"+w.name, "uid", w.uid, "err", err, "retryIn", delay)
		if at := time.Now().Add(delay); next.IsZero() || at.Before(next) {
			next = at
		}
	default:
		w.failures = 0
	}
	return next
}

func (w *worker) syncOnce(ctx, wait context.Context, o *Object, ending bool) (time.Time, error) {
	if err := w.load(o); err != nil {
		return time.Time{}, err
	}
	if !ending && w.m.nameTaken(w) {
		return time.Time{}, nil // woken when the other one is gone
	}
	w.pending.Store(false)
	if ending || w.pod.DeletionTimestamp != nil {
		w.asAllocated()
		return time.Time{}, w.terminate(ctx, wait)
	}
	var next time.Time
	for range maxSteps {
		seen, err := w.observe(ctx, false)
		if err != nil {
			return next, err
		}
		if w.record.terminal() {
			w.asAllocated()
			err := w.settle(ctx, wait, seen)
			if err == nil {
				w.served()
				err = w.sweep(ctx, seen)
			}
			return time.Time{}, err
		}
		if e := w.verdict(); e != nil {
			w.asAllocated()
			return time.Time{}, w.serve(ctx, wait, e, seen)
		}
		if !w.record.admitted {
			reason, message, ok := w.m.admit(wait, w, w.pod)
			if wait.Err() != nil {
				return time.Time{}, wait.Err()
			}
			if !ok {
				return time.Time{}, w.reject(reason, message)
			}
			w.record.admitted = true // made durable with the first report
		}
		retry, err := w.allocate()
		if err != nil {
			return next, err
		}
		next = earliest(next, retry)
		if w.holds() == nil {
			w.claim(w.pod)
		}
		if over, at := w.overdue(); over {
			w.record.reason, w.record.message = reasonDeadline, messageDeadline
			w.event("", v1.EventTypeNormal, reasonDeadline, messageDeadline)
			return time.Time{}, w.settle(ctx, wait, seen)
		} else if !at.IsZero() {
			next = at
		}
		if st := w.status(seen, false); st.Phase == v1.PodSucceeded || st.Phase == v1.PodFailed {
			return time.Time{}, w.settle(ctx, wait, seen)
		}
		if err := w.m.cgroups.ensure(w.pod); err != nil {
			w.eventOnce(v1.EventTypeWarning, "FailedCreatePodContainer", fmt.Sprintf("unable to ensure pod container exists: %v", err))
			return next, err
		}
		a := computeActions(w.pod, seen, w.m.probes, w.resizesOf)
		did, at, err := w.perform(ctx, wait, seen, a)
		next = earliest(next, at)
		if err != nil || !did {
			if wait.Err() == nil {
				err = errors.Join(err, w.reportNow(ctx, seen, did))
			}
			return earliest(next, w.refreshAt()), err
		}
	}
	return time.Now().Add(retryMin), nil
}

// refreshAt is when the volumes want to be looked at again, on the monotonic
// clock.
func (w *worker) refreshAt() time.Time {
	if w.mounted.Refresh.IsZero() {
		return time.Time{}
	}
	return time.Now().Add(w.mounted.Refresh.Sub(w.m.cfg.Now()))
}

// load decodes the pod and, once, its record.
func (w *worker) load(o *Object) error {
	if w.record == nil {
		raw, err := w.m.cfg.Store.Record(w.uid)
		if err != nil {
			return fmt.Errorf("reading the record of the pod: %w", err)
		}
		if w.record, err = decodeRecord(raw); err != nil {
			// A record of another version or a broken one: what runs is seen anyway.
			w.m.log.Error("starting without the pod's record", "pod", w.namespace+"/"+w.name, "err", err)
			w.record = new(record)
		}
		if len(raw) > 0 {
			w.fresh = false
			s := w.record.status
			w.reported.Store(&s)
			w.resize.backfill(&s)
			for _, c := range s.ContainerStatuses {
				w.ran[c.Name] = c.ContainerID != "" || c.RestartCount > 0
			}
			for _, c := range slices.Concat(s.InitContainerStatuses, s.EphemeralContainerStatuses) {
				w.ran[c.Name] = c.ContainerID != "" || c.RestartCount > 0
			}
		}
	}
	if o == nil {
		secs := w.orphanGrace
		if secs == 0 {
			secs = defaultGrace
		}
		w.pod = minimalPod(w.namespace, w.name, w.uid, secs)
		return nil
	}
	pod, err := kubeobj.Pod(o.Raw)
	if err != nil {
		return fmt.Errorf("pod %s/%s: %w", w.namespace, w.name, err)
	}
	w.pod = pod
	return nil
}

// observe looks at the runtime, adds what the record knows beyond it, and notes
// when ends were first seen.
func (w *worker) observe(ctx context.Context, ending bool) (*observation, error) {
	var seen *observation
	if w.fresh {
		seen, w.fresh = new(observation), false
	} else {
		var err error
		if seen, err = observe(ctx, w.m.cfg.Runtime, w.uid); err != nil {
			return nil, err
		}
	}
	now := time.Now()
	ended := map[string]time.Time{}
	for _, c := range seen.containers {
		if c.state != stateExited {
			continue
		}
		at, known := w.exits[c.id]
		if !known {
			at = now
		}
		ended[c.id] = at
		w.addTerminationMessage(c)
	}
	w.exits = ended
	over := func(id string) bool { got := seen.byID(id); return got == nil || got.state == stateExited }
	maps.DeleteFunc(w.startedHere, func(id string, _ time.Time) bool { return over(id) })
	maps.DeleteFunc(w.told, func(id string, _ v1.ResourceRequirements) bool { return over(id) })
	maps.DeleteFunc(w.toldPod, func(id string, _ v1.ResourceRequirements) bool { return over(id) })
	addLost(seen, w.record)
	w.watchProbes(seen, ending)
	return seen, nil
}

// overdue reports whether the pod's activeDeadlineSeconds are over, or when they
// will be. The board's clock may have been wrong when the pod started, so the
// deadline is measured on the wall clock that time stamps are made of.
func (w *worker) overdue() (bool, time.Time) {
	limit, start := w.pod.Spec.ActiveDeadlineSeconds, w.record.status.StartTime
	if limit == nil || start == nil {
		return false, time.Time{}
	}
	left := time.Duration(*limit)*time.Second - w.m.cfg.Now().Sub(start.Time)
	if left <= 0 {
		return true, time.Time{}
	}
	return false, time.Now().Add(left)
}

func (w *worker) status(seen *observation, over bool) v1.PodStatus {
	in := statusInput{pod: w.pod, seen: seen, record: w.record, waiting: w.waiting, over: over,
		runtimeName: w.m.runtimeName, hostIPs: w.m.cfg.Node.HostIPs(), now: w.m.cfg.Now()}
	in.started, in.ready = w.m.probes.Started, w.m.probes.Ready
	in.actuated = w.actuated
	if !over {
		w.concludeResize(seen)
		in.resize = w.resize
	}
	if d := w.m.cfg.Devices; d != nil {
		in.health = func(c string) []v1.ResourceStatus { return d.Health(w.uid, c) }
	}
	return podStatus(in)
}

// reportNow reports what is, looking once more if something was done since.
func (w *worker) reportNow(ctx context.Context, seen *observation, again bool) error {
	if again {
		var err error
		if seen, err = w.observe(ctx, false); err != nil {
			return err
		}
	}
	return w.report(w.status(seen, false), false)
}

// report makes a status durable, as record and for the control plane, if it
// changed.
func (w *worker) report(s v1.PodStatus, gone bool) error {
	if !gone && w.reported.Load() != nil && sameStatus(w.reported.Load(), &s) {
		return nil
	}
	w.record.status = s
	// A pod that is over must not run again even if the power is cut now, so its
	// record goes first. Otherwise the report does: nobody waits for the flash.
	if w.record.terminal() && !gone {
		if err := w.keep(); err != nil {
			return err
		}
	}
	w.mu.Lock()
	o := w.object
	w.mu.Unlock()
	r := Report{Namespace: w.namespace, Name: w.name, UID: w.uid, Status: &s, Gone: gone}
	if o != nil {
		r.Trace = o.Trace
		if o.Static {
			r.Mirror = o.Raw
		}
	}
	if s.Phase == v1.PodRunning {
		r.Trace.Mark(trace.StatusQueued, time.Now())
	}
	if err := w.m.cfg.Store.Report(r); err != nil {
		return fmt.Errorf("reporting pod %s/%s: %w", w.namespace, w.name, err)
	}
	w.reported.Store(&s)
	if gone {
		return nil
	}
	return w.keep()
}

// keep makes the record durable.
func (w *worker) keep() error {
	raw, err := w.record.encode()
	if err != nil {
		return err
	}
	if err := w.m.cfg.Store.PutRecord(w.uid, raw); err != nil {
		return fmt.Errorf("keeping the record of pod %s/%s: %w", w.namespace, w.name, err)
	}
	return nil
}

func (w *worker) reject(reason, message string) error {
	w.event("", v1.EventTypeWarning, reason, message)
	w.record.admitted = true
	w.record.reason, w.record.message = reason, "Pod was rejected: "+message
	return w.report(rejected(w.pod, reason, message, w.m.cfg.Now()), false)
}

// event journals an event about the pod or, if container is not empty, about a
// container of it.
func (w *worker) event(container, eventType, reason, message string) {
	e := Event{Namespace: w.namespace, Name: w.name, UID: w.uid, Type: eventType, Reason: reason, Message: message, Time: w.m.cfg.Now()}
	if container != "" && w.pod != nil {
		e.FieldPath = fieldPath(w.pod, container)
	}
	w.journal(e)
}

func (w *worker) journal(e Event) {
	if err := w.m.cfg.Store.Event(e); err != nil {
		w.m.log.Warn("an event was lost", "pod", w.namespace+"/"+w.name, "reason", e.Reason, "err", err)
	}
}

func (w *worker) mark(step trace.Step) {
	w.mu.Lock()
	o := w.object
	w.mu.Unlock()
	if o != nil {
		o.Trace.Mark(step, time.Now())
	}
}

// references are the objects a pod's containers and volumes are made of.
func references(pod *v1.Pod) []ref {
	var out []ref
	add := func(kind, name string) {
		if name != "" {
			out = append(out, ref{kind, pod.Namespace, name})
		}
	}
	for i := range pod.Spec.Volumes {
		switch s := &pod.Spec.Volumes[i].VolumeSource; {
		case s.ConfigMap != nil:
			add("ConfigMap", s.ConfigMap.Name)
		case s.Secret != nil:
			add("Secret", s.Secret.SecretName)
		case s.Projected != nil:
			for _, p := range s.Projected.Sources {
				if p.ConfigMap != nil {
					add("ConfigMap", p.ConfigMap.Name)
				}
				if p.Secret != nil {
					add("Secret", p.Secret.Name)
				}
			}
		case s.PersistentVolumeClaim != nil:
			add("PersistentVolumeClaim", s.PersistentVolumeClaim.ClaimName)
		case s.Ephemeral != nil:
			add("PersistentVolumeClaim", pod.Name+"-"+pod.Spec.Volumes[i].Name)
		case s.CSI != nil:
			out = append(out, ref{"CSIDriver", "", s.CSI.Driver})
			if r := s.CSI.NodePublishSecretRef; r != nil {
				add("Secret", r.Name)
			}
		}
	}
	for _, list := range [][]v1.Container{pod.Spec.InitContainers, pod.Spec.Containers, ephemerals(pod)} {
		for i := range list {
			for _, e := range list[i].EnvFrom {
				if e.ConfigMapRef != nil {
					add("ConfigMap", e.ConfigMapRef.Name)
				}
				if e.SecretRef != nil {
					add("Secret", e.SecretRef.Name)
				}
			}
			for _, e := range list[i].Env {
				if e.ValueFrom != nil && e.ValueFrom.ConfigMapKeyRef != nil {
					add("ConfigMap", e.ValueFrom.ConfigMapKeyRef.Name)
				}
				if e.ValueFrom != nil && e.ValueFrom.SecretKeyRef != nil {
					add("Secret", e.ValueFrom.SecretKeyRef.Name)
				}
			}
		}
	}
	for _, s := range pod.Spec.ImagePullSecrets {
		add("Secret", s.Name)
	}
	return out
}

func grace(pod *v1.Pod) int64 {
	switch {
	case pod.DeletionGracePeriodSeconds != nil:
		return *pod.DeletionGracePeriodSeconds
	case pod.Spec.TerminationGracePeriodSeconds != nil:
		return *pod.Spec.TerminationGracePeriodSeconds
	}
	return defaultGrace
}

func earliest(a, b time.Time) time.Time {
	if a.IsZero() || (!b.IsZero() && b.Before(a)) {
		return b
	}
	return a
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

func isUnimplemented(err error) bool { return status.Code(err) == codes.Unimplemented }
