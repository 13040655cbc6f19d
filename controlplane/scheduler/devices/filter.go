package devices

import (
	"context"
	"errors"
	"fmt"

	v1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	"k8s.io/dynamic-resource-allocation/resourceclaim"
	"k8s.io/dynamic-resource-allocation/structured"

	"github.com/coracle-edge/coracle/controlplane/scheduler/framework"
)

// try is one look for devices for one pod, in what is free now.
type try struct {
	*Plugin
	classes  *classes
	claims   []*resourceapi.ResourceClaim // of the pod's spec
	reaches  []*nodeaffinity.NodeSelector // of each claim that is allocated; nil: everywhere
	extended *extended                    // nil if no class stands behind a resource that the pod asks for
	// allocator is nil if nothing is to be allocated, wherever the pod goes.
	allocator structured.Allocator
}

// plan is what a pod gets on one node.
type plan struct {
	parts    []part
	mappings []v1.ContainerExtendedResourceRequest // which request stands for which container's resource
}

// part is one claim of a plan.
type part struct {
	claim      *resourceapi.ResourceClaim
	allocation *resourceapi.AllocationResult // nil if the claim has one already
	promise    types.UID                     // the allocation is promised under this UID; "" if it isn't
	extended   bool                          // the claim is the scheduler's own
}

func (p *Plugin) PrepareFilter(ctx context.Context, pod *framework.Pod, _ *framework.Cluster) (framework.Filter, *framework.Status) {
	t, status := p.prepare(ctx, pod)
	if t == nil {
		return nil, status
	}
	return t, nil
}

// prepare returns nil, nil for a pod that asks for no devices.
func (p *Plugin) prepare(ctx context.Context, pod *framework.Pod) (*try, *framework.Status) {
	if len(pod.Spec.ResourceClaims) == 0 && !(p.gates.ExtendedResources && asksExtended(pod)) {
		return nil, nil
	}
	kinds, known, err := p.classes()
	if err != nil {
		return nil, framework.Fail(err)
	}
	if !known {
		return nil, framework.Await("device classes are not known yet")
	}
	backed := p.gates.ExtendedResources && asksBacked(pod, kinds)
	if len(pod.Spec.ResourceClaims) == 0 && !backed {
		return nil, nil
	}
	have, known, err := p.inventory()
	if err != nil {
		return nil, framework.Fail(err)
	}
	if !known {
		return nil, framework.Await("resource claims and slices are not known yet")
	}
	t := &try{Plugin: p, classes: kinds}
	if t.claims, err = have.claims.of(pod.Pod); err != nil {
		var early awaited
		if errors.As(err, &early) {
			return nil, framework.Await(err.Error())
		}
		return nil, framework.Exclude(err.Error())
	}
	allocate := false
	for _, c := range t.claims {
		reach, status := t.claim(have, pod, c)
		if status != nil {
			return nil, status
		}
		t.reaches = append(t.reaches, reach)
		allocate = allocate || c.Status.Allocation == nil
	}
	if backed {
		all, err := have.claims.list()
		if err != nil {
			return nil, framework.Fail(err)
		}
		t.extended = newExtended(pod, all)
		allocate = allocate || t.extended.left == nil
	}
	if len(t.claims) == 0 && t.extended == nil {
		return nil, nil
	}
	if allocate {
		if t.allocator, err = p.allocatorOf(ctx, have, kinds); err != nil {
			return nil, framework.Fail(err)
		}
	}
	return t, nil
}

func (p *Plugin) allocatorOf(ctx context.Context, have *inventory, kinds *classes) (structured.Allocator, error) {
	taken, err := have.claims.taken()
	if err != nil {
		return nil, err
	}
	slices, err := have.slices.ListPatchedResourceSlices()
	if err != nil {
		return nil, err
	}
	return structured.NewAllocator(ctx, p.gates.Features, taken, kinds, slices, have.selectors)
}

// claim looks at one claim for all nodes at once. It returns where its devices can
// be reached from, nil for everywhere.
func (t *try) claim(have *inventory, pod *framework.Pod, c *resourceapi.ResourceClaim) (*nodeaffinity.NodeSelector, *framework.Status) {
	if a := c.Status.Allocation; a != nil {
		if !resourceclaim.CanBeReserved(c) && !resourceclaim.IsReservedForPod(pod.Pod, c, false) {
			return nil, framework.Exclude("resourceclaim in use")
		}
		if a.NodeSelector == nil {
			return nil, nil
		}
		reach, err := nodeaffinity.NewNodeSelector(a.NodeSelector)
		if err != nil {
			return nil, framework.Fail(fmt.Errorf("resourceclaim %s: node selector of its allocation: %w", keyOf(c), err))
		}
		return reach, nil
	}
	if have.claims.isPromised(c.UID) {
		// Who allocates it must write that before anybody is added to its users.
		return nil, framework.Exclude(fmt.Sprintf("resource claim %s is in the process of being allocated", keyOf(c)))
	}
	for i := range c.Spec.Devices.Requests {
		request := &c.Spec.Devices.Requests[i]
		switch {
		case request.Exactly != nil:
			if status := t.class(request.Exactly.DeviceClassName, request.Name); status != nil {
				return nil, status
			}
		case len(request.FirstAvailable) > 0:
			if !t.gates.PrioritizedList {
				return nil, framework.Exclude(fmt.Sprintf("resource claim %s, request %s: has subrequests, but the DRAPrioritizedList feature is disabled", keyOf(c), request.Name))
			}
			for j := range request.FirstAvailable {
				sub := &request.FirstAvailable[j]
				if status := t.class(sub.DeviceClassName, resourceclaim.CreateSubRequestRef(request.Name, sub.Name)); status != nil {
					return nil, status
				}
			}
		default:
			return nil, framework.Exclude(fmt.Sprintf("resource claim %s, request %s: unknown request type", keyOf(c), request.Name))
		}
	}
	return nil, nil
}

func (t *try) class(name, request string) *framework.Status {
	if _, err := t.classes.Get(name); apierrors.IsNotFound(err) {
		return framework.Exclude(fmt.Sprintf("request %s: device class %s does not exist", request, name))
	}
	return nil
}

// Filter is that of a look by itself.
func (p *Plugin) Filter(ctx context.Context, pod *framework.Pod, node *framework.NodeInfo) *framework.Status {
	t, status := p.prepare(ctx, pod)
	if t == nil {
		return status
	}
	return t.Filter(ctx, pod, node)
}

func (t *try) Filter(ctx context.Context, pod *framework.Pod, node *framework.NodeInfo) *framework.Status {
	_, status := t.plan(ctx, pod, node)
	return status
}

// plan finds what the pod gets on the node.
func (t *try) plan(ctx context.Context, pod *framework.Pod, node *framework.NodeInfo) (*plan, *framework.Status) {
	pl := &plan{}
	for _, c := range t.claims {
		pl.parts = append(pl.parts, part{claim: c})
	}
	if t.extended != nil {
		own, status := t.extended.on(pod, node, t.classes)
		if status != nil {
			return nil, status
		}
		if own != nil {
			pl.parts = append(pl.parts, part{claim: own.claim, extended: true})
			pl.mappings = own.mappings
		}
	}
	if len(t.unavailable(node.Node)) > 0 {
		return nil, framework.Exclude("resourceclaim not available on the node")
	}
	var open []*resourceapi.ResourceClaim
	for i := range pl.parts {
		if c := pl.parts[i].claim; c.Status.Allocation == nil {
			open = append(open, c)
		}
	}
	if len(open) == 0 {
		return pl, nil
	}
	results, status := t.allocate(ctx, node.Node, open)
	if status != nil {
		return nil, status
	}
	for i := range pl.parts {
		if pl.parts[i].claim.Status.Allocation == nil {
			pl.parts[i].allocation = &results[0]
			results = results[1:]
		}
	}
	return pl, nil
}

// allocate asks the allocator about a node; as many results as claims, in order.
func (t *try) allocate(ctx context.Context, node *v1.Node, open []*resourceapi.ResourceClaim) ([]resourceapi.AllocationResult, *framework.Status) {
	within := ctx
	if t.gates.FilterTimeout && t.filterTimeout > 0 {
		var cancel context.CancelFunc
		within, cancel = context.WithTimeout(ctx, t.filterTimeout)
		defer cancel()
	}
	results, err := t.allocator.Allocate(within, node, open)
	switch {
	case ctx.Err() != nil:
		return nil, framework.Exclude(fmt.Sprintf("asked by caller to stop allocating devices: %v", context.Cause(ctx)))
	case errors.Is(err, context.DeadlineExceeded):
		// It may go faster next time.
		return nil, framework.Fail(fmt.Errorf("node %s: timed out trying to allocate devices", node.Name))
	case errors.Is(err, structured.ErrFailedAllocationOnNode):
		return nil, framework.Exclude(err.Error())
	case err != nil:
		// Something is wrong with the claim or its class, such as an expression that
		// can't be evaluated. The pod goes nowhere, lest it be found only later, on
		// another node; a change of the claim, the class or the slices may mend it.
		status := framework.Exclude(err.Error())
		status.Everywhere = true
		return nil, status
	case len(results) != len(open):
		return nil, framework.Exclude("cannot allocate all claims")
	}
	return results, nil
}

// unavailable returns those claims whose devices the node can't reach, or that
// won't become ready.
func (t *try) unavailable(node *v1.Node) (list []*resourceapi.ResourceClaim) {
	for i, c := range t.claims {
		if c.Status.Allocation == nil {
			continue
		}
		reached := t.reaches[i] == nil || t.reaches[i].Match(node)
		if !reached || t.gates.DeviceBindingAndStatus && spoilt(c, t.bindingTimeout) {
			list = append(list, c)
		}
	}
	return list
}
