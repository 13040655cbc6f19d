package plugins

import (
	"context"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	corelisters "k8s.io/client-go/listers/core/v1"

	"github.com/coracle-edge/coracle/controlplane/scheduler/framework"
)

// HardAffinityWeight is what a required affinity of a pod that runs counts when
// it selects the pod to be placed, as upstream.
const HardAffinityWeight = 1

// PodAffinity places pods beside or apart from others: required terms of the pod
// and required anti-affinity of those that run refuse nodes, preferred terms of
// both give scores.
type PodAffinity struct {
	Namespaces corelisters.NamespaceLister
}

func (*PodAffinity) Name() string { return "InterPodAffinity" }

// domain is a value of a topology label, such as one zone.
type domain struct{ key, value string }

func domainOf(node *v1.Node, key string) (domain, bool) {
	value, ok := node.Labels[key]
	return domain{key, value}, ok
}

// affinityState is what one pod makes of the cluster.
type affinityState struct {
	namespaceOf func(name string) labels.Set
	nsLabels    labels.Set // of the pod's own namespace
	// near counts pods that match all affinity terms of the pod, apart those that
	// match each anti-affinity term; repelled those whose anti-affinity selects it.
	near, apart, repelled map[domain]int
}

func (a *PodAffinity) PrepareFilter(_ context.Context, pod *framework.Pod, cluster *framework.Cluster) (framework.Filter, *framework.Status) {
	if pod.AffinityErr != nil {
		return nil, framework.Exclude(pod.AffinityErr.Error())
	}
	s := &affinityState{near: map[domain]int{}, apart: map[domain]int{}, repelled: map[domain]int{}, namespaceOf: a.labelsOf}
	s.nsLabels = a.labelsOf(pod.Namespace)
	for _, n := range cluster.Nodes {
		for _, other := range n.AntiAffinity {
			for i := range other.AntiAffinity {
				s.count(s.repelled, &other.AntiAffinity[i], pod.Pod, s.nsLabels, n.Node)
			}
		}
	}
	if len(pod.Affinity)+len(pod.AntiAffinity) > 0 {
		s.countOthers(pod, cluster)
	} else if len(s.repelled) == 0 {
		return nil, nil
	}
	return s, nil
}

func (s *affinityState) countOthers(pod *framework.Pod, cluster *framework.Cluster) {
	for _, n := range cluster.Nodes {
		for _, other := range n.Pods {
			ns := s.namespaceOf(other.Namespace)
			if len(pod.Affinity) > 0 && matchesAll(pod.Affinity, other.Pod, ns) {
				for i := range pod.Affinity {
					if d, ok := domainOf(n.Node, pod.Affinity[i].TopologyKey); ok {
						s.near[d]++
					}
				}
			}
			for i := range pod.AntiAffinity {
				s.count(s.apart, &pod.AntiAffinity[i], other.Pod, ns, n.Node)
			}
		}
	}
}

func (s *affinityState) count(in map[domain]int, term *framework.Term, pod *v1.Pod, ns labels.Set, node *v1.Node) {
	if d, ok := domainOf(node, term.TopologyKey); ok && term.Matches(pod, ns) {
		in[d]++
	}
}

func matchesAll(terms []framework.Term, pod *v1.Pod, ns labels.Set) bool {
	for i := range terms {
		if !terms[i].Matches(pod, ns) {
			return false
		}
	}
	return true
}

// Filter is that of a cluster of one node.
func (a *PodAffinity) Filter(ctx context.Context, pod *framework.Pod, node *framework.NodeInfo) *framework.Status {
	f, status := a.PrepareFilter(ctx, pod, framework.NewCluster([]*framework.NodeInfo{node}, nil))
	if status != nil || f == nil {
		return status
	}
	return f.Filter(ctx, pod, node)
}

func (*affinityState) Name() string { return (*PodAffinity)(nil).Name() }

func (s *affinityState) Filter(_ context.Context, pod *framework.Pod, node *framework.NodeInfo) *framework.Status {
	if !s.beside(pod, node.Node) {
		return framework.Exclude("node(s) didn't match pod affinity rules")
	}
	for i := range pod.AntiAffinity {
		if d, ok := domainOf(node.Node, pod.AntiAffinity[i].TopologyKey); ok && s.apart[d] > 0 {
			return framework.Refuse("node(s) didn't match pod anti-affinity rules")
		}
	}
	if len(s.repelled) > 0 {
		for key, value := range node.Node.Labels {
			if s.repelled[domain{key, value}] > 0 {
				return framework.Refuse("node(s) didn't satisfy existing pods anti-affinity rules")
			}
		}
	}
	return nil
}

// beside says whether the node has what the pod's affinity asks for.
func (s *affinityState) beside(pod *framework.Pod, node *v1.Node) bool {
	found := true
	for i := range pod.Affinity {
		d, ok := domainOf(node, pod.Affinity[i].TopologyKey)
		if !ok {
			return false
		}
		found = found && s.near[d] > 0
	}
	if found {
		return true
	}
	// The first pod of a group that wants to be together has nobody to join.
	return len(s.near) == 0 && matchesAll(pod.Affinity, pod.Pod, s.nsLabels)
}

func (a *PodAffinity) MayHelp(pod *framework.Pod, ev framework.Event) bool {
	switch ev.Kind {
	case framework.PodPlaced:
		if ev.OldPod != nil {
			return true // labels changed: either way
		}
		return len(pod.Affinity) > 0 && matchesAll(pod.Affinity, ev.Pod, a.labelsOf(ev.Pod.Namespace))
	case framework.PodLeft:
		return ev.OldPod == nil
	case framework.NodeChanged:
		return ev.OldNode == nil || !labels.Equals(ev.OldNode.Labels, ev.Node.Labels)
	case framework.PodChanged, framework.Namespace, framework.NodeGone:
		return true
	}
	return false
}

func (a *PodAffinity) labelsOf(namespace string) labels.Set {
	if a.Namespaces == nil {
		return nil
	}
	ns, err := a.Namespaces.Get(namespace)
	if err != nil {
		return nil // gone: it matches by name only
	}
	return ns.Labels
}

// affinityScore is the sum of weights that each domain earns.
type affinityScore map[domain]int64

func (a *PodAffinity) PrepareScore(_ context.Context, pod *framework.Pod, cluster *framework.Cluster, _ []*framework.NodeInfo) framework.Score {
	s := affinityScore{}
	nsLabels := a.labelsOf(pod.Namespace)
	own := len(pod.PreferredAffinity)+len(pod.PreferredAntiAffinity) > 0
	for _, n := range cluster.Nodes {
		others := n.Affine
		if own {
			others = n.Pods
		}
		for _, other := range others {
			ns := a.labelsOf(other.Namespace)
			s.add(pod.PreferredAffinity, 1, other.Pod, ns, n.Node)
			s.add(pod.PreferredAntiAffinity, -1, other.Pod, ns, n.Node)
			// What runs has preferences about the new one too.
			s.add(other.PreferredAffinity, 1, pod.Pod, nsLabels, n.Node)
			s.add(other.PreferredAntiAffinity, -1, pod.Pod, nsLabels, n.Node)
			for i := range other.Affinity {
				s.add([]framework.WeightedTerm{{Term: other.Affinity[i], Weight: HardAffinityWeight}}, 1, pod.Pod, nsLabels, n.Node)
			}
		}
	}
	if len(s) == 0 {
		return nil
	}
	return s
}

func (s affinityScore) add(terms []framework.WeightedTerm, sign int64, pod *v1.Pod, ns labels.Set, node *v1.Node) {
	for i := range terms {
		t := &terms[i]
		if d, ok := domainOf(node, t.TopologyKey); ok && t.Matches(pod, ns) {
			s[d] += sign * t.Weight
		}
	}
}

// Score is that of a cluster of one node, where there is nothing to compare.
func (*PodAffinity) Score(context.Context, *framework.Pod, *framework.NodeInfo) int64 { return 0 }

func (affinityScore) Name() string { return (*PodAffinity)(nil).Name() }

func (s affinityScore) Score(_ context.Context, _ *framework.Pod, node *framework.NodeInfo) (sum int64) {
	for key, value := range node.Node.Labels {
		sum += s[domain{key, value}]
	}
	return sum
}

// Normalize maps the span between the worst and the best to 0..100: weights may
// be negative.
func (affinityScore) Normalize(scores []int64) {
	least, most := scores[0], scores[0]
	for _, s := range scores {
		least, most = min(least, s), max(most, s)
	}
	for i, s := range scores {
		scores[i] = 0
		if most > least {
			scores[i] = framework.MaxScore * (s - least) / (most - least)
		}
	}
}
