package daemonset

import (
	"context"
	"fmt"
	"slices"
	"time"

	apps "k8s.io/api/apps/v1"
	v1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
	"k8s.io/kubernetes/pkg/controller/daemon/util"
)

// NodesAway is the condition of a DaemonSet's status, present and True while nodes that should run its pod are away.
const NodesAway apps.DaemonSetConditionType = "NodesAway"

// writeStatus counts and writes the status if anything in it changed.
func (c *Controller) writeStatus(ctx context.Context, set *apps.DaemonSet, sites []*site, hash string, generation int64) error {
	status := c.status(set, sites, hash)
	status.ObservedGeneration = generation
	if set.Spec.MinReadySeconds > 0 && status.NumberReady != status.NumberAvailable {
		c.AddAfter(set.Namespace+"/"+set.Name, time.Duration(set.Spec.MinReadySeconds)*time.Second)
	}
	if apiequality.Semantic.DeepEqual(set.Status, status) {
		return nil
	}
	sets := c.client.AppsV1().DaemonSets(set.Namespace)
	fresh := set.DeepCopy()
	for try := 0; ; try++ {
		// What isn't counted here stays as it is found: the collision count, and conditions of others.
		status.CollisionCount = fresh.Status.CollisionCount
		status.Conditions = mergeConditions(fresh.Status.Conditions, status.Conditions)
		fresh.Status = status
		_, err := sets.UpdateStatus(ctx, fresh, metav1.UpdateOptions{})
		if err == nil || try > 0 {
			return err
		}
		if fresh, err = sets.Get(ctx, set.Name, metav1.GetOptions{}); err != nil {
			return err
		}
	}
}

func (c *Controller) status(set *apps.DaemonSet, sites []*site, hash string) apps.DaemonSetStatus {
	generation, err := util.GetTemplateGeneration(set)
	if err != nil {
		generation = nil
	}
	s := apps.DaemonSetStatus{CollisionCount: set.Status.CollisionCount}
	gone, withPod := 0, 0
	for _, site := range sites {
		switch {
		case site.node == nil:
		case site.away:
			if site.run || len(site.pods) > 0 {
				gone++
			}
			if len(site.pods) > 0 {
				withPod++
			}
		case !site.run:
			if len(site.pods) > 0 {
				s.NumberMisscheduled++
			}
		default:
			s.DesiredNumberScheduled++
			if len(site.pods) == 0 {
				continue
			}
			s.CurrentNumberScheduled++
			pod := site.pods[0]
			if podutil.IsPodReady(pod) {
				s.NumberReady++
				if c.available(pod, set) {
					s.NumberAvailable++
				}
			}
			if util.IsPodUpdated(pod, hash, generation) {
				s.UpdatedNumberScheduled++
			}
		}
	}
	s.NumberUnavailable = s.DesiredNumberScheduled - s.NumberAvailable
	s.Conditions = c.awayCondition(set, gone, withPod)
	return s
}

// awayCondition returns the set's conditions with ours brought up to date.
func (c *Controller) awayCondition(set *apps.DaemonSet, gone, withPod int) []apps.DaemonSetCondition {
	var own []apps.DaemonSetCondition
	if gone > 0 {
		cond := apps.DaemonSetCondition{
			Type: NodesAway, Status: v1.ConditionTrue, Reason: "NotAttempted",
			Message:            fmt.Sprintf("%d node(s) are away and not attempted; %d of them have a pod.", gone, withPod),
			LastTransitionTime: metav1.NewTime(c.opts.Clock.Now()),
		}
		if i := slices.IndexFunc(set.Status.Conditions, isNodesAway); i >= 0 {
			cond.LastTransitionTime = set.Status.Conditions[i].LastTransitionTime
		}
		own = append(own, cond)
	}
	return mergeConditions(set.Status.Conditions, own)
}

// mergeConditions returns the conditions of others in stored, in their order, with NodesAway as it is in counted.
func mergeConditions(stored, counted []apps.DaemonSetCondition) []apps.DaemonSetCondition {
	merged := slices.DeleteFunc(slices.Clone(stored), isNodesAway)
	if i := slices.IndexFunc(counted, isNodesAway); i >= 0 {
		merged = append(merged, counted[i])
	}
	return merged
}

func isNodesAway(c apps.DaemonSetCondition) bool { return c.Type == NodesAway }
