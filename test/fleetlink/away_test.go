package fleetlink

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	k8stesting "k8s.io/client-go/testing"

	"github.com/coracle-edge/coracle/edgelet/state"
)

// goAway cuts the board's way to the broker, and waits until the API says that it
// is away. The board itself goes on.
func (b *board) goAway(t *testing.T) {
	t.Helper()
	b.cable.out.Store(true)
	b.cable.pull()
	eventually(t, b.name+" is away", func() bool { return b.c.readiness(b.name) == corev1.ConditionUnknown })
}

// unsaid are the pods' reports that wait for an answer.
func (b *board) unsaid() (uids []string) {
	for _, r := range b.store.Reports() {
		if r.UID != "" && !r.Acked {
			uids = append(uids, r.UID)
		}
	}
	return uids
}

func (c *cluster) deletions(pod string) (n int) {
	for _, a := range c.client.Actions() {
		if d, ok := a.(k8stesting.DeleteAction); ok && d.GetName() == pod && a.Matches("delete", "pods") {
			n++
		}
	}
	return n
}

// A node hears that a pod is to go, and is away before it can say that it has gone:
// the API keeps the pod until it does, also if the agent was started anew meanwhile.
func TestWhatWentWhileAwayIsSaidOnReturn(t *testing.T) {
	each(t, func(t *testing.T, c *cluster) {
		b := c.board("board-a")
		b.register()
		eventually(t, "ready", func() bool { return c.readiness("board-a") == corev1.ConditionTrue })
		c.createPod("one", "board-a", func(p *corev1.Pod) {
			now, grace := metav1.Now(), int64(30)
			p.DeletionTimestamp, p.DeletionGracePeriodSeconds = &now, &grace
			p.Finalizers = []string{"test/hold"} // the fake API keeps it so
		})
		b.hasPods(t, "one")
		b.goAway(t)
		raw, _ := (&corev1.PodStatus{Phase: corev1.PodFailed}).Marshal()
		if err := b.store.PutPodStatus("uid-one", state.PodReport{Namespace: "default", Name: "one", UID: "uid-one", Status: raw, Gone: true}); err != nil {
			t.Fatal(err)
		}
		b.stop()
		if c.deletions("one") > 0 {
			t.Fatal("deleted although its node has said nothing")
		}
		b.cable.out.Store(false)
		b.start()
		eventually(t, "deleted", func() bool { return c.deletions("one") == 1 })
		told := false
		for _, a := range c.client.Actions() {
			if u, ok := a.(k8stesting.UpdateAction); ok && a.Matches("update", "pods/status") {
				told = told || u.GetObject().(*corev1.Pod).Status.Phase == corev1.PodFailed
			}
		}
		if !told {
			t.Error("how it ended was never written")
		}
		eventually(t, "the node forgets it", func() bool { return len(b.unsaid()) == 0 })
	})
}

// A node whose Node was deleted, and with it its pods, is ordered to run none of
// them: at once if it is there, else when it returns. What it says of them frees
// its places in the outbox.
func TestPodsOfADeletedNodeAreOrderedAway(t *testing.T) {
	for name, away := range map[string]bool{"there": false, "away": true} {
		t.Run(name, func(t *testing.T) {
			each(t, func(t *testing.T, c *cluster) {
				b := c.board("board-a")
				b.register()
				c.createPod("one", "board-a", nil)
				c.createPod("two", "board-a", nil)
				b.hasPods(t, "one", "two")
				b.says("one", corev1.PodRunning)
				eventually(t, "it runs, on a node that is ready", func() bool {
					return c.readiness("board-a") == corev1.ConditionTrue && c.pod("one").Status.Phase == corev1.PodRunning
				})
				if away {
					b.goAway(t)
				}
				if err := c.client.CoreV1().Nodes().Delete(ctx, "board-a", metav1.DeleteOptions{}); err != nil {
					t.Fatal(err)
				}
				for _, pod := range []string{"one", "two"} { // as the garbage collection does
					if err := c.client.CoreV1().Pods("default").Delete(ctx, pod, metav1.DeleteOptions{}); err != nil {
						t.Fatal(err)
					}
				}
				if away {
					if len(b.pods()) != 2 {
						t.Fatalf("an away node has %v", b.pods())
					}
					b.cable.out.Store(false)
				}
				eventuallyIn(t, 20*time.Second, "it should run nothing", func() bool { return len(b.pods()) == 0 })
				if err := b.store.PutPodStatus("uid-one", state.PodReport{Namespace: "default", Name: "one", UID: "uid-one", Gone: true}); err != nil {
					t.Fatal(err)
				}
				eventually(t, "what it said is answered", func() bool { return len(b.unsaid()) == 0 })
				if c.pod("one") != nil || c.pod("two") != nil {
					t.Error("a pod was made again")
				}
			})
		})
	}
}
