package fleethub

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/controlplane/api/localvolumes"
)

// annotationNodeID is upstream's: the node's ID by CSI driver.
const annotationNodeID = "csi.volume.kubernetes.io/nodeid"

// nodeStorage is what a node's report says of volumes and of drivers of devices.
type nodeStorage struct {
	drivers  []fleet.CSIDriver
	expanded []fleet.ExpandedClaim
	gone     []string // DRA drivers
	removed  []localvolumes.Gone
}

// takeStorage takes out of a report what isn't to be stored in the Node, and puts
// in upstream's annotation.
func takeStorage(said *corev1.Node) (nodeStorage, error) {
	var s nodeStorage
	for key, into := range map[string]any{fleet.AnnotationCSIDrivers: &s.drivers, fleet.AnnotationExpanded: &s.expanded, fleet.AnnotationGoneDrivers: &s.gone,
		localvolumes.AnnotationGone: &s.removed} {
		text, ok := said.Annotations[key]
		if !ok {
			continue
		}
		delete(said.Annotations, key)
		if err := json.Unmarshal([]byte(text), into); err != nil {
			return nodeStorage{}, fmt.Errorf("annotation %s of node %s: %w", key, said.Name, err)
		}
	}
	if len(s.drivers) > 0 {
		ids := map[string]string{}
		for _, d := range s.drivers {
			ids[d.Name] = d.NodeID
		}
		raw, err := json.Marshal(ids)
		if err != nil {
			return nodeStorage{}, err
		}
		said.Annotations[annotationNodeID] = string(raw)
	}
	return s, nil
}

// writeStorage brings the node's CSINode, the claims whose volumes it has grown and
// the volumes that it has removed up to what it says; the former two as the node:
// NodeRestriction has its say.
func (h *Hub) writeStorage(ctx context.Context, n *node, r *fleet.NodeReport) error {
	var said corev1.Node
	if err := said.Unmarshal(r.GetNode()); err != nil {
		return fmt.Errorf("report of node %s: %w", n.name, err)
	}
	s, err := takeStorage(&said)
	if err != nil {
		return err
	}
	if err := h.writeCSINode(ctx, n, s.drivers); err != nil {
		return fmt.Errorf("CSINode %s: %w", n.name, err)
	}
	if err := h.wipeSlices(ctx, n, s.gone); err != nil {
		return err
	}
	for _, e := range s.expanded {
		if err := h.writeExpanded(ctx, n, e); err != nil {
			return fmt.Errorf("persistentvolumeclaim %s/%s, whose volume node %s has grown: %w", e.Namespace, e.Name, n.name, err)
		}
	}
	for _, g := range s.removed {
		if err := h.writeRemoved(ctx, n, g); err != nil {
			return fmt.Errorf("persistentvolume %s, whose folder node %s has removed: %w", g.Name, n.name, err)
		}
	}
	return nil
}

// writeRemoved notes in one of the node's released volumes that its folder is gone.
func (h *Hub) writeRemoved(ctx context.Context, n *node, g localvolumes.Gone) error {
	// What was ordered may be newer than the cache of a hub that has just taken over.
	pv, err := h.c.Client.CoreV1().PersistentVolumes().Get(ctx, g.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return err
	case string(pv.UID) != g.UID, localvolumes.Node(pv) != n.name, !localvolumes.ToRemove(pv):
		return nil
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": pv.UID, "annotations": map[string]string{localvolumes.AnnotationRemoved: "true"}}})
	if err != nil {
		return err
	}
	_, err = h.c.Client.CoreV1().PersistentVolumes().Patch(ctx, g.Name, types.MergePatchType, patch, metav1.PatchOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

func (h *Hub) writeCSINode(ctx context.Context, n *node, drivers []fleet.CSIDriver) error {
	if h.c.NodeStorage == nil || len(drivers) == 0 && n.bare.Load() {
		return nil
	}
	n.bare.Store(false)
	client, err := h.c.NodeStorage(n.name)
	if err != nil {
		return err
	}
	want := make([]storagev1.CSINodeDriver, 0, len(drivers))
	for _, d := range drivers {
		w := storagev1.CSINodeDriver{Name: d.Name, NodeID: d.NodeID, TopologyKeys: d.TopologyKeys}
		if d.Limit > 0 {
			count := int32(min(d.Limit, 1<<31-1))
			w.Allocatable = &storagev1.VolumeNodeResources{Count: &count}
		}
		want = append(want, w)
	}
	have, err := client.CSINodes().Get(ctx, n.name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		if len(want) == 0 {
			n.bare.Store(true)
			return nil
		}
		owner, err := h.c.Client.CoreV1().Nodes().Get(ctx, n.name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		_, err = client.CSINodes().Create(ctx, &storagev1.CSINode{ObjectMeta: metav1.ObjectMeta{Name: n.name,
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: owner.Name, UID: owner.UID}}},
			Spec: storagev1.CSINodeSpec{Drivers: want}}, metav1.CreateOptions{})
		return err
	}
	if err != nil {
		return err
	}
	if equality.Semantic.DeepEqual(have.Spec.Drivers, want) {
		n.bare.Store(len(want) == 0)
		return nil
	}
	next := have.DeepCopy()
	// What a driver says of the node can't be changed, only said anew.
	next.Spec.Drivers = slices.DeleteFunc(next.Spec.Drivers, func(d storagev1.CSINodeDriver) bool {
		i := slices.IndexFunc(want, func(w storagev1.CSINodeDriver) bool { return w.Name == d.Name })
		return i < 0 || want[i].NodeID != d.NodeID || !slices.Equal(want[i].TopologyKeys, d.TopologyKeys)
	})
	if len(next.Spec.Drivers) != len(have.Spec.Drivers) {
		if next, err = client.CSINodes().Update(ctx, next, metav1.UpdateOptions{}); err != nil {
			return err
		}
	}
	if !equality.Semantic.DeepEqual(next.Spec.Drivers, want) {
		next.Spec.Drivers = want
		_, err = client.CSINodes().Update(ctx, next, metav1.UpdateOptions{})
	}
	return err
}

// writeExpanded does what a kubelet does when a file system was grown or could not
// be (pkg/volume/util/resize_util.go: MarkNodeExpansionFinishedWithRecovery,
// MarkNodeExpansionFailedCondition, MarkNodeExpansionInfeasible).
func (h *Hub) writeExpanded(ctx context.Context, n *node, e fleet.ExpandedClaim) error {
	have, err := h.storage.claims.PersistentVolumeClaims(e.Namespace).Get(e.Name)
	if apierrors.IsNotFound(err) || err == nil && expandedStatus(have, e, h.c.Now()) == nil {
		return nil // gone, or noted
	}
	client, err := h.as(n)
	if err != nil {
		return err
	}
	have, err = client.PersistentVolumeClaims(e.Namespace).Get(ctx, e.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	status := expandedStatus(have, e, h.c.Now())
	if status == nil {
		return nil
	}
	next := have.DeepCopy()
	next.Status = *status
	_, err = client.PersistentVolumeClaims(e.Namespace).UpdateStatus(ctx, next, metav1.UpdateOptions{})
	return err
}

// expandedStatus is a claim's status with what a node says of its volume, nil if it
// is there or of no interest any more.
func expandedStatus(claim *corev1.PersistentVolumeClaim, e fleet.ExpandedClaim, now time.Time) *corev1.PersistentVolumeClaimStatus {
	size := *resource.NewQuantity(e.Bytes, resource.BinarySI)
	if claim.UID != types.UID(e.UID) || grown(claim, size) {
		return nil
	}
	out := claim.Status.DeepCopy()
	if e.Error == "" {
		if out.Capacity == nil {
			out.Capacity = corev1.ResourceList{}
		}
		out.Capacity[corev1.ResourceStorage] = size
		delete(out.AllocatedResourceStatuses, corev1.ResourceStorage)
		out.Conditions = slices.DeleteFunc(out.Conditions, func(c corev1.PersistentVolumeClaimCondition) bool {
			switch c.Type {
			case corev1.PersistentVolumeClaimResizing, corev1.PersistentVolumeClaimFileSystemResizePending,
				corev1.PersistentVolumeClaimControllerResizeError, corev1.PersistentVolumeClaimNodeResizeError:
				return true
			}
			return false
		})
		return out
	}
	allocated := out.AllocatedResources[corev1.ResourceStorage]
	switch out.AllocatedResourceStatuses[corev1.ResourceStorage] {
	case corev1.PersistentVolumeClaimNodeResizePending, corev1.PersistentVolumeClaimNodeResizeInProgress:
	default:
		return nil // a controller has decided anew
	}
	if allocated.Cmp(size) != 0 {
		return nil
	}
	changed := e.Infeasible
	if e.Infeasible {
		out.AllocatedResourceStatuses[corev1.ResourceStorage] = corev1.PersistentVolumeClaimNodeResizeInfeasible
	}
	failed := corev1.PersistentVolumeClaimCondition{Type: corev1.PersistentVolumeClaimNodeResizeError, Status: corev1.ConditionTrue,
		LastTransitionTime: metav1.NewTime(now), Message: "failed to expand pvc with " + e.Error}
	i := slices.IndexFunc(out.Conditions, func(c corev1.PersistentVolumeClaimCondition) bool { return c.Type == failed.Type })
	switch {
	case i < 0:
		out.Conditions, changed = append(out.Conditions, failed), true
	case out.Conditions[i].Status != failed.Status:
		out.Conditions[i], changed = failed, true
	}
	if !changed {
		return nil
	}
	return out
}

func grown(claim *corev1.PersistentVolumeClaim, size resource.Quantity) bool {
	have := claim.Status.Capacity[corev1.ResourceStorage]
	return have.Cmp(size) >= 0
}
