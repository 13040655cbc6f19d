package deployment

import (
	"context"
	"sort"

	apps "k8s.io/api/apps/v1"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/controller"
	"k8s.io/kubernetes/pkg/controller/deployment/util"
)

// scaleOnly scales the sets of a Deployment that is paused, or was scaled, without rolling out.
func (c *Controller) scaleOnly(ctx context.Context, d *apps.Deployment, sets []*apps.ReplicaSet) error {
	newSet, old, err := c.revisions(ctx, d, sets, false)
	if err != nil {
		return err
	}
	if err := c.scale(ctx, d, newSet, old); err != nil {
		return err
	}
	if d.Spec.Paused && rollbackTo(d) == nil {
		if err := c.cleanup(ctx, d, old); err != nil {
			return err
		}
	}
	return c.writeStatus(ctx, d, calculateStatus(d, newSet, append(old, newSet), c.now()))
}

// isScaling reports whether d was scaled: an active set remembers another number of desired replicas.
func (c *Controller) isScaling(ctx context.Context, d *apps.Deployment, sets []*apps.ReplicaSet) (bool, error) {
	newSet, old, err := c.revisions(ctx, d, sets, false)
	if err != nil {
		return false, err
	}
	for _, set := range controller.FilterActiveReplicaSets(append(old, newSet)) {
		desired, ok := util.GetDesiredReplicasAnnotation(klog.FromContext(ctx), set)
		if ok && desired != *d.Spec.Replicas {
			return true, nil
		}
	}
	return false, nil
}

// scale brings the sets to the size of the Deployment: one active set takes it all; a full new set ends the old ones; in
// the middle of a rolling update the difference is spread in proportion, so that a bad revision doesn't grow first.
func (c *Controller) scale(ctx context.Context, d *apps.Deployment, newSet *apps.ReplicaSet, old []*apps.ReplicaSet) error {
	if only := util.FindActiveOrLatest(newSet, old); only != nil {
		_, _, err := c.scaleSet(ctx, d, only, *d.Spec.Replicas)
		return err
	}
	if util.IsSaturated(d, newSet) {
		for _, set := range controller.FilterActiveReplicaSets(old) {
			if _, _, err := c.scaleSet(ctx, d, set, 0); err != nil {
				return err
			}
		}
		return nil
	}
	if !util.IsRollingUpdate(d) {
		return nil
	}
	sets := controller.FilterActiveReplicaSets(append(old, newSet))
	allowed := int32(0)
	if *d.Spec.Replicas > 0 {
		allowed = *d.Spec.Replicas + util.MaxSurge(*d)
	}
	toAdd := allowed - util.GetReplicaCountForReplicaSets(sets)
	// Of sets of one size, newer ones grow first and older ones shrink first.
	if toAdd > 0 {
		sort.Sort(controller.ReplicaSetsBySizeNewer(sets))
	} else if toAdd < 0 {
		sort.Sort(controller.ReplicaSetsBySizeOlder(sets))
	}
	added := int32(0)
	sizes := make([]int32, len(sets))
	for i, set := range sets {
		sizes[i] = *set.Spec.Replicas
		if toAdd != 0 {
			share := util.GetReplicaSetProportion(klog.FromContext(ctx), set, *d, toAdd, added)
			sizes[i] += share
			added += share
		}
	}
	for i, set := range sets {
		if i == 0 && toAdd != 0 {
			sizes[0] = max(0, sizes[0]+toAdd-added) // what rounding left over
		}
		if _, _, err := c.resizeSet(ctx, d, set, sizes[i]); err != nil {
			return err
		}
	}
	return nil
}

// scaleSet writes a set's size if it differs.
func (c *Controller) scaleSet(ctx context.Context, d *apps.Deployment, set *apps.ReplicaSet, size int32) (bool, *apps.ReplicaSet, error) {
	if *set.Spec.Replicas == size {
		return false, set, nil
	}
	return c.resizeSet(ctx, d, set, size)
}

// resizeSet writes a set's size, and the sizes that its annotations remember of the Deployment, if either differs.
func (c *Controller) resizeSet(ctx context.Context, d *apps.Deployment, set *apps.ReplicaSet, size int32) (bool, *apps.ReplicaSet, error) {
	desired, most := *d.Spec.Replicas, *d.Spec.Replicas+util.MaxSurge(*d)
	before := *set.Spec.Replicas
	if before == size && !util.ReplicasAnnotationsNeedUpdate(set, desired, most) {
		return false, set, nil
	}
	resized := set.DeepCopy()
	*resized.Spec.Replicas = size
	util.SetReplicasAnnotations(resized, desired, most)
	resized, err := c.client.AppsV1().ReplicaSets(set.Namespace).Update(ctx, resized, metav1.UpdateOptions{})
	if err != nil {
		return false, set, err
	}
	if before == size {
		return false, resized, nil
	}
	direction := "up"
	if size < before {
		direction = "down"
	}
	c.opts.Recorder.Eventf(d, v1.EventTypeNormal, "ScalingReplicaSet", "Scaled %s replica set %s from %d to %d", direction, set.Name, before, size)
	return true, resized, nil
}

// cleanup deletes old sets beyond the revision history limit, oldest first; only those that are empty and say so.
func (c *Controller) cleanup(ctx context.Context, d *apps.Deployment, old []*apps.ReplicaSet) error {
	if !util.HasRevisionHistoryLimit(d) {
		return nil
	}
	alive := controller.FilterReplicaSets(old, func(set *apps.ReplicaSet) bool { return set != nil && set.DeletionTimestamp == nil })
	excess := len(alive) - int(*d.Spec.RevisionHistoryLimit)
	if excess <= 0 {
		return nil
	}
	sort.Sort(util.ReplicaSetsByRevision(alive))
	for _, set := range alive[:excess] {
		if set.Status.Replicas != 0 || *set.Spec.Replicas != 0 || set.Generation > set.Status.ObservedGeneration {
			continue
		}
		if err := c.client.AppsV1().ReplicaSets(set.Namespace).Delete(ctx, set.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return err
		}
	}
	return nil
}
