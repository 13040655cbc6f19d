package plugins

import (
	"context"
	"fmt"

	v1 "k8s.io/api/core/v1"
	corev1helpers "k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/klog/v2"

	"github.com/coracle-edge/coracle/controlplane/scheduler/framework"
)

// Taints refuses nodes with a NoSchedule or NoExecute taint that the pod
// doesn't tolerate, and prefers nodes with few PreferNoSchedule taints that it
// doesn't. A node that is away is refused by its unreachable taint and nothing
// else.
type Taints struct{}

func (Taints) Name() string { return "TaintToleration" }

func (Taints) Filter(_ context.Context, pod *framework.Pod, node *framework.NodeInfo) *framework.Status {
	return tainted(pod, node.Node)
}

func (Taints) MayHelp(pod *framework.Pod, ev framework.Event) bool {
	return ev.Kind == framework.PodChanged || framework.NodeMayHelp(pod, ev, tainted)
}

func tainted(pod *framework.Pod, node *v1.Node) *framework.Status {
	taint, found := corev1helpers.FindMatchingUntoleratedTaint(klog.Background(), node.Spec.Taints, pod.Spec.Tolerations,
		func(t *v1.Taint) bool {
			return t.Effect == v1.TaintEffectNoSchedule || t.Effect == v1.TaintEffectNoExecute
		}, true)
	if !found {
		return nil
	}
	// The taint is named: upstream did so up to 1.34, and without it nobody
	// knows which toleration is missing.
	return framework.Exclude(fmt.Sprintf("node(s) had untolerated taint {%s: %s}", taint.Key, taint.Value))
}

func (Taints) PrepareScore(_ context.Context, _ *framework.Pod, _ *framework.Cluster, fits []*framework.NodeInfo) framework.Score {
	for _, n := range fits {
		for i := range n.Node.Spec.Taints {
			if n.Node.Spec.Taints[i].Effect == v1.TaintEffectPreferNoSchedule {
				return taintCount{}
			}
		}
	}
	return nil
}

// Score is that of a node seen alone; the scheduler asks what PrepareScore returned.
func (Taints) Score(ctx context.Context, pod *framework.Pod, node *framework.NodeInfo) int64 {
	return max(0, framework.MaxScore-taintCount{}.Score(ctx, pod, node))
}

// taintCount counts untolerated PreferNoSchedule taints: the fewer the better.
type taintCount struct{}

func (taintCount) Name() string { return Taints{}.Name() }

func (taintCount) Score(_ context.Context, pod *framework.Pod, node *framework.NodeInfo) (count int64) {
	for i := range node.Node.Spec.Taints {
		t := &node.Node.Spec.Taints[i]
		if t.Effect == v1.TaintEffectPreferNoSchedule &&
			!corev1helpers.TolerationsTolerateTaint(klog.Background(), pod.Spec.Tolerations, t, true) {
			count++
		}
	}
	return count
}

func (taintCount) Normalize(scores []int64) { normalize(scores, true) }
