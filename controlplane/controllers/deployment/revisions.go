package deployment

import (
	"context"
	"fmt"
	"strconv"

	apps "k8s.io/api/apps/v1"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/controller"
	"k8s.io/kubernetes/pkg/controller/deployment/util"
	labelsutil "k8s.io/kubernetes/pkg/util/labels"
)

// maxHistoryChars bounds the annotation that remembers the revisions a set has served, upstream's 2000: some 100 numbers.
const maxHistoryChars = 2000

// revisions returns the set of d's current template, which is nil if there is none and create is false, and the others.
// The new set's revision, annotations and minReadySeconds are brought up to date on the way.
func (c *Controller) revisions(ctx context.Context, d *apps.Deployment, sets []*apps.ReplicaSet, create bool) (newSet *apps.ReplicaSet, old []*apps.ReplicaSet, err error) {
	_, old = util.FindOldReplicaSets(d, sets)
	revision := strconv.FormatInt(util.MaxRevision(klog.FromContext(ctx), old)+1, 10)
	if found := util.FindNewReplicaSet(d, sets); found != nil {
		newSet, err = c.refreshNew(ctx, d, found, revision)
	} else if create {
		newSet, err = c.createNew(ctx, d, old, revision)
	}
	// Callers append to old: they must not share its array.
	return newSet, old[:len(old):len(old)], err
}

func (c *Controller) refreshNew(ctx context.Context, d *apps.Deployment, found *apps.ReplicaSet, revision string) (*apps.ReplicaSet, error) {
	set := found.DeepCopy()
	changed := util.SetNewReplicaSetAnnotations(ctx, d, set, revision, true, maxHistoryChars)
	if changed || set.Spec.MinReadySeconds != d.Spec.MinReadySeconds {
		set.Spec.MinReadySeconds = d.Spec.MinReadySeconds
		return c.client.AppsV1().ReplicaSets(d.Namespace).Update(ctx, set, metav1.UpdateOptions{})
	}
	changed = util.SetDeploymentRevision(d, set.Annotations[util.RevisionAnnotation])
	if util.HasProgressDeadline(d) && util.GetDeploymentCondition(d.Status, apps.DeploymentProgressing) == nil {
		// The deadline was set after the rollout began, or the set was adopted: progress is measured from here.
		util.SetDeploymentCondition(&d.Status, c.condition(apps.DeploymentProgressing, v1.ConditionTrue, util.FoundNewRSReason,
			fmt.Sprintf("Found new replica set %q", set.Name)))
		changed = true
	}
	if !changed {
		return set, nil
	}
	return set, c.updateStatus(ctx, d)
}

func (c *Controller) createNew(ctx context.Context, d *apps.Deployment, old []*apps.ReplicaSet, revision string) (*apps.ReplicaSet, error) {
	template := *d.Spec.Template.DeepCopy()
	hash := controller.ComputeHash(&template, d.Status.CollisionCount)
	template.Labels = labelsutil.CloneAndAddLabel(d.Spec.Template.Labels, apps.DefaultDeploymentUniqueLabelKey, hash)
	set := &apps.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{
			Name:            setName(d.Name, hash), // deterministic: creating it twice is creating it once
			Namespace:       d.Namespace,
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(d, kind)},
			Labels:          template.Labels,
		},
		Spec: apps.ReplicaSetSpec{
			Replicas:        new(int32),
			MinReadySeconds: d.Spec.MinReadySeconds,
			Selector:        labelsutil.CloneSelectorAndAddLabel(d.Spec.Selector, apps.DefaultDeploymentUniqueLabelKey, hash),
			Template:        template,
		},
	}
	size, err := util.NewRSNewReplicas(d, append(old[:len(old):len(old)], set), set)
	if err != nil {
		return nil, err
	}
	*set.Spec.Replicas = size
	util.SetNewReplicaSetAnnotations(ctx, d, set, revision, false, maxHistoryChars)

	created, err := c.client.AppsV1().ReplicaSets(d.Namespace).Create(ctx, set, metav1.CreateOptions{})
	existed := apierrors.IsAlreadyExists(err)
	switch {
	case existed:
		if created, err = c.ownOrCollided(ctx, d, set.Name, err); err != nil {
			return nil, err
		}
	case apierrors.HasStatusCause(err, v1.NamespaceTerminatingCause):
		return nil, err
	case err != nil:
		message := fmt.Sprintf("Failed to create new replica set %q: %v", set.Name, err)
		if util.HasProgressDeadline(d) {
			util.SetDeploymentCondition(&d.Status, c.condition(apps.DeploymentProgressing, v1.ConditionFalse, util.FailedRSCreateReason, message))
			_ = c.updateStatus(ctx, d) // the failure to create is the one to report
		}
		c.opts.Recorder.Eventf(d, v1.EventTypeWarning, util.FailedRSCreateReason, "%s", message)
		return nil, err
	case size > 0:
		c.opts.Recorder.Eventf(d, v1.EventTypeNormal, "ScalingReplicaSet", "Scaled up replica set %s from 0 to %d", created.Name, size)
	}
	changed := util.SetDeploymentRevision(d, revision)
	if !existed && util.HasProgressDeadline(d) {
		util.SetDeploymentCondition(&d.Status, c.condition(apps.DeploymentProgressing, v1.ConditionTrue, util.NewReplicaSetReason,
			fmt.Sprintf("Created new replica set %q", created.Name)))
		changed = true
	}
	if changed {
		err = c.updateStatus(ctx, d)
	}
	return created, err
}

// ownOrCollided returns the existing set of that name if it is d's for the same template, made by an earlier pass that
// the cache has not shown. Else two templates have one hash: the collision count is raised, which changes the next hash,
// and exists is returned, so that the key comes again.
func (c *Controller) ownOrCollided(ctx context.Context, d *apps.Deployment, name string, exists error) (*apps.ReplicaSet, error) {
	set, err := c.sets.ReplicaSets(d.Namespace).Get(name)
	if err != nil {
		return nil, err
	}
	if ref := metav1.GetControllerOfNoCopy(set); ref != nil && ref.UID == d.UID && util.EqualIgnoreHash(&d.Spec.Template, &set.Spec.Template) {
		return set, nil
	}
	if d.Status.CollisionCount == nil {
		d.Status.CollisionCount = new(int32)
	}
	*d.Status.CollisionCount++
	if err := c.updateStatus(ctx, d); err == nil {
		c.opts.Logger.Info("two pod templates of a Deployment have one hash, raised its collision count",
			"deployment", d.Namespace+"/"+d.Name, "replicaset", name, "collisionCount", *d.Status.CollisionCount)
	}
	return nil, exists
}

// setName is the Deployment's name and the hash of its pod template, cut to the length that a name may have.
func setName(deployment, hash string) string {
	if most := validation.DNS1123SubdomainMaxLength - 1 - len(hash); len(deployment) > most && most > 0 {
		deployment = deployment[:most]
	}
	return deployment + "-" + hash
}
