package fleetlink

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-edge/coracle/controlplane/fleethub"
	"github.com/coracle-edge/coracle/edgelet/state"
)

// restore has the API forget pods and the next hub begin another incarnation.
func (c *cluster) restore(id string, forget ...string) {
	c.t.Helper()
	c.stopHub()
	for _, name := range forget {
		if err := c.client.CoreV1().Pods("default").Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
			c.t.Fatal(err)
		}
	}
	c.restored = &fleethub.Restore{ID: id, Incarnation: strings.Repeat(id, 16), Snapshot: id + ".db", At: time.Unix(1e9, 0)}
	c.startHub()
}

// unknown names what the nodes run and the cluster hasn't, and what it has and
// they haven't.
func (c *cluster) unknown() (unknown, missing []string, there int) {
	for _, u := range c.hub.Standing().Unsettled {
		if u.There {
			there++
		}
		for _, p := range u.Unknown {
			unknown = append(unknown, u.Node+" "+p.Namespace+"/"+p.Name)
		}
		for _, p := range u.Missing {
			missing = append(missing, u.Node+" "+p.Name)
		}
	}
	return unknown, missing, there
}

func (c *cluster) pending(name string) bool {
	n := c.node(name)
	return n != nil && slices.ContainsFunc(n.Status.Conditions, func(cond corev1.NodeCondition) bool { return cond.Type == fleethub.ConditionRestorePending })
}

// isRidOf says that a pod's containers are gone.
func (b *board) isRidOf(name string) {
	b.c.t.Helper()
	if err := b.store.PutPodStatus("uid-"+name, state.PodReport{Namespace: "default", Name: name, UID: "uid-" + name, Gone: true}); err != nil {
		b.c.t.Fatal(err)
	}
}

func TestRestoredClusterListsWhatRunsAndFollowsWhenConfirmed(t *testing.T) {
	each(t, func(t *testing.T, c *cluster) {
		a, b := c.board("board-a"), c.board("board-b")
		for _, x := range []*board{a, b} {
			x.register()
			x.live(t)
		}
		for _, p := range []string{"one", "two"} {
			c.createPod(p, "board-a", nil)
		}
		c.createPod("three", "board-b", nil)
		a.hasPods(t, "one", "two")
		b.hasPods(t, "three")
		a.says("one", corev1.PodRunning)
		a.says("two", corev1.PodRunning)
		b.says("three", corev1.PodRunning)
		eventually(t, "all are reported", func() bool {
			for _, p := range []string{"one", "two", "three"} {
				if pod := c.pod(p); pod == nil || pod.Status.Phase != corev1.PodRunning {
					return false
				}
			}
			return true
		})
		b.stop() // and comes back after all is said
		versions := a.store.Version()

		// What was reported since the snapshot is forgotten, too.
		old := c.pod("one").DeepCopy()
		old.Status, old.Annotations = corev1.PodStatus{Phase: corev1.PodPending}, nil
		c.restore("11", "two", "three")
		if _, err := c.client.CoreV1().Pods("default").Update(ctx, old, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		c.createPod("four", "board-a", nil)
		eventuallyIn(t, 30*time.Second, "what runs is listed by name", func() bool {
			unknown, missing, there := c.unknown()
			return there == 1 && fmt.Sprint(unknown) == "[board-a default/two]" && fmt.Sprint(missing) == "[board-a four]"
		})
		eventually(t, "the Node says so", func() bool { return c.pending("board-a") })
		eventually(t, "what is known is reported again", func() bool { return c.pod("one").Status.Phase == corev1.PodRunning })
		if s := c.hub.Standing(); fmt.Sprint(s.Away) != "[board-b]" || s.Confirmed || s.Restore == nil || s.Restore.Snapshot != "11.db" {
			t.Errorf("%+v", s)
		}
		time.Sleep(300 * time.Millisecond)
		if got := a.pods(); fmt.Sprint(got) != "[one two]" || a.store.Version() != versions {
			t.Errorf("pods %v by %v", got, a.store.Version())
		}

		if err := c.hub.Confirm(ctx); err != nil {
			t.Fatal(err)
		}
		a.hasPods(t, "four", "one")
		a.isRidOf("two")
		eventually(t, "the Node says so no more", func() bool { return !c.pending("board-a") })
		if unknown, missing, _ := c.unknown(); len(unknown)+len(missing) != 0 {
			t.Errorf("unknown %v, missing %v", unknown, missing)
		}
		// The word holds for who comes later, also under the next hub.
		c.stopHub()
		c.startHub()
		b.start()
		b.live(t)
		b.hasPods(t)
		b.isRidOf("three")

		// But not for the next restore.
		a.live(t)
		c.restore("22", "four")
		a.says("four", corev1.PodRunning)
		eventuallyIn(t, 30*time.Second, "what runs is listed again", func() bool {
			unknown, _, there := c.unknown()
			return there == 2 && fmt.Sprint(unknown) == "[board-a default/four]"
		})
		time.Sleep(300 * time.Millisecond)
		a.hasPods(t, "four", "one")
	})
}

func TestHubStartedAnewKeepsWaiting(t *testing.T) {
	each(t, func(t *testing.T, c *cluster) {
		a := c.board("board-a")
		a.register()
		c.createPod("one", "board-a", nil)
		a.hasPods(t, "one")
		a.says("one", corev1.PodRunning)
		c.restore("11", "one")
		for range 2 {
			eventuallyIn(t, 30*time.Second, "it is listed", func() bool { unknown, _, _ := c.unknown(); return len(unknown) == 1 })
			c.stopHub()
			c.startHub()
		}
		eventuallyIn(t, 30*time.Second, "it is listed", func() bool { unknown, _, _ := c.unknown(); return len(unknown) == 1 })
		a.hasPods(t, "one")
		// Settled by adopting this one node with its pod, as it was.
		pod := c.createPod("one", "board-a", nil)
		if err := c.hub.AwaitPods(ctx, "board-a", []string{string(pod.UID)}); err != nil {
			t.Fatal(err)
		}
		// To a hub that was just started the node is away until it has answered.
		eventually(t, "the node is adopted", func() bool { return c.hub.AdoptNode("board-a") == nil })
		c.hub.Repeat("board-a", []string{string(pod.UID)})
		eventually(t, "its report is stored", func() bool { return c.pod("one").Status.Phase == corev1.PodRunning })
		a.hasPods(t, "one")
		if c.hub.Standing().Confirmed {
			t.Error("one node's adoption is no confirmation")
		}
	})
}
