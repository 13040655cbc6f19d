package fleethub

import (
	"slices"
	"time"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

// maxBoots is how many starts of a node's agent are remembered.
const maxBoots = 16

// Board is one start of an agent, by its own word in a Hello.
type Board struct {
	Boot string // random, never made twice
	Text string // which board it is, for people
}

// boots are the starts of an agent that were proven to be there, in the order in
// which they were. One board only ever shows a new start. If one comes back that
// another has followed, there are two boards: a boot id is random, and that it is
// there now was proven by a grant that the hub had just given.
type boots struct {
	seen  []Board // the last one is the newest
	probe *probe
	// notBefore keeps probes apart.
	notBefore time.Duration
}

// probe asks whether who said a Hello that can't be taken is there.
type probe struct {
	session fleet.SessionID
	grant   fleet.GrantID
	board   Board
}

// probeEvery bounds what a recorded Hello may cause.
const probeEvery = 2 * time.Second

// alive takes the proof that b is there now, and returns the board it alternates with.
func (s *boots) alive(b Board) (other Board, cloned bool) {
	if b.Boot == "" {
		return Board{}, false // an agent that doesn't say it
	}
	i := slices.IndexFunc(s.seen, func(x Board) bool { return x.Boot == b.Boot })
	switch {
	case i < 0:
		s.seen = append(slices.Clone(s.seen[max(0, len(s.seen)+1-maxBoots):]), b)
		return Board{}, false
	case i == len(s.seen)-1:
		return Board{}, false
	}
	return s.seen[len(s.seen)-1], true
}

// suspect is called with a Hello that was said before, or is of an earlier time
// of this state file: a recording, a state file that was put back, or another
// board with a copy of it. Only who is there can answer a probe.
func (p *Peer) suspect(now time.Duration, session fleet.SessionID, h *fleet.Hello) []Output {
	b := Board{string(h.GetBootId()), h.GetBoard()}
	if b.Boot == "" || b.Boot == p.board.Boot || now < p.boots.notBefore || !slices.Contains(h.GetFeatures(), fleet.FeatureProbe) {
		return nil
	}
	p.grants++
	p.boots.notBefore = now + probeEvery
	p.boots.probe = &probe{session, fleet.GrantID{Epoch: p.epoch.Number, Hub: p.epoch.Hub, Number: p.grants}, b}
	return []Output{SendProbe{session, p.boots.probe.grant, b.Boot}}
}

// probed takes a message that answers a probe; ok is false for any other.
func (p *Peer) probed(u *fleet.Up, session fleet.SessionID) (out []Output, ok bool) {
	probe := p.boots.probe
	if probe == nil || session != probe.session || fleet.GrantFrom(u.GetGrant()) != probe.grant {
		return nil, false
	}
	p.boots.probe = nil
	out = p.proven(probe.board)
	if !p.Confirmed() {
		// It is there and nobody else is: its Hellos count from now on, though its
		// state file is of an earlier time.
		p.session, p.open = fleet.SessionID{}, false
		out = append(out, SendRebirth{})
	}
	return out, true
}

// proven says Cloned if b can't be the same board as the one that was there last.
func (p *Peer) proven(b Board) []Output {
	if other, cloned := p.boots.alive(b); cloned {
		return []Output{Cloned{other, b}}
	}
	return nil
}

// ForgetBoards begins anew, as when an operator said that there is one board now.
func (p *Peer) ForgetBoards() { p.boots = boots{} }

// Dismiss ends the session, if there is one: the node is away from now on, because
// the cluster refuses it.
func (p *Peer) Dismiss(reason string) []Output {
	p.open, p.confirmed, p.sent = false, false, nil
	p.awayAt, p.reborn = 0, 0
	if p.presence == Away {
		return nil
	}
	p.presence = Away
	return []Output{Went{reason}}
}
