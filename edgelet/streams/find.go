package streams

import (
	"context"
	"fmt"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Labels of sandboxes and containers: a kubelet's.
const (
	labelPodName       = "io.kubernetes.pod.name"
	labelPodNamespace  = "io.kubernetes.pod.namespace"
	labelPodUID        = "io.kubernetes.pod.uid"
	labelContainerName = "io.kubernetes.container.name"
)

// container finds the running container of a name.
func (s *Server) container(ctx context.Context, pod *v1.Pod, name string) (string, error) {
	resp, err := s.cfg.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{
		State:         &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING},
		LabelSelector: map[string]string{labelPodUID: string(pod.UID), labelContainerName: name},
	}})
	if err != nil {
		return "", fmt.Errorf("the runtime doesn't say which containers run: %w", err)
	}
	var newest *runtimeapi.Container
	for _, c := range resp.GetContainers() {
		if newest == nil || c.GetCreatedAt() > newest.GetCreatedAt() {
			newest = c
		}
	}
	if newest == nil {
		return "", fmt.Errorf("container not found (%q)", name)
	}
	return newest.GetId(), nil
}

// sandbox finds the pod's ready sandbox.
func (s *Server) sandbox(ctx context.Context, pod *v1.Pod) (string, error) {
	resp, err := s.cfg.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{
		State:         &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY},
		LabelSelector: map[string]string{labelPodUID: string(pod.UID)},
	}})
	if err != nil {
		return "", fmt.Errorf("the runtime doesn't say which pods it runs: %w", err)
	}
	var newest *runtimeapi.PodSandbox
	for _, p := range resp.GetItems() {
		if newest == nil || p.GetCreatedAt() > newest.GetCreatedAt() {
			newest = p
		}
	}
	if newest == nil {
		return "", fmt.Errorf("pod not found (\"%s_%s\")", pod.Name, pod.Namespace)
	}
	return newest.GetId(), nil
}

// Running lists the pods that the runtime runs, with the containers in them, as a
// kubelet's /runningpods: what is there, not what should be.
func (s *Server) Running(ctx context.Context) ([]*v1.Pod, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	sandboxes, err := s.cfg.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{
		State: &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY}}})
	if err != nil {
		return nil, fmt.Errorf("the runtime doesn't say which pods it runs: %w", err)
	}
	containers, err := s.cfg.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{
		State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING}}})
	if err != nil {
		return nil, fmt.Errorf("the runtime doesn't say which containers run: %w", err)
	}
	pods := map[string]*v1.Pod{}
	var out []*v1.Pod
	for _, sandbox := range sandboxes.GetItems() {
		l := sandbox.GetLabels()
		if l[labelPodUID] == "" || pods[l[labelPodUID]] != nil {
			continue // nobody's pod, or one whose former sandbox still ends
		}
		pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: l[labelPodName], Namespace: l[labelPodNamespace], UID: types.UID(l[labelPodUID])}}
		pods[l[labelPodUID]] = pod
		out = append(out, pod)
	}
	for _, c := range containers.GetContainers() {
		if pod := pods[c.GetLabels()[labelPodUID]]; pod != nil {
			pod.Spec.Containers = append(pod.Spec.Containers, v1.Container{Name: c.GetLabels()[labelContainerName], Image: c.GetImage().GetImage()})
		}
	}
	return out, nil
}

// hasTerminal says whether a container was made with a terminal.
func hasTerminal(pod *v1.Pod, name string) (tty, known bool) {
	for i := range pod.Spec.Containers {
		if pod.Spec.Containers[i].Name == name {
			return pod.Spec.Containers[i].TTY, true
		}
	}
	for i := range pod.Spec.InitContainers {
		if pod.Spec.InitContainers[i].Name == name {
			return pod.Spec.InitContainers[i].TTY, true
		}
	}
	for i := range pod.Spec.EphemeralContainers {
		if pod.Spec.EphemeralContainers[i].Name == name {
			return pod.Spec.EphemeralContainers[i].TTY, true
		}
	}
	return false, false
}
