package plugins

import (
	"context"

	"github.com/coracle-edge/coracle/controlplane/scheduler/framework"
)

// ResourceClaims refuses pods that ask for devices through the resource.k8s.io
// API: nothing here allocates them, and such a pod would wait on its node for
// ever. Devices of boards are extended resources.
type ResourceClaims struct{}

func (ResourceClaims) Name() string { return "DynamicResources" }

func (c ResourceClaims) PrepareFilter(ctx context.Context, pod *framework.Pod, _ *framework.Cluster) (framework.Filter, *framework.Status) {
	return nil, c.Filter(ctx, pod, nil)
}

func (ResourceClaims) Filter(_ context.Context, pod *framework.Pod, _ *framework.NodeInfo) *framework.Status {
	if len(pod.Spec.ResourceClaims) == 0 {
		return nil
	}
	return framework.Exclude("this scheduler doesn't allocate the pod's resource claims (spec.resourceClaims), ask for extended resources instead")
}

func (ResourceClaims) MayHelp(*framework.Pod, framework.Event) bool { return false }
