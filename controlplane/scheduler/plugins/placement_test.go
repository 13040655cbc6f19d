package plugins

import (
	"fmt"
	"slices"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/coracle-edge/coracle/controlplane/scheduler/framework"
)

func term(key, label, value string) v1.PodAffinityTerm {
	return v1.PodAffinityTerm{TopologyKey: key, LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{label: value}}}
}

func affinityOf(p *v1.Pod) *v1.Affinity {
	if p.Spec.Affinity == nil {
		p.Spec.Affinity = &v1.Affinity{PodAffinity: &v1.PodAffinity{}, PodAntiAffinity: &v1.PodAntiAffinity{}}
	}
	return p.Spec.Affinity
}

func near(key, label, value string) podOption {
	return func(p *v1.Pod) {
		a := affinityOf(p).PodAffinity
		a.RequiredDuringSchedulingIgnoredDuringExecution = append(a.RequiredDuringSchedulingIgnoredDuringExecution, term(key, label, value))
	}
}

func apart(key, label, value string) podOption {
	return func(p *v1.Pod) {
		a := affinityOf(p).PodAntiAffinity
		a.RequiredDuringSchedulingIgnoredDuringExecution = append(a.RequiredDuringSchedulingIgnoredDuringExecution, term(key, label, value))
	}
}

func rather(weight int32, key, label, value string) podOption {
	return func(p *v1.Pod) {
		w := v1.WeightedPodAffinityTerm{Weight: weight, PodAffinityTerm: term(key, label, value)}
		if weight < 0 {
			w.Weight = -weight
			a := affinityOf(p).PodAntiAffinity
			a.PreferredDuringSchedulingIgnoredDuringExecution = append(a.PreferredDuringSchedulingIgnoredDuringExecution, w)
			return
		}
		a := affinityOf(p).PodAffinity
		a.PreferredDuringSchedulingIgnoredDuringExecution = append(a.PreferredDuringSchedulingIgnoredDuringExecution, w)
	}
}

func in(namespace string) podOption { return func(p *v1.Pod) { p.Namespace = namespace } }

func affinityPlugin(t *testing.T) *PodAffinity {
	ix := cache.NewIndexer(cache.MetaNamespaceKeyFunc, nil)
	for name, team := range map[string]string{"default": "a", "other": "b"} {
		if err := ix.Add(&v1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"team": team}}}); err != nil {
			t.Fatal(err)
		}
	}
	return &PodAffinity{Namespaces: corelisters.NewNamespaceLister(ix)}
}

const zone = v1.LabelTopologyZone

// two zones of two nodes: a1 a2, b1 b2.
func zones(pods map[string][]*v1.Pod) *framework.Cluster {
	var nodes []*framework.NodeInfo
	for _, name := range []string{"a1", "a2", "b1", "b2"} {
		nodes = append(nodes, nodeWith(newNode(name, nodeLabels(zone, name[:1])), pods[name]...))
	}
	return clusterOf(nodes...)
}

func accepted(f framework.Filter, pod *v1.Pod, cluster *framework.Cluster) (names []string) {
	for _, n := range cluster.Nodes {
		if ask(f, pod, cluster, n.Name()) == nil {
			names = append(names, n.Name())
		}
	}
	return names
}

func TestPodAffinity(t *testing.T) {
	plugin := affinityPlugin(t)
	web, db := newPod("web", podLabels("app", "web")), newPod("db", podLabels("app", "db"))
	selectTeam := func(key, team string) podOption {
		return func(p *v1.Pod) {
			a := affinityOf(p).PodAffinity
			tm := term(key, "app", "db")
			tm.NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"team": team}}
			a.RequiredDuringSchedulingIgnoredDuringExecution = append(a.RequiredDuringSchedulingIgnoredDuringExecution, tm)
		}
	}
	for _, c := range []struct {
		name string
		pod  *v1.Pod
		on   map[string][]*v1.Pod
		want []string
		why  string // reason of a node that refuses
	}{
		{"none", newPod("p"), map[string][]*v1.Pod{"a1": {web}}, []string{"a1", "a2", "b1", "b2"}, ""},
		{"same zone", newPod("p", near(zone, "app", "db")), map[string][]*v1.Pod{"a1": {db}}, []string{"a1", "a2"}, "node(s) didn't match pod affinity rules"},
		{"same host", newPod("p", near(v1.LabelHostname, "app", "db")), map[string][]*v1.Pod{"b2": {db}}, []string{"b2"}, "node(s) didn't match pod affinity rules"},
		{"other namespace doesn't count", newPod("p", near(zone, "app", "db")), map[string][]*v1.Pod{"a1": {newPod("db", podLabels("app", "db"), in("other"))}}, nil, "node(s) didn't match pod affinity rules"},
		{"namespace by label", newPod("p", selectTeam(zone, "b")), map[string][]*v1.Pod{"a1": {newPod("db", podLabels("app", "db"), in("other"))}}, []string{"a1", "a2"}, "node(s) didn't match pod affinity rules"},
		{"first of its group", newPod("p", podLabels("app", "db"), near(zone, "app", "db")), nil, []string{"a1", "a2", "b1", "b2"}, ""},
		{"second of its group", newPod("p", podLabels("app", "db"), near(zone, "app", "db")), map[string][]*v1.Pod{"b1": {db}}, []string{"b1", "b2"}, "node(s) didn't match pod affinity rules"},
		{"apart", newPod("p", apart(v1.LabelHostname, "app", "web")), map[string][]*v1.Pod{"a1": {web}}, []string{"a2", "b1", "b2"}, "node(s) didn't match pod anti-affinity rules"},
		{"repelled by what runs", newPod("p", podLabels("app", "web")), map[string][]*v1.Pod{"a1": {newPod("shy", apart(zone, "app", "web"))}}, []string{"b1", "b2"}, "node(s) didn't satisfy existing pods anti-affinity rules"},
		{"no such label", newPod("p", near("rack", "app", "db")), map[string][]*v1.Pod{"a1": {db}}, nil, "node(s) didn't match pod affinity rules"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cluster := zones(c.on)
			if got := accepted(plugin, c.pod, cluster); !slices.Equal(got, c.want) {
				t.Fatalf("accepted by %v, want %v", got, c.want)
			}
			for _, n := range cluster.Nodes {
				if s := ask(plugin, c.pod, cluster, n.Name()); s != nil && reasons(s) != c.why {
					t.Errorf("%s: %q, want %q", n.Name(), reasons(s), c.why)
				}
			}
		})
	}
	broken := newPod("p", near(zone, "app", "db"))
	broken.Spec.Affinity.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution[0].LabelSelector.MatchLabels["app"] = "not a label!"
	if s := ask(plugin, broken, zones(nil), "a1"); s == nil {
		t.Error("a selector that can't be parsed was accepted")
	}
}

func TestPodAffinityScores(t *testing.T) {
	plugin := affinityPlugin(t)
	db := newPod("db", podLabels("app", "db"))
	for _, c := range []struct {
		name string
		pod  *v1.Pod
		on   map[string][]*v1.Pod
		want []int64
	}{
		{"nobody cares", newPod("p"), map[string][]*v1.Pod{"a1": {db}}, nil},
		{"attracted", newPod("p", rather(10, zone, "app", "db")), map[string][]*v1.Pod{"a1": {db}}, []int64{100, 100, 0, 0}},
		{"repelled", newPod("p", rather(-10, v1.LabelHostname, "app", "db")), map[string][]*v1.Pod{"a1": {db}}, []int64{0, 100, 100, 100}},
		{"both", newPod("p", rather(10, zone, "app", "db"), rather(-5, v1.LabelHostname, "app", "db")), map[string][]*v1.Pod{"a1": {db}}, []int64{50, 100, 0, 0}},
		{"what runs likes it", newPod("p", podLabels("app", "web")), map[string][]*v1.Pod{"b1": {newPod("q", rather(3, zone, "app", "web"))}}, []int64{0, 0, 100, 100}},
		{"what runs requires it", newPod("p", podLabels("app", "web")), map[string][]*v1.Pod{"b1": {newPod("q", near(zone, "app", "web"))}}, []int64{0, 0, 100, 100}},
	} {
		if got := rate(plugin, c.pod, zones(c.on).Nodes...); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func spreads(key string, skew int32, action v1.UnsatisfiableConstraintAction, change ...func(*v1.TopologySpreadConstraint)) podOption {
	return func(p *v1.Pod) {
		c := v1.TopologySpreadConstraint{TopologyKey: key, MaxSkew: skew, WhenUnsatisfiable: action,
			LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}}
		for _, f := range change {
			f(&c)
		}
		p.Spec.TopologySpreadConstraints = append(p.Spec.TopologySpreadConstraints, c)
	}
}

// webs is n pods app=web.
func webs(n int, opts ...podOption) (pods []*v1.Pod) {
	for i := range n {
		pods = append(pods, newPod(fmt.Sprintf("web-%p-%d", &pods, i), append([]podOption{podLabels("app", "web")}, opts...)...))
	}
	return pods
}

func TestSpread(t *testing.T) {
	const hard = v1.DoNotSchedule
	web := podLabels("app", "web")
	three := int32(3)
	ignore, honor := v1.NodeInclusionPolicyIgnore, v1.NodeInclusionPolicyHonor
	deleted := func(p *v1.Pod) { now := metav1.Now(); p.DeletionTimestamp = &now }
	for _, c := range []struct {
		name string
		pod  *v1.Pod
		on   map[string][]*v1.Pod
		want []string
	}{
		{"none", newPod("p", web), map[string][]*v1.Pod{"a1": webs(5)}, []string{"a1", "a2", "b1", "b2"}},
		{"zones", newPod("p", web, spreads(zone, 1, hard)), map[string][]*v1.Pod{"a1": webs(1)}, []string{"b1", "b2"}},
		{"zones even", newPod("p", web, spreads(zone, 1, hard)), map[string][]*v1.Pod{"a1": webs(1), "b2": webs(1)}, []string{"a1", "a2", "b1", "b2"}},
		{"larger skew", newPod("p", web, spreads(zone, 2, hard)), map[string][]*v1.Pod{"a1": webs(1)}, []string{"a1", "a2", "b1", "b2"}},
		{"hosts", newPod("p", web, spreads(v1.LabelHostname, 1, hard)), map[string][]*v1.Pod{"a1": webs(1), "b2": webs(1)}, []string{"a2", "b1"}},
		{"zones and hosts", newPod("p", web, spreads(zone, 1, hard), spreads(v1.LabelHostname, 1, hard)),
			map[string][]*v1.Pod{"a1": webs(1), "a2": webs(1), "b1": webs(1)}, []string{"b2"}},
		{"doesn't select itself", newPod("p", spreads(zone, 1, hard)), map[string][]*v1.Pod{"a1": webs(1)}, []string{"a1", "a2", "b1", "b2"}},
		{"those that leave don't count", newPod("p", web, spreads(zone, 1, hard)), map[string][]*v1.Pod{"a1": webs(3, deleted)}, []string{"a1", "a2", "b1", "b2"}},
		{"other namespaces don't count", newPod("p", web, spreads(zone, 1, hard)), map[string][]*v1.Pod{"a1": webs(3, in("other"))}, []string{"a1", "a2", "b1", "b2"}},
		{"fewer domains than asked for", newPod("p", web, spreads(zone, 1, hard, func(c *v1.TopologySpreadConstraint) { c.MinDomains = &three })),
			map[string][]*v1.Pod{"a1": webs(1), "b1": webs(1)}, nil},
		{"nodes it can't use don't count", newPod("p", web, spreads(zone, 1, hard), func(p *v1.Pod) { p.Spec.NodeSelector = map[string]string{zone: "a"} }),
			map[string][]*v1.Pod{"a1": webs(3)}, []string{"a1", "a2", "b1", "b2"}},
		{"nodes it can't use count", newPod("p", web, spreads(zone, 1, hard, func(c *v1.TopologySpreadConstraint) { c.NodeAffinityPolicy = &ignore }), func(p *v1.Pod) { p.Spec.NodeSelector = map[string]string{zone: "a"} }),
			map[string][]*v1.Pod{"a1": webs(3)}, []string{"b1", "b2"}},
		{"label keys", newPod("p", podLabels("app", "web", "version", "2"), spreads(zone, 1, hard, func(c *v1.TopologySpreadConstraint) { c.MatchLabelKeys = []string{"version"} })),
			map[string][]*v1.Pod{"a1": webs(3)}, []string{"a1", "a2", "b1", "b2"}},
	} {
		if got := accepted(Spread{}, c.pod, zones(c.on)); !slices.Equal(got, c.want) {
			t.Errorf("%s: accepted by %v, want %v", c.name, got, c.want)
		}
	}

	// A zone that is away: it counts unless the constraint honours taints.
	away := zones(map[string][]*v1.Pod{"a1": webs(1)})
	for _, n := range away.Nodes[2:] {
		n.Node.Spec.Taints = []v1.Taint{{Key: v1.TaintNodeUnreachable, Effect: v1.TaintEffectNoSchedule}}
	}
	if got := accepted(Spread{}, newPod("p", web, spreads(zone, 1, hard)), away); !slices.Equal(got, []string{"b1", "b2"}) {
		t.Errorf("taints ignored: %v", got)
	}
	honest := newPod("p", web, spreads(zone, 1, hard, func(c *v1.TopologySpreadConstraint) { c.NodeTaintsPolicy = &honor }))
	if got := accepted(Spread{}, honest, away); !slices.Contains(got, "a1") {
		t.Errorf("taints honoured: %v", got)
	}

	bare := clusterOf(nodeWith(newNode("bare")))
	if s := ask(Spread{}, newPod("p", web, spreads(zone, 1, hard)), bare, "bare"); reasons(s) != "node(s) didn't match pod topology spread constraints (missing required label)" {
		t.Errorf("node without the label: %q", reasons(s))
	}
}

func ownedBy(uid string) podOption {
	return func(p *v1.Pod) {
		yes := true
		p.OwnerReferences = []metav1.OwnerReference{{Kind: "ReplicaSet", Name: uid, UID: "rs-" + "x", Controller: &yes}}
	}
}

func TestSpreadScores(t *testing.T) {
	web := podLabels("app", "web")
	for _, c := range []struct {
		name string
		pod  *v1.Pod
		on   map[string][]*v1.Pod
		want []int64
	}{
		{"nothing asked for", newPod("p", web), map[string][]*v1.Pod{"a1": webs(3)}, nil},
		{"soft", newPod("p", web, spreads(zone, 1, v1.ScheduleAnyway)), map[string][]*v1.Pod{"a1": webs(3)}, []int64{0, 0, 100, 100}},
		{"soft, hosts", newPod("p", web, spreads(v1.LabelHostname, 1, v1.ScheduleAnyway)), map[string][]*v1.Pod{"a1": webs(2), "a2": webs(1)}, []int64{0, 50, 100, 100}},
		{"hard ones don't score", newPod("p", web, spreads(zone, 1, v1.DoNotSchedule)), map[string][]*v1.Pod{"a1": webs(3)}, nil},
	} {
		if got := rate(Spread{}, c.pod, zones(c.on).Nodes...); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
	// Replicas of one owner are spread without being asked: the other zone is
	// best, then the other host.
	got := rate(Spread{}, newPod("p", ownedBy("x")), zones(map[string][]*v1.Pod{"a1": webs(2, ownedBy("x"))}).Nodes...)
	if !(got[2] == got[3] && got[2] > got[1] && got[1] > got[0]) {
		t.Errorf("siblings: %v", got)
	}
}
