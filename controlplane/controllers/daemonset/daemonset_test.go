package daemonset

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	apps "k8s.io/api/apps/v1"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/kubernetes/pkg/controller/daemon/util"
	"k8s.io/utils/ptr"

	"github.com/coracle-edge/coracle/controlplane/controllers/fixture"
)

var agentLabels = map[string]string{"app": "agent"}

func newSet(image string) *apps.DaemonSet {
	return &apps.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "agent", UID: "daemonset", Generation: 1},
		Spec: apps.DaemonSetSpec{
			Selector: &metav1.LabelSelector{MatchLabels: agentLabels}, RevisionHistoryLimit: ptr.To(int32(10)),
			Template: v1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: agentLabels}, Spec: v1.PodSpec{Containers: []v1.Container{{Name: "c", Image: image}}}},
			UpdateStrategy: apps.DaemonSetUpdateStrategy{Type: apps.RollingUpdateDaemonSetStrategyType, RollingUpdate: &apps.RollingUpdateDaemonSet{
				MaxUnavailable: ptr.To(intstr.FromInt32(1)), MaxSurge: ptr.To(intstr.FromInt32(0)),
			}},
		},
	}
}

// revision is the stored revision of a set, under the hash "h-IMAGE".
func revision(set *apps.DaemonSet, number int64) *apps.ControllerRevision {
	patch, err := templatePatch(set)
	if err != nil {
		panic(err)
	}
	image := set.Spec.Template.Spec.Containers[0].Image
	return &apps.ControllerRevision{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "ns", Name: "agent-" + image, Labels: map[string]string{"app": "agent", apps.DefaultDaemonSetUniqueLabelKey: "h-" + image},
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(set, kind)},
		},
		Data: runtime.RawExtension{Raw: patch}, Revision: number,
	}
}

// podOf is the set's pod of a revision on a node; it is named NODE-IMAGE.
func podOf(image, node string, options ...fixture.PodOption) *v1.Pod {
	labels := map[string]string{"app": "agent", apps.DefaultDaemonSetUniqueLabelKey: "h-" + image}
	return fixture.Pod(node+"-"+image, newSet(image), "DaemonSet", append([]fixture.PodOption{fixture.On(node), fixture.Labelled(labels)}, options...)...)
}

var (
	unreachable   = []v1.Taint{{Key: v1.TaintNodeUnreachable, Effect: v1.TaintEffectNoSchedule}, {Key: v1.TaintNodeUnreachable, Effect: v1.TaintEffectNoExecute}}
	unschedulable = v1.Taint{Key: v1.TaintNodeUnschedulable, Effect: v1.TaintEffectNoSchedule}
)

func here(name string) *v1.Node { return fixture.Node(name, v1.ConditionTrue) }
func gone(name string) *v1.Node { return fixture.Node(name, v1.ConditionUnknown, unreachable...) }

func surging(set *apps.DaemonSet) {
	set.Spec.UpdateStrategy.RollingUpdate.MaxSurge = ptr.To(intstr.FromInt32(1))
	set.Spec.UpdateStrategy.RollingUpdate.MaxUnavailable = ptr.To(intstr.FromInt32(0))
}

func TestReconcile(t *testing.T) {
	for _, c := range []struct {
		name    string
		change  func(*apps.DaemonSet) // of image "new"
		nodes   []*v1.Node
		pods    []*v1.Pod
		created []string // nodes
		deleted []string // pods
		status  string   // desired current misscheduled ready updated available
		away    string   // message of condition NodesAway
	}{{
		name: "one on each node", nodes: []*v1.Node{here("a"), here("b")}, pods: []*v1.Pod{podOf("new", "a")},
		created: []string{"b"}, status: "2 1 0 1 1 1",
	}, {
		name: "not where a taint forbids, but on cordoned nodes", nodes: []*v1.Node{
			fixture.Node("a", v1.ConditionTrue, v1.Taint{Key: "gpu", Effect: v1.TaintEffectNoSchedule}), fixture.Node("b", v1.ConditionTrue, unschedulable)},
		created: []string{"b"}, status: "1 0 0 0 0 0",
	}, {
		name: "not where labels don't fit", change: func(s *apps.DaemonSet) { s.Spec.Template.Spec.NodeSelector = map[string]string{"gpu": "yes"} },
		nodes: []*v1.Node{here("a")}, pods: []*v1.Pod{podOf("new", "a")}, deleted: []string{"a-new"}, status: "0 0 1 0 0 0",
	}, {
		name: "a pod that runs despite a new NoSchedule taint stays", nodes: []*v1.Node{fixture.Node("a", v1.ConditionTrue, v1.Taint{Key: "gpu", Effect: v1.TaintEffectNoSchedule})},
		pods: []*v1.Pod{podOf("new", "a")}, status: "0 0 1 0 0 0",
	}, {
		name: "failed and succeeded pods go", nodes: []*v1.Node{here("a"), here("b")},
		pods:    []*v1.Pod{podOf("new", "a", fixture.Phase(v1.PodFailed)), podOf("new", "b", fixture.Phase(v1.PodSucceeded))},
		deleted: []string{"a-new", "b-new"}, status: "2 2 0 0 2 0",
	}, {
		name: "of two pods on a node the younger goes", nodes: []*v1.Node{here("a")},
		pods:    []*v1.Pod{podOf("new", "a"), podOf("new", "a", func(p *v1.Pod) { p.Name = "younger"; p.CreationTimestamp = metav1.NewTime(fixture.Start()) })},
		deleted: []string{"younger"}, status: "1 1 0 1 1 1",
	}, {
		name: "update: one at a time", nodes: []*v1.Node{here("a"), here("b"), here("c")},
		pods:    []*v1.Pod{podOf("old", "a"), podOf("old", "b"), podOf("old", "c")},
		deleted: []string{"a-old"}, status: "3 3 0 3 0 3",
	}, {
		name: "update: not while a new one isn't available", nodes: []*v1.Node{here("a"), here("b")},
		pods: []*v1.Pod{podOf("new", "a", fixture.NeverReady), podOf("old", "b")}, status: "2 2 0 1 1 1",
	}, {
		name: "update: those that aren't available go at once", nodes: []*v1.Node{here("a"), here("b"), here("c")},
		pods:    []*v1.Pod{podOf("old", "a", fixture.NeverReady), podOf("old", "b", fixture.NeverReady), podOf("old", "c")},
		deleted: []string{"a-old", "b-old"}, status: "3 3 0 1 0 1",
	}, {
		name: "update on delete: not by us", change: func(s *apps.DaemonSet) { s.Spec.UpdateStrategy.Type = apps.OnDeleteDaemonSetStrategyType },
		nodes: []*v1.Node{here("a")}, pods: []*v1.Pod{podOf("old", "a")}, status: "1 1 0 1 0 1",
	}, {
		name: "surge: the new one first", change: surging, nodes: []*v1.Node{here("a"), here("b")},
		pods: []*v1.Pod{podOf("old", "a"), podOf("old", "b")}, created: []string{"a"}, status: "2 2 0 2 0 2",
	}, {
		name: "surge: then the old one goes, and the next is surged", change: surging, nodes: []*v1.Node{here("a"), here("b")},
		pods: []*v1.Pod{podOf("old", "a"), podOf("new", "a"), podOf("old", "b")}, deleted: []string{"a-old"}, status: "2 2 0 2 1 2",
	}, {
		name: "surge: waits for the new one", change: surging, nodes: []*v1.Node{here("a"), here("b")},
		pods: []*v1.Pod{podOf("old", "a"), podOf("new", "a", fixture.NeverReady), podOf("old", "b")}, status: "2 2 0 1 1 1",
	}, {
		name: "a pod still to be bound to a node that is gone", nodes: []*v1.Node{here("a")},
		pods: []*v1.Pod{podOf("new", "a"), podOf("new", "lost", func(p *v1.Pod) {
			p.Spec.NodeName = ""
			p.Spec.Affinity = util.ReplaceDaemonSetPodNodeNameNodeAffinity(nil, "lost")
		})},
		deleted: []string{"lost-new"}, status: "1 1 0 1 1 1",
	}, {
		name: "away: no pod is made there", nodes: []*v1.Node{here("a"), gone("b")}, pods: []*v1.Pod{podOf("new", "a")},
		status: "1 1 0 1 1 1", away: "1 node(s) are away and not attempted; 0 of them have a pod.",
	}, {
		name: "away: pods there are neither missing nor misscheduled", nodes: []*v1.Node{here("a"), gone("b")},
		pods:   []*v1.Pod{podOf("new", "a"), podOf("new", "b", fixture.Unheard)},
		status: "1 1 0 1 1 1", away: "1 node(s) are away and not attempted; 1 of them have a pod.",
	}, {
		name: "away: old pods there aren't replaced and hold nobody up", nodes: []*v1.Node{gone("a"), gone("b"), here("c"), here("d")},
		pods:    []*v1.Pod{podOf("old", "a", fixture.Unheard), podOf("old", "b", fixture.Unheard), podOf("old", "c"), podOf("old", "d")},
		deleted: []string{"c-old"}, status: "2 2 0 2 0 2", away: "2 node(s) are away and not attempted; 2 of them have a pod.",
	}, {
		name: "away: a new pod that never became ready there holds nobody up", nodes: []*v1.Node{gone("a"), here("b")},
		pods:    []*v1.Pod{podOf("new", "a", fixture.NeverReady), podOf("old", "b")},
		deleted: []string{"b-old"}, status: "1 1 0 1 0 1", away: "1 node(s) are away and not attempted; 1 of them have a pod.",
	}, {
		name: "away: nor with surge", change: surging, nodes: []*v1.Node{gone("a"), here("b")},
		pods:    []*v1.Pod{podOf("old", "a", fixture.Unheard), podOf("old", "b")},
		created: []string{"b"}, status: "1 1 0 1 0 1", away: "1 node(s) are away and not attempted; 1 of them have a pod.",
	}, {
		name: "away: also for a set that tolerates everything", change: func(s *apps.DaemonSet) {
			s.Spec.Template.Spec.Tolerations = []v1.Toleration{{Operator: v1.TolerationOpExists}}
		}, nodes: []*v1.Node{gone("a"), gone("b"), here("c")},
		pods:   []*v1.Pod{podOf("old", "a", fixture.Unheard)},
		status: "1 0 0 0 0 0", created: []string{"c"}, away: "2 node(s) are away and not attempted; 1 of them have a pod.",
	}, {
		name: "away: a failed pod there is left for its return", nodes: []*v1.Node{gone("a")}, pods: []*v1.Pod{podOf("new", "a", fixture.Phase(v1.PodFailed))},
		status: "0 0 0 0 0 0", away: "1 node(s) are away and not attempted; 1 of them have a pod.",
	}, {
		name: "away: a pod that doesn't belong there any more goes", change: func(s *apps.DaemonSet) { s.Spec.Template.Spec.NodeSelector = map[string]string{"gpu": "yes"} },
		nodes: []*v1.Node{gone("a")}, pods: []*v1.Pod{podOf("new", "a", fixture.Unheard)}, deleted: []string{"a-new"},
		status: "0 0 0 0 0 0", away: "1 node(s) are away and not attempted; 1 of them have a pod.",
	}, {
		name: "back but for the taint: still not attempted", nodes: []*v1.Node{fixture.Node("a", v1.ConditionTrue, unreachable...)}, pods: []*v1.Pod{podOf("old", "a")},
		status: "0 0 0 0 0 0", away: "1 node(s) are away and not attempted; 1 of them have a pod.",
	}} {
		t.Run(c.name, func(t *testing.T) {
			set := newSet("new")
			if c.change != nil {
				c.change(set)
			}
			cur := revision(set, 2)
			objects := []runtime.Object{set, revision(newSet("old"), 1), cur}
			for _, n := range c.nodes {
				objects = append(objects, n)
			}
			for _, p := range c.pods {
				objects = append(objects, p)
			}
			w := fixture.New(t, objects...)
			ctl, err := New(w.Client, w.Factory, w.Options())
			if err != nil {
				t.Fatal(err)
			}
			w.Sync()
			if err := ctl.reconcile(t.Context(), "ns/agent"); err != nil {
				t.Fatal(err)
			}
			var created []string
			for _, obj := range w.Created("pods") {
				pod := obj.(*v1.Pod)
				node, err := util.GetTargetNodeName(pod)
				if err != nil {
					t.Error(err)
				}
				if pod.Labels[apps.DefaultDaemonSetUniqueLabelKey] != "h-new" {
					t.Errorf("labels %v", pod.Labels)
				}
				created = append(created, node)
			}
			if !slices.Equal(created, c.created) {
				t.Errorf("created on %v, want %v", created, c.created)
			}
			if got := w.Deleted("pods"); !slices.Equal(got, c.deleted) {
				t.Errorf("deleted %v, want %v", got, c.deleted)
			}
			stored, err := w.Client.AppsV1().DaemonSets("ns").Get(t.Context(), "agent", metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			s := stored.Status
			if got := fmt.Sprint(s.DesiredNumberScheduled, s.CurrentNumberScheduled, s.NumberMisscheduled, s.NumberReady, s.UpdatedNumberScheduled, s.NumberAvailable); got != c.status {
				t.Errorf("status %s, want %s", got, c.status)
			}
			if s.NumberUnavailable != s.DesiredNumberScheduled-s.NumberAvailable || s.ObservedGeneration != 1 {
				t.Errorf("status %+v", s)
			}
			message := ""
			for _, cond := range s.Conditions {
				message += cond.Message
			}
			if message != c.away {
				t.Errorf("condition %q, want %q", message, c.away)
			}
		})
	}
}

func TestTolerationsOfPods(t *testing.T) {
	w := fixture.New(t, newSet("new"), here("a"))
	ctl, err := New(w.Client, w.Factory, w.Options())
	if err != nil {
		t.Fatal(err)
	}
	w.Sync()
	if err := ctl.reconcile(t.Context(), "ns/agent"); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, tol := range w.Created("pods")[0].(*v1.Pod).Spec.Tolerations {
		got = append(got, strings.TrimPrefix(tol.Key, "node.kubernetes.io/")+":"+string(tol.Effect))
	}
	want := []string{"not-ready:NoExecute", "unreachable:NoExecute", "disk-pressure:NoSchedule", "memory-pressure:NoSchedule", "pid-pressure:NoSchedule", "unschedulable:NoSchedule"}
	if !slices.Equal(got, want) {
		t.Errorf("tolerations %v, want %v", got, want)
	}
	revs := w.Created("controllerrevisions")
	if len(revs) != 1 || revs[0].(*apps.ControllerRevision).Revision != 1 {
		t.Errorf("revisions %v", revs)
	}
}

// A pod that its node refuses again and again is deleted at a falling rate.
func TestFailedPodsBackOff(t *testing.T) {
	set := newSet("new")
	w := fixture.New(t, set, revision(set, 1), here("a"), podOf("new", "a", fixture.Phase(v1.PodFailed)))
	ctl, err := New(w.Client, w.Factory, w.Options())
	if err != nil {
		t.Fatal(err)
	}
	s := &site{name: "a"}
	if !ctl.mayRemoveFailed("ns/agent", set, s) {
		t.Fatal("the first is not deleted")
	}
	if ctl.mayRemoveFailed("ns/agent", set, s) {
		t.Fatal("the second is deleted at once")
	}
	w.Clock.Step(1100 * time.Millisecond)
	if !ctl.mayRemoveFailed("ns/agent", set, s) {
		t.Fatal("the second is not deleted after its back-off")
	}
	w.Clock.Step(1100 * time.Millisecond)
	if ctl.mayRemoveFailed("ns/agent", set, s) {
		t.Fatal("the third doesn't wait longer than the second")
	}
}

func TestHistory(t *testing.T) {
	set := newSet("new")
	set.Spec.RevisionHistoryLimit = ptr.To(int32(1))
	set.Spec.UpdateStrategy.Type = apps.OnDeleteDaemonSetStrategyType
	one, two, three := revision(newSet("one"), 1), revision(newSet("two"), 2), revision(newSet("three"), 3)
	rolledBackTo := revision(set, 1) // the template of revision 1 is taken up again
	w := fixture.New(t, set, one, two, three, rolledBackTo, here("a"), podOf("one", "a"))
	ctl, err := New(w.Client, w.Factory, w.Options())
	if err != nil {
		t.Fatal(err)
	}
	w.Sync()
	if err := ctl.reconcile(t.Context(), "ns/agent"); err != nil {
		t.Fatal(err)
	}
	// Of three old ones two go, but not the one that a pod has.
	if got := w.Deleted("controllerrevisions"); !slices.Equal(got, []string{"agent-three", "agent-two"}) {
		t.Errorf("deleted %v", got)
	}
	cur, err := w.Client.AppsV1().ControllerRevisions("ns").Get(t.Context(), "agent-new", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if cur.Revision != 4 {
		t.Errorf("current revision is %d, want 4", cur.Revision)
	}
}

func TestConditionsOfOthersStay(t *testing.T) {
	set := newSet("new")
	other := apps.DaemonSetCondition{Type: "Theirs", Status: v1.ConditionTrue}
	set.Status.Conditions = []apps.DaemonSetCondition{{Type: NodesAway, Status: v1.ConditionTrue}, other}
	w := fixture.New(t, set, revision(set, 1), here("a"), podOf("new", "a"))
	ctl, err := New(w.Client, w.Factory, w.Options())
	if err != nil {
		t.Fatal(err)
	}
	w.Sync()
	if err := ctl.reconcile(t.Context(), "ns/agent"); err != nil {
		t.Fatal(err)
	}
	stored, err := w.Client.AppsV1().DaemonSets("ns").Get(t.Context(), "agent", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(stored.Status.Conditions) != 1 || stored.Status.Conditions[0].Type != "Theirs" {
		t.Errorf("conditions %+v", stored.Status.Conditions)
	}
	w.Eventually("the informer shows it", func() bool {
		s, err := ctl.sets.DaemonSets("ns").Get("agent")
		return err == nil && s.Status.NumberReady == 1
	})
	w.Writes()
	if err := ctl.reconcile(t.Context(), "ns/agent"); err != nil {
		t.Fatal(err)
	}
	if got := w.Writes(); len(got) != 0 {
		t.Errorf("an idle pass writes %v", got)
	}
}
