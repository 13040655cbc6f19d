package plugins

import (
	"context"
	"fmt"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	policylisters "k8s.io/client-go/listers/policy/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/coracle-edge/coracle/controlplane/scheduler/framework"
)

func priority(n int32) podOption { return func(p *v1.Pod) { p.Spec.Priority = &n } }

func since(minutes int) podOption {
	return func(p *v1.Pod) {
		t := metav1.NewTime(time.Unix(1_800_000_000, 0).Add(-time.Duration(minutes) * time.Minute))
		p.Status.StartTime = &t
	}
}

func budget(label, value string, allowed int32) *policyv1.PodDisruptionBudget {
	return &policyv1.PodDisruptionBudget{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: value},
		Spec:       policyv1.PodDisruptionBudgetSpec{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{label: value}}},
		Status:     policyv1.PodDisruptionBudgetStatus{DisruptionsAllowed: allowed},
	}
}

func TestPreemptionChoice(t *testing.T) {
	web := podLabels("app", "web")
	full := func(prio int32, opts ...podOption) *v1.Pod {
		return newPod(fmt.Sprintf("full%d", prio), append(opts, priority(prio), asks("cpu", "4"))...)
	}
	small := func(name string, prio int32, opts ...podOption) *v1.Pod {
		return newPod(name, append(opts, priority(prio), asks("cpu", "1"))...)
	}
	for _, c := range []struct {
		name    string
		ask     string
		on      map[string][]*v1.Pod
		budgets []*policyv1.PodDisruptionBudget
		node    string
		victims int
	}{
		{"nobody less important", "4", map[string][]*v1.Pod{"a": {full(100)}, "b": {full(200)}}, nil, "", 0},
		{"the less important", "4", map[string][]*v1.Pod{"a": {full(50)}, "b": {full(20)}}, nil, "b", 1},
		{"no more than needed", "2", map[string][]*v1.Pod{"a": {small("1", 1), small("2", 2), small("3", 3), small("4", 4)}, "b": {full(99)}}, nil, "a", 2},
		{"few rather than many of a kind", "3", map[string][]*v1.Pod{"a": {small("1", 7), small("2", 7), small("3", 7), small("4", 7)}, "b": {full(7)}}, nil, "b", 1},
		{"protected by a budget", "4", map[string][]*v1.Pod{"a": {full(20, web)}, "b": {full(50)}}, []*policyv1.PodDisruptionBudget{budget("app", "web", 0)}, "b", 1},
		{"budget has one left", "4", map[string][]*v1.Pod{"a": {full(20, web)}, "b": {full(50)}}, []*policyv1.PodDisruptionBudget{budget("app", "web", 1)}, "a", 1},
		{"protected, but there is no other way", "4", map[string][]*v1.Pod{"a": {full(20, web)}, "b": {full(200)}}, []*policyv1.PodDisruptionBudget{budget("app", "web", 0)}, "a", 1},
		{"started last", "4", map[string][]*v1.Pod{"a": {full(20, since(50))}, "b": {full(20, since(5))}}, nil, "b", 1},
		{"too large for any node", "5", map[string][]*v1.Pod{"a": {full(20)}, "b": {full(50)}}, nil, "", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			client := fake.NewSimpleClientset()
			ix := cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc})
			for _, b := range c.budgets {
				if err := ix.Add(b); err != nil {
					t.Fatal(err)
				}
			}
			plugin := &Preemption{Client: client, Budgets: policylisters.NewPodDisruptionBudgetLister(ix)}
			var nodes []*framework.NodeInfo
			for _, name := range []string{"a", "b"} {
				nodes = append(nodes, nodeWith(newNode(name), c.on[name]...))
			}
			cluster := clusterOf(nodes...)
			pod := framework.NewPod(newPod("p", priority(100), asks("cpu", c.ask)))
			filters := func(ctx context.Context, pod *framework.Pod, _ *framework.Cluster, node *framework.NodeInfo) *framework.Status {
				return Fit{}.Filter(ctx, pod, node)
			}
			verdicts := map[string]*framework.Status{}
			for _, n := range nodes {
				verdicts[n.Name()] = filters(t.Context(), pod, cluster, n)
			}
			n := plugin.PostFilter(t.Context(), pod, cluster, verdicts, filters)
			deleted := 0
			for _, a := range client.Actions() {
				if a.GetVerb() == "delete" {
					deleted++
				}
			}
			if n.Node != c.node || deleted != c.victims {
				t.Errorf("nominated %q, %d deleted (%s); want %q, %d", n.Node, deleted, n.Message, c.node, c.victims)
			}
			if len(cluster.Get("a").Pods) != len(c.on["a"]) {
				t.Error("the real cluster was changed")
			}
		})
	}
}
