package tunnel

import (
	"fmt"

	v1 "k8s.io/api/core/v1"
)

// LogRun says which run of a container the client of `kubectl logs` gets, by the
// container's id (RUNTIME://ID), or why none, in the kubelet's words (upstream:
// pkg/kubelet/kubelet_pods.go, validateContainerLogStatus).
func LogRun(pod string, status *v1.PodStatus, container string, previous bool) (containerID string, err error) {
	var s *v1.ContainerStatus
	for _, list := range [][]v1.ContainerStatus{status.ContainerStatuses, status.InitContainerStatuses, status.EphemeralContainerStatuses} {
		for i := range list {
			if s == nil && list[i].Name == container {
				s = &list[i]
			}
		}
	}
	if s == nil {
		return "", fmt.Errorf("container %q in pod %q is not available", container, pod)
	}
	last := ""
	if s.LastTerminationState.Terminated != nil {
		last = s.LastTerminationState.Terminated.ContainerID
	}
	terminated := fmt.Errorf("container %q in pod %q is terminated", container, pod)
	switch {
	case previous && last == "":
		return "", fmt.Errorf("previous terminated container %q in pod %q not found", container, pod)
	case previous:
		return last, nil
	case s.State.Running != nil:
		return s.ContainerID, nil
	case s.State.Terminated != nil && s.State.Terminated.ContainerID != "":
		return s.State.Terminated.ContainerID, nil
	case s.State.Terminated != nil, s.LastTerminationState.Terminated != nil:
		if last == "" {
			return "", terminated
		}
		return last, nil
	case s.State.Waiting == nil:
		return "", fmt.Errorf("container %q in pod %q is waiting to start - no logs yet", container, pod)
	}
	reason := s.State.Waiting.Reason
	switch reason {
	case "ErrImagePull":
		reason = "image can't be pulled"
	case "ImagePullBackOff":
		reason = "trying and failing to pull image"
	}
	return "", fmt.Errorf("container %q in pod %q is waiting to start: %s", container, pod, reason)
}
