package fleethub

import (
	"context"
	"slices"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/util/workqueue"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

// asked counts Rebirths until then, with a tick whenever one is due.
func asked(p *Peer, until time.Duration) int {
	n := 0
	for {
		at, ok := p.Deadline()
		if !ok || at > until {
			return n
		}
		for _, o := range p.Tick(at) {
			if _, ok := o.(SendRebirth); ok {
				n++
			}
		}
	}
}

func TestANodeIsAskedUntilItAnswers(t *testing.T) {
	p := testPeer(false)
	p.SetDesired(0, Desired{}, 1)
	p.Up(0, hello(sessionNo(1), fleet.OrderVersion{}, nil))
	// Its confirmation is lost, and every question, too: it holds a session and
	// has nothing to say.
	asked(p, 10*time.Minute)
	if p.Presence() != Away {
		t.Fatalf("presence %v", p.Presence())
	}
	if n := asked(p, 70*time.Minute); n < 10 || n > 20 {
		t.Errorf("asked %d times within an hour", n)
	}
	p.Up(70*time.Minute, said(p, 2))
	if n := asked(p, 24*time.Hour); n != 0 || p.Presence() != Present {
		t.Errorf("asked %d times after it answered", n)
	}
}

func TestWhoIsAwayIsAskedNowAndThen(t *testing.T) {
	for what, leave := range map[string]func(*Peer){
		"a will":                        func(p *Peer) { p.Will(0, p.Session()) },
		"a broker that was lost":        func(p *Peer) { p.LinkDown(); p.LinkUp(0) },
		"a broker lost while it's away": func(p *Peer) { p.Will(0, p.Session()); p.Tick(time.Minute); p.LinkDown(); p.LinkUp(time.Minute) },
	} {
		p := testPeer(false)
		p.SetDesired(0, Desired{}, 1)
		p.Up(0, hello(sessionNo(1), fleet.OrderVersion{}, nil))
		p.Up(0, said(p, 2))
		leave(p)
		asked(p, 10*time.Minute)
		if n := asked(p, 70*time.Minute); n < 10 || n > 20 || p.Presence() != Away {
			t.Errorf("%s: asked %d times within an hour, %v", what, n, p.Presence())
		}
	}
}

func TestATimerThatWasServedIsNotDueAgain(t *testing.T) {
	for what, ack := range map[string]*fleet.Ack{
		"an object that can't be had": {Status: fleet.AckStatus_FAILED, Failed: []string{"big"}},
		"an order that failed":        {Status: fleet.AckStatus_FAILED, Message: "disk full"},
	} {
		p := testPeer(false)
		p.SetDesired(0, Desired{"big": {Hash: fleet.Hash{3}, Size: 1 << 20}}, 1)
		out, _ := p.Up(0, hello(sessionNo(1), fleet.OrderVersion{}, nil))
		o, _ := has[SendOrder](out)
		d := fleet.Set{}.Digest()
		u := said(p, 2)
		u.Ack = ack
		ack.Version, ack.Current, ack.Digest = o.Version.Proto(), &fleet.Version{}, d[:]
		p.Up(0, u)
		p.SetDesired(0, Desired{}, 2) // it isn't wanted any more
		at, ok := p.Deadline()
		for n := 0; ok; n++ {
			p.Tick(at)
			last := at
			if at, ok = p.Deadline(); ok && at <= last || n > 100 {
				t.Errorf("%s: due at %v, and at %v again", what, last, at)
				break
			}
		}
	}
}

func TestOrderOfAnotherHubAfterTheHelloIsLearnt(t *testing.T) {
	p := testPeer(false)
	want := Desired{"a": {Hash: fleet.Hash{1}, Size: 10, Later: true}}
	p.SetDesired(0, want, 500)
	before := fleet.OrderVersion{Incarnation: "A", Epoch: 4, Counter: 1, Hub: "old", Revision: 400}
	out, _ := p.Up(0, hello(sessionNo(1), before, want.Set()))
	if w, _ := has[SendWelcome](out); !w.InSync {
		t.Fatal("not in step by its Hello")
	}
	// Between Hello and Welcome the deposed hub had it store something else.
	set := fleet.Set{"a": {1}, "b": {2}}
	d := set.Digest()
	ack := func(v fleet.OrderVersion) *fleet.Up {
		u := said(p, 2)
		u.Ack = &fleet.Ack{Version: v.Proto(), Status: fleet.AckStatus_DUPLICATE, Current: v.Proto(), Digest: d[:]}
		return u
	}
	after := before
	after.Counter++
	q := p.Clone()
	out, _ = p.Up(0, ack(after))
	if o, ok := has[SendOrder](out); !ok || o.List == nil {
		t.Errorf("believed to be in step: %v", out)
	}
	// Or a hub of a past that was lost.
	after.Revision = 1000
	out, _ = q.Up(0, ack(after))
	if _, foreign := has[Foreign](out); !foreign || !q.IsForeign() {
		t.Errorf("believed to be ours: %v", out)
	}
}

// A session that the node has left, for one that this hub never heard the Hello of or
// for a hub of a later epoch, is over: the node is asked until it says Hello.
func TestASessionThatTheNodeLeftIsOver(t *testing.T) {
	for name, c := range map[string]struct {
		said   func(*Peer) *fleet.Up
		atOnce bool
	}{
		"a later session": {func(p *Peer) *fleet.Up { u := said(p, 2); u.Session = sessionNo(2).Proto(); return u }, true},
		"a later hub": {func(p *Peer) *fleet.Up {
			u := said(p, 3)
			u.Grant = fleet.GrantID{Epoch: p.epoch.Number + 1, Hub: "x", Number: 1}.Proto()
			return u
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			p := testPeer(false)
			p.SetDesired(0, Desired{}, 1)
			p.Up(0, hello(sessionNo(1), fleet.OrderVersion{}, nil))
			p.Up(0, said(p, 2))
			if !p.Confirmed() {
				t.Fatal("not confirmed")
			}
			out, accept := p.Up(time.Minute, c.said(p))
			if _, asks := has[SendRebirth](out); accept || p.Open() || asks != c.atOnce {
				t.Errorf("accepted %v, open %v, %v", accept, p.Open(), out)
			}
			if n := asked(p, 10*time.Minute); n < 2 {
				t.Errorf("asked %d times", n)
			}
			// The node may hear none of it: then it isn't there for this hub.
			if p.Presence() != Away {
				t.Errorf("presence %v", p.Presence())
			}
			if p.Up(11*time.Minute, hello(sessionNo(3), fleet.OrderVersion{}, nil)); !p.Open() {
				t.Error("its Hello opened nothing")
			}
		})
	}
	// What is older closes nothing.
	p := testPeer(false)
	p.Up(0, hello(sessionNo(2), fleet.OrderVersion{}, nil))
	u := said(p, 9)
	u.Session = sessionNo(1).Proto()
	p.Up(0, u)
	u = said(p, 9)
	u.Grant = fleet.GrantID{Epoch: p.epoch.Number - 1, Hub: "x", Number: 1}.Proto()
	if p.Up(0, u); !p.Open() {
		t.Error("an echo closed a session")
	}
}

func TestDeposedHubLeavesTheNodeAlone(t *testing.T) {
	p := testPeer(true)
	p.SetDesired(0, Desired{}, 1)
	p.LinkUp(0)
	p.Up(0, hello(sessionNo(1), fleet.OrderVersion{}, nil))
	p.Depose()
	if at, ok := p.Deadline(); ok {
		t.Errorf("waits for %v", at)
	}
	u := said(p, 2)
	out, accept := p.Up(0, u)
	if !accept || p.Presence() == Present {
		t.Errorf("reports taken %v, presence %v", accept, p.Presence())
	}
	out = append(out, p.SetDesired(0, Desired{"a": {Hash: fleet.Hash{1}, Size: 10}}, 2)...)
	p.Will(0, sessionNo(1))
	out = append(out, p.Tick(time.Hour)...)
	p.LinkDown()
	out = append(out, p.LinkUp(time.Hour)...)
	more, _ := p.Up(time.Hour, said(p, 3))
	out = append(out, append(more, p.Tick(2*time.Hour)...)...)
	if len(out) > 0 {
		t.Errorf("a deposed hub does %v", out)
	}
}

func TestReportsAreAskedForUntilTheyCome(t *testing.T) {
	p := testPeer(false)
	p.SetDesired(0, Desired{}, 1)
	p.Up(0, hello(sessionNo(1), fleet.OrderVersion{}, nil))
	if out := append(p.Ask(0, "a"), p.Ask(0, "")...); len(out) > 0 {
		t.Errorf("asked before the session is confirmed: %v", out)
	}
	resends := func(out []Output) (n int, last SendResend) {
		for _, o := range out {
			if r, ok := o.(SendResend); ok {
				n, last = n+1, r
			}
		}
		return n, last
	}
	out, _ := p.Up(0, said(p, 2))
	if n, _ := resends(out); n != 0 {
		t.Errorf("asked before it could say so by itself: %v", out)
	}
	out = p.Tick(askAfter)
	if n, r := resends(out); n != 1 || !r.Node || !slices.Equal(r.UIDs, []string{"a"}) {
		t.Fatalf("%v", out)
	}
	u := said(p, 3)
	u.Report = &fleet.Report{Node: &fleet.NodeReport{}}
	if out, _ := p.Up(0, u); len(out) > 1 {
		t.Errorf("asked again at once: %v", out)
	}
	at, ok := p.Deadline()
	if n, r := resends(p.Tick(at)); !ok || n != 1 || r.Node || !slices.Equal(r.UIDs, []string{"a"}) {
		t.Errorf("at %v: %d, %v", at, n, r)
	}
	// It was lost, too, and the session is another.
	p.Up(at, hello(sessionNo(2), fleet.OrderVersion{}, nil))
	p.Up(at, said(p, 2))
	out = p.Tick(at + askAfter)
	if n, _ := resends(out); n != 1 {
		t.Errorf("not asked in the next session: %v", out)
	}
	// A node that has none isn't asked for ever.
	asked := 0
	for range 100 {
		if at, ok = p.Deadline(); !ok {
			break
		}
		n, _ := resends(p.Tick(at))
		asked += n
	}
	if asked == 0 || asked > resendTries || ok {
		t.Errorf("asked %d times, due again %v", asked, ok)
	}
	u = said(p, 3)
	u.Report = &fleet.Report{Pods: []*fleet.PodReport{{Uid: "a"}}}
	p.Up(at, u)
	if len(p.wanted) > 0 {
		t.Errorf("still wanted: %v", p.wanted)
	}
}

func TestOrderSaysWhetherPodsAreStillMissing(t *testing.T) {
	p := testPeer(false)
	half := 30 << 10
	want := Desired{"a": {Hash: fleet.Hash{1}, Size: half, Later: true}, "b": {Hash: fleet.Hash{2}, Size: half, Later: true}, "c": {Hash: fleet.Hash{3}, Size: 1 << 20}}
	p.SetDesired(0, want, 1)
	out, _ := p.Up(0, hello(sessionNo(1), fleet.OrderVersion{}, nil))
	set := fleet.Set{}
	for i, more := range []bool{true, false, false} {
		o, ok := has[SendOrder](out)
		if !ok || len(o.Upserts) != 1 || o.More != more {
			t.Fatalf("order %d: %+v", i, out)
		}
		set[o.Upserts[0]] = want[o.Upserts[0]].Hash
		d := set.Digest()
		u := said(p, uint64(i)+2)
		u.Ack = &fleet.Ack{Version: o.Version.Proto(), Status: fleet.AckStatus_APPLIED, Current: o.Version.Proto(), Digest: d[:]}
		out, _ = p.Up(0, u)
	}
}

func TestJournalOfAnotherStateFileReleasesNothing(t *testing.T) {
	client := fake.NewClientset()
	h := &Hub{
		c:    Config{Now: time.Now, Events: 10, EventInterval: time.Hour},
		work: workqueue.NewTypedDelayingQueue[string](),
		writes: workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[writeKey](
			time.Millisecond, time.Second)),
	}
	defer h.work.ShutDown()
	defer h.writes.ShutDown()
	n := newNode("a")
	n.client = client.CoreV1()
	n.store = "old"
	n.journal = &journal{&fleet.Journal{Entries: []*fleet.JournalEntry{{Boot: 9, Seq: 9, Kind: "event", Reason: "R"}}}, "old"}
	n.store = "new" // a Hello of another state file
	if err := h.writeJournal(context.Background(), n); err != nil {
		t.Fatal(err)
	}
	if n.jack != nil {
		t.Errorf("the new state file's journal is released up to %v", n.jack)
	}
	events, err := corev1client.EventsGetter(client.CoreV1()).Events("default").List(context.Background(), metav1.ListOptions{})
	if err != nil || len(events.Items) != 1 || events.Items[0].Name != h.event(n, "old", &fleet.JournalEntry{Boot: 9, Seq: 9}).Name {
		t.Errorf("events %+v, %v", events, err)
	}
	n.journal = &journal{&fleet.Journal{Entries: []*fleet.JournalEntry{{Boot: 1, Seq: 2}}}, "new"}
	if err := h.writeJournal(context.Background(), n); err != nil {
		t.Fatal(err)
	}
	if n.jack.GetBoot() != 1 || n.jack.GetSeq() != 2 {
		t.Errorf("its own is released up to %v", n.jack)
	}
}

func TestWhatTheAPILacksIsAskedFor(t *testing.T) {
	said := fleet.StampID{Store: "s", Boot: 2, Seq: 5}
	for annotation, want := range map[string]bool{
		"":            true,
		"damaged":     true,
		said.String(): false,
		fleet.StampID{Store: "s", Boot: 1, Seq: 9}.String(): true,
		fleet.StampID{Store: "s", Boot: 2, Seq: 6}.String(): false,
	} {
		if got := isBehind(annotation, said); got != want {
			t.Errorf("%q: %v", annotation, got)
		}
	}
}
