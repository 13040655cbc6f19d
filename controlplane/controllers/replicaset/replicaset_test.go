package replicaset

import (
	"errors"
	"slices"
	"testing"
	"time"

	apps "k8s.io/api/apps/v1"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/klog/v2"

	"github.com/coracle-edge/coracle/controlplane/controllers/fixture"
)

var webLabels = map[string]string{"app": "web"}

func newSet(replicas int32) *apps.ReplicaSet {
	return &apps.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web", UID: "set", Generation: 1},
		Spec: apps.ReplicaSetSpec{
			Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: webLabels},
			Template: v1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: webLabels}, Spec: v1.PodSpec{Containers: []v1.Container{{Name: "c", Image: "i"}}}},
		},
	}
}

func podOf(set *apps.ReplicaSet, name string, options ...fixture.PodOption) *v1.Pod {
	return fixture.Pod(name, set, "ReplicaSet", append([]fixture.PodOption{fixture.Labelled(webLabels), fixture.On("here")}, options...)...)
}

func TestReconcile(t *testing.T) {
	for _, c := range []struct {
		name     string
		replicas int32
		pods     func(*apps.ReplicaSet) []*v1.Pod
		created  int
		deleted  []string
		status   apps.ReplicaSetStatus
	}{{
		name: "too few", replicas: 3,
		pods:    func(s *apps.ReplicaSet) []*v1.Pod { return []*v1.Pod{podOf(s, "a")} },
		created: 2, status: apps.ReplicaSetStatus{Replicas: 1, ReadyReplicas: 1, AvailableReplicas: 1},
	}, {
		name: "too many: those not ready first", replicas: 1,
		pods: func(s *apps.ReplicaSet) []*v1.Pod {
			return []*v1.Pod{podOf(s, "a"), podOf(s, "b", fixture.NeverReady), podOf(s, "c", fixture.Phase(v1.PodPending))}
		},
		deleted: []string{"b", "c"}, status: apps.ReplicaSetStatus{Replicas: 3, ReadyReplicas: 1, AvailableReplicas: 1},
	}, {
		name: "ended pods are replaced", replicas: 2,
		pods: func(s *apps.ReplicaSet) []*v1.Pod {
			return []*v1.Pod{podOf(s, "a"), podOf(s, "b", fixture.Phase(v1.PodFailed)), podOf(s, "c", fixture.Phase(v1.PodSucceeded))}
		},
		created: 1, status: apps.ReplicaSetStatus{Replicas: 1, ReadyReplicas: 1, AvailableReplicas: 1},
	}, {
		name: "away: the pod exists and is not replaced", replicas: 2,
		pods: func(s *apps.ReplicaSet) []*v1.Pod {
			return []*v1.Pod{podOf(s, "a"), podOf(s, "b", fixture.On("gone"), fixture.Unheard)}
		},
		status: apps.ReplicaSetStatus{Replicas: 2, ReadyReplicas: 1, AvailableReplicas: 1},
	}, {
		name: "away and being deleted, because its toleration ended: replaced", replicas: 2,
		pods: func(s *apps.ReplicaSet) []*v1.Pod {
			return []*v1.Pod{podOf(s, "a"), podOf(s, "b", fixture.On("gone"), fixture.Unheard, fixture.Deleting)}
		},
		created: 1, status: apps.ReplicaSetStatus{Replicas: 1, ReadyReplicas: 1, AvailableReplicas: 1},
	}, {
		name: "away: goes first when scaled down", replicas: 1,
		pods: func(s *apps.ReplicaSet) []*v1.Pod {
			return []*v1.Pod{podOf(s, "a"), podOf(s, "b", fixture.On("gone"), fixture.Unheard)}
		},
		deleted: []string{"b"}, status: apps.ReplicaSetStatus{Replicas: 2, ReadyReplicas: 1, AvailableReplicas: 1},
	}, {
		name: "all away: nothing happens", replicas: 2,
		pods: func(s *apps.ReplicaSet) []*v1.Pod {
			return []*v1.Pod{podOf(s, "a", fixture.On("gone"), fixture.Unheard), podOf(s, "b", fixture.On("gone"), fixture.NeverReady)}
		},
		status: apps.ReplicaSetStatus{Replicas: 2},
	}} {
		t.Run(c.name, func(t *testing.T) {
			set := newSet(c.replicas)
			objects := []runtime.Object{set, fixture.Node("here", v1.ConditionTrue), fixture.Node("gone", v1.ConditionUnknown)}
			for _, pod := range c.pods(set) {
				objects = append(objects, pod)
			}
			w := fixture.New(t, objects...)
			ctl, err := New(w.Client, w.Factory, w.Options())
			if err != nil {
				t.Fatal(err)
			}
			w.Sync()
			if err := ctl.reconcile(t.Context(), "ns/web"); err != nil {
				t.Fatal(err)
			}
			if got := len(w.Created("pods")); got != c.created {
				t.Errorf("%d pods created, want %d", got, c.created)
			}
			if got := w.Deleted("pods"); !slices.Equal(got, c.deleted) {
				t.Errorf("deleted %v, want %v", got, c.deleted)
			}
			stored, err := w.Client.AppsV1().ReplicaSets("ns").Get(t.Context(), "web", metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			got := stored.Status
			if got.Replicas != c.status.Replicas || got.ReadyReplicas != c.status.ReadyReplicas || got.AvailableReplicas != c.status.AvailableReplicas || got.ObservedGeneration != 1 {
				t.Errorf("status %+v, want %+v", got, c.status)
			}
		})
	}
}

// Until the informer has shown what was created, a second pass creates nothing; once it has, and all is well, a pass
// writes nothing.
func TestExpectationsAndIdleness(t *testing.T) {
	w := fixture.New(t, newSet(2))
	ctl, err := New(w.Client, w.Factory, w.Options())
	if err != nil {
		t.Fatal(err)
	}
	w.Sync()
	if err := ctl.manage(t.Context(), "ns/web", newSet(2), nil); err != nil {
		t.Fatal(err)
	}
	if got := len(w.Created("pods")); got != 2 {
		t.Fatalf("%d pods created, want 2", got)
	}
	w.Eventually("the informer shows both pods", func() bool { return len(ctl.podIndex.List()) == 2 })
	w.Eventually("expectations are met", func() bool {
		add, del := int64(1), int64(0)
		if e, ok, _ := ctl.expected.GetExpectations("ns/web"); ok {
			add, del = e.GetExpectations()
		}
		return add <= 0 && del <= 0
	})
	w.Writes()
	if err := ctl.reconcile(t.Context(), "ns/web"); err != nil {
		t.Fatal(err)
	}
	if got := w.Writes(); !slices.Equal(got, []string{"update replicasets/status"}) {
		t.Errorf("writes %v, want the status only", got)
	}
	w.Eventually("the informer shows the status", func() bool {
		set, err := ctl.sets.ReplicaSets("ns").Get("web")
		return err == nil && set.Status.Replicas == 2
	})
	if err := ctl.reconcile(t.Context(), "ns/web"); err != nil {
		t.Fatal(err)
	}
	if got := w.Writes(); len(got) != 0 {
		t.Errorf("an idle pass writes %v", got)
	}
}

func TestFailedCreateIsACondition(t *testing.T) {
	w := fixture.New(t, newSet(5))
	ctl, err := New(w.Client, w.Factory, w.Options())
	if err != nil {
		t.Fatal(err)
	}
	w.Sync()
	tries := 0
	w.Client.PrependReactor("create", "pods", func(clienttesting.Action) (bool, runtime.Object, error) {
		tries++
		return true, nil, errors.New("no room")
	})
	if err := ctl.reconcile(t.Context(), "ns/web"); err == nil {
		t.Fatal("no error")
	}
	if tries != 1 {
		t.Errorf("%d pods tried, want 1: what is refused once is refused five times", tries)
	}
	if !ctl.expected.SatisfiedExpectations(klog.Background(), "ns/web") {
		t.Error("waits for pods that were never made")
	}
	set, err := w.Client.AppsV1().ReplicaSets("ns").Get(t.Context(), "web", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(set.Status.Conditions) != 1 || set.Status.Conditions[0].Reason != "FailedCreate" || !set.Status.Conditions[0].LastTransitionTime.Time.Equal(fixture.Start()) {
		t.Errorf("conditions %+v", set.Status.Conditions)
	}
	if got := w.EventReasons(); !slices.Contains(got, "FailedCreate") {
		t.Errorf("events %v", got)
	}
}

func TestMinReadySecondsByTheClock(t *testing.T) {
	set := newSet(1)
	set.Spec.MinReadySeconds = 60
	w := fixture.New(t, set, podOf(set, "a", func(p *v1.Pod) {
		p.Status.Conditions[0].LastTransitionTime = metav1.NewTime(fixture.Start().Add(-10 * time.Second))
	}))
	ctl, err := New(w.Client, w.Factory, w.Options())
	if err != nil {
		t.Fatal(err)
	}
	w.Sync()
	available := func() int32 {
		if err := ctl.reconcile(t.Context(), "ns/web"); err != nil {
			t.Fatal(err)
		}
		got, err := w.Client.AppsV1().ReplicaSets("ns").Get(t.Context(), "web", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return got.Status.AvailableReplicas
	}
	if got := available(); got != 0 {
		t.Errorf("%d available after 10 s, want 0", got)
	}
	w.Clock.Step(51 * time.Second)
	if got := available(); got != 1 {
		t.Errorf("%d available after 61 s, want 1", got)
	}
}
