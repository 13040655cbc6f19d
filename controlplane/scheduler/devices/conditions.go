package devices

import (
	"context"
	"errors"
	"fmt"
	"time"

	v1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-edge/coracle/controlplane/scheduler/framework"
)

var (
	// ErrNotReadied is returned by PreBind when a device didn't become ready for its
	// pod in time.
	ErrNotReadied = errors.New("device binding timeout")
	// ErrDeviceFailed is returned by PreBind when a driver says that a device can't
	// become ready for its pod.
	ErrDeviceFailed = errors.New("device binding failed")
)

// ready says whether the devices of a claim have met all their binding conditions
// (KEP-5007). The error is [ErrDeviceFailed].
func ready(c *resourceapi.ResourceClaim) (bool, error) {
	if c.Status.Allocation == nil {
		return false, nil
	}
	for i := range c.Status.Allocation.Devices.Results {
		r := &c.Status.Allocation.Devices.Results[i]
		if len(r.BindingConditions) == 0 {
			continue
		}
		said := statusOf(c, r)
		if said == nil {
			return false, nil
		}
		for _, kind := range r.BindingFailureConditions {
			if f := meta.FindStatusCondition(said.Conditions, kind); f != nil && f.Status == metav1.ConditionTrue {
				return false, fmt.Errorf("%w: claim=%s, reason=%s, message=%q", ErrDeviceFailed, c.Name, f.Reason, f.Message)
			}
		}
		for _, kind := range r.BindingConditions {
			if !meta.IsStatusConditionTrue(said.Conditions, kind) {
				return false, nil
			}
		}
	}
	return true, nil
}

func statusOf(c *resourceapi.ResourceClaim, r *resourceapi.DeviceRequestAllocationResult) *resourceapi.AllocatedDeviceStatus {
	for i := range c.Status.Devices {
		if d := &c.Status.Devices[i]; d.Driver == r.Driver && d.Pool == r.Pool && d.Device == r.Device {
			return d
		}
	}
	return nil
}

// conditional says whether a claim has devices that have to become ready first.
func conditional(a *resourceapi.AllocationResult) bool {
	if a == nil {
		return false
	}
	for i := range a.Devices.Results {
		if len(a.Devices.Results[i].BindingConditions) > 0 {
			return true
		}
	}
	return false
}

// late says whether the time for becoming ready is over.
func late(c *resourceapi.ResourceClaim, timeout time.Duration) bool {
	a := c.Status.Allocation
	return conditional(a) && a.AllocationTimestamp != nil && a.AllocationTimestamp.Add(timeout).Before(time.Now())
}

// spoilt says that a claim's devices won't become ready.
func spoilt(c *resourceapi.ResourceClaim, timeout time.Duration) bool {
	ok, err := ready(c)
	return err != nil || !ok && late(c, timeout)
}

// Waits says that PreBind may take long.
func (p *Plugin) Waits(pod *framework.Pod) bool {
	pl := p.planOf(pod.UID)
	if pl == nil || !p.gates.DeviceBindingAndStatus {
		return false
	}
	for i := range pl.parts {
		if conditional(pl.parts[i].allocation) || conditional(pl.parts[i].claim.Status.Allocation) {
			return true
		}
	}
	return false
}

// sayWaiting tells the pod's owner why it isn't bound for minutes, in upstream's words.
func (p *Plugin) sayWaiting(ctx context.Context, pod *framework.Pod, node string) error {
	event := framework.PodEvent(pod.Pod, pod.Spec.SchedulerName, v1.EventTypeNormal, "BindingConditionsPending", "Scheduling",
		"waiting for binding conditions for device on node "+node)
	_, err := p.client.EventsV1().Events(event.Namespace).Create(ctx, event, metav1.CreateOptions{})
	return err
}

// awaitReady returns when all devices of the plan are ready for their pod.
func (p *Plugin) awaitReady(ctx context.Context, have *inventory, pl *plan) error {
	ctx, cancel := context.WithTimeoutCause(ctx, p.bindingTimeout, ErrNotReadied)
	defer cancel()
	for {
		changed := have.claims.next() // first: what changes after the look is seen
		done, err := p.allReady(have, pl)
		if err != nil || done {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-changed:
		}
	}
}

func (p *Plugin) allReady(have *inventory, pl *plan) (bool, error) {
	for i := range pl.parts {
		c, err := have.claims.get(pl.parts[i].claim.Namespace, pl.parts[i].claim.Name)
		if err != nil {
			return false, fmt.Errorf("resourceclaim %s: %w", keyOf(pl.parts[i].claim), err)
		}
		pl.parts[i].claim = c
		done, err := ready(c)
		if err != nil {
			return false, err
		}
		if !done {
			if late(c, p.bindingTimeout) {
				return false, fmt.Errorf("%w: claim=%s", ErrNotReadied, c.Name)
			}
			return false, nil
		}
	}
	return true, nil
}
