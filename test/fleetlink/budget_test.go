package fleetlink

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/controlplane/fleethub"
	"github.com/coracle-edge/coracle/edgelet/state"
)

// pods says a status of a pod in full.
func (b *board) saysStatus(name string, status corev1.PodStatus, gone bool) {
	b.c.t.Helper()
	raw, err := status.Marshal()
	if err != nil {
		b.c.t.Fatal(err)
	}
	if err := b.store.PutPodStatus("uid-"+name, state.PodReport{Namespace: "default", Name: name, UID: "uid-" + name, Status: raw, Gone: gone}); err != nil {
		b.c.t.Fatal(err)
	}
}

func (b *board) saysNode(label string, ready corev1.ConditionStatus) {
	b.c.t.Helper()
	node := corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: b.name, Labels: map[string]string{"board": label}},
		Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready, Reason: "r"}}}}
	raw, err := node.Marshal()
	if err != nil {
		b.c.t.Fatal(err)
	}
	if err := b.store.PutNodeReport(raw); err != nil {
		b.c.t.Fatal(err)
	}
}

func (b *board) acked(uid string) bool {
	for _, r := range b.store.Reports() {
		if r.UID == uid {
			return r.Acked
		}
	}
	return false
}

// TestADataBudgetHoldsBackWhatIsntUrgent, and nothing else, until it is raised.
func TestADataBudgetHoldsBackWhatIsntUrgent(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	refused := ""
	c := newClusterWith(t, embedded, func(config *fleethub.Config) {
		config.TunnelRefused = func(_, id, reason string) {
			mu.Lock()
			defer mu.Unlock()
			refused = id + ": " + reason
		}
	})
	c.serveObjects()
	b := c.board("board-a")
	b.live(t)
	for _, name := range []string{"one", "two"} {
		c.createPod(name, "board-a", nil)
	}
	b.hasPods(t, "one", "two")
	running := corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "10.1.2.3", Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}
	b.saysNode("first", corev1.ConditionTrue)
	b.saysStatus("one", running, false)
	b.saysStatus("two", running, false)
	eventually(t, "all is known", func() bool { return b.acked("") && b.acked("uid-one") && b.acked("uid-two") })
	used := b.budget.Status().Used
	if socket := b.link.Counters().Socket.Bytes().Total(); used != socket {
		t.Errorf("%d bytes are used, %d were on the socket", used, socket)
	}

	// A budget of which nine tenths are used, with some room for what is urgent.
	limit := func(n int64) {
		t.Helper()
		c.patchNode("board-a", fmt.Sprintf(`{"metadata":{"annotations":{%q:"%d"}}}`, fleet.AnnotationDataBudget, n))
		eventuallyIn(t, 90*time.Second, "the node knows its budget", func() bool { return b.budget.Status().Limit == n })
	}
	const room = 100_000
	limit(used + room)
	if b.budget.Status().Held {
		t.Fatal("held too early")
	}
	b.budget.Count(room-5_000-int(b.budget.Status().Used-used), 0)
	if !b.budget.Status().Held {
		t.Fatalf("not held: %+v", b.budget.Status())
	}

	journal := func() int64 { return c.hub.Nodes("board-a")[0].Traffic.Messages["journal"].Received }
	entries := journal()
	if err := b.store.Journal(state.Entry{Kind: state.EntryEvent, ObjectKind: "Pod", Namespace: "default", Name: "one", Reason: "Started", Type: "Normal"}); err != nil {
		t.Fatal(err)
	}
	b.saysNode("second", corev1.ConditionTrue)
	again := running
	again.ContainerStatuses = []corev1.ContainerStatus{{Name: "main", RestartCount: 7}}
	b.saysStatus("one", again, false)
	// What is urgent goes on: a phase, an order and its acknowledgement.
	b.saysStatus("two", corev1.PodStatus{Phase: corev1.PodFailed}, false)
	eventually(t, "the pod's phase is told", func() bool { return c.pod("two").Status.Phase == corev1.PodFailed })
	c.createPod("three", "board-a", nil)
	b.hasPods(t, "one", "three", "two")
	eventually(t, "the order is acknowledged", func() bool {
		return sample(hubMetrics(t, c)["coracle_fleet_order_acks_total"], "status", "applied") == sample(hubMetrics(t, c)["coracle_fleet_orders_total"], "repeated", "false")
	})
	time.Sleep(500 * time.Millisecond) // longer than anything is gathered
	if b.acked("") || b.acked("uid-one") || !b.store.HasJournal() || journal() != entries {
		t.Errorf("what isn't urgent was sent: node %v, pod %v, journal %v", b.acked(""), b.acked("uid-one"), !b.store.HasJournal())
	}
	if label := c.node("board-a").Labels["board"]; label != "first" {
		t.Errorf("label %q", label)
	}
	// A condition of the node's is urgent, and takes the label along.
	b.saysNode("third", corev1.ConditionFalse)
	eventually(t, "the node's condition is told", func() bool { return c.readiness("board-a") == corev1.ConditionFalse })

	// What doesn't fit into the rest of the day isn't fetched.
	if _, err := c.client.CoreV1().ConfigMaps("default").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "large", Namespace: "default", UID: "uid-large"},
		Data: map[string]string{"x": strings.Repeat("0123456789abcdef", 8<<10)}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	c.createPod("four", "board-a", func(p *corev1.Pod) {
		p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "large"}}}}}
	})
	b.hasPods(t, "four", "one", "three", "two")
	eventually(t, "the large object is refused", func() bool {
		return sample(hubMetrics(t, c)["coracle_fleet_order_acks_total"], "status", "failed") >= 1
	})
	if n := b.link.Counters().Stream(fleet.StreamObjects).Bytes().Total(); n != 0 {
		t.Errorf("%d bytes of it were fetched", n)
	}
	// As long as anything is left an operator may look.
	if err := c.hub.RequestTunnel(ctx, "board-a", "id1", "kubelet"); err != nil {
		t.Fatal(err)
	}
	select {
	case <-b.tunnels:
	case <-time.After(5 * time.Second):
		t.Error("no tunnel with something left")
	}
	b.budget.Count(10_000, 0) // nothing is left
	if err := c.hub.RequestTunnel(ctx, "board-a", "id2", "kubelet"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the tunnel is refused with its reason", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return strings.HasPrefix(refused, "id2: ") && strings.Contains(refused, fleet.AnnotationDataBudget)
	})
	// And still what is urgent goes on.
	b.saysStatus("one", corev1.PodStatus{Phase: corev1.PodSucceeded}, false)
	eventually(t, "a phase is told beyond the budget", func() bool { return c.pod("one").Status.Phase == corev1.PodSucceeded })

	limit(5 << 20)
	defer func() {
		if t.Failed() {
			t.Logf("node answered %v, journal empty %v, entries received %d of more than %d, label %q, budget %+v, live %v",
				b.acked(""), !b.store.HasJournal(), journal(), entries, c.node("board-a").Labels["board"], b.budget.Status(), b.link.Status().Live)
		}
	}()
	// A node that has just been asked for Hellos obeys the next one after a minute at most (rule 5).
	eventuallyIn(t, 90*time.Second, "with a larger budget all is told", func() bool {
		return b.acked("") && !b.store.HasJournal() && journal() > entries && c.node("board-a").Labels["board"] == "third"
	})
	eventuallyIn(t, 40*time.Second, "and the large object fetched", func() bool {
		_, ok, _ := b.store.Get(state.KindConfigMap, "default", "large")
		return ok
	})
}

// TestTheBudgetIsKeptOverARestart of the agent, before any hub was heard.
func TestTheBudgetIsKeptOverARestart(t *testing.T) {
	each(t, func(t *testing.T, c *cluster) {
		b := c.board("board-a")
		b.register()
		b.live(t)
		eventually(t, "registered", func() bool { return c.node("board-a") != nil })
		c.patchNode("board-a", `{"metadata":{"annotations":{"`+fleet.AnnotationDataBudget+`":"100k"}}}`)
		eventuallyIn(t, 90*time.Second, "the node knows its budget", func() bool { return b.budget.Status().Limit == 100_000 })
		b.budget.Count(95_000, 0)
		c.stopHub()
		b.stop()
		b.start()
		if s := b.budget.Status(); !s.Held || s.Limit != 100_000 || s.Used < 95_000 {
			t.Errorf("after a restart, without a hub: %+v", s)
		}
	})
}
