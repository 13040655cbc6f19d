package pods

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"

	"github.com/coracle-edge/coracle/edgelet/pods/kubeobj"
)

// Pod returns a pod of this node as it was ordered, with its status as it is now.
// Of two with one name it is the one that isn't leaving. An empty uid is any.
// The pod is the caller's. It is [ErrNoPod] if there is none.
func (m *Manager) Pod(namespace, name, uid string) (*v1.Pod, error) {
	m.mu.Lock()
	var found *worker
	for _, w := range m.workers {
		if w.namespace == namespace && w.name == name && (uid == "" || w.uid == uid) && (found == nil || found.leaving()) {
			found = w
		}
	}
	m.mu.Unlock()
	if found == nil {
		return nil, fmt.Errorf("%w: pod %s/%s", ErrNoPod, namespace, name)
	}
	return found.snapshot()
}

// Specs returns all pods of this node as [Manager.Pod] does, sorted by name. They
// are decoded for the call: it is for people who look, not for loops.
func (m *Manager) Specs() ([]*v1.Pod, error) {
	m.mu.Lock()
	workers := make([]*worker, 0, len(m.workers))
	for _, w := range m.workers {
		workers = append(workers, w)
	}
	m.mu.Unlock()
	slices.SortFunc(workers, func(a, b *worker) int {
		return strings.Compare(a.namespace+"/"+a.name+"/"+a.uid, b.namespace+"/"+b.name+"/"+b.uid)
	})
	out := make([]*v1.Pod, 0, len(workers))
	for _, w := range workers {
		p, err := w.snapshot()
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

// snapshot decodes the latest word about the pod.
func (w *worker) snapshot() (*v1.Pod, error) {
	w.mu.Lock()
	o := w.object
	w.mu.Unlock()
	pod := minimalPod(w.namespace, w.name, w.uid, defaultGrace)
	if o != nil {
		var err error
		if pod, err = kubeobj.Pod(o.Raw); err != nil {
			return nil, fmt.Errorf("pod %s/%s: %w", w.namespace, w.name, err)
		}
	}
	if s := w.reported.Load(); s != nil {
		told := pod.Status // what others say of it
		pod.Status = *s.DeepCopy()
		pod.Status.ResourceClaimStatuses, pod.Status.ExtendedResourceClaimStatus = told.ResourceClaimStatuses, told.ExtendedResourceClaimStatus
	}
	return pod, nil
}

// PodsAt returns the pods of this node, not ended, that have an address.
func (m *Manager) PodsAt(addr netip.Addr) ([]*v1.Pod, error) {
	has := func(s *v1.PodStatus) bool {
		if s == nil || s.Phase == v1.PodSucceeded || s.Phase == v1.PodFailed {
			return false
		}
		for _, ip := range append([]v1.PodIP{{IP: s.PodIP}}, s.PodIPs...) {
			if a, err := netip.ParseAddr(ip.IP); err == nil && a.Unmap() == addr {
				return true
			}
		}
		return false
	}
	m.mu.Lock()
	var found []*worker
	for _, w := range m.workers {
		if has(w.reported.Load()) {
			found = append(found, w)
		}
	}
	m.mu.Unlock()
	out := make([]*v1.Pod, 0, len(found))
	for _, w := range found {
		p, err := w.snapshot()
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}
