package fleetlink

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/controlplane/api/trace"
	"github.com/coracle-edge/coracle/controlplane/fleethub"
	"github.com/coracle-edge/coracle/edgelet/state"
)

func TestOrderIsDeliveredAndStatusWritten(t *testing.T) {
	each(t, func(t *testing.T, c *cluster) {
		b := c.board("board-a")
		b.live(t)
		_, err := c.client.CoreV1().ConfigMaps("default").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "conf", Namespace: "default", UID: "uid-conf"}, Data: map[string]string{"a": "b"}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		const password = "tr0ub4dor&3"
		_, err = c.client.CoreV1().Secrets("default").Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "pull", Namespace: "default", UID: "uid-pull"}, Data: map[string][]byte{"p": []byte(password)}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.client.CoreV1().Secrets("default").Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "other", Namespace: "default", UID: "uid-other"}}, metav1.CreateOptions{})
		began := time.Now()
		c.createPod("hello", "board-a", func(p *corev1.Pod) {
			p.Spec.ImagePullSecrets = []corev1.LocalObjectReference{{Name: "pull"}}
			p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "conf"}}}}}
		})
		c.createPod("elsewhere", "board-b", nil)
		b.hasPods(t, "hello")
		t.Logf("create -> on the node's disk: %s", time.Since(began))
		eventually(t, "what it refers to is there", func() bool {
			secret, ok, err := b.store.Get(state.KindSecret, "default", "pull")
			return err == nil && ok && bytes.Contains(secret.Raw, []byte(password))
		})
		if _, ok, _ := b.store.Get(state.KindSecret, "default", "other"); ok {
			t.Error("a secret that no pod refers to reached the node")
		}
		c.tap.mu.Lock()
		for _, m := range c.tap.down {
			if bytes.Contains(m, []byte(password)) {
				t.Error("the broker saw the secret")
			}
		}
		c.tap.mu.Unlock()
		obj, ok, err := b.store.Get(state.KindPod, "default", "hello")
		if err != nil || !ok || !bytes.HasPrefix(obj.Raw, []byte("k8s\x00")) {
			t.Fatalf("pod on the node: %v %v", ok, err)
		}

		b.says("hello", corev1.PodRunning)
		began = time.Now()
		eventually(t, "status is in the API", func() bool {
			p := c.pod("hello")
			return p.Status.Phase == corev1.PodRunning && p.Status.PodIP == "10.1.2.3"
		})
		t.Logf("status said -> in the API: %s", time.Since(began))
		if _, err := fleet.ParseStamp(c.pod("hello").Annotations[fleethub.AnnotationReport]); err != nil {
			t.Error(err)
		}
		eventually(t, "the report is acknowledged", func() bool { r := b.store.Reports(); return len(r) == 1 && r[0].Acked })
		var steps []trace.Step
		eventually(t, "trace is complete", func() bool {
			steps = nil
			for _, e := range c.trace.Events("uid-hello") {
				steps = append(steps, e.Step)
			}
			return len(steps) == 6
		})
		want := []trace.Step{trace.Ordered, trace.NodeStored, trace.NodeAcked, trace.StatusQueued, trace.StatusReceived, trace.Observed}
		if !slices.Equal(steps, want) {
			t.Errorf("trace = %v, want %v", steps, want)
		}
		events := c.trace.Events("uid-hello")
		for i := 1; i < len(events); i++ {
			if events[i].Time.Before(events[i-1].Time) {
				t.Errorf("%s before %s", events[i].Step, events[i-1].Step)
			}
		}
		// A change of what it refers to is an order of its own; its status is not.
		v := b.store.Version()
		time.Sleep(100 * time.Millisecond)
		if now := b.store.Version(); now != v {
			t.Errorf("the pod's own status caused order %v after %v", now, v)
		}
		if _, err := c.client.CoreV1().ConfigMaps("default").Update(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "conf", Namespace: "default", UID: "uid-conf"}, Data: map[string]string{"a": "changed"}}, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the changed ConfigMap", func() bool {
			o, _, _ := b.store.Get(state.KindConfigMap, "default", "conf")
			return bytes.Contains(o.Raw, []byte("changed"))
		})
	})
}

func TestReconnectWithoutChangesCostsLittle(t *testing.T) {
	c := newCluster(t, embedded)
	b := c.board("board-a")
	var names []string
	for i := range 20 {
		names = append(names, fmt.Sprintf("pod-%02d", i))
		c.createPod(names[i], "board-a", nil)
	}
	b.hasPods(t, names...)
	b.register()
	for _, n := range names {
		b.says(n, corev1.PodRunning)
	}
	all := func() bool {
		for _, r := range b.store.Reports() {
			if !r.Acked {
				return false
			}
		}
		return true
	}
	eventually(t, "all is acknowledged", all)
	_ = b.store.Sync()
	time.Sleep(50 * time.Millisecond)
	before, version := b.store.Written(), b.store.Version()
	counted := b.link.Counters().Socket.Bytes()
	// Break the connection from outside.
	was := b.link.Status().Session
	c.tap.Transport.(interface{ Disconnect(string) }).Disconnect("board-a")
	eventually(t, "it is back on another connection", func() bool {
		now := b.link.Status()
		return now.Live && !now.Session.SameConn(was)
	})
	time.Sleep(200 * time.Millisecond)
	socket := b.link.Counters().Socket.Bytes()
	cost := socket.Total() - counted.Total()
	t.Logf("a reconnect of a node with 20 pods: %d bytes sent, %d received", socket.Sent-counted.Sent, socket.Received-counted.Received)
	if !b.link.Status().Resumed {
		t.Error("the TLS session was not resumed")
	}
	if cost > 4000 {
		t.Errorf("a reconnect without changes cost %d bytes", cost)
	}
	if v := b.store.Version(); v != version {
		t.Errorf("order %v after a reconnect without changes, before %v", v, version)
	}
	if w := b.store.Written(); w != before {
		t.Errorf("a reconnect without changes wrote to flash: %+v, before %+v", w, before)
	}
	if !all() {
		t.Error("reports are sent again")
	}
}

func TestHubRestartRemovesNothing(t *testing.T) {
	each(t, func(t *testing.T, c *cluster) {
		b := c.board("board-a")
		c.createPod("one", "board-a", nil)
		c.createPod("two", "board-a", nil)
		b.hasPods(t, "one", "two")
		before := b.store.Version()
		drain(b)

		c.stopHub()
		c.createPod("three", "board-a", nil)
		b.says("one", corev1.PodRunning) // said while there is no hub
		c.startHub()
		b.hasPods(t, "one", "three", "two")
		after := b.store.Version()
		if after.Epoch != before.Epoch+1 || after.Incarnation != before.Incarnation {
			t.Errorf("version %+v after %+v", after, before)
		}
		eventually(t, "what was said meanwhile arrives", func() bool { return c.pod("one").Status.Phase == corev1.PodRunning })

		// A node restart meets the same.
		b.stop()
		b.start()
		b.hasPods(t, "one", "three", "two")
		b.live(t)
		if r := b.store.Version(); r.Epoch != after.Epoch {
			t.Errorf("version %v", r)
		}
	})
}

func drain(b *board) {
	select {
	case <-b.store.Changed():
	default:
	}
}

func TestBrokerKilledAndBack(t *testing.T) {
	each(t, func(t *testing.T, c *cluster) {
		b := c.board("board-a")
		b.register()
		c.createPod("one", "board-a", nil)
		b.hasPods(t, "one")
		eventually(t, "ready", func() bool { return c.readiness("board-a") == corev1.ConditionTrue })
		c.broker.Kill()
		c.createPod("two", "board-a", nil)
		b.says("one", corev1.PodRunning)
		time.Sleep(time.Second) // longer than the grace after a will
		if r := c.readiness("board-a"); r != corev1.ConditionTrue {
			t.Errorf("the broker's death made the node %q", r)
		}
		c.broker.Start()
		eventuallyIn(t, 30*time.Second, "the order arrives", func() bool { return len(b.pods()) == 2 })
		eventuallyIn(t, 30*time.Second, "the report arrives", func() bool { return c.pod("one").Status.Phase == corev1.PodRunning })
		if r := c.readiness("board-a"); r != corev1.ConditionTrue {
			t.Errorf("the node is %q", r)
		}
	}, external...)
}

func TestNodeGoesAndComesBack(t *testing.T) {
	each(t, func(t *testing.T, c *cluster) {
		b := c.board("board-a")
		b.register()
		eventually(t, "registered and ready", func() bool { return c.readiness("board-a") == corev1.ConditionTrue })
		n := c.node("board-a")
		if n.Labels["coracle.dev/board"] != "test" {
			t.Errorf("labels %v", n.Labels)
		}
		began := time.Now()
		b.stop()
		eventually(t, "away", func() bool { return c.readiness("board-a") == corev1.ConditionUnknown })
		t.Logf("noticed after %s", time.Since(began))
		n = c.node("board-a")
		for _, cond := range n.Status.Conditions {
			if cond.Reason != "NodeStatusUnknown" || !strings.HasPrefix(cond.Message, "Kubelet stopped posting node status.") {
				t.Errorf("condition %s: %s %q", cond.Type, cond.Reason, cond.Message)
			}
		}
		if l, ok := c.hub.Liveness("board-a"); !ok || l.Presence != fleethub.Away {
			t.Errorf("liveness %v %v", l, ok)
		}
		if err := c.hub.RequestTunnel(ctx, "board-a", "1", "x"); !errors.Is(err, fleethub.ErrAway) {
			t.Errorf("tunnel to a node that is away: %v", err)
		}
		b.start()
		eventually(t, "ready again", func() bool { return c.readiness("board-a") == corev1.ConditionTrue })
		if err := c.hub.RequestTunnel(ctx, "board-a", "id1", "10250"); err != nil {
			t.Fatal(err)
		}
		select {
		case r := <-b.tunnels:
			if r.GetId() != "id1" || r.GetPurpose() != "10250" {
				t.Errorf("request %v", r)
			}
		case <-time.After(5 * time.Second):
			t.Error("no tunnel request")
		}
	})
}

func TestNoNodeIsAwayBecauseTheHubRestarts(t *testing.T) {
	each(t, func(t *testing.T, c *cluster) {
		b := c.board("board-a")
		b.register()
		eventually(t, "ready", func() bool { return c.readiness("board-a") == corev1.ConditionTrue })
		c.stopHub()
		b.stop() // it is truly away now, but the next hub can't know
		c.startHub()
		eventually(t, "the hub lives", func() bool { return c.hub.Live() })
		time.Sleep(time.Second)
		if r := c.readiness("board-a"); r != corev1.ConditionTrue {
			t.Errorf("called away %s after one second", r)
		}
		if l, _ := c.hub.Liveness("board-a"); l.Presence != fleethub.Unsure {
			t.Errorf("presence %v", l.Presence)
		}
	})
}

func TestBrokenConnection(t *testing.T) {
	each(t, func(t *testing.T, c *cluster) {
		b := c.board("board-a")
		b.register()
		eventually(t, "ready", func() bool { return c.readiness("board-a") == corev1.ConditionTrue })
		// It is back before the grace ends, and the will of the first connection
		// comes when the second one stands: nothing happens.
		conn := b.link.Status().Session.Conn
		b.cable.pull()
		eventually(t, "it is back", func() bool { st := b.link.Status(); return st.Live && st.Session.Conn > conn })
		time.Sleep(600 * time.Millisecond)
		if n := c.node("board-a"); c.readiness("board-a") != corev1.ConditionTrue || len(n.Status.Conditions) != 2 {
			t.Errorf("a short cut made the node %q", c.readiness("board-a"))
		}
		// It can't come back.
		b.cable.out.Store(true)
		began := time.Now()
		b.cable.pull()
		eventually(t, "away", func() bool { return c.readiness("board-a") == corev1.ConditionUnknown })
		if d := time.Since(began); d > time.Second {
			t.Errorf("seen after %s", d)
		}
		b.cable.out.Store(false)
		eventually(t, "ready again", func() bool { return c.readiness("board-a") == corev1.ConditionTrue })
	})
}

func TestPodIsDeletedWhenTheNodeIsRidOfIt(t *testing.T) {
	each(t, func(t *testing.T, c *cluster) {
		b := c.board("board-a")
		c.createPod("one", "board-a", func(p *corev1.Pod) {
			now := metav1.Now()
			grace := int64(30)
			p.DeletionTimestamp, p.DeletionGracePeriodSeconds = &now, &grace
			p.Finalizers = []string{"test/hold"} // the fake API keeps it so
		})
		b.hasPods(t, "one")
		if c.pod("one") == nil {
			t.Fatal("deleted before the node said so")
		}
		status := corev1.PodStatus{Phase: corev1.PodFailed}
		raw, _ := status.Marshal()
		if err := b.store.PutPodStatus("uid-one", state.PodReport{Namespace: "default", Name: "one", UID: "uid-one", Status: raw, Gone: true}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "deleted with grace 0", func() bool {
			for _, a := range c.client.Actions() {
				if a.Matches("delete", "pods") {
					return true
				}
			}
			return false
		})
		eventually(t, "the node forgets it", func() bool { return len(b.store.Reports()) == 0 })
	})
}

func TestGoneOfAPodThatIsToRunDeletesNothing(t *testing.T) {
	each(t, func(t *testing.T, c *cluster) {
		b := c.board("board-a")
		c.createPod("one", "board-a", nil)
		b.hasPods(t, "one")
		_ = b.store.PutPodStatus("uid-one", state.PodReport{Namespace: "default", Name: "one", UID: "uid-one", Gone: true})
		eventually(t, "answered", func() bool { return len(b.store.Reports()) == 0 })
		if c.pod("one") == nil {
			t.Error("the pod was deleted")
		}
	})
}

func TestReportOfAReplacedPodIsObsolete(t *testing.T) {
	each(t, func(t *testing.T, c *cluster) {
		b := c.board("board-a")
		b.live(t)
		c.createPod("one", "board-a", func(p *corev1.Pod) { p.UID = "another" })
		b.hasPods(t, "one")
		b.says("one", corev1.PodRunning) // of uid-one
		eventually(t, "answered", func() bool { r := b.store.Reports(); return len(r) == 1 && r[0].Acked })
		if p := c.pod("one"); p.Status.Phase == corev1.PodRunning {
			t.Error("the status of a pod went to its successor")
		}
	})
}

func TestOlderReportNeverOverwritesNewer(t *testing.T) {
	each(t, func(t *testing.T, c *cluster) {
		b := c.board("board-a")
		b.live(t)
		stamp := fleet.StampID{Store: b.store.ID(), Boot: 99, Seq: 1}
		c.createPod("one", "board-a", func(p *corev1.Pod) {
			p.Annotations = map[string]string{fleethub.AnnotationReport: stamp.String()}
			p.Status.Phase = corev1.PodRunning
		})
		b.hasPods(t, "one")
		b.says("one", corev1.PodPending) // of boot 1
		eventually(t, "answered", func() bool { r := b.store.Reports(); return len(r) == 1 && r[0].Acked })
		if p := c.pod("one"); p.Status.Phase != corev1.PodRunning {
			t.Errorf("phase %s", p.Status.Phase)
		}
	})
}

func TestMirrorPodIsMadeAndMadeAgain(t *testing.T) {
	each(t, func(t *testing.T, c *cluster) {
		b := c.board("board-a")
		b.register()
		static := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "dns-board-a", Namespace: "default"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}}
		manifest, _ := static.Marshal()
		status := corev1.PodStatus{Phase: corev1.PodRunning}
		raw, _ := status.Marshal()
		if err := b.store.PutPodStatus("hash1", state.PodReport{Namespace: "default", Name: "dns-board-a", Status: raw, Mirror: manifest}); err != nil {
			t.Fatal(err)
		}
		there := func() bool { p := c.pod("dns-board-a"); return p != nil && p.Status.Phase == corev1.PodRunning }
		eventually(t, "mirror with status", there)
		p := c.pod("dns-board-a")
		if p.Annotations["kubernetes.io/config.mirror"] != "hash1" || p.Spec.NodeName != "board-a" || len(p.OwnerReferences) != 1 || p.OwnerReferences[0].Kind != "Node" {
			t.Errorf("mirror %+v", p.ObjectMeta)
		}
		if len(b.pods()) != 0 {
			t.Errorf("the mirror was ordered: %v", b.pods())
		}
		if err := c.client.CoreV1().Pods("default").Delete(ctx, "dns-board-a", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "made again", there)
		_ = b.store.PutPodStatus("hash1", state.PodReport{Namespace: "default", Name: "dns-board-a", Mirror: manifest, Gone: true})
		eventually(t, "gone with the file", func() bool { return c.pod("dns-board-a") == nil })
	})
}

func TestJournalBecomesEventsWithinBounds(t *testing.T) {
	each(t, func(t *testing.T, c *cluster) {
		b := c.board("board-a")
		for i := range 400 {
			_ = b.store.Journal(state.Entry{Kind: state.EntryEvent, ObjectKind: "Pod", Namespace: "default", Name: "one", UID: "u", Type: "Normal", Reason: "Test", Message: fmt.Sprint(i)})
		}
		eventually(t, "all is acknowledged", func() bool { return !b.store.HasJournal() })
		events, err := c.client.CoreV1().Events("default").List(ctx, metav1.ListOptions{})
		if err != nil || len(events.Items) < 100 || len(events.Items) > 250 {
			t.Errorf("%d events, %v", len(events.Items), err)
		}
		if tail, err := b.store.JournalTail(1000); err != nil || len(tail) != 400 {
			t.Errorf("%d entries stay on the node, %v", len(tail), err)
		}
	})
}

func TestLargeObjectIsFetchedAcrossCuts(t *testing.T) {
	each(t, func(t *testing.T, c *cluster) {
		var conns atomic.Int32
		c.cut = func(conn net.Conn) net.Conn {
			conns.Add(1)
			return &shortConn{Conn: conn, left: 150 << 10}
		}
		c.serveObjects()
		b := c.board("board-a")
		b.live(t)
		big := strings.Repeat("0123456789abcdef", 64<<10) // 1 MiB
		_, err := c.client.CoreV1().ConfigMaps("default").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "big", Namespace: "default", UID: "uid-big"}, Data: map[string]string{"a": big}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.client.CoreV1().Secrets("default").Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "bigsecret", Namespace: "default", UID: "uid-bigsecret"}, Data: map[string][]byte{"a": []byte(big[:300<<10])}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		c.createPod("one", "board-a", func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{
				{Name: "v", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "big"}}}},
				{Name: "w", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "bigsecret"}}},
			}
		})
		eventuallyIn(t, 30*time.Second, "the ConfigMap", func() bool {
			o, ok, err := b.store.Get(state.KindConfigMap, "default", "big")
			return err == nil && ok && len(o.Raw) > 1<<20
		})
		eventuallyIn(t, 30*time.Second, "the Secret", func() bool {
			o, ok, err := b.store.Get(state.KindSecret, "default", "bigsecret")
			return err == nil && ok && bytes.Contains(o.Raw, []byte(big[:300<<10]))
		})
		b.hasPods(t, "one")
		if n := conns.Load(); n < 5 {
			t.Errorf("only %d connections: nothing was cut", n)
		}
	})
}

// shortConn breaks after so many bytes.
type shortConn struct {
	net.Conn
	left int
}

func (s *shortConn) Write(p []byte) (int, error) {
	if s.left -= len(p); s.left < 0 {
		_ = s.Conn.Close()
		return 0, net.ErrClosed
	}
	return s.Conn.Write(p)
}

func TestForgedAndReplayedMessagesChangeNothing(t *testing.T) {
	each(t, func(t *testing.T, c *cluster) {
		b := c.board("board-a")
		c.createPod("one", "board-a", nil)
		b.hasPods(t, "one")
		b.says("one", corev1.PodRunning)
		eventually(t, "running", func() bool { return c.pod("one").Status.Phase == corev1.PodRunning })
		c.tap.mu.Lock()
		down, up := slices.Clone(c.tap.down), slices.Clone(c.tap.up)
		c.tap.mu.Unlock()
		with := b.store.Version()
		if err := c.client.CoreV1().Pods("default").Delete(ctx, "one", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		b.hasPods(t)
		eventually(t, "the order is carried out", func() bool { return b.store.Version() != with })
		version, written := b.store.Version(), b.store.Written()
		refused := b.link.Counters().RefusedCount()

		for _, m := range down { // the order that brought the pod among them
			_ = c.tap.Transport.Publish("board-a", m)
		}
		_, forger, _ := ed25519.GenerateKey(rand.Reader)
		set, _ := b.store.Set()
		digest := set.Digest()
		forged := version
		forged.Counter += 10
		codec := fleet.NewCodec()
		session := b.link.Status().Session
		for _, key := range []ed25519.PrivateKey{forger, b.key} {
			m, err := codec.Encode(fleet.DirDown, "board-a", key, &fleet.Down{Session: session.Proto(), Seq: 1000, Order: &fleet.Order{Version: forged.Proto(), List: true, Synced: true, Digest: digest[:]}}, nil)
			if err != nil {
				t.Fatal(err)
			}
			_ = c.tap.Transport.Publish("board-a", m)
		}
		// Signed by the hub, but for another node.
		m, _ := codec.Encode(fleet.DirDown, "board-b", c.hubKey, &fleet.Down{Session: session.Proto(), Seq: 1000, Order: &fleet.Order{Version: forged.Proto(), List: true, Synced: true}}, nil)
		_ = c.tap.Transport.Publish("board-a", m)
		eventually(t, "all are refused", func() bool { return b.link.Counters().RefusedCount() >= refused+int64(len(down)) })
		if v := b.store.Version(); v != version || len(b.pods()) != 0 {
			t.Errorf("version %v, pods %v; before %v", v, b.pods(), version)
		}
		_ = written

		// To the hub: all that the node ever said, and forgeries in its name.
		before := c.hub.Counters().RefusedCount()
		for _, m := range up {
			c.tap.into("board-a", fleet.DirUp, m)
			time.Sleep(time.Millisecond)
		}
		for _, key := range []ed25519.PrivateKey{forger, c.hubKey} {
			m, _ := codec.Encode(fleet.DirUp, "board-a", key, &fleet.Up{Session: session.Proto(), Seq: 1 << 40, Report: &fleet.Report{Pods: []*fleet.PodReport{{Uid: "uid-one", Stamp: &fleet.Stamp{Boot: 100}, Gone: true}}}}, nil)
			c.tap.into("board-a", fleet.DirUp, m)
		}
		eventually(t, "the hub refuses them", func() bool { return c.hub.Counters().RefusedCount() >= before+int64(len(up))+2 })
		if l, _ := c.hub.Liveness("board-a"); l.Presence != fleethub.Present {
			t.Errorf("presence %v", l.Presence)
		}
		// And the session goes on.
		c.createPod("two", "board-a", nil)
		b.hasPods(t, "two")
	})
}

func TestAnotherIncarnationGetsNothingDoneUntilAdopted(t *testing.T) {
	each(t, func(t *testing.T, c *cluster) {
		b := c.board("board-a")
		c.createPod("one", "board-a", nil)
		b.hasPods(t, "one")
		version := b.store.Version()
		c.stopHub()
		// A new cluster in its place, with the same keys: its etcd knows no pods.
		if err := c.client.CoreV1().Secrets(fleethub.Namespace).Delete(ctx, fleethub.RecordName, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := c.client.CoreV1().Pods("default").Delete(ctx, "one", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		c.startHub()
		eventually(t, "the hub sees it", func() bool { return slices.Equal(c.hub.ForeignNodes(), []string{"board-a"}) })
		c.createPod("two", "board-a", nil)
		time.Sleep(500 * time.Millisecond)
		if got := b.pods(); !slices.Equal(got, []string{"one"}) || b.store.Version() != version {
			t.Fatalf("pods %v by %v", got, b.store.Version())
		}
		// What it runs is still reported, and answered.
		b.says("one", corev1.PodRunning)
		eventually(t, "answered", func() bool { r := b.store.Reports(); return len(r) == 1 && r[0].Acked })
		if err := c.hub.AdoptNode("board-a"); err != nil {
			t.Fatal(err)
		}
		b.hasPods(t, "two")
	})
}

func TestRestoredSnapshotTakesNothingAway(t *testing.T) {
	// The hub that starts after the restore is in an epoch that was (2), or before
	// the last one that was (3): neither may be obeyed.
	for _, hubs := range []int{2, 3} {
		t.Run(fmt.Sprint(hubs, " hubs before"), func(t *testing.T) {
			each(t, func(t *testing.T, c *cluster) { testRestore(t, c, hubs) })
		})
	}
}

func testRestore(t *testing.T, c *cluster, hubs int) {
	b := c.board("board-a")
	b.live(t)
	record, err := c.client.CoreV1().Secrets(fleethub.Namespace).Get(ctx, fleethub.RecordName, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	snapshot := record.DeepCopy() // of epoch 1
	c.createPod("one", "board-a", nil)
	b.hasPods(t, "one")
	for range hubs - 1 {
		c.stopHub()
		c.startHub()
		eventually(t, "the node follows", func() bool { l, _ := c.hub.Liveness("board-a"); return l.Presence == fleethub.Present })
	}
	c.createPod("two", "board-a", nil)
	b.hasPods(t, "one", "two")
	c.stopHub()
	// etcd goes back to a time before both pods.
	if _, err := c.client.CoreV1().Secrets(fleethub.Namespace).Update(ctx, snapshot, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"one", "two"} {
		_ = c.client.CoreV1().Pods("default").Delete(ctx, p, metav1.DeleteOptions{})
	}
	c.startHub()
	asked := 0
	eventuallyIn(t, 30*time.Second, "the hub sees it", func() bool {
		// With a broker of its own the node's session outlived its hub: a hub of an
		// earlier epoch is heard after five minutes of asking (rule 5).
		if n := c.tap.asked(); c.broker != nil && n > asked {
			asked = n
			time.Sleep(100 * time.Millisecond) // the question has arrived
			b.later(5 * time.Minute)
		}
		return slices.Equal(c.hub.ForeignNodes(), []string{"board-a"})
	})
	b.live(t)
	// It reports, and is answered.
	b.says("one", corev1.PodRunning)
	eventually(t, "answered", func() bool { r := b.store.Reports(); return len(r) == 1 && r[0].Acked })
	if got := b.pods(); len(got) != 2 {
		t.Errorf("pods %v", got)
	}
	if err := c.hub.AdoptNode("board-a"); err != nil {
		t.Fatal(err)
	}
	b.hasPods(t)
}
