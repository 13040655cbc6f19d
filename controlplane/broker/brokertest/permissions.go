package brokertest

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/controlplane/join/permissions"
)

// testTable walks the table of permissions: by the rule that is code, and by what
// the broker really carries.
func testTable(t *testing.T, r *Running) {
	rules, err := permissions.Table()
	if err != nil {
		t.Fatal(err)
	}
	w := &walk{t: t, r: r, other: r.node(t, "board-b", "")}
	w.other.subscribe(t, fleet.Topic("board-b", fleet.DirDown))
	walked := 0
	for _, rule := range rules {
		if rule.Door != permissions.MQTT {
			continue
		}
		for whose, want := range map[string]bool{"board-a": rule.Own, "board-b": rule.Others} {
			topic := strings.Replace(rule.What, "NODE", whose, 1)
			for _, verb := range rule.Verbs {
				walked++
				if got := fleet.Allowed(fleet.NodeUserPrefix+"board-a", topic, verb == "publish"); got != want {
					t.Errorf("fleet.Allowed: %s to %s: %v, the table says %v", verb, topic, got, want)
				}
				carried := w.subscribe
				if verb == "publish" {
					carried = w.publish
				}
				if got := carried(topic); got != want {
					t.Errorf("board-a may %s %s: %v, the table says %v", verb, topic, got, want)
				}
			}
		}
	}
	if walked < 12 {
		t.Errorf("the table has %d lines for MQTT only", walked)
	}
}

type walk struct {
	t     *testing.T
	r     *Running
	other *client
	n     int
}

// settled returns when what was said before has come wherever it comes to.
func (w *walk) settled() {
	w.n++
	word := fmt.Sprint("after that ", w.n)
	w.other.say(fleet.Topic("board-b", fleet.DirUp), word)
	w.r.await(w.t, received{"board-b", fleet.DirUp, word})
	if err := w.r.Transport.Publish("board-b", []byte(word)); err != nil {
		w.t.Fatal(err)
	}
	w.other.await(w.t, word)
	time.Sleep(50 * time.Millisecond) // for what must not come
}

// publish says whether anybody gets what board-a says on a topic.
func (w *walk) publish(topic string) bool {
	w.t.Helper()
	// A client each: a broker may end the connection of who tries.
	a := w.r.node(w.t, "board-a", "")
	defer a.Disconnect(10)
	a.subscribe(w.t, fleet.Topic("board-a", fleet.DirDown))
	w.n++
	word := fmt.Sprint("word ", w.n)
	a.say(topic, word)
	w.settled()
	if slices.Contains(a.all(), word) || slices.Contains(w.other.all(), word) {
		return true
	}
	w.r.mu.Lock()
	defer w.r.mu.Unlock()
	return slices.ContainsFunc(w.r.got, func(g received) bool { return g.payload == word })
}

// subscribe says whether board-a gets by a filter what it is for. mosquitto looks
// at what it delivers and not at filters: by any that fits, a node gets what it
// could have had by its own.
func (w *walk) subscribe(filter string) bool {
	w.t.Helper()
	a := w.r.node(w.t, "board-a", "")
	defer a.Disconnect(10)
	a.Subscribe(filter, fleet.QoS, nil).WaitTimeout(5 * time.Second)
	w.n++
	word := fmt.Sprint("for a ", w.n)
	if err := w.r.Transport.Publish("board-a", []byte(word)); err != nil {
		w.t.Fatal(err)
	}
	w.settled()
	got := a.all()
	if filter == fleet.Topic("board-a", fleet.DirDown) {
		return slices.Contains(got, word)
	}
	return slices.ContainsFunc(got, func(g string) bool { return g != word })
}
