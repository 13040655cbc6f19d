package pods

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"

	"github.com/coracle-edge/coracle/edgelet/claims"
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

// worker owns one pod UID. Only its turn, of which there is one at a time, touches
// the runtime for that pod. The others leave the latest word and wake it. Between
// turns a worker has no goroutine: see turns.go.
type worker struct {
	m                    *Manager
	namespace, name, uid string
	orphanGrace          int64 // set before a turn looks at it, with remove
	wake                 chan struct{}
	seat                 seat
	dirty                atomic.Bool // what the pod refers to changed
	unclaimed            atomic.Bool // it waits for its claims, or for their end
	reported             atomic.Pointer[v1.PodStatus]
	// pending: nothing was done for this pod yet, so it may wait for its name.
	pending atomic.Bool

	mu          sync.Mutex
	object      *Object
	removed     bool
	terminating bool
	graceSecs   int64              // of the latest word, if terminating
	interrupt   context.CancelFunc // ends what waits, when the pod is to end or to end sooner
	refs        []hashedRef
	claims      *claimed
	ending      *ending         // a verdict that is being carried out
	stopped     map[string]bool // containers whose end was told
	sweeps      []chan struct{} // asked for, see sweep; closed when done

	// Below: the turn's own.
	fresh     bool // the runtime has nothing of this pod
	record    *record
	pod       *v1.Pod // decoded during a sync only
	waiting   map[string]waiting
	crashes   map[string]*crash
	exits     map[string]time.Time // by container ID: when it was first seen ended
	mounted   volumes.Mounted
	isMounted bool
	failures  int
	deadline  time.Time // when a terminating pod's grace is over
	finished  bool      // everything is gone and reported so
	said      map[sayingKey]saying
	// volumeSaid begins what containers say that wait for an image, and for volumes.
	volumeSaid string
	held       map[string]heldOff // containers that could not be created
	ran        map[string]bool    // containers that ran before this agent started
	// born is when this agent first heard of the pod; takenOver says that there is a
	// record of a time before that.
	born      time.Time
	takenOver bool
	timed     timed
	// restarting says that all containers are being removed to begin again.
	restarting bool
	probed     bool  // the probes know of containers of this pod
	runs       []run // containers that run, as far as this agent had to do with them
	resize     resizing
	recursive  *bool // see readsRecursively
	// placed are the processors that the runtime was told of, by ID of containers that
	// run; nil where all share all.
	placed map[string]string
}

// run is what this agent did with a container that runs. There are few in a pod: a
// list of them is a third of a map.
type run struct {
	id      string
	started time.Time // here; zero: by another agent
	// told is what the runtime was told of its resources, toldPod those of the pod as a
	// whole then.
	told, toldPod v1.ResourceRequirements
}

// runOf returns what was done with a container, nil if nothing was. It is good until
// another one is noted.
func (w *worker) runOf(id string) *run {
	for i := range w.runs {
		if w.runs[i].id == id {
			return &w.runs[i]
		}
	}
	return nil
}

// tell notes what the runtime was told of a container's resources.
func (w *worker) tell(id string, c *v1.Container) *run {
	r := w.runOf(id)
	if r == nil {
		w.runs = append(w.runs, run{id: id})
		r = &w.runs[len(w.runs)-1]
	}
	r.told, r.toldPod = *c.Resources.DeepCopy(), deref(w.pod.Spec.Resources.DeepCopy(), v1.ResourceRequirements{})
	return r
}

// put sets what most pods have nothing of.
func put[V any](m *map[string]V, key string, value V) {
	if *m == nil {
		*m = map[string]V{}
	}
	(*m)[key] = value
}

// heldOff is until when a container that could not be created is left alone.
type heldOff struct {
	until    time.Time
	attempts int
}

func newWorker(m *Manager, namespace, name, uid string) *worker {
	w := &worker{m: m, namespace: namespace, name: name, uid: uid, born: time.Now(), wake: make(chan struct{}, 1)}
	w.pending.Store(true)
	return w
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
	own := *o // o is one of a list, which would stay with all others in it
	w.object, w.removed = &own, false
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

// remove says that the pod is not to be here any more. The API keeps a pod until its
// node says that it is over, so one that is gone from it was deleted by force: it has
// the least grace, whether or not that word came before (Kubernetes' documentation,
// Pod Lifecycle, "Forced Pod termination"). A static pod has what its file gave it.
func (w *worker) remove() {
	w.mu.Lock()
	already := w.removed
	w.removed = true
	o := w.object
	w.mu.Unlock()
	if already {
		return
	}
	secs := int64(minGrace)
	switch {
	case o == nil && w.orphanGrace > 0:
		secs = w.orphanGrace
	case o == nil:
		secs = defaultGrace
	case o.Static:
		if pod, err := kubeobj.Pod(o.Raw); err == nil {
			secs = grace(pod)
		}
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
	var refs []hashedRef
	for _, r := range references(pod) {
		if !slices.ContainsFunc(refs, func(h hashedRef) bool { return h.ref == r }) {
			refs = append(refs, hashedRef{r, w.m.hashRef(r)})
		}
	}
	w.mu.Lock()
	w.refs = refs
	w.mu.Unlock()
}

func (w *worker) refsChanged(hashes map[ref]uint64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	changed := false
	for i := range w.refs {
		r := &w.refs[i]
		now, ok := hashes[r.ref]
		if !ok {
			now = w.m.hashRef(r.ref)
			hashes[r.ref] = now
		}
		if now != r.hash {
			r.hash, changed = now, true
		}
	}
	return changed
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

	began := time.Now()
	next, err := w.syncOnce(ctx, wait, o, removed || terminating)
	w.look(o, began)
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
		w.sayBlocked()
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
		next = earliest(next, w.place(ctx, seen))
		if over, at, err := w.overdue(); err != nil {
			return next, err
		} else if over {
			w.record.reason, w.record.message = reasonDeadline, messageDeadline
			w.event("", v1.EventTypeNormal, reasonDeadline, messageDeadline)
			return time.Time{}, w.settle(ctx, wait, seen)
		} else {
			next = earliest(next, at)
		}
		if did, at, err := w.restartAll(ctx, wait, seen); did || err != nil {
			if err != nil {
				return next, err
			}
			continue
		} else {
			next = earliest(next, at)
		}
		if st := w.status(seen, false); st.Phase == v1.PodSucceeded || st.Phase == v1.PodFailed {
			return time.Time{}, w.settle(ctx, wait, seen)
		}
		if err := w.m.cgroups.ensure(w.pod); err != nil {
			w.eventOnce("", v1.EventTypeWarning, "FailedCreatePodContainer", fmt.Sprintf("unable to ensure pod container exists: %v", err))
			return next, err
		}
		if w.dirty.Load() {
			clear(w.held) // what a container waits for may have come
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
			w.fresh, w.takenOver = false, true
			s := w.record.status
			w.reported.Store(&s)
			w.resize.backfill(&s)
			for _, c := range s.ContainerStatuses {
				put(&w.ran, c.Name, c.ContainerID != "" || c.RestartCount > 0)
			}
			for _, c := range slices.Concat(s.InitContainerStatuses, s.EphemeralContainerStatuses) {
				put(&w.ran, c.Name, c.ContainerID != "" || c.RestartCount > 0)
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
	if _, says := pod.Annotations[annotationSource]; says && !o.Static {
		// Whoever made it may have written that it is this node's own; only the node
		// knows (kubelet: config.go).
		pod.Annotations[annotationSource] = "api"
	}
	w.pod = pod
	return nil
}

// annotationSource says whether a pod is the node's own: file, not api.
const annotationSource = "kubernetes.io/config.source"

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
	var ended map[string]time.Time
	for _, c := range seen.containers {
		if c.state != stateExited {
			continue
		}
		at, known := w.exits[c.id]
		if !known {
			at = now
			w.m.counters.ended(Termination{Type: containerType(w.pod, c.name), ExitCode: c.exitCode, Reason: c.reason})
		}
		put(&ended, c.id, at)
		w.addTerminationMessage(c)
	}
	w.exits = ended
	over := func(id string) bool { got := seen.byID(id); return got == nil || got.state == stateExited }
	w.runs = slices.DeleteFunc(w.runs, func(r run) bool { return over(r.id) })
	addLost(seen, w.record)
	w.watchProbes(seen, ending)
	return seen, nil
}

func (w *worker) status(seen *observation, over bool) v1.PodStatus {
	in := statusInput{pod: w.pod, seen: seen, record: w.record, waiting: w.waiting, over: over,
		runtimeName: w.m.runtimeName, hostIPs: w.m.cfg.Node.HostIPs(), now: w.m.cfg.Now()}
	in.restarting = w.restarting
	in.started, in.ready = w.m.probes.Started, w.m.probes.Ready
	in.actuated = w.actuated
	in.recursive = func() bool { return onlyWasm(seen) || w.readsRecursively() }
	if !over {
		w.concludeResize(seen)
		in.resize = w.resize
	}
	in.health = w.deviceHealth
	return podStatus(in)
}

// onlyWasm says whether the pod's sandbox has Wasm containers alone, whose mounts are
// read-only with all below them.
func onlyWasm(seen *observation) bool {
	return len(seen.sandboxes) > 0 && seen.sandboxes[0].Annotations[AnnotationSandbox] == kindWasm
}

// readsRecursively asks the runtime once what its mounts for this pod can. An answer
// that doesn't come is no, for now.
func (w *worker) readsRecursively() bool {
	if w.recursive == nil {
		able, err := w.m.readsRecursively(context.Background(), w.pod)
		if err != nil {
			w.m.log.Info("whether mounts are read-only with all below them isn't known", "pod", w.namespace+"/"+w.name, "err", err)
			return false
		}
		w.recursive = &able
	}
	return *w.recursive
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
	list, _ := claims.Of(pod)
	for _, c := range list {
		add(claims.Kind, c.Name)
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
