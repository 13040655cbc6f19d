package fleetlink

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/controlplane/fleethub"
)

// quickClasses have the built-in ones' shape in a time that a test can wait for.
func quickClasses(c *fleethub.Config) {
	c.Keepalive, c.WillGrace, c.ReconnectJitter = 0, 0, 0
	c.Classes = fleet.DefaultClasses()
	for _, text := range []string{
		"lan:keepalive=10s,jitter=50ms,grace=300ms,answer=3ms",
		"satellite:keepalive=40s,jitter=200ms,grace=5s,retry=2s,gather=400ms,answer=300ms",
	} {
		if err := c.Classes.Set(text); err != nil {
			panic(err)
		}
	}
}

func (c *cluster) patchNode(name, patch string) {
	c.t.Helper()
	if _, err := c.client.CoreV1().Nodes().Patch(ctx, name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		c.t.Fatal(err)
	}
}

func (b *board) linkIs(t *testing.T, class string, keepalive time.Duration) {
	t.Helper()
	eventuallyIn(t, 30*time.Second, fmt.Sprintf("%s is live in class %s with keepalive %s", b.name, class, keepalive), func() bool {
		s := b.link.Status()
		return s.Live && s.Class == class && s.Keepalive == keepalive
	})
}

// TestALabelChangesARunningLink: the class follows the Node's label while the
// node runs, without its pods or its presence being touched.
func TestALabelChangesARunningLink(t *testing.T) {
	t.Parallel()
	for _, kind := range kinds {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel() // it waits most of the time
			c := newClusterWith(t, kind, quickClasses)
			b := c.board("board-a")
			c.createPod("one", "board-a", nil)
			b.hasPods(t, "one")
			b.register()
			b.linkIs(t, "lan", 10*time.Second)
			eventually(t, "ready", func() bool { return c.readiness("board-a") == corev1.ConditionTrue })
			if label, ok := c.node("board-a").Labels[fleet.LabelLinkClass]; ok {
				t.Errorf("a node that says no class got the label %q", label)
			}
			drain(b)
			version := b.store.Version()
			nodes, err := c.client.CoreV1().Nodes().Watch(ctx, metav1.ListOptions{})
			if err != nil {
				t.Fatal(err)
			}
			defer nodes.Stop()

			c.patchNode("board-a", `{"metadata":{"labels":{"`+fleet.LabelLinkClass+`":"satellite"}}}`)
			b.linkIs(t, "satellite", 40*time.Second)
			c.patchNode("board-a", `{"metadata":{"annotations":{"`+fleet.AnnotationDataBudget+`":"5Mi"}}}`)
			eventuallyIn(t, 30*time.Second, "the node knows its budget", func() bool { return b.store.Setting("link.budget") == fmt.Sprint(5<<20) })
			// What means nothing changes nothing.
			c.patchNode("board-a", `{"metadata":{"labels":{"`+fleet.LabelLinkClass+`":"pigeon"}}}`)
			b.linkIs(t, "lan", 10*time.Second)
			c.patchNode("board-a", `{"metadata":{"labels":{"`+fleet.LabelLinkClass+`":null},"annotations":{"`+fleet.AnnotationDataBudget+`":null}}}`)
			eventuallyIn(t, 30*time.Second, "the budget is gone", func() bool { return b.store.Setting("link.budget") == "" })

			if l, _ := c.hub.Liveness("board-a"); l.Presence != fleethub.Present {
				t.Errorf("the node is %s", l.Presence)
			}
			for more := true; more; {
				select {
				case e := <-nodes.ResultChan():
					if n, ok := e.Object.(*corev1.Node); ok && e.Type == watch.Modified {
						for _, cond := range n.Status.Conditions {
							if cond.Type == corev1.NodeReady && cond.Status != corev1.ConditionTrue {
								t.Errorf("the node was %s on the way", cond.Status)
							}
						}
					}
				default:
					more = false
				}
			}
			select {
			case <-b.store.Changed():
				t.Error("the pods were told of a change")
			default:
			}
			if v := b.store.Version(); v != version {
				t.Errorf("order %v, before %v", v, version)
			}
		})
	}
}

// TestANodeRegistersWithItsClass, and the label is the administrator's from then on.
func TestANodeRegistersWithItsClass(t *testing.T) {
	c := newClusterWith(t, embedded, quickClasses)
	b := c.board("board-a")
	b.stop()
	b.class = "satellite"
	b.start()
	b.register()
	eventually(t, "labelled", func() bool { n := c.node("board-a"); return n != nil && n.Labels[fleet.LabelLinkClass] == "satellite" })
	b.linkIs(t, "satellite", 40*time.Second)
	c.patchNode("board-a", `{"metadata":{"labels":{"`+fleet.LabelLinkClass+`":"lan"}}}`)
	b.linkIs(t, "lan", 10*time.Second)
	b.stop()
	b.start() // says satellite again
	b.linkIs(t, "lan", 10*time.Second)
	if label := c.node("board-a").Labels[fleet.LabelLinkClass]; label != "lan" {
		t.Errorf("label %q", label)
	}
}

// TestSlowLinksGather: what a satellite's node says in quick succession goes in
// one message, and so do the answers.
func TestSlowLinksGather(t *testing.T) {
	c := newClusterWith(t, embedded, quickClasses)
	b := c.board("board-a")
	for _, name := range []string{"one", "two"} {
		c.createPod(name, "board-a", nil)
	}
	b.hasPods(t, "one", "two")
	b.register()
	acked := func() bool {
		for _, r := range b.store.Reports() {
			if !r.Acked {
				return false
			}
		}
		return true
	}
	count := func() (ups, downs int) {
		c.tap.mu.Lock()
		defer c.tap.mu.Unlock()
		return len(c.tap.up), len(c.tap.down)
	}
	burst := func(phase corev1.PodPhase) (ups, downs int) {
		eventually(t, "all is answered", acked)
		u, d := count()
		b.says("one", phase)
		eventually(t, "the first is on its way, or waits", func() bool { return !acked() })
		time.Sleep(60 * time.Millisecond) // more than a lan's gathering, less than a satellite's
		b.says("two", phase)
		eventually(t, "both are answered", acked)
		u2, d2 := count()
		return u2 - u, d2 - d
	}
	b.linkIs(t, "lan", 10*time.Second)
	if ups, downs := burst(corev1.PodRunning); ups != 2 || downs != 2 {
		t.Errorf("lan: %d reports, %d answers for two pods", ups, downs)
	}
	c.patchNode("board-a", `{"metadata":{"labels":{"`+fleet.LabelLinkClass+`":"satellite"}}}`)
	b.linkIs(t, "satellite", 40*time.Second)
	time.Sleep(500 * time.Millisecond) // what greets a new connection
	if ups, downs := burst(corev1.PodFailed); ups != 1 || downs != 1 {
		t.Errorf("satellite: %d reports, %d answers for two pods", ups, downs)
	}
}
