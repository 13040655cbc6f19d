package pods

import (
	"slices"
	"sync/atomic"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/coracle-edge/coracle/edgelet/metrics"
)

// Timings are how long what is done for pods takes, since the agent started, in
// seconds, with the buckets of upstream's (pkg/kubelet/metrics).
type Timings struct {
	// Start is from when the node heard of a pod until it ran. StartTotal is from the
	// pod's creation until all its containers ran; StartSLI is that without what images
	// and init containers took, of pods without volumes that outlive them.
	Start, StartSLI, StartTotal *metrics.Histogram
	// WorkerStart is from when the node heard of a pod until something was done for it.
	WorkerStart *metrics.Histogram
	// Worker is one look at a pod with all that came of it, by [WorkerOperation].
	Worker [len(workerOperations)]*metrics.Histogram
	// Relist is a listing of all that the runtime has, RelistInterval what lies between
	// two, and RelistSeen when the last one ended, in seconds since 1970, 0 before.
	Relist, RelistInterval *metrics.Histogram
	RelistSeen             atomic.Int64

	relisted time.Time // when the last listing began; of who lists
}

var workerOperations = [...]string{"create", "update", "sync", "terminated"}

const (
	workerCreate = iota
	workerUpdate
	workerSync
	workerTerminated
)

// WorkerOperation is the name of one of [Timings.Worker].
func WorkerOperation(i int) string { return workerOperations[i] }

func newTimings() *Timings {
	startup := func() *metrics.Histogram {
		return metrics.NewHistogram(.5, 1, 2, 3, 4, 5, 6, 8, 10, 20, 30, 45, 60, 120, 180, 240, 300, 360, 480, 600, 900, 1200, 1800, 2700, 3600)
	}
	usual := func() *metrics.Histogram { return metrics.NewHistogram(metrics.DefaultBounds()...) }
	t := &Timings{Start: startup(), StartSLI: startup(), StartTotal: startup(), WorkerStart: usual(), Relist: usual(), RelistInterval: usual()}
	for i := range t.Worker {
		t.Worker[i] = usual()
	}
	return t
}

// Timings of this manager until now.
func (m *Manager) Timings() *Timings { return m.timings }

// relist counts a listing that has just ended. Only one runs at a time.
func (t *Timings) relist(began time.Time) {
	if !t.relisted.IsZero() {
		t.RelistInterval.Observe(began.Sub(t.relisted).Seconds())
	}
	t.relisted = began
	t.Relist.Observe(time.Since(began).Seconds())
	t.RelistSeen.Store(time.Now().Unix())
}

// timed is what a worker remembers of its pod's start.
type timed struct {
	synced  string        // the hash of the order that was last looked at
	began   bool          // it was looked at
	pulling time.Duration // images, one after another
	ran     bool          // that it runs was counted
	started bool          // that all its containers do
}

// look counts one look at the pod.
func (w *worker) look(o *Object, began time.Time) {
	t, kind := w.m.timings, workerSync
	hash := ""
	if o != nil {
		hash = o.Hash
	}
	switch {
	case w.finished:
		kind = workerTerminated
	case !w.timed.began:
		kind = workerCreate
		t.WorkerStart.Observe(began.Sub(w.born).Seconds())
	case w.timed.synced != hash:
		kind = workerUpdate
	}
	w.timed.began, w.timed.synced = true, hash
	t.Worker[kind].Observe(time.Since(began).Seconds())
}

// count counts the pod's start when it is first reported to run. Of a pod that ran
// before this agent nothing is known.
func (w *worker) count(s *v1.PodStatus) {
	if w.takenOver || w.pod == nil || s.Phase != v1.PodRunning {
		return
	}
	t := w.m.timings
	if !w.timed.ran {
		w.timed.ran = true
		t.Start.Observe(time.Since(w.born).Seconds())
	}
	if w.timed.started || slices.ContainsFunc(s.ContainerStatuses, func(c v1.ContainerStatus) bool { return c.State.Running == nil }) {
		return
	}
	w.timed.started = true
	// By the wall clock of two machines: a board whose clock is behind says nothing.
	total := w.m.cfg.Now().Sub(w.pod.CreationTimestamp.Time)
	if w.pod.CreationTimestamp.IsZero() || total < 0 {
		return
	}
	t.StartTotal.Observe(total.Seconds())
	if outlives(w.pod) {
		return
	}
	rest := total - w.timed.pulling
	for _, c := range s.InitContainerStatuses {
		if end := c.State.Terminated; end != nil {
			rest -= end.FinishedAt.Sub(end.StartedAt.Time)
		}
	}
	t.StartSLI.Observe(max(rest, 0).Seconds())
}

// outlives says whether the pod has a volume that isn't made with it (upstream:
// isStatefulPod in pkg/kubelet/util/pod_startup_latency_tracker.go).
func outlives(pod *v1.Pod) bool {
	return slices.ContainsFunc(pod.Spec.Volumes, func(v v1.Volume) bool {
		return v.Secret == nil && v.ConfigMap == nil && v.DownwardAPI == nil && v.EmptyDir == nil && v.Projected == nil
	})
}
