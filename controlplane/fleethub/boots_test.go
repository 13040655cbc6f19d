package fleethub

import (
	"fmt"
	"testing"
	"time"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

// helloOf is a Hello of the agent start that is called boot.
func helloOf(boot string, s fleet.SessionID) *fleet.Up {
	u := hello(s, fleet.OrderVersion{}, nil)
	u.Hello.BootId, u.Hello.Board, u.Hello.Features = []byte(boot), "serial "+boot, []string{fleet.FeatureProbe}
	return u
}

func at(boot, conn, hello uint64) fleet.SessionID {
	return fleet.SessionID{Store: "store", Boot: boot, Conn: conn, Hello: hello}
}

// scene lets boards speak to one peer.
type scene struct {
	t   *testing.T
	p   *Peer
	now time.Duration
}

func newScene(t *testing.T) *scene {
	s := &scene{t: t, p: testPeer(false)}
	s.p.SetDesired(0, Desired{}, 1)
	return s
}

// comes is a board that says Hello and, if it is welcomed or probed, answers.
func (s *scene) comes(boot string, session fleet.SessionID) (cloned bool) {
	s.now += 10 * time.Second
	out, accept := s.p.Up(s.now, helloOf(boot, session))
	if accept {
		out, _ = s.p.Up(s.now, said(s.p, 2))
	} else if probe, ok := has[SendProbe](out); ok {
		out, _ = s.p.Up(s.now, answer(probe))
	}
	_, cloned = has[Cloned](out)
	return cloned
}

func (s *scene) breaks() { s.p.Will(s.now, s.p.Session()) }

func answer(p SendProbe) *fleet.Up {
	return &fleet.Up{Session: p.Session.Proto(), Seq: 2, Grant: p.Grant.Proto(), Ack: &fleet.Ack{}}
}

func TestAlternatingStartsAreTwoBoards(t *testing.T) {
	for name, sessions := range map[string][2]func(n uint64) fleet.SessionID{
		"the copy is behind":   {func(n uint64) fleet.SessionID { return at(9, n, 1) }, func(n uint64) fleet.SessionID { return at(3, n, 1) }},
		"the copy is ahead":    {func(n uint64) fleet.SessionID { return at(3, n, 1) }, func(n uint64) fleet.SessionID { return at(9, n, 1) }},
		"both say the same":    {func(n uint64) fleet.SessionID { return at(3, n, 1) }, func(n uint64) fleet.SessionID { return at(3, n, 1) }},
		"the card is shuffled": {func(n uint64) fleet.SessionID { return at(3, n, 1) }, func(n uint64) fleet.SessionID { s := at(1, n, 1); s.Store = "other"; return s }},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t)
			for round := range uint64(4) {
				for i, boot := range []string{"a", "b"} {
					s.breaks() // the broker pushes the other one aside
					if s.comes(boot, sessions[i](round+1)) {
						if round == 0 {
							t.Errorf("board %s is taken for a second one before the first came back", boot)
						}
						return
					}
				}
			}
			t.Error("never noticed")
		})
	}
}

func TestAnOrdinaryLifeIsOneBoard(t *testing.T) {
	s := newScene(t)
	for boot := range uint64(40) { // more than are remembered
		for conn := range uint64(3) {
			if s.comes(fmt.Sprint("boot", boot), at(boot, conn, 1)) {
				t.Fatalf("start %d, connection %d: taken for two boards", boot, conn)
			}
			if conn == 1 {
				s.breaks()
			}
		}
	}
	// The state file is put back to an earlier time, on the same board.
	if s.comes("restored", at(7, 1, 1)) {
		t.Error("a state file that was put back is taken for a second board")
	}
	if !s.p.Confirmed() || s.p.Session().Boot != 39 {
		t.Error("a Hello of an earlier time ended the session of who is there")
	}
	s.breaks()
	s.comes("restored", at(7, 1, 2))
	// From now on it is the one that counts.
	if s.comes("restored", at(7, 1, 3)); !s.p.Confirmed() {
		t.Error("a board whose state file was put back is locked out")
	}
}

// Nothing that is recorded, delayed or meant for another proves that a board is there.
func TestOnlyALivingBoardIsProof(t *testing.T) {
	s := newScene(t)
	s.comes("a", at(1, 1, 1))
	s.comes("b", at(2, 1, 1))
	// What a said before it ended, again; nobody answers the probe.
	s.now += time.Minute
	out, accept := s.p.Up(s.now, helloOf("a", at(1, 1, 1)))
	probe, probed := has[SendProbe](out)
	if _, cloned := has[Cloned](out); cloned || accept || !probed || probe.Boot != "a" {
		t.Fatalf("an old Hello: %v", out)
	}
	if !s.p.Confirmed() {
		t.Error("it ended the session")
	}
	// At most one probe in a while.
	if out, _ := s.p.Up(s.now+time.Millisecond, helloOf("a", at(1, 1, 1))); len(out) != 0 {
		t.Errorf("a second probe at once: %v", out)
	}
	// An answer with another grant, or of another session.
	for _, u := range []*fleet.Up{
		{Session: probe.Session.Proto(), Seq: 2, Grant: (fleet.GrantID{Epoch: 5, Hub: "h", Number: 1}).Proto()},
		{Session: at(1, 1, 2).Proto(), Seq: 2, Grant: probe.Grant.Proto()},
	} {
		if out, _ := s.p.Up(s.now, u); len(out) != 0 {
			t.Errorf("a wrong answer counts: %v", out)
		}
	}
	// The answer of a comes after b was started again: it was given before that.
	s.comes("c", at(3, 1, 1))
	if out, _ := s.p.Up(s.now, answer(probe)); len(out) != 0 {
		t.Errorf("a late answer counts: %v", out)
	}
	// An agent that can't answer isn't asked.
	u := helloOf("a", at(1, 1, 1))
	u.Hello.Features = nil
	if out, _ := s.p.Up(s.now+time.Minute, u); len(out) != 0 {
		t.Errorf("probed without the feature: %v", out)
	}
}

func TestReadmissionForgetsTheOtherBoard(t *testing.T) {
	s := newScene(t)
	s.comes("a", at(5, 1, 1))
	s.comes("b", at(6, 1, 1))
	if !s.comes("a", at(7, 1, 1)) {
		t.Fatal("not noticed")
	}
	if _, went := has[Went](s.p.Dismiss("refused")); !went || s.p.Open() || s.p.Presence() != Away {
		t.Error("dismissed, and still there")
	}
	if out := s.p.Dismiss("refused"); len(out) != 0 {
		t.Errorf("dismissed twice: %v", out)
	}
	s.p.ForgetBoards()
	for n := range uint64(3) {
		if s.comes("a", at(8, n, 1)) {
			t.Error("the readmitted board is taken for two")
		}
	}
}
