package deployment

import (
	apps "k8s.io/api/apps/v1"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
	"k8s.io/kubernetes/pkg/controller"

	"github.com/coracle-edge/coracle/controlplane/controllers/away"
)

// reckoning is the view of a Deployment's pods by which a rollout is steered. The rules are in the package comment.
type reckoning map[types.UID]tally

// tally counts the active pods of one ReplicaSet.
type tally struct {
	// available pods, as upstream counts them.
	available int32
	// standing: not ready by the API, but ready when last heard of, on a node that is away.
	standing int32
	// notAttempted: never seen ready, on a node that is away.
	notAttempted int32
}

func (c *Controller) reckon(sets []*apps.ReplicaSet, pods map[types.UID][]*v1.Pod) reckoning {
	r := make(reckoning, len(sets))
	now := c.now()
	for _, set := range sets {
		var t tally
		for _, pod := range pods[set.UID] {
			switch {
			case !controller.IsPodActive(pod):
			case podutil.IsPodReady(pod):
				if podutil.IsPodAvailable(pod, set.Spec.MinReadySeconds, now) {
					t.available++
				}
			case !c.nodes.HasPod(pod):
			case away.Standing(pod):
				t.standing++
			default:
				t.notAttempted++
			}
		}
		// The status of the set and the pods are two caches. Where they differ the smaller number is safe: a pod that was
		// just marked not ready must not count twice.
		t.available = min(t.available, set.Status.AvailableReplicas)
		r[set.UID] = t
	}
	return r
}

// available is the number of pods of the given sets that a rollout takes as available.
func (r reckoning) available(sets ...*apps.ReplicaSet) int32 {
	var n int32
	for _, set := range sets {
		if set != nil {
			n += r[set.UID].available + r[set.UID].standing
		}
	}
	return n
}

// standing is the part of available that upstream doesn't count.
func (r reckoning) standing(sets ...*apps.ReplicaSet) int32 {
	var n int32
	for _, set := range sets {
		if set != nil {
			n += r[set.UID].standing
		}
	}
	return n
}

func (r reckoning) notAttempted(set *apps.ReplicaSet) int32 {
	if set == nil {
		return 0
	}
	return r[set.UID].notAttempted
}
