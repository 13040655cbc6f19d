package play

import (
	"time"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/controlplane/fleethub"
	"github.com/coracle-edge/coracle/edgelet/link"
)

// Transitions are what the players decide by: production's own functions, and
// the rules of the shells that are played. A test that wants to know whether a
// rule matters puts another function in its place; nothing of that is in
// production code.
type Transitions struct {
	// Of the node's machine.
	Connected    func(*link.Machine, time.Duration) []link.Output
	Disconnected func(*link.Machine)
	NodeTick     func(*link.Machine, time.Duration) []link.Output
	Down         func(*link.Machine, time.Duration, int64, float64, *fleet.Down) []link.Output
	Fetched      func(*link.Machine, map[string]*fleet.Object, map[string]string) []link.Output
	Stored       func(*link.Machine, error) []link.Output
	Outbox       func(*link.Machine, time.Duration, []link.Ref, bool) []link.Output

	// Of the hub's peer.
	Up         func(*fleethub.Peer, time.Duration, *fleet.Up) ([]fleethub.Output, bool)
	Will       func(*fleethub.Peer, time.Duration, fleet.SessionID)
	SetDesired func(*fleethub.Peer, time.Duration, fleethub.Desired, uint64) []fleethub.Output
	Adopt      func(*fleethub.Peer, time.Duration) []fleethub.Output
	Ask        func(*fleethub.Peer, time.Duration, string) []fleethub.Output
	Depose     func(*fleethub.Peer)
	LinkUp     func(*fleethub.Peer, time.Duration) []fleethub.Output
	LinkDown   func(*fleethub.Peer)
	HubTick    func(*fleethub.Peer, time.Duration) []fleethub.Output

	// NextBoot is the number of a start of the agent, by the one before.
	NextBoot func(uint64) uint64
	// Releases says whether a verdict on a stamp frees the slot of a report.
	Releases func(verdict, slot fleet.StampID) bool
	// NextEpoch is a hub's epoch, by the one in etcd.
	NextEpoch func(uint64) uint64
	// Synced is what an order says, by whether the hub's informers have synced.
	Synced func(bool) bool
	// Obsoletes says whether a report replaces one that etcd has.
	Obsoletes func(report, written fleet.StampID) bool
	// EventName is what the API knows a journal entry by, whichever hub writes it.
	EventName func(reign int, store string, boot, seq uint64) string
	// SameFile says whether a journal that was written came from the state file of
	// the present session.
	SameFile func(journal, session string) bool
	// Answer is what the hub says of a report once it is settled; UNKNOWN says
	// nothing.
	Answer func(fleet.Verdict) fleet.Verdict

	// Early answers reports and journal when they come in, not when etcd has them.
	Early bool
}

// Real are production's transitions and rules.
func Real() *Transitions {
	return &Transitions{
		Connected:    (*link.Machine).Connected,
		Disconnected: (*link.Machine).Disconnected,
		NodeTick:     (*link.Machine).Tick,
		Down:         (*link.Machine).Down,
		Fetched:      (*link.Machine).Fetched,
		Stored:       (*link.Machine).Stored,
		Outbox:       (*link.Machine).Outbox,

		Up:         (*fleethub.Peer).Up,
		Will:       (*fleethub.Peer).Will,
		SetDesired: (*fleethub.Peer).SetDesired,
		Adopt:      (*fleethub.Peer).Adopt,
		Ask:        (*fleethub.Peer).Ask,
		Depose:     (*fleethub.Peer).Depose,
		LinkUp:     (*fleethub.Peer).LinkUp,
		LinkDown:   (*fleethub.Peer).LinkDown,
		HubTick:    (*fleethub.Peer).Tick,

		NextBoot:  func(boot uint64) uint64 { return boot + 1 },
		Releases:  func(verdict, slot fleet.StampID) bool { return verdict == slot },
		NextEpoch: func(epoch uint64) uint64 { return epoch + 1 },
		Synced:    func(live bool) bool { return live },
		Obsoletes: fleet.StampID.Obsoletes,
		EventName: func(_ int, store string, boot, seq uint64) string { return eventName(store, boot, seq) },
		SameFile:  func(journal, session string) bool { return journal == session },
		Answer:    func(v fleet.Verdict) fleet.Verdict { return v },
	}
}
