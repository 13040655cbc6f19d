package pods

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
)

// Pod is one pod as this node knows it now.
type Pod struct {
	Namespace, Name, UID string
	Static               bool
	Status               v1.PodStatus
}

// Pods lists the pods of this node.
func (m *Manager) Pods() []Pod {
	m.mu.Lock()
	workers := make([]*worker, 0, len(m.workers))
	for _, w := range m.workers {
		workers = append(workers, w)
	}
	m.mu.Unlock()
	out := make([]Pod, 0, len(workers))
	for _, w := range workers {
		p := Pod{Namespace: w.namespace, Name: w.name, UID: w.uid, Static: w.isStatic()}
		if s := w.reported.Load(); s != nil {
			p.Status = *s
		}
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b Pod) int {
		return strings.Compare(a.Namespace+"/"+a.Name+"/"+a.UID, b.Namespace+"/"+b.Name+"/"+b.UID)
	})
	return out
}

var (
	// ErrNoPod is returned when no such pod is on this node.
	ErrNoPod = errors.New("no such pod on this node")
	// ErrNoContainer is returned when a pod has no such container.
	ErrNoContainer = errors.New("no such container in the pod")
)

// ContainerLog is where a container's log is and whether it may still grow.
type ContainerLog struct {
	Path        string
	ContainerID string
	Running     bool
}

// Log returns where the log of a container is. previous asks for the run before
// the current one.
func (m *Manager) Log(namespace, name, uid, container string, previous bool) (ContainerLog, error) {
	m.mu.Lock()
	var found *worker
	for _, w := range m.workers {
		if w.namespace == namespace && w.name == name && (uid == "" || w.uid == uid) && (found == nil || found.leaving()) {
			found = w
		}
	}
	m.mu.Unlock()
	if found == nil {
		return ContainerLog{}, fmt.Errorf("%w: pod %s/%s", ErrNoPod, namespace, name)
	}
	s := found.reported.Load()
	if s == nil {
		return ContainerLog{}, fmt.Errorf("container %q in pod %q is waiting to start: %s", container, name, reasonCreating)
	}
	for _, list := range [][]v1.ContainerStatus{s.ContainerStatuses, s.InitContainerStatuses, s.EphemeralContainerStatuses} {
		for i := range list {
			if list[i].Name == container {
				return m.containerLog(found, &list[i], previous)
			}
		}
	}
	// A pod that was refused, or ended before it began, has no statuses of containers.
	if pod, err := found.snapshot(); err == nil && containerSpec(pod, container) != nil {
		why := ""
		if s.Message != "" {
			why = ": " + s.Message
		}
		return ContainerLog{}, fmt.Errorf("container %q in pod %q is not available%s", container, name, why)
	}
	return ContainerLog{}, fmt.Errorf("%w: container %s is not valid for pod %s", ErrNoContainer, container, name)
}

func (m *Manager) containerLog(w *worker, s *v1.ContainerStatus, previous bool) (ContainerLog, error) {
	path := func(n int32) string {
		return m.logFile(w.namespace, w.name, w.uid, s.Name, n)
	}
	last := s.LastTerminationState.Terminated
	switch {
	case previous && last == nil:
		return ContainerLog{}, fmt.Errorf("previous terminated container %q in pod %q not found", s.Name, w.name)
	case previous && s.State.Waiting != nil:
		// The container that ended last is the one that is being waited to start again.
		return ContainerLog{Path: path(s.RestartCount), ContainerID: last.ContainerID}, nil
	case previous:
		return ContainerLog{Path: path(s.RestartCount - 1), ContainerID: last.ContainerID}, nil
	case s.State.Running != nil:
		return ContainerLog{Path: path(s.RestartCount), ContainerID: s.ContainerID, Running: true}, nil
	case s.State.Terminated != nil:
		return ContainerLog{Path: path(s.RestartCount), ContainerID: s.State.Terminated.ContainerID}, nil
	case last != nil:
		return ContainerLog{Path: path(s.RestartCount), ContainerID: last.ContainerID}, nil
	}
	reason := reasonCreating
	if s.State.Waiting != nil && s.State.Waiting.Reason != "" {
		reason = s.State.Waiting.Reason
	}
	// The kubelet's words for the most common reasons.
	switch reason {
	case "ErrImagePull":
		reason = "image can't be pulled"
	case "ImagePullBackOff":
		reason = "trying and failing to pull image"
	}
	return ContainerLog{}, fmt.Errorf("container %q in pod %q is waiting to start: %s", s.Name, w.name, reason)
}
