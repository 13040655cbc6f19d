package pods

import (
	"context"
	"errors"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/edgelet/affinity"
)

// Processors is where processors and memory of a container's own come in:
// [affinity.Manager].
type Processors interface {
	// Admit gives a pod that is new to the node what is for itself, durably, and has
	// devices give it theirs. An error is an [*affinity.Refusal].
	Admit(context.Context, *v1.Pod, affinity.Devices) error
	// Ensure gives an admitted pod what it lacks of that, and says what it can't have,
	// once.
	Ensure(*v1.Pod) (told string, err error)
	// Place is where a container runs now.
	Place(podUID, container string) affinity.Place
	// Exclusive reports whether a container of the pod has processors of its own.
	Exclusive(podUID string) bool
	// Infeasible says why a pod can't be resized in place; empty if it can.
	Infeasible(was, wanted *v1.Pod) string
	// Free takes everything back from a pod that is over.
	Free(podUID string) error
	// Settled says that all containers of before this agent's start were told where
	// they run.
	Settled()
}

// reasonNotExclusive is the event of a pod that shares what was to be its own.
const reasonNotExclusive = "ProcessorsNotExclusive"

// placeRetry is when a container that the runtime didn't put elsewhere is tried
// again: a kubelet's --cpu-manager-reconcile-period.
const placeRetry = 10 * time.Second

// presentLimit bounds the question whether a pod that nobody knows runs.
const presentLimit = 10 * time.Second

// give gives a new pod devices, and processors and memory of its own. It returns a
// kubelet's reason and message if it can't.
func (m *Manager) give(ctx context.Context, pod *v1.Pod) (reason, message string) {
	unexpected := func(err error) (string, string) {
		return affinity.ReasonUnexpected, "Allocate failed due to " + err.Error() + ", which is unexpected"
	}
	if m.cfg.Processors == nil {
		if m.cfg.Devices == nil {
			return "", ""
		}
		if err := m.cfg.Devices.Allocate(ctx, pod); err != nil {
			return unexpected(err)
		}
		return "", ""
	}
	var devices affinity.Devices = noDevices{}
	keep := func() error { return nil }
	if m.cfg.Devices != nil {
		a := m.cfg.Devices.Begin(pod)
		defer a.Release()
		devices, keep = a, a.Keep
	}
	if err := m.cfg.Processors.Admit(ctx, pod, devices); err != nil {
		if r := new(affinity.Refusal); errors.As(err, &r) {
			return r.Reason, r.Message
		}
		return unexpected(err)
	}
	if err := keep(); err != nil {
		if err := m.cfg.Processors.Free(string(pod.UID)); err != nil {
			m.log.Error("processors of a refused pod stay taken for now", "pod", pod.Namespace+"/"+pod.Name, "err", err)
		}
		return unexpected(err)
	}
	return "", ""
}

// noDevices are those of a node without plugins.
type noDevices struct{}

func (noDevices) Hints(*v1.Container) affinity.Hints                        { return nil }
func (noDevices) PodHints() affinity.Hints                                  { return nil }
func (noDevices) Give(context.Context, *v1.Container, affinity.Nodes) error { return nil }

// freeProcessors takes back what the pod has, once none of its containers runs.
func (w *worker) freeProcessors() error {
	if w.m.cfg.Processors == nil {
		return nil
	}
	w.placed = nil
	w.m.settled(w.uid)
	return w.m.cfg.Processors.Free(w.uid)
}

// place has the pod's containers run where they are to run now. What can't be done
// is tried again at the time returned; the pod goes on meanwhile.
func (w *worker) place(ctx context.Context, seen *observation) time.Time {
	p := w.m.cfg.Processors
	if p == nil {
		return time.Time{}
	}
	told, err := p.Ensure(w.pod)
	if told != "" {
		w.event("", v1.EventTypeWarning, reasonNotExclusive, told)
	}
	running := map[string]string{}
	changed := false
	for _, got := range seen.containers {
		if got.state != stateRunning || got.lost {
			continue
		}
		before, known := w.placed[got.id]
		at := p.Place(w.uid, got.name)
		if known && before == at.CPUs || !known && at.CPUs == "" {
			running[got.id] = at.CPUs
			continue
		}
		if e := w.moveContainer(ctx, got, at); e != nil {
			if known {
				running[got.id] = before
			}
			err = errors.Join(err, e)
			continue
		}
		running[got.id], changed = at.CPUs, true
	}
	w.placed = running
	if changed {
		err = errors.Join(err, w.m.cgroups.follow(w.pod))
	}
	if err != nil {
		w.m.log.Warn("containers aren't on the processors yet that they are to run on", "pod", w.namespace+"/"+w.name, "err", err, "retryIn", placeRetry)
		return time.Now().Add(placeRetry)
	}
	w.m.settled(w.uid)
	return time.Time{}
}

// moveContainer tells the runtime where a container runs, and of its quota, which it
// has none of on processors of its own.
func (w *worker) moveContainer(ctx context.Context, got *observedContainer, at affinity.Place) error {
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r := &runtimeapi.LinuxContainerResources{CpusetCpus: at.CPUs}
	if c := containerSpec(w.pod, got.name); c != nil {
		all := w.m.containerResources(w.pod, c)
		r.CpuQuota, r.CpuPeriod = all.CpuQuota, all.CpuPeriod
	}
	_, err := w.m.cfg.Runtime.UpdateContainerResources(call, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: got.id, Linux: r})
	if isNotFound(err) {
		return nil // its end is seen next
	}
	return err
}

// WakeAll has all pods looked at again, because the processors of those that have
// none of their own are others.
func (m *Manager) WakeAll() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, w := range m.workers {
		w.signal()
	}
}

// Present reports whether a pod of this UID may still be here. Before everybody was
// heard who orders pods, any may; where somebody never says that this is all, as on
// a node without a control plane, those may that run.
func (m *Manager) Present(uid string) bool {
	m.mu.Lock()
	w, complete := m.workers[uid], m.complete
	ordered := !m.isReady() || !m.staticOK || slices.ContainsFunc(m.static, func(o Object) bool { return o.UID == uid && !m.gone[uid] })
	m.mu.Unlock()
	switch {
	case w != nil:
		return !w.isOver()
	case ordered:
		return true
	case complete:
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), presentLimit)
	defer cancel()
	list, err := m.cfg.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{
		LabelSelector: map[string]string{labelPodUID: uid}, State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING}}})
	return err != nil || len(list.GetContainers()) > 0
}

// settled says that a pod of before the agent's start has its containers where they
// are to be. After the last one it is told, once.
func (m *Manager) settled(uid string) {
	m.mu.Lock()
	if m.unsettled == nil {
		m.mu.Unlock()
		return
	}
	delete(m.unsettled, uid)
	done := len(m.unsettled) == 0 && m.isReady() && m.staticOK && m.complete
	if done {
		m.unsettled = nil
	}
	m.mu.Unlock()
	if done {
		m.cfg.Processors.Settled()
	}
}
