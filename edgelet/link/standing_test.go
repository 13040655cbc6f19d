package link

import (
	"testing"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

func told(out []Output) *fleet.Standing {
	for _, o := range out {
		if t, ok := o.(Told); ok {
			return t.Standing
		}
	}
	return nil
}

func TestARefusalEndsTheSessionItNames(t *testing.T) {
	m := NewMachine("store", 1, have, fleet.Set{})
	m.Connected(0)
	refusal := func(s fleet.SessionID, state fleet.StandingState) *fleet.Down {
		return &fleet.Down{Session: s.Proto(), Standing: &fleet.Standing{State: state, Message: "why"}}
	}
	other := m.Session()
	other.Hello++
	if s := told(m.Down(0, 0, 0, refusal(other, fleet.StandingState_REVOKED))); s != nil || m.Phase() != Greeting {
		t.Error("a refusal of another session is obeyed: it may be a recording")
	}
	for _, state := range []fleet.StandingState{fleet.StandingState_REVOKED, fleet.StandingState_CLONED, 99} {
		m := NewMachine("store", 1, have, fleet.Set{})
		m.Connected(0)
		if s := told(m.Down(0, 0, 0, refusal(m.Session(), state))); s.GetMessage() != "why" || m.Phase() != Offline {
			t.Errorf("%v: told %v, phase %v", state, s, m.Phase())
		}
		if at, ok := m.Deadline(); ok {
			t.Errorf("%v: something is due at %v", state, at)
		}
	}
	// What isn't a refusal needs a grant.
	for _, state := range []fleet.StandingState{fleet.StandingState_GOOD, fleet.StandingState_REMOVED} {
		if s := told(m.Down(0, 0, 0, refusal(m.Session(), state))); s != nil || m.Phase() != Greeting {
			t.Errorf("%v outside of a session is believed", state)
		}
	}
	m = welcomed(t)
	if s := told(m.Down(0, 0, 0, refusal(m.Session(), fleet.StandingState_REVOKED))); s == nil || m.Phase() != Offline {
		t.Error("a refusal in a session doesn't end it")
	}
}

func TestARemovedNodeStaysInItsSession(t *testing.T) {
	m := NewMachine("store", 1, have, fleet.Set{})
	m.Connected(0)
	standing := &fleet.Standing{State: fleet.StandingState_REMOVED, Message: "deleted"}
	out := m.Down(0, 0, 0, &fleet.Down{Session: m.Session().Proto(), Seq: 1, Grant: grant.Proto(), Welcome: &fleet.Welcome{Version: next().Proto()}, Standing: standing})
	if told(out).GetMessage() != "deleted" || m.Phase() != Live {
		t.Fatalf("%v, %v", out, m.Phase())
	}
	if _, first := out[0].(Use); !first {
		t.Errorf("the Welcome is used after the standing: %v", out)
	}
	if told(m.Down(0, 0, 0, &fleet.Down{Session: m.Session().Proto(), Seq: 2, Grant: grant.Proto(), Standing: &fleet.Standing{State: fleet.StandingState_GOOD}})) == nil {
		t.Error("its readmission isn't told")
	}
}

func TestAProbeIsAnsweredByWhomItAsks(t *testing.T) {
	m := NewMachine("store", 1, have, fleet.Set{})
	m.Booted([]byte("me"))
	m.Connected(0)
	probe := func(s fleet.SessionID, boot string) []Output {
		return m.Down(0, 0, 0, &fleet.Down{Session: s.Proto(), Grant: grant.Proto(), Probe: &fleet.Probe{BootId: []byte(boot)}})
	}
	answers := func(out []Output) bool {
		for _, o := range out {
			if a, ok := o.(AnswerProbe); ok && a.Grant == grant {
				return true
			}
		}
		return false
	}
	if !answers(probe(m.Session(), "me")) {
		t.Error("not answered")
	}
	if answers(probe(m.Session(), "another")) {
		t.Error("answered for another board of this identity, in the same session")
	}
	if answers(probe(m.Session(), "")) {
		t.Error("answered for nobody")
	}
	older := m.Session()
	older.Hello = 0
	if answers(probe(older, "me")) {
		t.Error("answered for a Hello that isn't the current one")
	}
	if m.Phase() != Greeting {
		t.Error("a probe changed the session")
	}
}
