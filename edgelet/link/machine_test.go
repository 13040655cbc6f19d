package link

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

func unmarshal(b []byte, m proto.Message) error { return proto.Unmarshal(b, m) }

// welcomed is a machine in a session with a hub of the order that it has.
func welcomed(t *testing.T) *Machine {
	t.Helper()
	m := NewMachine("store", 1, have, fleet.Set{})
	m.Connected(0)
	out := m.Down(0, 0, 0, &fleet.Down{Session: m.Session().Proto(), Seq: 1, Grant: grant.Proto(), Welcome: &fleet.Welcome{Version: next().Proto()}})
	if m.Phase() != Live || len(out) != 1 {
		t.Fatalf("phase %v, %v", m.Phase(), out)
	}
	return m
}

var grant = fleet.GrantID{Epoch: 5, Hub: "h5", Number: 3}

func kinds(out []Output) (hello, ack, store, reports, refused int) {
	for _, o := range out {
		switch o.(type) {
		case SendHello:
			hello++
		case SendAck:
			ack++
		case StoreOrder:
			store++
		case SendReports:
			reports++
		case Refused:
			refused++
		}
	}
	return
}

func TestHelloPrecedesEverything(t *testing.T) {
	m := NewMachine("store", 1, have, fleet.Set{})
	if out := m.Outbox(0, []Ref{{UID: "a"}}, true); len(out) != 0 {
		t.Errorf("offline: %v", out)
	}
	if hello, _, _, _, _ := kinds(m.Connected(0)); hello != 1 {
		t.Error("no Hello")
	}
	if out := m.Outbox(0, []Ref{{UID: "a"}}, true); len(out) != 0 {
		t.Errorf("before the Welcome: %v", out)
	}
	o := &fleet.Down{Session: m.Session().Proto(), Seq: 1, Grant: grant.Proto(), Order: delta(next(), nil, nil, nil)}
	if _, _, store, _, refused := kinds(m.Down(0, 0, 0, o)); store != 0 || refused != 1 {
		t.Error("an order before the Welcome was taken")
	}
}

func TestHelloIsRepeatedWithGrowingWaits(t *testing.T) {
	m := NewMachine("store", 1, have, fleet.Set{})
	m.Connected(0)
	var last time.Duration
	for i := range 8 {
		at, ok := m.Deadline()
		if !ok || at <= last {
			t.Fatalf("try %d: deadline %v, %v", i, at, ok)
		}
		before := m.Session()
		if hello, _, _, _, _ := kinds(m.Tick(at)); hello != 1 || !m.Session().After(before) {
			t.Fatalf("try %d: no new Hello", i)
		}
		if at-last > helloRetryMax {
			t.Errorf("waits %v", at-last)
		}
		last = at
	}
}

func TestMessagesOfOtherSessionsAreRefused(t *testing.T) {
	m := welcomed(t)
	v := next()
	good := func() *fleet.Down {
		return &fleet.Down{Session: m.Session().Proto(), Seq: 2, Grant: grant.Proto(), Order: delta(v, fleet.Set{}, fleet.Set{}, nil)}
	}
	for what, change := range map[string]func(*fleet.Down){
		"another boot":       func(d *fleet.Down) { d.Session.Boot++ },
		"another connection": func(d *fleet.Down) { d.Session.Conn-- },
		"an earlier Hello":   func(d *fleet.Down) { d.Session.Hello-- },
		"another state file": func(d *fleet.Down) { d.Session.Store = []byte("x") },
		"no session":         func(d *fleet.Down) { d.Session = nil },
		"seen":               func(d *fleet.Down) { d.Seq = 1 },
		"another hub":        func(d *fleet.Down) { d.Grant.Hub = []byte("x") },
		"no hub":             func(d *fleet.Down) { d.Grant = nil },
	} {
		d := good()
		change(d)
		if _, _, store, _, refused := kinds(m.Clone().Down(0, 0, 0, d)); store != 0 || refused != 1 {
			t.Errorf("%s: taken", what)
		}
	}
	if _, _, store, _, _ := kinds(m.Down(0, 0, 0, good())); store != 1 {
		t.Error("as it should be: refused")
	}
}

func TestOrderIsAcknowledgedOnceDurable(t *testing.T) {
	m := welcomed(t)
	d := &fleet.Down{Session: m.Session().Proto(), Seq: 2, Grant: grant.Proto(), Order: delta(next(), fleet.Set{}, fleet.Set{"c": fleet.HashObject([]byte("c"))}, []*fleet.Object{obj("c", "c")})}
	_, ack, store, _, _ := kinds(m.Down(0, 0, 0, d))
	if ack != 0 || store != 1 || m.Version() != have {
		t.Fatalf("acks %d, stores %d, version %v", ack, store, m.Version())
	}
	failed := m.Clone().Stored(errTest)
	if a := failed[0].(SendAck).Ack; a.GetStatus() != fleet.AckStatus_FAILED || fleet.VersionFrom(a.GetCurrent()) != have || a.GetMessage() != errTest.Error() {
		t.Errorf("after a failed write: %v", a)
	}
	out := m.Stored(nil)
	digest := m.Set().Digest()
	if a := out[0].(SendAck).Ack; a.GetStatus() != fleet.AckStatus_APPLIED || fleet.VersionFrom(a.GetCurrent()) != next() || string(a.GetDigest()) != string(digest[:]) {
		t.Errorf("ack %v", a)
	}
}

type testError string

func (e testError) Error() string { return string(e) }

const errTest = testError("disk full")

func TestReportsAreSentUntilAnswered(t *testing.T) {
	m := welcomed(t)
	ref := Ref{UID: "a", Stamp: fleet.StampID{Store: "store", Boot: 1, Seq: 1}, Size: 100}
	if _, _, _, n, _ := kinds(m.Outbox(0, []Ref{ref}, false)); n != 1 {
		t.Fatal("not sent")
	}
	if out := m.Outbox(time.Second, []Ref{ref}, false); len(out) != 0 {
		t.Error("sent twice")
	}
	newer := ref
	newer.Stamp.Seq = 2
	if _, _, _, n, _ := kinds(m.Clone().Outbox(time.Second, []Ref{newer}, false)); n != 1 {
		t.Error("a newer one waits for the answer to the older")
	}
	now := time.Duration(0)
	for range maxUnanswered - 1 {
		at, ok := m.Deadline()
		if !ok || at < now+resendAfter {
			t.Fatalf("deadline %v after %v", at, now)
		}
		now = at
		if _, _, _, n, _ := kinds(m.Outbox(now, []Ref{ref}, false)); n != 1 {
			t.Error("not sent again")
		}
	}
	now, _ = m.Deadline()
	if hello, _, _, _, _ := kinds(m.Outbox(now, []Ref{ref}, false)); hello != 1 {
		t.Error("a hub that answers nothing isn't greeted anew")
	}
}

func TestManyReportsAreSplit(t *testing.T) {
	m := welcomed(t)
	var refs []Ref
	for i := range 40 {
		refs = append(refs, Ref{UID: string(rune('a' + i)), Size: 3000})
	}
	_, _, _, n, _ := kinds(m.Outbox(0, refs, false))
	if n != 3 {
		t.Errorf("%d messages for 120 kB", n)
	}
}

func TestRebirthIsRareAndNotOfTheDeposed(t *testing.T) {
	m := welcomed(t)
	v := next()
	rebirth := &fleet.Down{Rebirth: &fleet.Rebirth{Version: v.Proto()}}
	old := v
	old.Epoch--
	if hello, _, _, _, _ := kinds(m.Clone().Down(0, 0, 0, &fleet.Down{Rebirth: &fleet.Rebirth{Version: old.Proto()}})); hello != 0 {
		t.Error("a deposed hub is greeted")
	}
	out := append(m.Down(0, 0, 0, rebirth), m.Tick(time.Second)...)
	if hello, _, _, _, _ := kinds(out); hello != 1 {
		t.Error("no Hello")
	}
	out = append(m.Down(time.Second, 0, 0, rebirth), m.Tick(time.Second)...)
	if hello, _, _, _, _ := kinds(out); hello != 0 {
		t.Error("a flood of rebirths is obeyed")
	}
}

// A hub that thousands speak to answers late, and asks meanwhile: the node must
// not begin a session with each question, or no answer is ever of its own.
func TestRebirthsOfABusyHubGrowRare(t *testing.T) {
	m := welcomed(t)
	v := next()
	rebirth := &fleet.Down{Rebirth: &fleet.Rebirth{Version: v.Proto()}}
	asked := func(from, to time.Duration) (obeyed []time.Duration) {
		for now := from; now < to; now += time.Second {
			before := m.rebirthOK
			if m.Down(now, 0, 0, rebirth); m.rebirthOK != before {
				obeyed = append(obeyed, now)
			}
			m.Tick(now)
		}
		return obeyed
	}
	var gaps []time.Duration
	at := asked(0, 5*time.Minute)
	for i := 1; i < len(at); i++ {
		gaps = append(gaps, at[i]-at[i-1])
	}
	if len(gaps) < 4 || gaps[0] > 10*time.Second || gaps[len(gaps)-1] < helloRetryMax {
		t.Errorf("asked each second it obeyed after %v", gaps)
	}
	// Later it is another matter.
	late := 10 * time.Minute
	if at := asked(late, late+20*time.Second); len(at) < 2 {
		t.Errorf("after a silence it obeyed at %v", at)
	}
}

func TestAdoptionNeedsTheRightPast(t *testing.T) {
	m := welcomed(t)
	to := fleet.OrderVersion{Incarnation: "B", Epoch: 1, Counter: 1}
	send := func(from string, seq uint64) []Output {
		return m.Down(0, 0, 0, &fleet.Down{Session: m.Session().Proto(), Seq: seq, Grant: grant.Proto(), Adopt: &fleet.Adopt{From: []byte(from), To: to.Proto()}})
	}
	if _, _, store, _, _ := kinds(send("X", 2)); store != 0 {
		t.Error("adopted from an incarnation that isn't this node's")
	}
	if _, _, store, _, _ := kinds(send("A", 3)); store != 1 {
		t.Error("not adopted")
	}
	m.Stored(nil)
	if m.Version() != to {
		t.Errorf("version %v", m.Version())
	}
}

func TestDeposedHubIsFollowedOnlyIfNoOtherAnswers(t *testing.T) {
	welcome := func(m *Machine, epoch uint64, hub string) []Output {
		v := next()
		v.Epoch, v.Hub = epoch, hub
		return m.Down(0, 0, 0, &fleet.Down{Session: m.Session().Proto(), Seq: 1, Grant: fleet.GrantID{Epoch: epoch, Hub: hub, Number: 1}.Proto(), Welcome: &fleet.Welcome{Version: v.Proto()}})
	}
	m := NewMachine("store", 1, have, fleet.Set{})
	m.Connected(0)
	welcome(m, 4, "h4")
	if m.Phase() != Greeting {
		t.Fatal("followed at once")
	}
	for range 3 {
		at, _ := m.Deadline()
		m.Tick(at)
	}
	if welcome(m, 4, "h4"); m.Phase() != Live {
		t.Fatal("not followed though it is the only one")
	}
	d := &fleet.Down{Session: m.Session().Proto(), Seq: 2, Grant: fleet.GrantID{Epoch: 4, Hub: "h4", Number: 1}.Proto(),
		Order: &fleet.Order{Version: fleet.OrderVersion{Incarnation: "A", Epoch: 4, Counter: 99, Hub: "h4"}.Proto(), List: true, Synced: true}}
	if _, ack, store, _, _ := kinds(m.Down(0, 0, 0, d)); ack != 1 || store != 0 {
		t.Error("its order is carried out")
	}
	if welcome(m, 6, "h6"); m.grant.Epoch != 6 {
		t.Error("the hub of a later epoch isn't followed")
	}
	if welcome(m, 5, "h5"); m.grant.Epoch != 6 {
		t.Error("back to an earlier one")
	}
}

func TestFetchingEndsWithTheConnection(t *testing.T) {
	m := welcomed(t)
	c := obj("c", "c")
	c.Raw, c.Size = nil, 1<<20
	hash := fleet.HashObject([]byte("c"))
	order := delta(next(), fleet.Set{}, fleet.Set{"c": hash}, []*fleet.Object{c})
	take := func(seq uint64) []Output {
		return m.Down(0, 0, 0, &fleet.Down{Session: m.Session().Proto(), Seq: seq, Grant: grant.Proto(), Order: order})
	}
	if _, ok := take(2)[0].(Fetch); !ok {
		t.Fatal("not fetched")
	}
	m.Disconnected()
	if out := m.Fetched(map[string]*fleet.Object{"c": obj("c", "c")}, nil); len(out) != 0 {
		t.Errorf("what the old connection brought is stored: %v", out)
	}
	m.Connected(0)
	m.Down(0, 0, 0, &fleet.Down{Session: m.Session().Proto(), Seq: 1, Grant: grant.Proto(), Welcome: &fleet.Welcome{Version: next().Proto()}})
	if _, ok := take(2)[0].(Fetch); !ok {
		t.Error("the order isn't taken again")
	}
	for i, want := range []int{1, 0} {
		if _, _, store, _, _ := kinds(m.Fetched(map[string]*fleet.Object{"c": obj("c", "c")}, nil)); store != want {
			t.Errorf("result %d is stored %d times", i, store)
		}
	}
}

func TestUnansweredJournalBeginsTheSessionAnew(t *testing.T) {
	m := welcomed(t)
	now := time.Duration(0)
	for range maxUnanswered {
		if out := m.Outbox(now, nil, true); len(out) != 1 {
			t.Fatalf("at %v: %v", now, out)
		}
		m.JournalSent(now, 1, 1)
		now, _ = m.Deadline()
	}
	if hello, _, _, _, _ := kinds(m.Outbox(now, nil, true)); hello != 1 {
		t.Error("a hub that answers nothing isn't greeted anew")
	}
}

func TestOrderBetweenHelloAndWelcomeIsTold(t *testing.T) {
	m := welcomed(t)
	welcome := func(epoch uint64) []Output {
		v := next()
		v.Epoch, v.Hub = epoch, "later"
		g := fleet.GrantID{Epoch: epoch, Hub: "later", Number: 1}
		return m.Down(0, 0, 0, &fleet.Down{Session: m.Session().Proto(), Seq: 1, Grant: g.Proto(), Welcome: &fleet.Welcome{Version: v.Proto()}})
	}
	if _, ack, _, _, _ := kinds(welcome(6)); ack != 0 {
		t.Error("what the Hello said is said again")
	}
	m = welcomed(t)
	ref := Ref{UID: "a", Stamp: fleet.StampID{Store: "store", Boot: 1, Seq: 1}, Size: 100}
	m.Outbox(0, []Ref{ref}, true)
	m.JournalSent(0, 1, 2)
	m.Down(0, 0, 0, &fleet.Down{Session: m.Session().Proto(), Seq: 2, Grant: grant.Proto(), Order: delta(next(), fleet.Set{}, fleet.Set{"c": fleet.HashObject([]byte("c"))}, []*fleet.Object{obj("c", "c")})})
	m.Stored(nil)
	var told *fleet.Ack
	for _, o := range welcome(6) {
		if a, ok := o.(SendAck); ok {
			told = a.Ack
		}
	}
	if digest := m.Set().Digest(); fleet.VersionFrom(told.GetCurrent()) != next() || string(told.GetDigest()) != string(digest[:]) {
		t.Errorf("the later hub is told %v", told)
	}
	if out := m.Outbox(0, []Ref{ref}, true); len(out) != 2 {
		t.Errorf("what went to the hub before isn't said again: %v", out)
	}
}

func TestWhetherPodsAreMissingIsSaidWithTheOrder(t *testing.T) {
	a := fleet.Set{"a": fleet.HashObject([]byte("a"))}
	part := delta(next(), fleet.Set{}, a, []*fleet.Object{obj("a", "a")})
	part.More = true
	for what, x := range map[string]struct {
		o    *fleet.Order
		set  fleet.Set
		more bool
	}{
		"a part":                      {part, fleet.Set{}, true},
		"the last part":               {delta(next(), fleet.Set{}, a, []*fleet.Object{obj("a", "a")}), fleet.Set{}, false},
		"a list of what isn't here":   {&fleet.Order{Version: next().Proto(), List: true, Synced: true, Entries: a.Entries()}, fleet.Set{}, true},
		"a list of what is here":      {&fleet.Order{Version: next().Proto(), List: true, Synced: true, Entries: a.Entries()}, a, false},
		"a list of what was replaced": {&fleet.Order{Version: next().Proto(), List: true, Synced: true, Entries: a.Entries()}, fleet.Set{"a": {1}}, false},
	} {
		m := NewMachine("store", 1, have, x.set)
		m.Connected(0)
		m.Down(0, 0, 0, &fleet.Down{Session: m.Session().Proto(), Seq: 1, Grant: grant.Proto(), Welcome: &fleet.Welcome{Version: next().Proto()}})
		out := m.Down(0, 0, 0, &fleet.Down{Session: m.Session().Proto(), Seq: 2, Grant: grant.Proto(), Order: x.o})
		if s, ok := out[0].(StoreOrder); !ok || s.More != x.more {
			t.Errorf("%s: %+v", what, out)
		}
	}
}

func TestDeposedHubIsGreetedIfItGoesOnAskingAndNoOtherSpeaks(t *testing.T) {
	old := have
	old.Epoch--
	rebirth := &fleet.Down{Rebirth: &fleet.Rebirth{Version: old.Proto()}}
	asks := func(m *Machine, from, to time.Duration) (at time.Duration) {
		for now := from; now <= to; now += time.Minute {
			out := append(m.Down(now, 0, 0, rebirth), m.Tick(now+time.Second)...)
			if hello, _, _, _, _ := kinds(out); hello > 0 {
				return now
			}
		}
		return 0
	}
	if at := asks(welcomed(t), time.Minute, time.Hour); at != 6*time.Minute {
		t.Errorf("greeted after %v", at)
	}
	m := welcomed(t)
	for i := range 20 { // the later hub lives
		now := time.Duration(1+4*i) * time.Minute
		if at := asks(m, now, now+3*time.Minute); at != 0 {
			t.Fatalf("greeted after %v", at)
		}
		m.Down(now+3*time.Minute, 0, 0, &fleet.Down{Session: m.Session().Proto(), Seq: uint64(i + 2), Grant: grant.Proto()})
	}
}
