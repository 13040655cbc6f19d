package replicaset

import (
	"context"
	"reflect"
	"sort"
	"time"

	apps "k8s.io/api/apps/v1"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
	"k8s.io/kubernetes/pkg/controller"
	rsutil "k8s.io/kubernetes/pkg/controller/replicaset"
	"k8s.io/kubernetes/pkg/features"
	"k8s.io/utils/ptr"
)

// status counts the pods and says in condition ReplicaFailure why some could not be created or deleted.
func status(set *apps.ReplicaSet, active, terminating []*v1.Pod, manageErr error, now time.Time) apps.ReplicaSetStatus {
	s := *set.Status.DeepCopy()
	s.Replicas, s.FullyLabeledReplicas, s.ReadyReplicas, s.AvailableReplicas = int32(len(active)), 0, 0, 0
	template := labels.Set(set.Spec.Template.Labels).AsSelectorPreValidated()
	for _, pod := range active {
		if template.Matches(labels.Set(pod.Labels)) {
			s.FullyLabeledReplicas++
		}
		if isReady(pod) {
			s.ReadyReplicas++
			if podutil.IsPodAvailable(pod, set.Spec.MinReadySeconds, metav1.Time{Time: now}) {
				s.AvailableReplicas++
			}
		}
	}
	s.TerminatingReplicas = nil
	if utilfeature.DefaultFeatureGate.Enabled(features.DeploymentReplicaSetTerminatingReplicas) {
		s.TerminatingReplicas = ptr.To(int32(len(terminating)))
	}
	failed := rsutil.GetCondition(s, apps.ReplicaSetReplicaFailure)
	switch {
	case manageErr != nil && failed == nil:
		reason := "FailedCreate"
		if len(active) > int(*set.Spec.Replicas) {
			reason = "FailedDelete"
		}
		cond := rsutil.NewReplicaSetCondition(apps.ReplicaSetReplicaFailure, v1.ConditionTrue, reason, manageErr.Error())
		cond.LastTransitionTime = metav1.NewTime(now)
		rsutil.SetCondition(&s, cond)
	case manageErr == nil && failed != nil:
		rsutil.RemoveCondition(&s, apps.ReplicaSetReplicaFailure)
	}
	return s
}

// updateStatus writes the status if anything in it changed, on the newest object after one conflict.
func (c *Controller) updateStatus(ctx context.Context, set *apps.ReplicaSet, s apps.ReplicaSetStatus) (*apps.ReplicaSet, error) {
	// The generation acted on, not the one that a retry finds.
	s.ObservedGeneration = set.Generation
	if reflect.DeepEqual(set.Status, s) {
		return set, nil
	}
	sets := c.client.AppsV1().ReplicaSets(set.Namespace)
	fresh := set.DeepCopy()
	for try := 0; ; try++ {
		fresh.Status = s
		updated, err := sets.UpdateStatus(ctx, fresh, metav1.UpdateOptions{})
		if err == nil || try > 0 {
			return updated, err
		}
		if fresh, err = sets.Get(ctx, set.Name, metav1.GetOptions{}); err != nil {
			return nil, err
		}
	}
}

// chooseVictims picks n pods to delete, in upstream's order (controller.ActivePodsWithRanks): pods without a node, then
// those less far in starting, then those that aren't ready (so those on away nodes), then by deletion cost, then those
// that share a node with most pods of the same Deployment, then the youngest.
func chooseVictims(active, siblings []*v1.Pod, n int, now time.Time) []*v1.Pod {
	if n >= len(active) {
		return active
	}
	onNode := map[string]int{}
	for _, pod := range siblings {
		if controller.IsPodActive(pod) {
			onNode[pod.Spec.NodeName]++
		}
	}
	ranked := controller.ActivePodsWithRanks{Pods: append([]*v1.Pod(nil), active...), Rank: make([]int, len(active)), Now: metav1.NewTime(now)}
	for i, pod := range ranked.Pods {
		ranked.Rank[i] = onNode[pod.Spec.NodeName]
	}
	sort.Sort(ranked)
	return ranked.Pods[:n]
}
