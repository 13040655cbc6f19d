package link

import (
	"time"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

// Budget is how much data this node may use in a day; package budget has one.
type Budget interface {
	// Count is told what was sent and received.
	Count(sent, received int)
	// Set is told the limit in bytes, 0 for none, and Heard a time that the hub
	// has signed.
	Set(limit uint64)
	Heard(t time.Time)
	// Held is true while what isn't urgent waits; Watch signals when that changes.
	Held() bool
	Watch() <-chan struct{}
	// Fits returns why n bytes, or if 0 anything at all, are too many.
	Fits(n int64) error
}

// unlimited is the budget of a node that has none.
type unlimited struct{}

func (unlimited) Count(int, int)         {}
func (unlimited) Set(uint64)             {}
func (unlimited) Heard(time.Time)        {}
func (unlimited) Held() bool             { return false }
func (unlimited) Watch() <-chan struct{} { return nil }
func (unlimited) Fits(int64) error       { return nil }

// waiting are the reports that aren't answered for and may be sent now, and
// whether the journal may. While data is short, only what is urgent is offered to
// the machine; the rest stays in the outbox, where the latest replaces it.
func (s *session) waiting() (refs []Ref, journal bool) {
	l := s.l
	held := l.c.Budget.Held()
	for _, r := range l.c.State.Reports() {
		if !r.Acked && (r.Urgent || !held) {
			refs = append(refs, Ref{r.UID, r.Stamp, r.Size})
		}
	}
	return refs, !held && l.c.State.HasJournal()
}

// holdJournal is true if the journal has to wait; the machine may want to send
// what was lost, and is told that it was sent, so that it asks again later.
func (s *session) holdJournal(o SendJournal) bool {
	if !s.l.c.Budget.Held() {
		return false
	}
	s.l.machine.JournalSent(s.l.now(), o.Boot, o.Seq)
	return true
}

// tooMuch says, for each object, that there is no data left for it; nil if there
// is.
func (s *session) tooMuch(objects []*fleet.Object) map[string]string {
	var n int64
	for _, o := range objects {
		n += int64(o.GetSize())
	}
	err := s.l.c.Budget.Fits(n)
	if err == nil {
		return nil
	}
	failed := map[string]string{}
	for _, o := range objects {
		failed[o.GetUid()] = err.Error()
	}
	return failed
}
