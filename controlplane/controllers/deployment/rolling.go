package deployment

import (
	"context"
	"sort"

	apps "k8s.io/api/apps/v1"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/kubernetes/pkg/controller"
	"k8s.io/kubernetes/pkg/controller/deployment/util"
)

// rollingUpdate takes one step: either up with the new set, or down with old ones, or neither; then the status.
// The change of a ReplicaSet's status that follows calls for the next step.
func (c *Controller) rollingUpdate(ctx context.Context, d *apps.Deployment, sets []*apps.ReplicaSet, count reckoning) error {
	newSet, old, err := c.revisions(ctx, d, sets, true)
	if err != nil {
		return err
	}
	all := append(old, newSet)
	moved, err := c.growNew(ctx, d, newSet, all, count)
	if err != nil {
		return err
	}
	if !moved {
		if moved, err = c.shrinkOld(ctx, d, newSet, controller.FilterActiveReplicaSets(old), all, count); err != nil {
			return err
		}
	}
	if !moved && complete(d, &d.Status, count.standing(all...)) {
		if err := c.cleanup(ctx, d, old); err != nil {
			return err
		}
	}
	waits := newSet != nil && *newSet.Spec.Replicas == *d.Spec.Replicas && count.notAttempted(newSet) > 0 &&
		*newSet.Spec.Replicas-count.available(newSet) == count.notAttempted(newSet)
	return c.writeRolloutStatus(ctx, d, newSet, all, outlook{standing: count.standing(all...), waits: waits, pods: count.notAttempted(newSet)})
}

// growNew scales the new set up as far as maxSurge lets it, or down to the size of the Deployment.
func (c *Controller) growNew(ctx context.Context, d *apps.Deployment, newSet *apps.ReplicaSet, all []*apps.ReplicaSet, count reckoning) (bool, error) {
	want, have := *d.Spec.Replicas, *newSet.Spec.Replicas
	size := want
	if have < want {
		room := want + util.MaxSurge(*d) + count.notAttempted(newSet) - util.GetReplicaCountForReplicaSets(all)
		size = have + max(0, min(room, want-have))
	}
	scaled, _, err := c.scaleSet(ctx, d, newSet, size)
	return scaled, err
}

// shrinkOld scales old sets down: first by their unhealthy pods, which no one misses, then as far as maxUnavailable
// allows. Unavailable new pods are subtracted from what may go, so a new revision that never becomes available stops the
// rollout with minAvailable pods standing.
func (c *Controller) shrinkOld(ctx context.Context, d *apps.Deployment, newSet *apps.ReplicaSet, old, all []*apps.ReplicaSet, count reckoning) (bool, error) {
	if util.GetReplicaCountForReplicaSets(old) == 0 {
		return false, nil
	}
	minAvailable := *d.Spec.Replicas - util.MaxUnavailable(*d)
	newUnavailable := *newSet.Spec.Replicas - count.available(newSet)
	maxDown := util.GetReplicaCountForReplicaSets(all) - minAvailable - newUnavailable
	if maxDown <= 0 {
		return false, nil
	}
	sort.Sort(controller.ReplicaSetsByCreationTimestamp(old))

	down := int32(0)
	for i, set := range old {
		unhealthy := *set.Spec.Replicas - count.available(set)
		n := min(maxDown-down, unhealthy)
		if n <= 0 {
			continue
		}
		_, scaled, err := c.scaleSet(ctx, d, set, *set.Spec.Replicas-n)
		if err != nil {
			return false, err
		}
		old[i] = scaled
		down += n
	}

	spare := count.available(newSet) + count.available(old...) - minAvailable
	for _, set := range old {
		n := min(*set.Spec.Replicas, spare)
		if n <= 0 {
			continue
		}
		if _, _, err := c.scaleSet(ctx, d, set, *set.Spec.Replicas-n); err != nil {
			return false, err
		}
		spare -= n
		down += n
	}
	return down > 0, nil
}

// recreate scales old sets to nothing, waits until none of their pods is left, and only then makes the new set.
func (c *Controller) recreate(ctx context.Context, d *apps.Deployment, sets []*apps.ReplicaSet, pods map[types.UID][]*v1.Pod, count reckoning) error {
	newSet, old, err := c.revisions(ctx, d, sets, false)
	if err != nil {
		return err
	}
	all := append(old, newSet)
	scaled := false
	for _, set := range controller.FilterActiveReplicaSets(old) {
		did, _, err := c.scaleSet(ctx, d, set, 0)
		if err != nil {
			return err
		}
		scaled = scaled || did
	}
	if scaled {
		return c.writeRolloutStatus(ctx, d, newSet, all, outlook{standing: count.standing(all...)})
	}
	if running, onAway := c.oldPods(newSet, old, pods); running > 0 || util.GetActualReplicaCountForReplicaSets(old) > 0 {
		return c.writeRolloutStatus(ctx, d, newSet, all, outlook{waits: running > 0 && running == onAway, pods: int32(onAway)})
	}
	if newSet == nil {
		if newSet, old, err = c.revisions(ctx, d, sets, true); err != nil {
			return err
		}
		all = append(old, newSet)
	}
	if _, _, err := c.scaleSet(ctx, d, newSet, *d.Spec.Replicas); err != nil {
		return err
	}
	standing := count.standing(newSet)
	if complete(d, &d.Status, standing) {
		if err := c.cleanup(ctx, d, old); err != nil {
			return err
		}
	}
	waits := count.notAttempted(newSet) > 0 && *d.Spec.Replicas-count.available(newSet) == count.notAttempted(newSet)
	return c.writeRolloutStatus(ctx, d, newSet, all, outlook{standing: standing, waits: waits, pods: count.notAttempted(newSet)})
}

// oldPods counts the pods of old sets that haven't ended, and how many of them are on nodes that are away.
func (c *Controller) oldPods(newSet *apps.ReplicaSet, old []*apps.ReplicaSet, pods map[types.UID][]*v1.Pod) (running, onAway int) {
	for uid, owned := range pods {
		if newSet != nil && newSet.UID == uid {
			continue
		}
		for _, pod := range owned {
			if pod.Status.Phase == v1.PodFailed || pod.Status.Phase == v1.PodSucceeded {
				continue
			}
			running++
			if c.nodes.HasPod(pod) {
				onAway++
			}
		}
	}
	return running, onAway
}
