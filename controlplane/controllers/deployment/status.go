package deployment

import (
	"context"
	"fmt"
	"reflect"
	"time"

	apps "k8s.io/api/apps/v1"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/kubernetes/pkg/controller/deployment/util"
	"k8s.io/kubernetes/pkg/features"
)

// NodesAwayReason is the reason of condition Progressing (True) while all that a rollout waits for are pods on nodes that
// are away. No progress deadline runs meanwhile.
const NodesAwayReason = "NodesAway"

// outlook is what a rollout knows beyond the numbers of the status.
type outlook struct {
	standing int32 // pods to count as available for completeness
	waits    bool  // only pods on nodes that are away are missing
	pods     int32 // how many
}

// condition makes a condition with both times set to now.
func (c *Controller) condition(kind apps.DeploymentConditionType, status v1.ConditionStatus, reason, message string) apps.DeploymentCondition {
	return condition(kind, status, reason, message, c.now())
}

func condition(kind apps.DeploymentConditionType, status v1.ConditionStatus, reason, message string, now metav1.Time) apps.DeploymentCondition {
	cond := util.NewDeploymentCondition(kind, status, reason, message)
	cond.LastUpdateTime, cond.LastTransitionTime = now, now
	return *cond
}

// complete is upstream's DeploymentComplete with standing pods counted as available.
func complete(d *apps.Deployment, status *apps.DeploymentStatus, standing int32) bool {
	want := *d.Spec.Replicas
	return status.UpdatedReplicas == want && status.Replicas == want && status.AvailableReplicas+standing == want &&
		status.ObservedGeneration >= d.Generation
}

// calculateStatus counts as upstream does.
func calculateStatus(d *apps.Deployment, newSet *apps.ReplicaSet, all []*apps.ReplicaSet, now metav1.Time) apps.DeploymentStatus {
	available := util.GetAvailableReplicaCountForReplicaSets(all)
	status := apps.DeploymentStatus{
		ObservedGeneration:  d.Generation,
		Replicas:            util.GetActualReplicaCountForReplicaSets(all),
		UpdatedReplicas:     util.GetActualReplicaCountForReplicaSets([]*apps.ReplicaSet{newSet}),
		ReadyReplicas:       util.GetReadyReplicaCountForReplicaSets(all),
		AvailableReplicas:   available,
		UnavailableReplicas: max(0, util.GetReplicaCountForReplicaSets(all)-available),
		CollisionCount:      d.Status.CollisionCount,
		Conditions:          append([]apps.DeploymentCondition(nil), d.Status.Conditions...),
	}
	if utilfeature.DefaultFeatureGate.Enabled(features.DeploymentReplicaSetTerminatingReplicas) {
		status.TerminatingReplicas = util.GetTerminatingReplicaCountForReplicaSets(all)
	}
	if available >= *d.Spec.Replicas-util.MaxUnavailable(*d) {
		util.SetDeploymentCondition(&status, condition(apps.DeploymentAvailable, v1.ConditionTrue, util.MinimumReplicasAvailable,
			"Deployment has minimum availability.", now))
	} else {
		util.SetDeploymentCondition(&status, condition(apps.DeploymentAvailable, v1.ConditionFalse, util.MinimumReplicasUnavailable,
			"Deployment does not have minimum availability.", now))
	}
	return status
}

// writeStatus writes the status if anything in it changed.
func (c *Controller) writeStatus(ctx context.Context, d *apps.Deployment, status apps.DeploymentStatus) error {
	if reflect.DeepEqual(d.Status, status) {
		return nil
	}
	d.Status = status
	return c.updateStatus(ctx, d)
}

func (c *Controller) updateStatus(ctx context.Context, d *apps.Deployment) error {
	_, err := c.client.AppsV1().Deployments(d.Namespace).UpdateStatus(ctx, d, metav1.UpdateOptions{})
	return err
}

// notePause records in condition Progressing that the Deployment was paused or resumed, so that a pause isn't taken for a
// lack of progress.
func (c *Controller) notePause(ctx context.Context, d *apps.Deployment) error {
	if !util.HasProgressDeadline(d) {
		return nil
	}
	cond := util.GetDeploymentCondition(d.Status, apps.DeploymentProgressing)
	if cond != nil && cond.Reason == util.TimedOutReason {
		return nil
	}
	noted := cond != nil && cond.Reason == util.PausedDeployReason
	switch {
	case d.Spec.Paused && !noted:
		util.SetDeploymentCondition(&d.Status, c.condition(apps.DeploymentProgressing, v1.ConditionUnknown, util.PausedDeployReason, "Deployment is paused"))
	case !d.Spec.Paused && noted:
		util.SetDeploymentCondition(&d.Status, c.condition(apps.DeploymentProgressing, v1.ConditionUnknown, util.ResumedDeployReason, "Deployment is resumed"))
	default:
		return nil
	}
	return c.updateStatus(ctx, d)
}

// writeRolloutStatus writes the status of a rollout, with its progress, and comes back when the deadline will have passed.
func (c *Controller) writeRolloutStatus(ctx context.Context, d *apps.Deployment, newSet *apps.ReplicaSet, all []*apps.ReplicaSet, o outlook) error {
	status := calculateStatus(d, newSet, all, c.now())
	if util.HasProgressDeadline(d) {
		c.judgeProgress(d, newSet, &status, o)
	} else {
		util.RemoveDeploymentCondition(&status, apps.DeploymentProgressing)
	}
	if failure := replicaFailure(newSet, all); failure != nil {
		util.SetDeploymentCondition(&status, *failure)
	} else {
		util.RemoveDeploymentCondition(&status, apps.DeploymentReplicaFailure)
	}
	if reflect.DeepEqual(d.Status, status) {
		c.watchDeadline(d, &status, o)
		return nil
	}
	d.Status = status
	return c.updateStatus(ctx, d) // the write brings the key back
}

// judgeProgress sets condition Progressing of a rollout that hasn't been found complete before.
func (c *Controller) judgeProgress(d *apps.Deployment, newSet *apps.ReplicaSet, status *apps.DeploymentStatus, o outlook) {
	current := util.GetDeploymentCondition(d.Status, apps.DeploymentProgressing)
	if status.Replicas == status.UpdatedReplicas && current != nil && current.Reason == util.NewRSAvailableReason {
		return // done earlier; that a pod is unavailable now is not the rollout's
	}
	subject := fmt.Sprintf("Deployment %q", d.Name)
	if newSet != nil {
		subject = fmt.Sprintf("ReplicaSet %q", newSet.Name)
	}
	// Set even if status and reason are the current ones: the update time is what a deadline is measured from.
	advance := func(reason, message string) {
		cond := c.condition(apps.DeploymentProgressing, v1.ConditionTrue, reason, message)
		if current != nil && current.Status == v1.ConditionTrue {
			cond.LastTransitionTime = current.LastTransitionTime
		}
		util.RemoveDeploymentCondition(status, apps.DeploymentProgressing)
		util.SetDeploymentCondition(status, cond)
	}
	switch {
	case complete(d, status, o.standing):
		util.SetDeploymentCondition(status, c.condition(apps.DeploymentProgressing, v1.ConditionTrue, util.NewRSAvailableReason,
			subject+" has successfully progressed."))
	case o.waits:
		message := fmt.Sprintf("%s waits for %d pod(s) on nodes that are away; nothing else is missing.", subject, o.pods)
		if current == nil || current.Reason != NodesAwayReason || current.Message != message {
			advance(NodesAwayReason, message)
		}
	case util.DeploymentProgressing(d, status), current != nil && current.Reason == NodesAwayReason:
		advance(util.ReplicaSetUpdatedReason, subject+" is progressing.")
	case c.timedOut(d, status):
		util.SetDeploymentCondition(status, c.condition(apps.DeploymentProgressing, v1.ConditionFalse, util.TimedOutReason,
			subject+" has timed out progressing."))
	}
}

// timedOut is upstream's DeploymentTimedOut by our clock.
func (c *Controller) timedOut(d *apps.Deployment, status *apps.DeploymentStatus) bool {
	cond := util.GetDeploymentCondition(*status, apps.DeploymentProgressing)
	switch {
	case cond == nil, cond.Reason == util.NewRSAvailableReason:
		return false // no rollout has begun by what the status knows
	case cond.Reason == util.TimedOutReason:
		return true
	}
	return cond.LastUpdateTime.Add(deadline(d)).Before(c.opts.Clock.Now())
}

// watchDeadline brings the key back when the progress deadline will have passed, for nothing else may happen until then.
func (c *Controller) watchDeadline(d *apps.Deployment, status *apps.DeploymentStatus, o outlook) {
	cond := util.GetDeploymentCondition(d.Status, apps.DeploymentProgressing)
	if !util.HasProgressDeadline(d) || cond == nil || o.waits || cond.Reason == util.TimedOutReason || complete(d, status, o.standing) {
		return
	}
	if status.Replicas == status.UpdatedReplicas && cond.Reason == util.NewRSAvailableReason {
		return // complete once, judged no more
	}
	key := d.Namespace + "/" + d.Name
	if left := cond.LastUpdateTime.Add(deadline(d)).Sub(c.opts.Clock.Now()); left < time.Second {
		c.AddRateLimited(key)
	} else {
		c.AddAfter(key, left+time.Second) // a second against rounding of stored times
	}
}

func deadline(d *apps.Deployment) time.Duration {
	return time.Duration(*d.Spec.ProgressDeadlineSeconds) * time.Second
}

// replicaFailure passes on why pods could not be created or deleted, the new set's reason first.
func replicaFailure(newSet *apps.ReplicaSet, all []*apps.ReplicaSet) *apps.DeploymentCondition {
	for _, set := range append([]*apps.ReplicaSet{newSet}, all...) {
		if set == nil {
			continue
		}
		for _, cond := range set.Status.Conditions {
			if cond.Type == apps.ReplicaSetReplicaFailure {
				d := util.ReplicaSetToDeploymentCondition(cond)
				return &d
			}
		}
	}
	return nil
}
