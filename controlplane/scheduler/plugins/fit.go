package plugins

import (
	"context"
	"sort"

	v1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"

	"github.com/coracle-edge/coracle/controlplane/scheduler/framework"
)

// Fit refuses nodes that don't have what the pod asks for left: CPU, memory,
// ephemeral storage, extended resources, and a place among the node's pods.
type Fit struct {
	// Backed says whether a device class stands behind an extended resource: then a
	// node that doesn't offer the resource itself is for DynamicResources to judge.
	// Nil: none does.
	Backed func(v1.ResourceName) bool
}

func (Fit) Name() string { return "NodeResourcesFit" }

func (f Fit) Filter(_ context.Context, pod *framework.Pod, node *framework.NodeInfo) *framework.Status {
	var reasons []string
	never := false
	lack := func(ask, used, have int64, reason string) {
		if ask > have-used {
			reasons = append(reasons, reason)
			never = never || ask > have
		}
	}
	lack(1, int64(len(node.Pods)), node.Allocatable.Pods, "Too many pods")
	ask, used, have := &pod.Requests, &node.Requested, &node.Allocatable
	if ask.MilliCPU > 0 {
		lack(ask.MilliCPU, used.MilliCPU, have.MilliCPU, "Insufficient cpu")
	}
	if ask.Memory > 0 {
		lack(ask.Memory, used.Memory, have.Memory, "Insufficient memory")
	}
	if ask.Ephemeral > 0 {
		lack(ask.Ephemeral, used.Ephemeral, have.Ephemeral, "Insufficient ephemeral-storage")
	}
	if len(ask.Scalar) > 0 {
		n := len(reasons)
		for name, amount := range ask.Scalar {
			if amount > 0 && !(have.Scalar[name] == 0 && f.Backed != nil && f.Backed(name)) {
				lack(amount, used.Scalar[name], have.Scalar[name], "Insufficient "+string(name))
			}
		}
		sort.Strings(reasons[n:])
	}
	switch {
	case len(reasons) == 0:
		return nil
	case never:
		return framework.Exclude(reasons...)
	}
	return framework.Refuse(reasons...)
}

func (f Fit) MayHelp(pod *framework.Pod, ev framework.Event) bool {
	switch ev.Kind {
	case framework.PodChanged:
		return true
	case framework.ClassChanged:
		named := ev.DeviceClass.Spec.ExtendedResourceName
		return pod.Requests.Scalar[v1.ResourceName(resourceapi.ResourceDeviceClassPrefix+ev.DeviceClass.Name)] > 0 ||
			named != nil && pod.Requests.Scalar[v1.ResourceName(*named)] > 0
	case framework.NodeChanged:
		// An empty node must be large enough, and must have grown in something asked for.
		if f.Filter(context.Background(), pod, framework.NewNodeInfo(ev.Node)) != nil {
			return false
		}
		return ev.OldNode == nil || grew(pod, ev.OldNode, ev.Node)
	case framework.PodLeft:
		if ev.OldPod == nil {
			return true // at least its place among the node's pods
		}
		before, after := framework.NewPod(ev.OldPod), framework.NewPod(ev.Pod)
		for _, name := range asked(pod) {
			if after.Requests.Get(name) < before.Requests.Get(name) {
				return true
			}
		}
	}
	return false
}

func grew(pod *framework.Pod, before, after *v1.Node) bool {
	old, now := framework.ResourcesOf(before.Status.Allocatable), framework.ResourcesOf(after.Status.Allocatable)
	for _, name := range asked(pod) {
		if now.Get(name) > old.Get(name) {
			return true
		}
	}
	return false
}

func asked(pod *framework.Pod) []v1.ResourceName {
	names := []v1.ResourceName{v1.ResourcePods}
	for _, name := range []v1.ResourceName{v1.ResourceCPU, v1.ResourceMemory, v1.ResourceEphemeralStorage} {
		if pod.Requests.Get(name) > 0 {
			names = append(names, name)
		}
	}
	for name, n := range pod.Requests.Scalar {
		if n > 0 {
			names = append(names, name)
		}
	}
	return names
}
