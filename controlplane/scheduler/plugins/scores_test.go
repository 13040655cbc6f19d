package plugins

import (
	"context"
	"slices"
	"testing"

	v1 "k8s.io/api/core/v1"

	"github.com/coracle-edge/coracle/controlplane/scheduler/framework"
)

// rate runs one score over all nodes as the scheduler does; nil if the plugin
// makes no difference.
func rate(s framework.Score, pod *v1.Pod, nodes ...*framework.NodeInfo) []int64 {
	ctx, p := context.Background(), framework.NewPod(pod)
	if prep, ok := s.(framework.ScorePreparer); ok {
		if s = prep.PrepareScore(ctx, p, clusterOf(nodes...), nodes); s == nil {
			return nil
		}
	}
	scores := make([]int64, len(nodes))
	for i, n := range nodes {
		scores[i] = s.Score(ctx, p, n)
	}
	if n, ok := s.(framework.Normalizer); ok {
		n.Normalize(scores)
	}
	return scores
}

func images(pairs ...any) nodeOption {
	return func(n *v1.Node) {
		for i := 0; i < len(pairs); i += 2 {
			n.Status.Images = append(n.Status.Images, v1.ContainerImage{
				Names: []string{"sha256:irrelevant", pairs[i].(string)}, SizeBytes: int64(pairs[i+1].(int)) << 20})
		}
	}
}

func image(name string) podOption {
	return func(p *v1.Pod) { p.Spec.Containers[0].Image = name }
}

func prefers(pairs ...any) podOption {
	return func(p *v1.Pod) {
		a := &v1.NodeAffinity{}
		for i := 0; i < len(pairs); i += 2 {
			a.PreferredDuringSchedulingIgnoredDuringExecution = append(a.PreferredDuringSchedulingIgnoredDuringExecution, v1.PreferredSchedulingTerm{
				Weight:     int32(pairs[i+1].(int)),
				Preference: v1.NodeSelectorTerm{MatchExpressions: []v1.NodeSelectorRequirement{{Key: pairs[i].(string), Operator: v1.NodeSelectorOpExists}}},
			})
		}
		p.Spec.Affinity = &v1.Affinity{NodeAffinity: a}
	}
}

func TestScores(t *testing.T) {
	free, half := nodeWith(newNode("free")), nodeWith(newNode("half"), newPod("q", asks("cpu", "2", "memory", "2Gi")))
	cpuHeavy := nodeWith(newNode("cpu"), newPod("q", asks("cpu", "2")))
	memHeavy := nodeWith(newNode("mem"), newPod("q", asks("memory", "2Gi")))
	soft := taint("slow", "", v1.TaintEffectPreferNoSchedule)
	softer := taint("hot", "", v1.TaintEffectPreferNoSchedule)
	for _, c := range []struct {
		name  string
		score framework.Score
		pod   *v1.Pod
		nodes []*framework.NodeInfo
		want  []int64
	}{
		{"empty node is best", LeastAllocated{}, newPod("p", asks("cpu", "1", "memory", "1Gi")), []*framework.NodeInfo{free, half}, []int64{75, 25}},
		{"defaults are counted", LeastAllocated{}, newPod("p"), []*framework.NodeInfo{free, half}, []int64{96, 46}},
		{"full node", LeastAllocated{}, newPod("p", asks("cpu", "4", "memory", "4Gi")), []*framework.NodeInfo{half}, []int64{0}},

		{"balance", Balanced{}, newPod("p", asks("memory", "2Gi")), []*framework.NodeInfo{free, cpuHeavy, memHeavy}, []int64{62, 87, 62}},
		{"nothing to balance", Balanced{}, newPod("p"), []*framework.NodeInfo{free, cpuHeavy}, nil},

		{"no soft taints", Taints{}, newPod("p"), []*framework.NodeInfo{free, half}, nil},
		{"soft taints", Taints{}, newPod("p"), []*framework.NodeInfo{free, nodeWith(newNode("a", soft)), nodeWith(newNode("b", soft, softer))}, []int64{100, 50, 0}},
		{"soft taints tolerated", Taints{}, newPod("p", tolerates("slow", v1.TaintEffectPreferNoSchedule)),
			[]*framework.NodeInfo{free, nodeWith(newNode("a", soft)), nodeWith(newNode("b", soft, softer))}, []int64{100, 100, 0}},

		{"prefers nothing", NodeAffinity{}, newPod("p"), []*framework.NodeInfo{free}, nil},
		{"prefers", NodeAffinity{}, newPod("p", prefers("ssd", 30, "gpu", 10)),
			[]*framework.NodeInfo{free, nodeWith(newNode("a", nodeLabels("ssd", ""))), nodeWith(newNode("b", nodeLabels("ssd", "", "gpu", "")))}, []int64{0, 75, 100}},

		{"image nowhere", Images{}, newPod("p", image("hello:1")), []*framework.NodeInfo{free, half}, nil},
		// 250 MB on all of two nodes counts for half; on one of two for a quarter's root.
		{"image", Images{}, newPod("p", image("hello:1")),
			[]*framework.NodeInfo{nodeWith(newNode("a", images("hello:1", 250))), nodeWith(newNode("b", images("hello:1", 250)))}, []int64{50, 50}},
		{"image on one", Images{}, newPod("p", image("hello:1")),
			[]*framework.NodeInfo{nodeWith(newNode("a", images("hello:1", 250))), free}, []int64{35, 0}},
		{"larger image counts more", Images{}, newPod("p", image("hello"), func(p *v1.Pod) {
			p.Spec.Containers = append(p.Spec.Containers, v1.Container{Image: "reg:5000/big"})
		}), []*framework.NodeInfo{nodeWith(newNode("a", images("hello:latest", 40))), nodeWith(newNode("b", images("reg:5000/big:latest", 400)))}, []int64{10, 31}},
		{"larger than counts", Images{}, newPod("p", image("huge")),
			[]*framework.NodeInfo{nodeWith(newNode("a", images("huge:latest", 9000)))}, []int64{100}},
	} {
		t.Run(c.score.Name()+"/"+c.name, func(t *testing.T) {
			got := rate(c.score, c.pod, c.nodes...)
			if !slices.Equal(got, c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}
