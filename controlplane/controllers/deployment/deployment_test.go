package deployment

import (
	"fmt"
	"slices"
	"testing"
	"time"

	apps "k8s.io/api/apps/v1"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/kubernetes/pkg/controller/deployment/util"
	"k8s.io/utils/ptr"

	"github.com/coracle-edge/coracle/controlplane/controllers/fixture"
)

var webLabels = map[string]string{"app": "web"}

func podTemplate(image string) v1.PodTemplateSpec {
	return v1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: webLabels}, Spec: v1.PodSpec{Containers: []v1.Container{{Name: "c", Image: image}}}}
}

// newDeployment is one of image "new".
func newDeployment(replicas, maxUnavailable, maxSurge int32) *apps.Deployment {
	return &apps.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web", UID: "deployment", Generation: 1, Annotations: map[string]string{util.RevisionAnnotation: "2"}},
		Spec: apps.DeploymentSpec{
			Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: webLabels}, Template: podTemplate("new"),
			ProgressDeadlineSeconds: ptr.To(int32(600)), RevisionHistoryLimit: ptr.To(int32(10)),
			Strategy: apps.DeploymentStrategy{Type: apps.RollingUpdateDeploymentStrategyType, RollingUpdate: &apps.RollingUpdateDeployment{
				MaxUnavailable: ptr.To(intstr.FromInt32(maxUnavailable)), MaxSurge: ptr.To(intstr.FromInt32(maxSurge)),
			}},
		},
		Status: apps.DeploymentStatus{ObservedGeneration: 1},
	}
}

// newSet is a ReplicaSet of an image: "old" is revision 1, "new" revision 2.
func newSet(d *apps.Deployment, image string, replicas, available int32) *apps.ReplicaSet {
	revision, created := "1", fixture.Start().Add(-2*time.Hour)
	if image == "new" {
		revision, created = "2", fixture.Start().Add(-time.Hour)
	}
	template := podTemplate(image)
	template.Labels = map[string]string{"app": "web", apps.DefaultDeploymentUniqueLabelKey: image}
	return &apps.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "ns", Name: "web-" + image, UID: types.UID("set-" + image), Labels: template.Labels, CreationTimestamp: metav1.NewTime(created), Generation: 1,
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(d, kind)},
			Annotations: map[string]string{
				util.RevisionAnnotation: revision, util.DesiredReplicasAnnotation: fmt.Sprint(*d.Spec.Replicas),
				util.MaxReplicasAnnotation: fmt.Sprint(*d.Spec.Replicas + util.MaxSurge(*d)),
			},
		},
		Spec:   apps.ReplicaSetSpec{Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: template.Labels}, Template: template},
		Status: apps.ReplicaSetStatus{Replicas: replicas, ReadyReplicas: available, AvailableReplicas: available, ObservedGeneration: 1},
	}
}

// crew says what the pods of one set are like: ready ones on a node that is there, others.
type crew struct {
	ready        int32 // ready, on a node that is there
	broken       int32 // never ready, on a node that is there
	standing     int32 // ready when last heard of, on a node that is away
	notAttempted int32 // never ready, on a node that is away
}

func (c crew) size() int32 { return c.ready + c.broken + c.standing + c.notAttempted }

func (c crew) pods(set *apps.ReplicaSet) []runtime.Object {
	var pods []runtime.Object
	add := func(n int32, node string, options ...fixture.PodOption) {
		for range n {
			name := fmt.Sprintf("%s-%d", set.Name, len(pods))
			pods = append(pods, fixture.Pod(name, set, "ReplicaSet", append([]fixture.PodOption{fixture.On(node), fixture.Labelled(set.Labels)}, options...)...))
		}
	}
	add(c.ready, "here")
	add(c.broken, "here", fixture.NeverReady)
	add(c.standing, "gone", fixture.Unheard)
	add(c.notAttempted, "gone", fixture.NeverReady)
	return pods
}

type bench struct {
	*fixture.World
	*Controller
}

func newBench(t *testing.T, d *apps.Deployment, objects ...runtime.Object) *bench {
	t.Helper()
	objects = append(objects, d, fixture.Node("here", v1.ConditionTrue), fixture.Node("gone", v1.ConditionUnknown))
	w := fixture.New(t, objects...)
	c, err := New(w.Client, w.Factory, w.Options())
	if err != nil {
		t.Fatal(err)
	}
	w.Sync()
	return &bench{w, c}
}

func (b *bench) size(t *testing.T, set string) int32 {
	t.Helper()
	s, err := b.Client.AppsV1().ReplicaSets("ns").Get(t.Context(), set, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return *s.Spec.Replicas
}

func (b *bench) progressing(t *testing.T) *apps.DeploymentCondition {
	t.Helper()
	d, err := b.Client.AppsV1().Deployments("ns").Get(t.Context(), "web", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return util.GetDeploymentCondition(d.Status, apps.DeploymentProgressing)
}

// One step of a rolling update, from what the pods are to the sizes of both sets.
func TestRollingUpdateStep(t *testing.T) {
	for _, c := range []struct {
		name                     string
		replicas, unavail, surge int32
		old, new                 crew
		wantOld, wantNew         int32
	}{
		{"starts with the surge", 10, 2, 3, crew{ready: 10}, crew{}, 10, 3},
		{"upstream's first example: nothing available is given up for a broken revision", 10, 2, 3, crew{ready: 7, broken: 1}, crew{broken: 5}, 8, 5},
		{"upstream's second example: unhealthy old pods go first", 10, 2, 3, crew{ready: 6, broken: 4}, crew{ready: 3}, 5, 3},
		{"new pods available: old ones go", 3, 0, 1, crew{ready: 3}, crew{ready: 1}, 2, 1},
		{"ends", 3, 0, 1, crew{ready: 1}, crew{ready: 3}, 0, 3},

		{"away: standing old pods aren't unhealthy and use up no part of maxUnavailable", 10, 2, 3, crew{ready: 1, standing: 9}, crew{broken: 3}, 8, 3},
		{"away: with nearly all away the rollout goes on", 10, 2, 3, crew{ready: 1, standing: 9}, crew{ready: 3}, 5, 3},
		{"away: old pods that were never ready there are unhealthy", 4, 0, 1, crew{ready: 3, notAttempted: 1}, crew{ready: 1}, 3, 1},
		{"away: a new pod that was ready counts as available", 3, 0, 1, crew{ready: 1}, crew{ready: 2, standing: 1}, 0, 3},
		{"away: a new pod that was never ready takes no surge slot", 4, 0, 1, crew{ready: 4}, crew{notAttempted: 1}, 4, 2},
		{"away: the others are rolled out around it", 4, 0, 1, crew{ready: 3}, crew{ready: 2, notAttempted: 1}, 2, 3},
		{"away: the old pod that it is to replace stays", 4, 0, 1, crew{ready: 1}, crew{ready: 3, notAttempted: 1}, 1, 4},
		{"away: the last pod isn't given up for one that never ran", 1, 0, 1, crew{ready: 1}, crew{notAttempted: 1}, 1, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newDeployment(c.replicas, c.unavail, c.surge)
			old, cur := newSet(d, "old", c.old.size(), c.old.ready), newSet(d, "new", c.new.size(), c.new.ready)
			b := newBench(t, d, append(append(c.old.pods(old), c.new.pods(cur)...), old, cur)...)
			if err := b.reconcile(t.Context(), "ns/web"); err != nil {
				t.Fatal(err)
			}
			if gotOld, gotNew := b.size(t, "web-old"), b.size(t, "web-new"); gotOld != c.wantOld || gotNew != c.wantNew {
				t.Errorf("old %d, new %d; want %d and %d", gotOld, gotNew, c.wantOld, c.wantNew)
			}
		})
	}
}

// The status of a set and the pods come from two caches. A pod that the status still counts as available and that the pod
// cache shows as standing counts once.
func TestReckoningCountsNobodyTwice(t *testing.T) {
	d := newDeployment(3, 0, 1)
	set := newSet(d, "old", 3, 3) // the status is older than the pods
	b := newBench(t, d, append(crew{ready: 2, standing: 1}.pods(set), set)...)
	sets := []*apps.ReplicaSet{set}
	pods, err := b.podsOf(sets)
	if err != nil {
		t.Fatal(err)
	}
	if got := b.reckon(sets, pods).available(set); got != 3 {
		t.Errorf("%d pods available, want 3", got)
	}
}

func TestProgress(t *testing.T) {
	for _, c := range []struct {
		name    string
		since   time.Duration // since the last progress
		reason  string        // of the condition before
		old     crew
		new     crew
		want    string
		updated bool // the condition's update time is now
	}{
		{"in time", 5 * time.Minute, util.ReplicaSetUpdatedReason, crew{ready: 3}, crew{broken: 1}, util.ReplicaSetUpdatedReason, false},
		{"deadline passed", 11 * time.Minute, util.ReplicaSetUpdatedReason, crew{ready: 3}, crew{broken: 1}, util.TimedOutReason, true},
		{"complete", 11 * time.Minute, util.ReplicaSetUpdatedReason, crew{}, crew{ready: 3}, util.NewRSAvailableReason, true},
		{"away: complete once each was seen ready", 11 * time.Minute, util.ReplicaSetUpdatedReason, crew{}, crew{ready: 2, standing: 1}, util.NewRSAvailableReason, true},
		{"away: no deadline while only away nodes are missing", 11 * time.Minute, util.ReplicaSetUpdatedReason, crew{ready: 1}, crew{ready: 2, notAttempted: 1}, NodesAwayReason, true},
		{"away: nor later", 100 * time.Hour, NodesAwayReason, crew{ready: 1}, crew{ready: 2, notAttempted: 1}, NodesAwayReason, true},
		{"away: but for a pod that fails where it can be seen", 11 * time.Minute, util.ReplicaSetUpdatedReason, crew{ready: 2}, crew{ready: 1, broken: 1, notAttempted: 1}, util.TimedOutReason, true},
		{"back: the deadline starts afresh", 100 * time.Hour, NodesAwayReason, crew{ready: 1}, crew{ready: 2, broken: 1}, util.ReplicaSetUpdatedReason, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newDeployment(3, 0, 1)
			then := metav1.NewTime(fixture.Start().Add(-c.since))
			old, cur := newSet(d, "old", c.old.size(), c.old.ready), newSet(d, "new", c.new.size(), c.new.ready)
			d.Status = calculateStatus(d, cur, []*apps.ReplicaSet{old, cur}, then)
			d.Status.Conditions = append(d.Status.Conditions, condition(apps.DeploymentProgressing, v1.ConditionTrue, c.reason, "", then))
			b := newBench(t, d, append(append(c.old.pods(old), c.new.pods(cur)...), old, cur)...)
			if err := b.reconcile(t.Context(), "ns/web"); err != nil {
				t.Fatal(err)
			}
			got := b.progressing(t)
			if got == nil || got.Reason != c.want {
				t.Fatalf("condition %+v, want reason %s", got, c.want)
			}
			if now := got.LastUpdateTime.Time.Equal(fixture.Start()); now != c.updated {
				t.Errorf("update time %s, now is %s", got.LastUpdateTime, fixture.Start())
			}
		})
	}
}

func TestNoDeadlineNoCondition(t *testing.T) {
	d := newDeployment(1, 0, 1)
	d.Spec.ProgressDeadlineSeconds = nil
	cur := newSet(d, "new", 1, 1)
	b := newBench(t, d, append(crew{ready: 1}.pods(cur), cur)...)
	if err := b.reconcile(t.Context(), "ns/web"); err != nil {
		t.Fatal(err)
	}
	if got := b.progressing(t); got != nil {
		t.Errorf("condition %+v", got)
	}
}

func TestRecreate(t *testing.T) {
	for _, c := range []struct {
		name       string
		oldSize    int32
		old        []fixture.PodOption // of the one old pod; nil: there is none
		made       bool                // the new set is made
		wantReason string
	}{
		{"scales the old set down first", 1, []fixture.PodOption{fixture.On("here")}, false, ""},
		{"waits for the last old pod", 0, []fixture.PodOption{fixture.On("here"), fixture.Deleting}, false, ""},
		{"goes on when it has ended", 0, []fixture.PodOption{fixture.On("here"), fixture.Deleting, fixture.Phase(v1.PodFailed)}, true, util.NewReplicaSetReason},
		{"goes on when none is left", 0, nil, true, util.NewReplicaSetReason},
		{"away: the old pod may still run there", 0, []fixture.PodOption{fixture.On("gone"), fixture.Deleting}, false, NodesAwayReason},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newDeployment(1, 0, 1)
			d.Spec.Strategy = apps.DeploymentStrategy{Type: apps.RecreateDeploymentStrategyType}
			old := newSet(d, "old", c.oldSize, 0)
			objects := []runtime.Object{old}
			if c.old != nil {
				objects = append(objects, fixture.Pod("old-1", old, "ReplicaSet", append(c.old, fixture.Labelled(old.Labels))...))
			}
			b := newBench(t, d, objects...)
			if err := b.reconcile(t.Context(), "ns/web"); err != nil {
				t.Fatal(err)
			}
			if made := len(b.Created("replicasets")) == 1; made != c.made {
				t.Errorf("new set made: %v, want %v", made, c.made)
			}
			if got := b.size(t, "web-old"); got != 0 {
				t.Errorf("old set has size %d", got)
			}
			got := ""
			if cond := b.progressing(t); cond != nil {
				got = cond.Reason
			}
			if got != c.wantReason {
				t.Errorf("reason %q, want %q", got, c.wantReason)
			}
		})
	}
}

func TestScalingKeepsProportions(t *testing.T) {
	for _, c := range []struct {
		name             string
		to               int32
		old, new         int32
		wantOld, wantNew int32
	}{
		// 10 replicas and a surge of 3, in the middle of a rollout.
		{"up", 20, 8, 5, 14, 9},
		{"down", 5, 8, 5, 5, 3},
		{"to nothing", 0, 8, 5, 0, 0},
		{"one set only", 12, 0, 10, 0, 12},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newDeployment(10, 2, 3)
			old, cur := newSet(d, "old", c.old, c.old), newSet(d, "new", c.new, 0)
			*d.Spec.Replicas = c.to
			b := newBench(t, d, old, cur)
			if err := b.reconcile(t.Context(), "ns/web"); err != nil {
				t.Fatal(err)
			}
			if gotOld, gotNew := b.size(t, "web-old"), b.size(t, "web-new"); gotOld != c.wantOld || gotNew != c.wantNew {
				t.Errorf("old %d, new %d; want %d and %d", gotOld, gotNew, c.wantOld, c.wantNew)
			}
		})
	}
}

func TestPause(t *testing.T) {
	d := newDeployment(3, 0, 1)
	d.Spec.Paused = true
	old := newSet(d, "old", 3, 3)
	b := newBench(t, d, append(crew{ready: 3}.pods(old), old)...)
	if err := b.reconcile(t.Context(), "ns/web"); err != nil {
		t.Fatal(err)
	}
	if len(b.Created("replicasets")) != 0 {
		t.Error("a paused Deployment was rolled out")
	}
	if got := b.progressing(t); got == nil || got.Reason != util.PausedDeployReason || got.Status != v1.ConditionUnknown {
		t.Errorf("condition %+v", got)
	}
}

func TestFirstRevision(t *testing.T) {
	d := newDeployment(3, 0, 1)
	d.Annotations = map[string]string{"team": "a", v1.LastAppliedConfigAnnotation: "big"}
	b := newBench(t, d)
	if err := b.reconcile(t.Context(), "ns/web"); err != nil {
		t.Fatal(err)
	}
	made := b.Created("replicasets")
	if len(made) != 1 {
		t.Fatalf("%d sets made", len(made))
	}
	set := made[0].(*apps.ReplicaSet)
	hash := set.Labels[apps.DefaultDeploymentUniqueLabelKey]
	if set.Name != "web-"+hash || hash == "" || set.Spec.Selector.MatchLabels[apps.DefaultDeploymentUniqueLabelKey] != hash || set.Spec.Template.Labels[apps.DefaultDeploymentUniqueLabelKey] != hash {
		t.Errorf("name %s, hash %s, selector %v", set.Name, hash, set.Spec.Selector)
	}
	want := map[string]string{"team": "a", util.RevisionAnnotation: "1", util.DesiredReplicasAnnotation: "3", util.MaxReplicasAnnotation: "4"}
	for k, v := range want {
		if set.Annotations[k] != v {
			t.Errorf("annotation %s is %q, want %q", k, set.Annotations[k], v)
		}
	}
	if _, ok := set.Annotations[v1.LastAppliedConfigAnnotation]; ok {
		t.Error("kubectl's copy of the object was copied on")
	}
	if got := b.EventReasons(); !slices.Equal(got, []string{"ScalingReplicaSet"}) {
		t.Errorf("events %v", got)
	}
}

func TestHashCollisionIsResolved(t *testing.T) {
	d := newDeployment(1, 0, 1)
	b := newBench(t, d)
	if err := b.reconcile(t.Context(), "ns/web"); err != nil {
		t.Fatal(err)
	}
	name := b.Created("replicasets")[0].(*apps.ReplicaSet).Name

	// Another template has that name already.
	other := newSet(newDeployment(1, 0, 1), "other", 0, 0)
	other.Name = name
	b = newBench(t, newDeployment(1, 0, 1), other)
	if err := b.reconcile(t.Context(), "ns/web"); err == nil {
		t.Fatal("no error, so the key won't come again")
	}
	b.Eventually("the collision is counted", func() bool {
		d, err := b.deployments.Deployments("ns").Get("web")
		return err == nil && d.Status.CollisionCount != nil && *d.Status.CollisionCount == 1
	})
	b.Writes()
	if err := b.reconcile(t.Context(), "ns/web"); err != nil {
		t.Fatal(err)
	}
	made := b.Created("replicasets")
	if len(made) != 1 || made[0].(*apps.ReplicaSet).Name == name {
		t.Errorf("made %v", made)
	}
}

func TestHistoryLimit(t *testing.T) {
	d := newDeployment(1, 0, 1)
	d.Spec.RevisionHistoryLimit = ptr.To(int32(1))
	cur := newSet(d, "new", 1, 1)
	cur.Annotations[util.RevisionAnnotation] = "9"
	d.Status = calculateStatus(d, cur, []*apps.ReplicaSet{cur}, metav1.NewTime(fixture.Start()))
	d.Annotations[util.RevisionAnnotation] = "9"
	objects := append(crew{ready: 1}.pods(cur), cur)
	for i, revision := range []string{"3", "1", "2"} {
		set := newSet(d, fmt.Sprintf("old%d", i), 0, 0)
		set.Annotations[util.RevisionAnnotation] = revision
		objects = append(objects, set)
	}
	b := newBench(t, d, objects...)
	if err := b.reconcile(t.Context(), "ns/web"); err != nil {
		t.Fatal(err)
	}
	if got := b.Deleted("replicasets"); !slices.Equal(got, []string{"web-old1", "web-old2"}) {
		t.Errorf("deleted %v, want the oldest two", got)
	}
}

func TestRollbackAnnotation(t *testing.T) {
	for _, c := range []struct {
		name, to, image, event string
	}{
		{"to the last revision", "0", "old", util.RollbackDone},
		{"to a revision", "1", "old", util.RollbackDone},
		{"to the current one", "2", "new", util.RollbackTemplateUnchanged},
		{"to one that isn't", "7", "new", util.RollbackRevisionNotFound},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newDeployment(1, 0, 1)
			d.Annotations[apps.DeprecatedRollbackTo] = c.to
			d.Status.Conditions = []apps.DeploymentCondition{condition(apps.DeploymentProgressing, v1.ConditionTrue, util.ReplicaSetUpdatedReason, "", metav1.NewTime(fixture.Start()))}
			b := newBench(t, d, newSet(d, "old", 0, 0), newSet(d, "new", 1, 1))
			if err := b.reconcile(t.Context(), "ns/web"); err != nil {
				t.Fatal(err)
			}
			got, err := b.Client.AppsV1().Deployments("ns").Get(t.Context(), "web", metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if got.Spec.Template.Spec.Containers[0].Image != c.image || got.Annotations[apps.DeprecatedRollbackTo] != "" {
				t.Errorf("image %s, annotation %q", got.Spec.Template.Spec.Containers[0].Image, got.Annotations[apps.DeprecatedRollbackTo])
			}
			if events := b.EventReasons(); !slices.Equal(events, []string{c.event}) {
				t.Errorf("events %v, want %s", events, c.event)
			}
		})
	}
}

// A finished Deployment is looked at again and again; nothing is written.
func TestIdlePassWritesNothing(t *testing.T) {
	for name, c := range map[string]crew{"all there": {ready: 3}, "one away": {ready: 2, standing: 1}} {
		t.Run(name, func(t *testing.T) {
			d := newDeployment(3, 0, 1)
			cur := newSet(d, "new", 3, c.ready)
			b := newBench(t, d, append(c.pods(cur), cur)...)
			for range 3 {
				if err := b.reconcile(t.Context(), "ns/web"); err != nil {
					t.Fatal(err)
				}
				stored, err := b.Client.AppsV1().Deployments("ns").Get(t.Context(), "web", metav1.GetOptions{})
				if err != nil {
					t.Fatal(err)
				}
				b.Eventually("the informer shows the status", func() bool {
					d, err := b.deployments.Deployments("ns").Get("web")
					return err == nil && equality.Semantic.DeepEqual(d.Status, stored.Status)
				})
			}
			b.Writes()
			b.Clock.Step(24 * time.Hour)
			if err := b.reconcile(t.Context(), "ns/web"); err != nil {
				t.Fatal(err)
			}
			if got := b.Writes(); len(got) != 0 {
				t.Errorf("writes %v", got)
			}
		})
	}
}
