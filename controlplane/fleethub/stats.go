package fleethub

import (
	"strings"
	"sync/atomic"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

// stats count what the hub does; nothing of them is per node, of which there may
// be thousands.
type stats struct {
	hellos, came, went         atomic.Int64
	ordersSent, ordersRepeated atomic.Int64
	rebirths, retold           atomic.Int64
	dropped                    [drops]atomic.Int64
	acks                       [fleet.AckStatus_FAILED + 1]atomic.Int64
	verdicts                   [fleet.Verdict_REJECTED + 1]atomic.Int64
	journal                    [entries]atomic.Int64
}

// drop is why a message went nowhere.
type drop int

const (
	dropFull     drop = iota // too much of the node's waits
	dropRefused              // forged, malformed, of an unknown node
	dropStray                // of another session, or seen before
	dropNotSent              // to a node: the broker can't take it
	dropTooLarge             // to a node
	drops
)

func (d drop) String() string {
	return [...]string{"inbox-full", "refused", "stray", "not-sent", "too-large"}[d]
}

// entry is what became of a journal entry.
type entry int

const (
	entryStored  entry = iota // as an Event
	entryKept                 // on the node only: more than it may have stored
	entryRefused              // by the API server
	entryOther                // of a kind that isn't stored
	entryLost                 // on the node, by its own word
	entries
)

func (e entry) String() string {
	return [...]string{"stored", "kept-on-node", "rejected", "not-an-event", "lost-on-node"}[e]
}

func (s *stats) drop(d drop) { s.dropped[d].Add(1) }

func (s *stats) ack(a fleet.AckStatus) {
	if int(a) < 0 || int(a) >= len(s.acks) {
		a = fleet.AckStatus_ACK_UNKNOWN // of a later version
	}
	s.acks[a].Add(1)
}

func ackName(a int) string {
	return strings.ToLower(strings.ReplaceAll(fleet.AckStatus(a).String(), "_", "-"))
}

func verdictName(v int) string { return strings.ToLower(fleet.Verdict(v).String()) }
