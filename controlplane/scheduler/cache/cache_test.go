package cache

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/coracle-edge/coracle/controlplane/scheduler/framework"
)

func node(name string, images ...string) *v1.Node {
	n := &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	n.Status.Allocatable = v1.ResourceList{v1.ResourceCPU: resource.MustParse("4")}
	for _, i := range images {
		n.Status.Images = append(n.Status.Images, v1.ContainerImage{Names: []string{i}, SizeBytes: 1})
	}
	return n
}

func pod(name, on string) *v1.Pod {
	return &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID(name)},
		Spec: v1.PodSpec{NodeName: on, Containers: []v1.Container{{
			Ports:     []v1.ContainerPort{{HostPort: 80}},
			Resources: v1.ResourceRequirements{Requests: v1.ResourceList{v1.ResourceCPU: resource.MustParse("1")}},
		}}},
	}
}

func used(c *Cache, name string) int64 {
	n := c.Snapshot().Get(name)
	if n == nil {
		return -1
	}
	return n.Requested.MilliCPU
}

func TestAssumeConfirmForget(t *testing.T) {
	c := New(0)
	c.SetNode(node("a"))
	p := framework.NewPod(pod("p", ""))
	if err := c.Assume(p, "a"); err != nil {
		t.Fatal(err)
	}
	if got := used(c, "a"); got != 1000 {
		t.Fatalf("assumed: %d used", got)
	}
	if err := c.Assume(p, "a"); !errors.Is(err, ErrKnown) {
		t.Errorf("assumed twice: %v", err)
	}
	if err := c.Assume(framework.NewPod(pod("q", "")), "gone"); !errors.Is(err, ErrNoNode) {
		t.Errorf("assumed on no node: %v", err)
	}
	if !c.Forget("p") || used(c, "a") != 0 {
		t.Errorf("forgotten: %d used", used(c, "a"))
	}
	if err := c.Assume(p, "a"); err != nil {
		t.Fatal(err)
	}
	c.SetPod(pod("p", "a"))
	if c.Forget("p") || used(c, "a") != 1000 {
		t.Error("a pod seen on its node was forgotten")
	}
	c.RemovePod("p")
	if used(c, "a") != 0 || c.Snapshot().Get("a").PortTaken(v1.ContainerPort{HostPort: 80}) {
		t.Error("a deleted pod still takes room")
	}
}

// The API server may know better than we assumed.
func TestSeenElsewhere(t *testing.T) {
	c := New(0)
	c.SetNode(node("a"))
	c.SetNode(node("b"))
	if err := c.Assume(framework.NewPod(pod("p", "")), "a"); err != nil {
		t.Fatal(err)
	}
	c.SetPod(pod("p", "b"))
	if used(c, "a") != 0 || used(c, "b") != 1000 {
		t.Errorf("a %d, b %d used", used(c, "a"), used(c, "b"))
	}
}

func TestExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New(time.Minute)
		c.SetNode(node("a"))
		for _, name := range []string{"binding", "unseen", "seen"} {
			if err := c.Assume(framework.NewPod(pod(name, "")), "a"); err != nil {
				t.Fatal(err)
			}
		}
		c.Bound("unseen")
		c.Bound("seen")
		c.SetPod(pod("seen", "a"))
		time.Sleep(59 * time.Second)
		if got := used(c, "a"); got != 3000 {
			t.Fatalf("before: %d used", got)
		}
		time.Sleep(time.Second)
		if got := used(c, "a"); got != 2000 || c.Assigned("unseen") || !c.Assigned("binding") {
			t.Errorf("after: %d used", got)
		}
	})
}

// A snapshot stays as it was until the next one.
func TestSnapshotDoesNotChangeUnderneath(t *testing.T) {
	c := New(0)
	c.SetNode(node("a"))
	before := c.Snapshot().Get("a")
	c.SetPod(pod("p", "a"))
	if len(before.Pods) != 0 || before.Requested.MilliCPU != 0 {
		t.Error("changed under a reader")
	}
	if after := c.Snapshot().Get("a"); after == before || len(after.Pods) != 1 {
		t.Error("next snapshot doesn't have the pod")
	}
	if again := c.Snapshot().Get("a"); again != c.Snapshot().Get("a") {
		t.Error("copied though nothing changed")
	}
}

func TestNodesComeAndGo(t *testing.T) {
	c := New(0)
	c.SetPod(pod("early", "a")) // before its node was seen
	if n := len(c.Snapshot().Nodes); n != 0 {
		t.Fatalf("%d nodes", n)
	}
	c.SetNode(node("a", "hello"))
	c.SetNode(node("b", "hello", "bye"))
	cluster := c.Snapshot()
	if len(cluster.Nodes) != 2 || used(c, "a") != 1000 || cluster.ImageNodes("hello") != 2 || cluster.ImageNodes("bye") != 1 {
		t.Fatalf("%d nodes, %d used, hello on %d", len(cluster.Nodes), used(c, "a"), cluster.ImageNodes("hello"))
	}
	c.SetNode(node("b", "bye"))
	c.RemoveNode("a")
	cluster = c.Snapshot()
	if len(cluster.Nodes) != 1 || cluster.Get("a") != nil || cluster.ImageNodes("hello") != 0 {
		t.Errorf("after removal: %d nodes, hello on %d", len(cluster.Nodes), cluster.ImageNodes("hello"))
	}
	c.SetNode(node("a"))
	if used(c, "a") != 1000 {
		t.Error("the pods of a node that came back are lost")
	}
	c.RemoveNode("a")
	c.RemovePod("early")
	if s := c.Stats(); s != (Stats{Nodes: 1}) || len(c.nodes) != 1 {
		t.Errorf("left behind: %+v, %d entries", s, len(c.nodes))
	}
}
