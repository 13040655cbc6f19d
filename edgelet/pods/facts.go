package pods

import (
	"fmt"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"

	"github.com/coracle-edge/coracle/edgelet/pods/kubeobj"
	"github.com/coracle-edge/coracle/edgelet/probes"
)

// Facts is where a pod's parts are on this node.
type Facts struct {
	Pod
	// Cgroup is the pod's, as a path below each hierarchy; empty if the runtime
	// chooses it.
	Cgroup string
	// Dir holds its volumes and LogDir its logs.
	Dir, LogDir string
}

// Facts lists the pods of this node with where their parts are. It decodes nothing.
func (m *Manager) Facts() []Facts {
	pods := m.Pods()
	out := make([]Facts, 0, len(pods))
	for _, p := range pods {
		f := Facts{Pod: p, Dir: m.podDir(p.UID), LogDir: m.logDir(p.Namespace, p.Name, p.UID)}
		if p.Status.QOSClass != "" {
			f.Cgroup = m.cgroups.path(p.Status.QOSClass, p.UID)
		}
		out = append(out, f)
	}
	return out
}

// PodsCgroup is the cgroup of all pods, empty if the runtime chooses. It is known
// once Ready is closed.
func (m *Manager) PodsCgroup() string { return m.cgroups.path(v1.PodQOSGuaranteed, "") }

// Spec decodes a pod as it was last ordered.
func (m *Manager) Spec(uid string) (*v1.Pod, error) {
	m.mu.Lock()
	w := m.workers[uid]
	m.mu.Unlock()
	if w == nil {
		return nil, fmt.Errorf("%w: uid %s", ErrNoPod, uid)
	}
	w.mu.Lock()
	o := w.object
	w.mu.Unlock()
	if o == nil {
		return nil, fmt.Errorf("%w any more: pod %s/%s", ErrNoPod, w.namespace, w.name)
	}
	return kubeobj.Pod(o.Raw)
}

// Images are the references of images that pods of this node are made of or were
// ordered with, in whatever state they are: those of the runtime's own and those
// of the specs. complete says that all orders could be read.
func (m *Manager) Images() (refs []string, complete bool) {
	desired, complete, err := m.cfg.Store.Desired()
	if err != nil {
		return nil, false
	}
	m.mu.Lock()
	list := slices.Concat(desired, m.static)
	staticOK := m.staticOK
	m.mu.Unlock()
	seen := map[string]bool{}
	add := func(ref string) {
		if ref != "" {
			seen[ref] = true
		}
	}
	for i := range list {
		pod, err := kubeobj.Pod(list[i].Raw)
		if err != nil {
			complete = false
			continue
		}
		for _, c := range pod.Spec.InitContainers {
			add(c.Image)
		}
		for _, c := range pod.Spec.Containers {
			add(c.Image)
		}
		for _, c := range pod.Spec.EphemeralContainers {
			add(c.Image)
		}
		for _, v := range pod.Spec.Volumes {
			if v.Image != nil {
				add(v.Image.Reference)
			}
		}
	}
	for _, p := range m.Pods() {
		for _, statuses := range [][]v1.ContainerStatus{p.Status.InitContainerStatuses, p.Status.ContainerStatuses, p.Status.EphemeralContainerStatuses} {
			for _, s := range statuses {
				add(s.ImageID)
				add(s.Image)
			}
		}
	}
	out := make([]string, 0, len(seen))
	for ref := range seen {
		out = append(out, ref)
	}
	slices.SortFunc(out, strings.Compare)
	return out, complete && staticOK
}

// LimitPods bounds all pods together by what [Config.PodLimits] says now.
func (m *Manager) LimitPods() {
	if m.cfg.PodLimits == nil {
		return
	}
	l := m.cfg.PodLimits()
	root := rootLimits{milliCPU: l.Cpu().MilliValue(), memory: l.Memory().Value(), hugepages: hugepageSizes(l)}
	if q, ok := l["pid"]; ok {
		root.pids = q.Value()
	}
	m.cgroups.setLimits(root)
}

// Event tells of a pod of this node, as its own events are told.
func (m *Manager) Event(uid, eventType, reason, message string) {
	m.mu.Lock()
	w := m.workers[uid]
	m.mu.Unlock()
	if w != nil {
		w.event("", eventType, reason, message)
	}
}

// QOSClass of a pod, as a kubelet computes it.
func QOSClass(pod *v1.Pod) v1.PodQOSClass { return qosClass(pod) }

// Probes calls visit with every probe that runs and how often it did, in no order.
func (m *Manager) Probes(visit func(podUID, container string, kind probes.Kind, c probes.Counts)) {
	m.probes.Each(visit)
}
