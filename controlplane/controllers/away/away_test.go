package away_test

import (
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-edge/coracle/controlplane/controllers/away"
	"github.com/coracle-edge/coracle/controlplane/controllers/fixture"
)

func TestNode(t *testing.T) {
	for _, c := range []struct {
		name string
		node *v1.Node
		want bool
	}{
		{"ready", fixture.Node("n", v1.ConditionTrue), false},
		{"not ready by its own report", fixture.Node("n", v1.ConditionFalse), false},
		{"unknown", fixture.Node("n", v1.ConditionUnknown), true},
		{"never reported", &v1.Node{}, false},
	} {
		if got := away.Node(c.node); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestStanding(t *testing.T) {
	gated := func(status v1.ConditionStatus) fixture.PodOption {
		return func(p *v1.Pod) {
			p.Spec.ReadinessGates = []v1.PodReadinessGate{{ConditionType: "gate"}}
			p.Status.Conditions = append(p.Status.Conditions, v1.PodCondition{Type: "gate", Status: status})
		}
	}
	for _, c := range []struct {
		name    string
		options []fixture.PodOption
		want    bool
	}{
		{"ready", nil, true},
		{"marked not ready by its node's absence", []fixture.PodOption{fixture.Unheard}, true},
		{"never ready", []fixture.PodOption{fixture.NeverReady}, false},
		{"ended", []fixture.PodOption{fixture.Phase(v1.PodFailed)}, false},
		{"being deleted", []fixture.PodOption{fixture.Unheard, fixture.Deleting}, false},
		{"readiness gate open", []fixture.PodOption{fixture.Unheard, gated(v1.ConditionTrue)}, true},
		{"readiness gate closed", []fixture.PodOption{fixture.Unheard, gated(v1.ConditionFalse)}, false},
	} {
		if got := away.Standing(fixture.Pod("p", nil, "", c.options...)); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestTransitionsVisitPodsOfTheNode(t *testing.T) {
	w := fixture.New(t, fixture.Pod("here", nil, "", fixture.On("n")), fixture.Pod("elsewhere", nil, "", fixture.On("m")))
	var visited []string
	handler, err := away.Transitions(w.Factory.Core().V1().Pods().Informer(), func(p *v1.Pod) { visited = append(visited, p.Name) })
	if err != nil {
		t.Fatal(err)
	}
	w.Sync()
	there, gone := fixture.Node("n", v1.ConditionTrue), fixture.Node("n", v1.ConditionUnknown)
	relabelled := gone.DeepCopy()
	relabelled.ObjectMeta = metav1.ObjectMeta{Name: "n", Labels: map[string]string{"a": "b"}}
	for _, step := range []struct {
		name     string
		old, cur *v1.Node
		want     int
	}{
		{"leaves", there, gone, 1},
		{"only another label", gone, relabelled, 0},
		{"comes back", gone, there, 1},
	} {
		visited = nil
		handler.OnUpdate(step.old, step.cur)
		if len(visited) != step.want || step.want == 1 && visited[0] != "here" {
			t.Errorf("%s: visited %v", step.name, visited)
		}
	}
	visited = nil
	handler.OnDelete(gone)
	if len(visited) != 1 {
		t.Errorf("an away node that is deleted: visited %v", visited)
	}
}
