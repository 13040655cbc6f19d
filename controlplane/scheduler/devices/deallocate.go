package devices

import (
	"context"
	"fmt"
	"math/rand/v2"

	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-edge/coracle/controlplane/scheduler/framework"
)

// PostFilter gives up the devices of a claim that nobody uses and that keep the pod
// from every node: other devices, on another node, may do. One claim at a time, at
// random, for no heuristic is better (as upstream). It nominates no node.
func (p *Plugin) PostFilter(ctx context.Context, pod *framework.Pod, cluster *framework.Cluster, verdicts map[string]*framework.Status, _ framework.FilterFunc) framework.Nomination {
	t, _ := p.prepare(ctx, pod)
	if t == nil {
		return framework.Nomination{}
	}
	if c := t.idle(pod, cluster, verdicts); c != nil {
		free := c.DeepCopy()
		free.Status.ReservedFor, free.Status.Allocation, free.Status.Devices = nil, nil, nil
		if _, err := p.client.ResourceV1().ResourceClaims(c.Namespace).UpdateStatus(ctx, free, metav1.UpdateOptions{}); err != nil {
			return framework.Nomination{Message: fmt.Sprintf("deallocation of ResourceClaim %s: %v.", c.Name, err)}
		}
		return framework.Nomination{Message: "deallocation of ResourceClaim completed"}
	}
	if t.extended != nil && t.extended.left != nil {
		if err := p.remove(ctx, t.extended.left); err != nil {
			return framework.Nomination{Message: fmt.Sprintf("deletion of ResourceClaim %s: %v.", t.extended.left.Name, err)}
		}
		return framework.Nomination{Message: "deletion of ResourceClaim completed"}
	}
	return framework.Nomination{}
}

// idle returns a claim of the pod that nobody else uses and that some node was
// refused for; nil if there is none.
func (t *try) idle(pod *framework.Pod, cluster *framework.Cluster, verdicts map[string]*framework.Status) *resourceapi.ResourceClaim {
	var found []*resourceapi.ResourceClaim
	for _, node := range cluster.Nodes {
		if v := verdicts[node.Name()]; v == nil || v.Plugin != t.Name() {
			continue // what else is wrong there may pass
		}
		for _, c := range t.unavailable(node.Node) {
			users := c.Status.ReservedFor
			if len(users) == 0 || len(users) == 1 && users[0].UID == pod.UID {
				found = append(found, c)
			}
		}
	}
	if len(found) == 0 {
		return nil
	}
	return found[rand.IntN(len(found))]
}
