package plugins

import (
	"context"

	v1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"

	"github.com/coracle-edge/coracle/controlplane/scheduler/framework"
)

// NodeAffinity refuses nodes that don't match the pod's node selector and
// required node affinity, and prefers those that match its preferred terms.
type NodeAffinity struct{}

func (NodeAffinity) Name() string { return "NodeAffinity" }

func (NodeAffinity) PrepareFilter(_ context.Context, pod *framework.Pod, _ *framework.Cluster) (framework.Filter, *framework.Status) {
	if !hasNodeAffinity(pod) {
		return nil, nil
	}
	return requiredAffinity{nodeaffinity.GetRequiredNodeAffinity(pod.Pod)}, nil
}

func (NodeAffinity) Filter(_ context.Context, pod *framework.Pod, node *framework.NodeInfo) *framework.Status {
	return selects(pod, node.Node)
}

func (NodeAffinity) MayHelp(pod *framework.Pod, ev framework.Event) bool {
	return ev.Kind == framework.PodChanged || framework.NodeMayHelp(pod, ev, selects)
}

func hasNodeAffinity(pod *framework.Pod) bool {
	a := pod.Spec.Affinity
	return len(pod.Spec.NodeSelector) > 0 ||
		a != nil && a.NodeAffinity != nil && a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution != nil
}

func selects(pod *framework.Pod, node *v1.Node) *framework.Status {
	return requiredAffinity{nodeaffinity.GetRequiredNodeAffinity(pod.Pod)}.match(node)
}

type requiredAffinity struct {
	nodeaffinity.RequiredNodeAffinity
}

func (requiredAffinity) Name() string { return NodeAffinity{}.Name() }

func (r requiredAffinity) Filter(_ context.Context, _ *framework.Pod, node *framework.NodeInfo) *framework.Status {
	return r.match(node.Node)
}

func (r requiredAffinity) match(node *v1.Node) *framework.Status {
	// A term that can't be parsed matches nothing, as upstream.
	if ok, _ := r.Match(node); !ok {
		return framework.Exclude("node(s) didn't match Pod's node affinity/selector")
	}
	return nil
}

func (NodeAffinity) PrepareScore(_ context.Context, pod *framework.Pod, _ *framework.Cluster, _ []*framework.NodeInfo) framework.Score {
	terms, err := preferredTerms(pod)
	if err != nil || terms == nil {
		return nil
	}
	return preferredAffinity{terms}
}

// Score is that of a node seen alone: all of its matching weight, at most 100.
func (NodeAffinity) Score(_ context.Context, pod *framework.Pod, node *framework.NodeInfo) int64 {
	terms, err := preferredTerms(pod)
	if err != nil || terms == nil {
		return 0
	}
	return min(framework.MaxScore, terms.Score(node.Node))
}

func preferredTerms(pod *framework.Pod) (*nodeaffinity.PreferredSchedulingTerms, error) {
	a := pod.Spec.Affinity
	if a == nil || a.NodeAffinity == nil || len(a.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution) == 0 {
		return nil, nil
	}
	return nodeaffinity.NewPreferredSchedulingTerms(a.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution)
}

type preferredAffinity struct {
	terms *nodeaffinity.PreferredSchedulingTerms
}

func (preferredAffinity) Name() string { return NodeAffinity{}.Name() }

func (p preferredAffinity) Score(_ context.Context, _ *framework.Pod, node *framework.NodeInfo) int64 {
	return p.terms.Score(node.Node)
}

func (preferredAffinity) Normalize(scores []int64) { normalize(scores, false) }
