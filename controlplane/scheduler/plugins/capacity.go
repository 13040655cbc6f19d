package plugins

import (
	"fmt"

	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	storagelisters "k8s.io/client-go/listers/storage/v1"
)

// capacities say whether a driver that publishes what room it has
// (CSIDriver.spec.storageCapacity, KEP 1472) has enough for a claim where a node
// reaches it. Two claims of one pod are each looked at for themselves, as upstream
// does: what is published is too old to count against.
type capacities struct {
	drivers storagelisters.CSIDriverLister
	room    storagelisters.CSIStorageCapacityLister
}

func (c *capacities) enough(claim *v1.PersistentVolumeClaim, class *storagev1.StorageClass, node *v1.Node) (bool, error) {
	size, asks := claim.Spec.Resources.Requests[v1.ResourceStorage]
	if !asks {
		return true, nil
	}
	driver, err := c.drivers.Get(class.Provisioner)
	switch {
	case apierrors.IsNotFound(err): // it says nothing of its room
		return true, nil
	case err != nil:
		return false, fmt.Errorf("csidriver %q: %w", class.Provisioner, err)
	case driver.Spec.StorageCapacity == nil || !*driver.Spec.StorageCapacity:
		return true, nil
	}
	all, err := c.room.List(labels.Everything())
	if err != nil {
		return false, fmt.Errorf("csistoragecapacities: %w", err)
	}
	for _, room := range all {
		if room.StorageClassName != class.Name || room.NodeTopology == nil {
			continue
		}
		limit := room.MaximumVolumeSize // more precise than what there is in sum
		if limit == nil {
			limit = room.Capacity
		}
		if limit == nil || limit.Cmp(size) < 0 {
			continue
		}
		reaches, err := metav1.LabelSelectorAsSelector(room.NodeTopology)
		if err == nil && reaches.Matches(labels.Set(node.Labels)) {
			return true, nil
		}
	}
	return false, nil
}
