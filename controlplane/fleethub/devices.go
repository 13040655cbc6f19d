package fleethub

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
)

// kindDevices is the kind of claims of devices (resource.k8s.io).
const kindDevices = "ResourceClaim"

// deviceClaims adds a pod's claims of devices, by the names that they have: those
// made of a template, and that of extended resources, are named in its status.
func deviceClaims(pod *corev1.Pod, add func(kind, name string)) {
	for _, c := range pod.Spec.ResourceClaims {
		if c.ResourceClaimName != nil {
			add(kindDevices, *c.ResourceClaimName)
			continue
		}
		for _, s := range pod.Status.ResourceClaimStatuses {
			if s.Name == c.Name && s.ResourceClaimName != nil {
				add(kindDevices, *s.ResourceClaimName)
			}
		}
	}
	if s := pod.Status.ExtendedResourceClaimStatus; s != nil {
		add(kindDevices, s.ResourceClaimName)
	}
}

// projectDevices keeps what a node acts on: which devices of which drivers, and who
// may use them. Drivers read the rest, with their parameters, themselves; and write
// a status of devices, which isn't sent again.
func projectDevices(from *resourcev1.ResourceClaim) *resourcev1.ResourceClaim {
	out := &resourcev1.ResourceClaim{ObjectMeta: project(from.ObjectMeta), Status: resourcev1.ResourceClaimStatus{ReservedFor: from.Status.ReservedFor}}
	if a := from.Status.Allocation; a != nil {
		out.Status.Allocation = new(resourcev1.AllocationResult)
		for _, r := range a.Devices.Results {
			out.Status.Allocation.Devices.Results = append(out.Status.Allocation.Devices.Results,
				resourcev1.DeviceRequestAllocationResult{Request: r.Request, Driver: r.Driver, Pool: r.Pool, Device: r.Device})
		}
	}
	return out
}

// wipeSlices removes what DRA drivers offered on a node that stay away there, as the
// node: a kubelet does it itself (pkg/kubelet/cm/dra/plugin). It is done once for
// each time that a driver went; one that comes back offers its devices anew.
func (h *Hub) wipeSlices(ctx context.Context, n *node, gone []string) error {
	n.mu.Lock()
	n.wiped = slices.DeleteFunc(n.wiped, func(name string) bool { return !slices.Contains(gone, name) })
	gone = slices.DeleteFunc(slices.Clone(gone), func(name string) bool { return slices.Contains(n.wiped, name) })
	n.mu.Unlock()
	if len(gone) == 0 || h.c.NodeResources == nil {
		return nil
	}
	client, err := h.c.NodeResources(n.name)
	if err != nil {
		return err
	}
	for _, driver := range gone {
		selector := fields.Set{resourcev1.ResourceSliceSelectorNodeName: n.name, resourcev1.ResourceSliceSelectorDriver: driver}
		err := client.ResourceSlices().DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{FieldSelector: selector.String()})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("resourceslices of DRA driver %s, which is gone from node %s: %w", driver, n.name, err)
		}
		h.log.Info("removed the resource slices of a DRA driver that is gone", "node", n.name, "driver", driver)
		n.mu.Lock()
		n.wiped = append(n.wiped, driver)
		n.mu.Unlock()
	}
	return nil
}
