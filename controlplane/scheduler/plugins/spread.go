package plugins

import (
	"context"
	"fmt"
	"math"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"

	"github.com/coracle-edge/coracle/controlplane/scheduler/framework"
)

// Spread keeps pods evenly over zones, hosts or whatever a pod's topology
// spread constraints name: the hard ones refuse nodes, the soft ones score. A
// pod without any is spread softly from those of the same controller, over
// zones and hosts. (Upstream finds those by services and controllers that
// select the pod; the owner says the same and needs no lists.)
type Spread struct{}

func (Spread) Name() string { return "PodTopologySpread" }

// constraint is one, parsed.
type constraint struct {
	key        string
	maxSkew    int
	minDomains int
	matches    func(pod *v1.Pod) bool
	affinity   bool // nodes that the pod's node affinity refuses don't count
	taints     bool // nor those whose taints it doesn't tolerate
}

func constraints(pod *framework.Pod, action v1.UnsatisfiableConstraintAction) ([]constraint, error) {
	var out []constraint
	for i := range pod.Spec.TopologySpreadConstraints {
		in := &pod.Spec.TopologySpreadConstraints[i]
		if in.WhenUnsatisfiable != action {
			continue
		}
		selector, err := metav1.LabelSelectorAsSelector(in.LabelSelector)
		if err != nil {
			return nil, fmt.Errorf("pod %s: topologySpreadConstraints[%d]: %w", pod.Key(), i, err)
		}
		same := labels.Set{}
		for _, key := range in.MatchLabelKeys {
			if value, ok := pod.Labels[key]; ok {
				same[key] = value
			}
		}
		c := constraint{key: in.TopologyKey, maxSkew: int(in.MaxSkew), minDomains: 1, affinity: true}
		if in.MinDomains != nil {
			c.minDomains = int(*in.MinDomains)
		}
		if in.NodeAffinityPolicy != nil {
			c.affinity = *in.NodeAffinityPolicy == v1.NodeInclusionPolicyHonor
		}
		if in.NodeTaintsPolicy != nil {
			c.taints = *in.NodeTaintsPolicy == v1.NodeInclusionPolicyHonor
		}
		c.matches = func(other *v1.Pod) bool {
			set := labels.Set(other.Labels)
			return selector.Matches(set) && (len(same) == 0 || same.AsSelectorPreValidated().Matches(set))
		}
		out = append(out, c)
	}
	return out, nil
}

// byOwner are the soft constraints of a pod that has none of its own.
func byOwner(pod *framework.Pod) []constraint {
	owner := metav1.GetControllerOfNoCopy(pod.Pod)
	if owner == nil {
		return nil
	}
	siblings := func(other *v1.Pod) bool {
		o := metav1.GetControllerOfNoCopy(other)
		return o != nil && o.UID == owner.UID
	}
	return []constraint{
		{key: v1.LabelTopologyZone, maxSkew: 5, matches: siblings, affinity: true},
		{key: v1.LabelHostname, maxSkew: 3, matches: siblings, affinity: true},
	}
}

func hasKeys(node *v1.Node, cs []constraint) bool {
	for i := range cs {
		if _, ok := node.Labels[cs[i].key]; !ok {
			return false
		}
	}
	return true
}

// counts says whether the pods of a node count for a constraint.
func (c *constraint) counts(pod *framework.Pod, node *v1.Node, required nodeaffinity.RequiredNodeAffinity) bool {
	if c.affinity {
		if ok, _ := required.Match(node); !ok {
			return false
		}
	}
	return !c.taints || tainted(pod, node).OK()
}

func (c *constraint) on(pod *framework.Pod, node *framework.NodeInfo) (n int) {
	for _, other := range node.Pods {
		if other.DeletionTimestamp == nil && other.Namespace == pod.Namespace && c.matches(other.Pod) {
			n++
		}
	}
	return n
}

// spreadState counts matching pods per domain of each hard constraint.
type spreadState struct {
	constraints []constraint
	pods        []map[string]int
	least       []int
}

func (Spread) PrepareFilter(_ context.Context, pod *framework.Pod, cluster *framework.Cluster) (framework.Filter, *framework.Status) {
	cs, err := constraints(pod, v1.DoNotSchedule)
	if err != nil {
		return nil, framework.Exclude(err.Error())
	}
	if len(cs) == 0 {
		return nil, nil
	}
	s := &spreadState{cs, make([]map[string]int, len(cs)), make([]int, len(cs))}
	required := nodeaffinity.GetRequiredNodeAffinity(pod.Pod)
	for i := range cs {
		c, pods := &cs[i], map[string]int{}
		for _, n := range cluster.Nodes {
			if hasKeys(n.Node, cs) && c.counts(pod, n.Node, required) {
				pods[n.Node.Labels[c.key]] += c.on(pod, n)
			}
		}
		s.pods[i], s.least[i] = pods, math.MaxInt
		for _, n := range pods {
			s.least[i] = min(s.least[i], n)
		}
		if len(pods) < c.minDomains {
			s.least[i] = 0
		}
	}
	return s, nil
}

// Filter is that of a cluster of one node.
func (p Spread) Filter(ctx context.Context, pod *framework.Pod, node *framework.NodeInfo) *framework.Status {
	f, status := p.PrepareFilter(ctx, pod, framework.NewCluster([]*framework.NodeInfo{node}, nil))
	if status != nil || f == nil {
		return status
	}
	return f.Filter(ctx, pod, node)
}

func (*spreadState) Name() string { return Spread{}.Name() }

func (s *spreadState) Filter(_ context.Context, pod *framework.Pod, node *framework.NodeInfo) *framework.Status {
	const reason = "node(s) didn't match pod topology spread constraints"
	for i := range s.constraints {
		c := &s.constraints[i]
		value, ok := node.Node.Labels[c.key]
		if !ok {
			return framework.Exclude(reason + " (missing required label)")
		}
		self := 0
		if c.matches(pod.Pod) {
			self = 1
		}
		// No domain counts at all if s.least is MaxInt: then nothing is skewed.
		if s.least[i] != math.MaxInt && s.pods[i][value]+self-s.least[i] > c.maxSkew {
			return framework.Refuse(reason)
		}
	}
	return nil
}

func (Spread) MayHelp(pod *framework.Pod, ev framework.Event) bool {
	switch ev.Kind {
	case framework.PodPlaced, framework.PodLeft:
		return ev.Pod.Namespace == pod.Namespace
	case framework.NodeChanged:
		return ev.OldNode == nil || !labels.Equals(ev.OldNode.Labels, ev.Node.Labels) || !tainted(pod, ev.OldNode).OK()
	case framework.NodeGone, framework.PodChanged:
		return true
	}
	return false
}

// spreadScore is what each domain of each soft constraint costs.
type spreadScore struct {
	constraints []constraint
	cost        []map[string]float64
	partial     bool // nodes without a key are scored by the others
}

func (Spread) PrepareScore(_ context.Context, pod *framework.Pod, cluster *framework.Cluster, fits []*framework.NodeInfo) framework.Score {
	cs, err := constraints(pod, v1.ScheduleAnyway)
	s := spreadScore{constraints: cs}
	if len(pod.Spec.TopologySpreadConstraints) == 0 {
		s.constraints, s.partial = byOwner(pod), true
	}
	if err != nil || len(s.constraints) == 0 {
		return nil
	}
	required := nodeaffinity.GetRequiredNodeAffinity(pod.Pod)
	for i := range s.constraints {
		c, pods := &s.constraints[i], map[string]int{}
		for _, n := range fits {
			if value, ok := n.Node.Labels[c.key]; ok && s.scored(n.Node) {
				pods[value] = 0
			}
		}
		for _, n := range cluster.Nodes {
			value, ok := n.Node.Labels[c.key]
			if _, wanted := pods[value]; ok && wanted && s.scored(n.Node) && c.counts(pod, n.Node, required) {
				pods[value] += c.on(pod, n)
			}
		}
		// The more domains, the fewer pods in each: the weight makes up for it, as upstream.
		weight, cost := math.Log(float64(len(pods)+2)), make(map[string]float64, len(pods))
		for value, n := range pods {
			cost[value] = float64(n)*weight + float64(c.maxSkew-1)
		}
		s.cost = append(s.cost, cost)
	}
	return s
}

func (s *spreadScore) scored(node *v1.Node) bool { return s.partial || hasKeys(node, s.constraints) }

// Score is that of a cluster of one node, where there is nothing to compare.
func (Spread) Score(context.Context, *framework.Pod, *framework.NodeInfo) int64 { return 0 }

func (spreadScore) Name() string { return Spread{}.Name() }

// Score is the cost, or -1 for a node that lacks a key.
func (s spreadScore) Score(_ context.Context, _ *framework.Pod, node *framework.NodeInfo) int64 {
	if !s.scored(node.Node) {
		return -1
	}
	var sum float64
	for i := range s.constraints {
		sum += s.cost[i][node.Node.Labels[s.constraints[i].key]]
	}
	return int64(math.Round(sum))
}

func (spreadScore) Normalize(scores []int64) {
	least, most := int64(math.MaxInt64), int64(0)
	for _, s := range scores {
		if s >= 0 {
			least, most = min(least, s), max(most, s)
		}
	}
	for i, s := range scores {
		switch {
		case s < 0:
			scores[i] = 0
		case most == 0:
			scores[i] = framework.MaxScore
		default:
			scores[i] = framework.MaxScore * (most + least - s) / most
		}
	}
}
