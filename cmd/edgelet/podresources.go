package main

import (
	"errors"
	"os"

	v1 "k8s.io/api/core/v1"

	"github.com/coracle-edge/coracle/edgelet/podresources"
	"github.com/coracle-edge/coracle/edgelet/pods"
)

// podSource is what programs on the node are told of its pods.
type podSource struct{ a *agent }

// Pods implements podresources.Source.
func (s podSource) Pods() (out []podresources.Pod, err error) {
	for _, p := range s.a.pods.Pods() {
		if p.Status.Phase == v1.PodSucceeded || p.Status.Phase == v1.PodFailed {
			continue
		}
		spec, err := s.a.pods.Spec(p.UID)
		if errors.Is(err, pods.ErrNoPod) {
			continue // it is leaving
		}
		if err != nil {
			return nil, err
		}
		out = append(out, s.has(spec))
	}
	return out, nil
}

// Pod implements podresources.Source.
func (s podSource) Pod(namespace, name string) (podresources.Pod, bool, error) {
	spec, err := s.a.pods.Pod(namespace, name, "")
	if errors.Is(err, pods.ErrNoPod) {
		return podresources.Pod{}, false, nil
	}
	if err != nil {
		return podresources.Pod{}, false, err
	}
	return s.has(spec), true, nil
}

// Allocatable implements podresources.Source.
func (s podSource) Allocatable() podresources.Allocatable {
	out := podresources.Allocatable{Devices: s.a.devices.Allocatable()}
	if s.a.affinity != nil {
		out.CPUs, out.Memory = s.a.affinity.Allocatable(), s.a.affinity.AllocatableMemory()
	}
	return out
}

// has is what a pod's containers and sidecars have for themselves.
func (s podSource) has(pod *v1.Pod) podresources.Pod {
	out := podresources.Pod{Namespace: pod.Namespace, Name: pod.Name}
	add := func(c *v1.Container) {
		one := podresources.Container{Name: c.Name, Devices: s.a.devices.Holds(string(pod.UID), c.Name)}
		if s.a.affinity != nil {
			one.CPUs, one.Memory = s.a.affinity.Given(string(pod.UID), c.Name)
		}
		if s.a.claims != nil {
			one.Claims = s.a.claims.Holds(pod, c)
		}
		out.Containers = append(out.Containers, one)
	}
	for i := range pod.Spec.InitContainers {
		if c := &pod.Spec.InitContainers[i]; c.RestartPolicy != nil && *c.RestartPolicy == v1.ContainerRestartPolicyAlways {
			add(c)
		}
	}
	for i := range pod.Spec.Containers {
		add(&pod.Spec.Containers[i])
	}
	return out
}

// podResources is who tells it; nil without root, where nobody may listen there.
func (a *agent) podResources() *podresources.Server {
	if os.Geteuid() != 0 {
		return nil
	}
	return &podresources.Server{Dir: a.o.podResources, Source: podSource{a}, Log: a.log}
}
