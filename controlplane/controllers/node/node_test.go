package node

import (
	"context"
	"slices"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clienttesting "k8s.io/client-go/testing"

	"github.com/coracle-edge/coracle/controlplane/controllers/fixture"
)

func taint(key string, effect v1.TaintEffect) v1.Taint { return v1.Taint{Key: key, Effect: effect} }

func TestTaintsFollowConditions(t *testing.T) {
	theirs := taint("example.com/gpu", v1.TaintEffectNoSchedule)
	pressure := func(n *v1.Node) {
		n.Status.Conditions = append(n.Status.Conditions, v1.NodeCondition{Type: v1.NodeMemoryPressure, Status: v1.ConditionTrue}, v1.NodeCondition{Type: v1.NodeDiskPressure, Status: v1.ConditionFalse})
	}
	for _, c := range []struct {
		name   string
		node   *v1.Node
		change func(*v1.Node)
		want   []string
		writes int
	}{
		{name: "ready", node: fixture.Node("n", v1.ConditionTrue, theirs), want: []string{"example.com/gpu:NoSchedule"}},
		{name: "away", node: fixture.Node("n", v1.ConditionUnknown, theirs), writes: 1,
			want: []string{"example.com/gpu:NoSchedule", "node.kubernetes.io/unreachable:NoExecute", "node.kubernetes.io/unreachable:NoSchedule"}},
		{name: "not ready after away", node: fixture.Node("n", v1.ConditionFalse, taint(v1.TaintNodeUnreachable, v1.TaintEffectNoExecute), taint(v1.TaintNodeUnreachable, v1.TaintEffectNoSchedule)), writes: 1,
			want: []string{"node.kubernetes.io/not-ready:NoExecute", "node.kubernetes.io/not-ready:NoSchedule"}},
		{name: "back", node: fixture.Node("n", v1.ConditionTrue, taint(v1.TaintNodeUnreachable, v1.TaintEffectNoExecute), taint(v1.TaintNodeUnreachable, v1.TaintEffectNoSchedule)), writes: 1},
		{name: "pressure", node: fixture.Node("n", v1.ConditionTrue), change: pressure, writes: 1, want: []string{"node.kubernetes.io/memory-pressure:NoSchedule"}},
		{name: "containerd is down", node: fixture.Node("n", v1.ConditionTrue), change: func(n *v1.Node) {
			n.Status.Conditions = append(n.Status.Conditions, v1.NodeCondition{Type: "ContainerdDown", Status: v1.ConditionTrue})
		}, writes: 1, want: []string{"coracle.dev/containerd-down:NoSchedule"}},
		{name: "containerd is back", node: fixture.Node("n", v1.ConditionTrue, taint("coracle.dev/containerd-down", v1.TaintEffectNoSchedule)), change: func(n *v1.Node) {
			n.Status.Conditions = append(n.Status.Conditions, v1.NodeCondition{Type: "ContainerdDown", Status: v1.ConditionFalse})
		}, writes: 1},
		{name: "cordoned", node: fixture.Node("n", v1.ConditionTrue), change: func(n *v1.Node) { n.Spec.Unschedulable = true }, writes: 1, want: []string{"node.kubernetes.io/unschedulable:NoSchedule"}},
		{name: "a hand-made NoExecute taint of a pressure key stays", node: fixture.Node("n", v1.ConditionTrue, taint(v1.TaintNodeDiskPressure, v1.TaintEffectNoExecute)), want: []string{"node.kubernetes.io/disk-pressure:NoExecute"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.change != nil {
				c.change(c.node)
			}
			w := fixture.New(t, c.node)
			ctl, err := New(w.Client, w.Factory, w.Options())
			if err != nil {
				t.Fatal(err)
			}
			w.Sync()
			if err := ctl.reconcile(t.Context(), "n"); err != nil {
				t.Fatal(err)
			}
			if got := len(w.Writes()); got != c.writes {
				t.Errorf("%d writes, want %d", got, c.writes)
			}
			node, err := w.Client.CoreV1().Nodes().Get(t.Context(), "n", metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, taint := range node.Spec.Taints {
				got = append(got, taint.Key+":"+string(taint.Effect))
			}
			slices.Sort(got)
			if !slices.Equal(got, c.want) {
				t.Errorf("taints %v, want %v", got, c.want)
			}
		})
	}
}

func TestPodsOfAwayNodesAreMarked(t *testing.T) {
	for _, c := range []struct {
		name  string
		ready v1.ConditionStatus
		fresh v1.ConditionStatus // what the API says by now
		want  v1.ConditionStatus
	}{
		{"away", v1.ConditionUnknown, v1.ConditionUnknown, v1.ConditionFalse},
		{"not ready", v1.ConditionFalse, v1.ConditionFalse, v1.ConditionFalse},
		{"ready", v1.ConditionTrue, v1.ConditionTrue, v1.ConditionTrue},
		{"away by the cache, back by the API", v1.ConditionUnknown, v1.ConditionTrue, v1.ConditionTrue},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := fixture.New(t, fixture.Node("n", c.ready), fixture.Pod("p", nil, "", fixture.On("n")), fixture.Pod("elsewhere", nil, "", fixture.On("m")))
			ctl, err := New(w.Client, w.Factory, w.Options())
			if err != nil {
				t.Fatal(err)
			}
			w.Sync()
			w.Client.PrependReactor("get", "nodes", func(clienttesting.Action) (bool, runtime.Object, error) {
				return true, fixture.Node("n", c.fresh), nil
			})
			if err := ctl.reconcile(t.Context(), "n"); err != nil {
				t.Fatal(err)
			}
			for name, want := range map[string]v1.ConditionStatus{"p": c.want, "elsewhere": v1.ConditionTrue} {
				pod, err := w.Client.CoreV1().Pods("ns").Get(t.Context(), name, metav1.GetOptions{})
				if err != nil {
					t.Fatal(err)
				}
				for _, cond := range pod.Status.Conditions {
					if cond.Type == v1.PodReady && cond.Status != want {
						t.Errorf("pod %s: Ready %s, want %s", name, cond.Status, want)
					}
					if cond.Type == v1.ContainersReady && cond.Status != v1.ConditionTrue {
						t.Errorf("pod %s: ContainersReady is no longer what was last heard", name)
					}
				}
			}
		})
	}
}

// A node that returns says nothing of a pod that ran on meanwhile, so who marked it takes the mark off.
func TestTheMarkGoesWhenTheNodeIsBack(t *testing.T) {
	gated := func(status v1.ConditionStatus) fixture.PodOption {
		return func(p *v1.Pod) {
			p.Spec.ReadinessGates = []v1.PodReadinessGate{{ConditionType: "gate"}}
			p.Status.Conditions = append(p.Status.Conditions, v1.PodCondition{Type: "gate", Status: status})
		}
	}
	said := func(p *v1.Pod) { p.Status.Conditions[0].Reason = "ReadinessGatesNotReady" }
	for _, c := range []struct {
		name    string
		node    v1.ConditionStatus
		options []fixture.PodOption
		want    v1.ConditionStatus
	}{
		{"back", v1.ConditionTrue, []fixture.PodOption{fixture.Unheard}, v1.ConditionTrue},
		{"still away", v1.ConditionUnknown, []fixture.PodOption{fixture.Unheard}, v1.ConditionFalse},
		{"there, and not ready", v1.ConditionFalse, []fixture.PodOption{fixture.Unheard}, v1.ConditionFalse},
		{"containers that aren't ready", v1.ConditionTrue, []fixture.PodOption{fixture.NeverReady}, v1.ConditionFalse},
		{"gate open", v1.ConditionTrue, []fixture.PodOption{fixture.Unheard, gated(v1.ConditionTrue)}, v1.ConditionTrue},
		{"gate closed", v1.ConditionTrue, []fixture.PodOption{fixture.Unheard, gated(v1.ConditionFalse)}, v1.ConditionFalse},
		{"the node's own word", v1.ConditionTrue, []fixture.PodOption{fixture.Unheard, said}, v1.ConditionFalse},
		{"ended", v1.ConditionTrue, []fixture.PodOption{fixture.Phase(v1.PodFailed)}, v1.ConditionFalse},
		{"being deleted", v1.ConditionTrue, []fixture.PodOption{fixture.Unheard, fixture.Deleting}, v1.ConditionFalse},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := fixture.New(t, fixture.Node("n", c.node), fixture.Pod("p", nil, "", append(c.options, fixture.On("n"))...),
				fixture.Pod("elsewhere", nil, "", fixture.Unheard, fixture.On("m")))
			ctl, err := New(w.Client, w.Factory, w.Options())
			if err != nil {
				t.Fatal(err)
			}
			w.Sync()
			if err := ctl.reconcile(t.Context(), "n"); err != nil {
				t.Fatal(err)
			}
			for name, want := range map[string]v1.ConditionStatus{"p": c.want, "elsewhere": v1.ConditionFalse} {
				pod, err := w.Client.CoreV1().Pods("ns").Get(t.Context(), name, metav1.GetOptions{})
				if err != nil {
					t.Fatal(err)
				}
				if cond := pod.Status.Conditions[0]; cond.Type != v1.PodReady || cond.Status != want {
					t.Errorf("pod %s: %s is %s, want %s", name, cond.Type, cond.Status, want)
				}
			}
		})
	}
}

// The mark may be seen only after the node was seen to be back.
func TestAMarkThatIsSeenLateGoes(t *testing.T) {
	w := fixture.New(t, fixture.Node("n", v1.ConditionTrue, taint(v1.TaintNodeUnreachable, v1.TaintEffectNoExecute)), fixture.Pod("p", nil, "", fixture.On("n")))
	ctl, err := New(w.Client, w.Factory, w.Options())
	if err != nil {
		t.Fatal(err)
	}
	w.Sync()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- ctl.Run(ctx) }()
	w.Eventually("it has looked at the node", func() bool {
		node, err := w.Client.CoreV1().Nodes().Get(t.Context(), "n", metav1.GetOptions{})
		return err == nil && len(node.Spec.Taints) == 0
	})
	pods := w.Client.CoreV1().Pods("ns")
	pod, err := pods.Get(t.Context(), "p", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	fixture.Unheard(pod)
	if _, err := pods.UpdateStatus(t.Context(), pod, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.Eventually("the mark is taken off", func() bool {
		pod, err := pods.Get(t.Context(), "p", metav1.GetOptions{})
		return err == nil && pod.Status.Conditions[0].Status == v1.ConditionTrue
	})
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestNothingIsDeletedAndNothingWrittenTwice(t *testing.T) {
	w := fixture.New(t, fixture.Node("n", v1.ConditionUnknown), fixture.Pod("p", nil, "", fixture.On("n")))
	ctl, err := New(w.Client, w.Factory, w.Options())
	if err != nil {
		t.Fatal(err)
	}
	w.Sync()
	if err := ctl.reconcile(t.Context(), "n"); err != nil {
		t.Fatal(err)
	}
	if got := w.Writes(); !slices.Equal(got, []string{"patch nodes", "update pods/status"}) {
		t.Errorf("writes %v", got)
	}
	w.Eventually("the informers show it", func() bool {
		node, err := ctl.nodes.Get("n")
		pods := ctl.podIndex.List()
		return err == nil && len(node.Spec.Taints) == 2 && len(pods) == 1 && pods[0].(*v1.Pod).Status.Conditions[0].Status == v1.ConditionFalse
	})
	if err := ctl.reconcile(t.Context(), "n"); err != nil {
		t.Fatal(err)
	}
	if got := w.Writes(); len(got) != 0 {
		t.Errorf("a second pass writes %v", got)
	}
}

func TestEventsOfNodes(t *testing.T) {
	old := fixture.Node("old", v1.ConditionTrue)
	w := fixture.New(t, old)
	ctl, err := New(w.Client, w.Factory, w.Options())
	if err != nil {
		t.Fatal(err)
	}
	young := fixture.Node("young", v1.ConditionTrue)
	young.CreationTimestamp = metav1.NewTime(fixture.Start().Add(1))
	ctl.note(old)
	if got := w.EventReasons(); len(got) != 0 {
		t.Errorf("a node older than the controller is news: %v", got)
	}
	ctl.note(young)
	ctl.note(fixture.Node("old", v1.ConditionUnknown))
	ctl.note(fixture.Node("old", v1.ConditionUnknown))
	ctl.note(fixture.Node("old", v1.ConditionTrue))
	ctl.note(fixture.Node("old", v1.ConditionFalse))
	ctl.note(fixture.Node("old", v1.ConditionTrue)) // this the node says itself
	cordoned := fixture.Node("old", v1.ConditionTrue)
	cordoned.Spec.Unschedulable = true
	ctl.note(cordoned)
	ctl.note(cordoned)
	ctl.note(fixture.Node("old", v1.ConditionTrue))
	ctl.noteGone("old")
	if got, want := w.EventReasons(), []string{"RegisteredNode", "NodeNotReady", "NodeReady", "NodeNotReady", "NodeNotSchedulable", "NodeSchedulable", "RemovingNode"}; !slices.Equal(got, want) {
		t.Errorf("events %v, want %v", got, want)
	}
}

func TestBetaLabelsFollow(t *testing.T) {
	node := fixture.Node("n", v1.ConditionTrue)
	node.Labels = map[string]string{v1.LabelOSStable: "linux", v1.LabelArchStable: "arm64", "beta.kubernetes.io/arch": "amd64"}
	w := fixture.New(t, node)
	ctl, err := New(w.Client, w.Factory, w.Options())
	if err != nil {
		t.Fatal(err)
	}
	w.Sync()
	if err := ctl.reconcile(t.Context(), "n"); err != nil {
		t.Fatal(err)
	}
	got, err := w.Client.CoreV1().Nodes().Get(t.Context(), "n", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got.Labels["beta.kubernetes.io/os"] != "linux" || got.Labels["beta.kubernetes.io/arch"] != "arm64" {
		t.Errorf("labels %v", got.Labels)
	}
}
