package fleetlink

import (
	"net"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/controlplane/fleethub"
)

func TestNodesLearnWhereTheControlPlanesAre(t *testing.T) {
	each(t, func(t *testing.T, c *cluster) {
		b := c.board("board-a")
		b.live(t)
		if n := b.lessons.Load(); n != 0 {
			t.Errorf("told %d times of addresses that nobody published", n)
		}
		both := &fleet.Addresses{Mqtt: []string{"mqtts://" + c.addr, "mqtts://127.0.0.1:1"}, Fleet: []string{"https://a:1", "https://b:1"}, Api: []string{"https://a:2"}}
		c.addresses.Store(both)
		c.hub.Greet()
		eventually(t, "it learned of both", func() bool { return proto.Equal(b.learned.Load(), both) })
		// It is asked again if it couldn't obey at once; what it knows isn't said again.
		more := proto.CloneOf(both)
		more.Api = append(more.Api, "https://b:2")
		c.addresses.Store(more)
		c.hub.Greet()
		eventuallyIn(t, 30*time.Second, "it learned of one more", func() bool { return proto.Equal(b.learned.Load(), more) })
		c.hub.Greet()
		b.cable.pull()
		session := b.link.Status().Session
		eventuallyIn(t, 20*time.Second, "another connection", func() bool { return b.link.Status().Session.After(session) && b.link.Status().Live })
		if n := b.lessons.Load(); n != 2 {
			t.Errorf("told %d times", n)
		}
		c.createPod("one", "board-a", nil)
		b.hasPods(t, "one")
		// The hub that takes over says its own first.
		c.stopHub()
		c.addresses.Store(&fleet.Addresses{Mqtt: []string{"mqtts://" + c.addr}, Fleet: []string{"https://b:1", "https://a:1"}, Api: []string{"https://a:2"}})
		c.startHub()
		eventuallyIn(t, 20*time.Second, "it learned the new order", func() bool { return slices.Equal(b.learned.Load().GetFleet(), []string{"https://b:1", "https://a:1"}) })
	})
}

// Of several addresses one takes nodes: it is found within moments, whatever the
// others do.
func TestAnotherBrokerIsAskedAtOnce(t *testing.T) {
	refusing, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = refusing.Close() })
	go func() { // a control plane off duty
		for {
			conn, err := refusing.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
	each(t, func(t *testing.T, c *cluster) {
		b := c.board("board-a")
		b.live(t)
		b.stop()
		b.first = []string{"mqtts://127.0.0.1:1", "mqtts://" + refusing.Addr().String(), "mqtts://127.0.0.1:2", "mqtts://" + c.addr}
		began := time.Now()
		b.start()
		b.live(t)
		if took := time.Since(began); took > 3*time.Second {
			t.Errorf("found after %v", took)
		}
		c.createPod("one", "board-a", nil)
		b.hasPods(t, "one")
		b.says("one", corev1.PodRunning)
		eventually(t, "reported", func() bool { return c.pod("one").Status.Phase == corev1.PodRunning })
		if l, _ := c.hub.Liveness("board-a"); l.Presence != fleethub.Present {
			t.Errorf("%v", l)
		}
	})
}
