package fleetlink

import (
	"encoding/json"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-edge/coracle/controlplane/fleethub"
	"github.com/coracle-edge/coracle/edgelet/state"
)

// hubMetrics gathers what the control plane's /metrics would say.
func hubMetrics(t *testing.T, c *cluster) map[string]*dto.MetricFamily {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	if err := registry.Register(c.hub.Metrics()); err != nil {
		t.Fatal(err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]*dto.MetricFamily{}
	for _, f := range families {
		out[f.GetName()] = f
	}
	return out
}

func sample(f *dto.MetricFamily, labels ...string) float64 {
next:
	for _, m := range f.GetMetric() {
		have := map[string]string{}
		for _, l := range m.GetLabel() {
			have[l.GetName()] = l.GetValue()
		}
		for i := 0; i < len(labels); i += 2 {
			if have[labels[i]] != labels[i+1] {
				continue next
			}
		}
		return m.GetCounter().GetValue() + m.GetGauge().GetValue()
	}
	return -1
}

// TestBothSidesCountTheSame: what one side sent is what the other received, by
// class, with every make of broker.
func TestBothSidesCountTheSame(t *testing.T) {
	for _, kind := range kinds {
		t.Run(string(kind), func(t *testing.T) {
			c := newCluster(t, kind)
			b := c.board("board-a")
			b.live(t)
			c.createPod("one", "board-a", nil)
			b.hasPods(t, "one")
			b.register()
			b.says("one", corev1.PodRunning)
			if err := b.store.Journal(state.Entry{Kind: state.EntryEvent, ObjectKind: "Pod", Namespace: "default", Name: "one", Reason: "Started", Message: "m", Type: "Normal"}); err != nil {
				t.Fatal(err)
			}
			eventually(t, "all is answered", func() bool {
				for _, r := range b.store.Reports() {
					if !r.Acked {
						return false
					}
				}
				return !b.store.HasJournal()
			})
			time.Sleep(100 * time.Millisecond) // the last acknowledgements
			node := b.link.Counters().Snapshot()
			hub := c.hub.Nodes("board-a")
			if len(hub) != 1 {
				t.Fatalf("the hub knows %d nodes of this name", len(hub))
			}
			for class, said := range node.Classes {
				if class == "control" {
					continue
				}
				heard := hub[0].Traffic.Classes[class]
				if class == "session" {
					// A first Hello may come before the hub listens, and be lost.
					if said.Sent < heard.Received || said.Received > heard.Sent {
						t.Errorf("%s: the node counted %+v, the hub %+v", class, said, heard)
					}
					continue
				}
				if said.Sent != heard.Received || said.Received != heard.Sent {
					t.Errorf("%s: the node counted %+v, the hub %+v", class, said, heard)
				}
				n, h := node.Messages[class], hub[0].Traffic.Messages[class]
				if n.Sent != h.Received || n.Received != h.Sent {
					t.Errorf("messages of %s: the node counted %+v, the hub %+v", class, n, h)
				}
			}
			for _, class := range []string{"session", "order", "report", "journal", "ack"} {
				if node.Classes[class].Total() == 0 {
					t.Errorf("nothing of class %s was counted", class)
				}
			}
			if node.Plain.Sent <= 0 || node.Plain.Sent >= node.Socket.Sent {
				t.Errorf("above TLS %+v, below %+v", node.Plain, node.Socket)
			}
			if kind == embedded && (hub[0].Traffic.Socket.Sent != node.Socket.Received || hub[0].Traffic.Socket.Received != node.Socket.Sent) {
				t.Errorf("on the socket the node counted %+v, the broker %+v", node.Socket, hub[0].Traffic.Socket)
			}
		})
	}
}

func TestHubMetrics(t *testing.T) {
	each(t, func(t *testing.T, c *cluster) {
		t.Cleanup(func() {
			if t.Failed() {
				for name, f := range hubMetrics(t, c) {
					t.Log(name, f.GetMetric())
				}
			}
		})
		b := c.board("board-a")
		b.live(t)
		c.createPod("one", "board-a", nil)
		b.hasPods(t, "one")
		b.register()
		b.says("one", corev1.PodRunning)
		if err := b.store.Journal(state.Entry{Kind: state.EntryEvent, ObjectKind: "Pod", Namespace: "default", Name: "one", Reason: "Started", Message: "m", Type: "Normal"}); err != nil {
			t.Fatal(err)
		}
		for _, x := range []struct {
			name   string
			labels []string
			want   float64
		}{
			{"coracle_fleet_sessions", nil, 1},
			{"coracle_fleet_nodes", []string{"presence", "present"}, 1},
			{"coracle_fleet_nodes_by_link_class", []string{"class", "lan"}, 1},
			{"coracle_fleet_epoch", nil, 1},
			{"coracle_fleet_orders_total", []string{"repeated", "false"}, 1},
			{"coracle_fleet_order_acks_total", []string{"status", "applied"}, 1},
			{"coracle_fleet_order_acks_total", []string{"status", "failed"}, 0},
			{"coracle_fleet_reports_total", []string{"verdict", "stored"}, 2},
			{"coracle_fleet_journal_entries_total", []string{"result", "stored"}, 1},
			{"coracle_fleet_presence_changes_total", []string{"to", "present"}, 1},
			{"coracle_fleet_messages_dropped_total", []string{"reason", "refused"}, 0},
		} {
			eventually(t, x.name, func() bool { return sample(hubMetrics(t, c)[x.name], x.labels...) == x.want })
		}
		// The first Hello may have been asked for again.
		if n := sample(hubMetrics(t, c)["coracle_fleet_hellos_total"]); n < 1 || n > 3 {
			t.Errorf("%v Hellos", n)
		}
		// A forged message is counted where it was refused.
		c.tap.into("board-a", "up", []byte("forged"))
		eventually(t, "the forged message is counted", func() bool {
			return sample(hubMetrics(t, c)["coracle_fleet_messages_dropped_total"], "reason", "refused") == 1
		})
		b.stop()
		eventually(t, "away is counted", func() bool {
			m := hubMetrics(t, c)
			return sample(m["coracle_fleet_presence_changes_total"], "to", "away") == 1 && sample(m["coracle_fleet_sessions"]) == 0
		})
	})
}

func TestNodesHandler(t *testing.T) {
	c := newCluster(t, embedded)
	a, b := c.board("board-a"), c.board("board-b")
	a.live(t)
	b.live(t)
	ask := func(query string) []fleethub.NodeState {
		w := httptest.NewRecorder()
		c.hub.NodesHandler().ServeHTTP(w, httptest.NewRequest("GET", fleethub.NodesPath+query, nil))
		var out []fleethub.NodeState
		if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil {
			t.Fatalf("%v in %s", err, w.Body)
		}
		return out
	}
	eventually(t, "both are listed", func() bool {
		all := ask("")
		return len(all) == 2 && all[0].Name == "board-a" && all[0].Session && all[1].Session
	})
	one := ask("?node=board-b")
	if len(one) != 1 || one[0].Name != "board-b" || one[0].LinkClass != "lan" || one[0].Presence != "present" || one[0].Heard == nil || one[0].Traffic.Socket.Received == 0 {
		t.Errorf("%+v", one)
	}
	if none := ask("?node=board-x"); len(none) != 0 {
		t.Errorf("%+v", none)
	}
	w := httptest.NewRecorder()
	c.hub.NodesHandler().ServeHTTP(w, httptest.NewRequest("POST", fleethub.NodesPath, nil))
	if w.Code != 405 {
		t.Errorf("POST: %d", w.Code)
	}
}

// TestHeardIsTheLastSignOfLife: a connection that stands and says nothing is
// not heard again and again; a keepalive is a sign of life.
func TestHeardIsTheLastSignOfLife(t *testing.T) {
	c := newClusterWith(t, embedded, func(config *fleethub.Config) { config.Keepalive = 5 * time.Second })
	b := c.board("board-a")
	b.register() // or it would be asked for that
	eventually(t, "ready", func() bool { return c.readiness("board-a") == corev1.ConditionTrue })
	eventually(t, "keepalive of 5 s", func() bool { return b.link.Status().Keepalive == 5*time.Second && b.link.Status().Live })
	heard := func() time.Time { l, _ := c.hub.Liveness("board-a"); return l.Heard }
	var first time.Time
	eventually(t, "silence isn't heard", func() bool {
		first = heard()
		time.Sleep(300 * time.Millisecond)
		return !first.IsZero() && heard().Equal(first)
	})
	messages := c.hub.Nodes("board-a")[0].Traffic.Messages
	eventuallyIn(t, 25*time.Second, "a keepalive is heard", func() bool { return heard().After(first.Add(time.Second)) })
	if now := c.hub.Nodes("board-a")[0].Traffic.Messages; now["ack"] != messages["ack"] || now["report"] != messages["report"] {
		t.Errorf("it was a message: %v after %v", now, messages)
	}
}

// TestAReturnCostsNoReport: the API says again what it said before the node was
// away, without the node having to; unless it says something new.
func TestAReturnCostsNoReport(t *testing.T) {
	each(t, func(t *testing.T, c *cluster) {
		b := c.board("board-a")
		b.register()
		eventually(t, "ready", func() bool { return c.readiness("board-a") == corev1.ConditionTrue })
		eventually(t, "the node knows that it was heard", func() bool { return b.store.Reports()[0].Acked })
		before := c.node("board-a")
		reports := func() int64 { return c.hub.Nodes("board-a")[0].Traffic.Messages["report"].Received }
		away := func() {
			t.Helper()
			b.cable.out.Store(true)
			b.cable.pull()
			eventually(t, "away", func() bool { return c.readiness("board-a") == corev1.ConditionUnknown })
		}
		away()
		said := reports()
		b.cable.out.Store(false)
		eventually(t, "ready again", func() bool { return c.readiness("board-a") == corev1.ConditionTrue })
		after := c.node("board-a")
		for i, cond := range after.Status.Conditions {
			was := before.Status.Conditions[i]
			if cond.Type != was.Type || cond.Status != was.Status || cond.Reason != was.Reason || cond.Message != was.Message {
				t.Errorf("condition %+v, before the absence %+v", cond, was)
			}
		}
		if n := reports() - said; n != 0 {
			t.Errorf("the return took %d reports", n)
		}

		// What the node says meanwhile is what counts.
		away()
		node := corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: b.name}, Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{
			{Type: corev1.NodeReady, Status: corev1.ConditionFalse, Reason: "KubeletNotReady", Message: "the runtime is down"}}}}
		raw, err := node.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if err := b.store.PutNodeReport(raw); err != nil {
			t.Fatal(err)
		}
		b.cable.out.Store(false)
		eventually(t, "it says what it says now", func() bool { return c.readiness("board-a") == corev1.ConditionFalse })
		time.Sleep(200 * time.Millisecond)
		if r := c.readiness("board-a"); r != corev1.ConditionFalse {
			t.Errorf("and then %s", r)
		}
	})
}
