package devices

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/client-go/util/retry"
	"k8s.io/dynamic-resource-allocation/resourceclaim"

	"github.com/coracle-edge/coracle/controlplane/scheduler/framework"
)

// Reserve finds the pod's devices on the node anew, in what is free at this moment,
// and promises them to its claims.
func (p *Plugin) Reserve(ctx context.Context, pod *framework.Pod, node *framework.NodeInfo) *framework.Status {
	t, status := p.prepare(ctx, pod)
	if t == nil {
		return status
	}
	pl, status := t.plan(ctx, pod, node)
	if !status.OK() {
		return status
	}
	have, _, err := p.inventory()
	if err != nil {
		return framework.Fail(err)
	}
	for i := range pl.parts {
		one := &pl.parts[i]
		if one.allocation == nil {
			continue
		}
		if one.promise = one.claim.UID; one.promise == "" {
			one.promise = uuid.NewUUID() // not created yet
		}
		have.claims.promise(one.promise, one.allocation)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.plans[pod.UID] = pl
	return nil
}

// Unreserve takes promises back, and the pod out of the claims' users where that was
// written. A claim stays allocated: the next try finds it, or gives it up.
func (p *Plugin) Unreserve(ctx context.Context, pod *framework.Pod, _ string) {
	pl := p.takePlan(pod.UID)
	if pl == nil {
		return
	}
	have, _, err := p.inventory()
	if err != nil {
		return // the scheduler ended, and its memory with it
	}
	for i := range pl.parts {
		one := &pl.parts[i]
		if one.promise != "" {
			have.claims.release(one.promise)
		}
		switch {
		case one.claim.Name == "":
		case one.extended:
			logged(ctx, p.remove(ctx, one.claim), "claim for extended resources not deleted", pod)
		case one.claim.Status.Allocation != nil && resourceclaim.IsReservedForPod(pod.Pod, one.claim, false):
			c, err := p.giveUp(ctx, pod, one.claim)
			if err == nil {
				have.claims.wrote(c, "")
			}
			logged(ctx, err, "pod not taken out of the users of its claim", pod)
		}
	}
}

// giveUp takes the pod out of the claim's users, whatever version the claim has.
func (p *Plugin) giveUp(ctx context.Context, pod *framework.Pod, c *resourceapi.ResourceClaim) (*resourceapi.ResourceClaim, error) {
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": c.UID},
		"status":   map[string]any{"reservedFor": []any{map[string]any{"$patch": "delete", "uid": pod.UID}}},
	})
	if err != nil {
		return nil, err
	}
	return p.client.ResourceV1().ResourceClaims(c.Namespace).Patch(ctx, c.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
}

// PostBind forgets the pod's plan: its claims say everything now.
func (p *Plugin) PostBind(pod *framework.Pod) { p.takePlan(pod.UID) }

// PreBind writes the allocations and the pod as their user, and waits until the
// devices are ready for it.
func (p *Plugin) PreBind(ctx context.Context, pod *framework.Pod, node string) error {
	pl := p.planOf(pod.UID)
	if pl == nil {
		return nil
	}
	have, _, err := p.inventory()
	if err != nil {
		return err
	}
	for i := range pl.parts {
		one := &pl.parts[i]
		if resourceclaim.IsReservedForPod(pod.Pod, one.claim, false) {
			continue // written before a restart
		}
		if err := p.write(ctx, have, pod, one); err != nil {
			return err
		}
		if one.extended {
			if err := p.tellPod(ctx, pod, one.claim, pl.mappings); err != nil {
				return err
			}
		}
	}
	if p.Waits(pod) {
		logged(ctx, p.sayWaiting(ctx, pod, node), "event not written", pod)
		return p.awaitReady(ctx, have, pl)
	}
	return nil
}

// write makes one part of a plan durable: finalizer, then allocation and user in one.
// Interrupted in between, it is simply done again.
func (p *Plugin) write(ctx context.Context, have *inventory, pod *framework.Pod, one *part) error {
	api := p.client.ResourceV1().ResourceClaims(pod.Namespace)
	if one.claim.Name == "" {
		created, err := api.Create(ctx, one.claim, metav1.CreateOptions{})
		if err != nil {
			return fmt.Errorf("create claim for extended resources: %w", err)
		}
		one.claim = created
	}
	c := one.claim
	again := false
	err := retry.RetryOnConflict(retry.DefaultRetry, func() error {
		if again {
			latest, err := api.Get(ctx, c.Name, metav1.GetOptions{})
			if err != nil {
				return fmt.Errorf("get claim %s after a conflict: %w", keyOf(c), err)
			}
			c = latest
		}
		again = true
		updated, err := p.update(ctx, pod, c.DeepCopy(), one.allocation)
		if err == nil {
			c = updated
		}
		return err
	})
	if err != nil {
		return err
	}
	one.claim = c
	have.claims.wrote(c, one.promise)
	return nil
}

// update owns c.
func (p *Plugin) update(ctx context.Context, pod *framework.Pod, c *resourceapi.ResourceClaim, allocation *resourceapi.AllocationResult) (*resourceapi.ResourceClaim, error) {
	api := p.client.ResourceV1().ResourceClaims(c.Namespace)
	if c.DeletionTimestamp != nil {
		return nil, fmt.Errorf("claim %s got deleted in the meantime", keyOf(c))
	}
	what := "reservation"
	if allocation != nil {
		if c.Status.Allocation != nil {
			return nil, fmt.Errorf("claim %s got allocated elsewhere in the meantime", keyOf(c))
		}
		if !slices.Contains(c.Finalizers, resourceapi.Finalizer) {
			c.Finalizers = append(c.Finalizers, resourceapi.Finalizer)
			updated, err := api.Update(ctx, c, metav1.UpdateOptions{})
			if err != nil {
				return nil, fmt.Errorf("add finalizer to claim %s: %w", keyOf(c), err)
			}
			c = updated
		}
		c.Status.Allocation = allocation.DeepCopy()
		what = "allocation and reservation"
	}
	if c.Status.Allocation == nil {
		return nil, fmt.Errorf("claim %s got deallocated elsewhere in the meantime", keyOf(c))
	}
	// Whether there is room for one more user the API server knows.
	c.Status.ReservedFor = append(c.Status.ReservedFor, resourceapi.ResourceClaimConsumerReference{
		APIGroup: v1.GroupName, Resource: "pods", Name: pod.Name, UID: pod.UID,
	})
	if p.gates.DeviceBindingAndStatus && c.Status.Allocation.AllocationTimestamp == nil {
		c.Status.Allocation.AllocationTimestamp = &metav1.Time{Time: time.Now()}
	}
	updated, err := api.UpdateStatus(ctx, c, metav1.UpdateOptions{})
	if err != nil {
		return nil, fmt.Errorf("add %s to claim %s: %w", what, keyOf(c), err)
	}
	return updated, nil
}

// tellPod writes into the pod's status which request stands for which resource, for
// the node to go by.
func (p *Plugin) tellPod(ctx context.Context, pod *framework.Pod, c *resourceapi.ResourceClaim, mappings []v1.ContainerExtendedResourceRequest) error {
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": pod.UID},
		"status": map[string]any{"extendedResourceClaimStatus": v1.PodExtendedResourceClaimStatus{
			ResourceClaimName: c.Name, RequestMappings: mappings,
		}},
	})
	if err != nil {
		return err
	}
	_, err = p.client.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	if err != nil {
		return fmt.Errorf("update extendedResourceClaimStatus of pod %s: %w", pod.Key(), err)
	}
	return nil
}

// remove deletes a claim of the scheduler's own.
func (p *Plugin) remove(ctx context.Context, c *resourceapi.ResourceClaim) error {
	api := p.client.ResourceV1().ResourceClaims(c.Namespace)
	again := false
	err := retry.RetryOnConflict(retry.DefaultRetry, func() error {
		if again {
			latest, err := api.Get(ctx, c.Name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			c = latest
		}
		again = true
		i := slices.Index(c.Finalizers, resourceapi.Finalizer)
		if i < 0 {
			return nil
		}
		open := c.DeepCopy()
		open.Finalizers = slices.Delete(open.Finalizers, i, i+1)
		_, err := api.Update(ctx, open, metav1.UpdateOptions{})
		return err
	})
	if err == nil {
		err = api.Delete(ctx, c.Name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(c.UID))})
	}
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
