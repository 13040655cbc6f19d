package fleetlink

import (
	"slices"
	"strconv"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-edge/coracle/controlplane/fleethub"
)

// takeOver raises the epoch, as a hub does that begins elsewhere.
func (c *cluster) takeOver() {
	c.t.Helper()
	secrets := c.client.CoreV1().Secrets(fleethub.Namespace)
	record, err := secrets.Get(ctx, fleethub.RecordName, metav1.GetOptions{})
	if err != nil {
		c.t.Fatal(err)
	}
	record = record.DeepCopy()
	epoch, err := strconv.ParseUint(string(record.Data["epoch"]), 10, 64)
	if err != nil {
		c.t.Fatal(err)
	}
	record.Data["epoch"] = strconv.AppendUint(nil, epoch+1, 10)
	if _, err := secrets.Update(ctx, record, metav1.UpdateOptions{}); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) setReady(node string, status corev1.ConditionStatus) {
	c.t.Helper()
	n := c.node(node).DeepCopy()
	for i := range n.Status.Conditions {
		if n.Status.Conditions[i].Type == corev1.NodeReady {
			n.Status.Conditions[i].Status = status
		}
	}
	if _, err := c.client.CoreV1().Nodes().UpdateStatus(ctx, n, metav1.UpdateOptions{}); err != nil {
		c.t.Fatal(err)
	}
}

func TestAWordThatANodeIsAwayIsContradictedByIt(t *testing.T) {
	each(t, func(t *testing.T, c *cluster) {
		b := c.board("board-a")
		b.register()
		eventually(t, "it is ready", func() bool { return c.readiness("board-a") == corev1.ConditionTrue })
		b.live(t)
		for range 2 {
			c.setReady("board-a", corev1.ConditionUnknown) // a deposed hub's last word
			eventually(t, "it says that it's here", func() bool { return c.readiness("board-a") == corev1.ConditionTrue })
		}
	})
}

func TestDeposedHubGivesNoOrdersAndCallsNobodyAway(t *testing.T) {
	each(t, func(t *testing.T, c *cluster) {
		b := c.board("board-a")
		b.register()
		c.createPod("one", "board-a", nil)
		b.hasPods(t, "one")
		eventually(t, "it is ready", func() bool { return c.readiness("board-a") == corev1.ConditionTrue })
		c.takeOver()
		eventually(t, "the hub knows", func() bool {
			l, _ := c.hub.Liveness("board-a")
			return l.Presence == fleethub.Unsure
		})
		c.createPod("two", "board-a", nil)
		b.says("one", corev1.PodRunning)
		eventually(t, "its reports are still taken", func() bool { return c.pod("one").Status.Phase == corev1.PodRunning })
		b.stop()
		time.Sleep(time.Second) // three times the grace
		if got := c.readiness("board-a"); got != corev1.ConditionTrue {
			t.Errorf("ready is %s by the word of a hub that was deposed", got)
		}
		b.start()
		b.live(t)
		if got := b.pods(); !slices.Equal(got, []string{"one"}) {
			t.Errorf("pods %v", got)
		}
		// The next one does both.
		c.stopHub()
		c.startHub()
		b.hasPods(t, "one", "two")
	})
}

func TestReportsComeAgainWhenEtcdForgotThem(t *testing.T) {
	each(t, func(t *testing.T, c *cluster) {
		b := c.board("board-a")
		b.register()
		c.createPod("one", "board-a", nil)
		c.createPod("two", "board-a", nil)
		b.hasPods(t, "one", "two")
		b.says("one", corev1.PodRunning)
		b.says("two", corev1.PodRunning)
		answered := func() bool {
			for _, r := range b.store.Reports() {
				if !r.Acked {
					return false
				}
			}
			return len(b.store.Reports()) == 3
		}
		eventually(t, "all is answered", answered)
		stamps := func() []string {
			return []string{c.pod("one").Annotations[fleethub.AnnotationReport], c.pod("two").Annotations[fleethub.AnnotationReport], c.node("board-a").Annotations[fleethub.AnnotationReport]}
		}
		before := stamps()
		c.stopHub()
		// etcd is what it was before they were said.
		p := c.pod("one").DeepCopy()
		p.Status.Phase, p.Annotations = corev1.PodPending, nil
		if _, err := c.client.CoreV1().Pods("default").UpdateStatus(ctx, p, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		n := c.node("board-a").DeepCopy()
		n.Annotations = nil
		if _, err := c.client.CoreV1().Nodes().UpdateStatus(ctx, n, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		c.startHub()
		eventuallyIn(t, 20*time.Second, "etcd has them again", func() bool { return slices.Equal(stamps(), before) })
		if c.pod("one").Status.Phase != corev1.PodRunning {
			t.Errorf("status %+v", c.pod("one").Status)
		}
		eventually(t, "all is answered", answered)
	})
}
