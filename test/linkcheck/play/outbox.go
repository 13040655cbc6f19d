package play

import (
	"slices"
	"strings"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

// Report is the newest that the node said of one object.
type Report struct {
	UID     string // empty: the node's own
	Stamp   fleet.StampID
	Content uint32 // what was said; rises with time, across everything
	Gone    bool
	Acked   bool
}

// Mark is a place in the journal.
type Mark struct{ Boot, Seq uint64 }

// UpTo is true if m isn't after o.
func (m Mark) UpTo(o Mark) bool { return m.Boot < o.Boot || m.Boot == o.Boot && m.Seq <= o.Seq }

// Entry of the journal.
type Entry struct {
	Mark
	Content uint32
}

// Outbox is what a node has said, as edgelet/state keeps it. It is never changed
// in place.
type Outbox struct {
	Reports []Report // by UID
	Entries []Entry  // in order
	Acked   Mark
	Gaps    []Entry // dropped before they were acknowledged, one by one
}

// Report of a UID.
func (b Outbox) Report(uid string) (Report, bool) {
	if i, ok := b.find(uid); ok {
		return b.Reports[i], true
	}
	return Report{}, false
}

func (b Outbox) find(uid string) (int, bool) {
	return slices.BinarySearchFunc(b.Reports, uid, func(r Report, uid string) int { return strings.Compare(r.UID, uid) })
}

func (b *Outbox) put(r Report) {
	i, ok := b.find(r.UID)
	if ok {
		b.Reports = slices.Clone(b.Reports)
		b.Reports[i] = r
		return
	}
	b.Reports = slices.Insert(slices.Clone(b.Reports), i, r)
}

func (b *Outbox) drop(uid string) {
	if i, ok := b.find(uid); ok {
		b.Reports = slices.Delete(slices.Clone(b.Reports), i, i+1)
	}
}

// append an entry; if there are too many the oldest goes, and is a gap if nobody
// has it.
func (b *Outbox) append(e Entry, most int) {
	b.Entries = append(slices.Clone(b.Entries), e)
	for len(b.Entries) > most {
		old := b.Entries[0]
		b.Entries = b.Entries[1:]
		if !old.UpTo(b.Acked) {
			b.Gaps = append(slices.Clone(b.Gaps), old)
		}
	}
}

// release all entries and gaps up to m.
func (b *Outbox) release(m Mark) {
	if m.UpTo(b.Acked) {
		return
	}
	b.Acked = m
	b.Gaps = slices.DeleteFunc(slices.Clone(b.Gaps), func(g Entry) bool { return g.UpTo(m) })
}

// Waiting is true if there is journal that nobody has answered for.
func (b Outbox) Waiting() bool {
	n := len(b.Entries)
	return len(b.Gaps) > 0 || n > 0 && !b.Entries[n-1].UpTo(b.Acked)
}

// pending is the journal after (boot, seq) as it travels, at most so many entries.
func (b Outbox) pending(after Mark, most int) *fleet.Journal {
	if after.UpTo(b.Acked) {
		after = b.Acked
	}
	out := &fleet.Journal{}
	for _, g := range b.Gaps {
		if !g.UpTo(after) {
			out.Gaps = append(out.Gaps, &fleet.Gap{Boot: g.Boot, From: g.Seq, To: g.Seq})
		}
	}
	for _, e := range b.Entries {
		if !e.UpTo(after) && len(out.Entries) < most {
			out.Entries = append(out.Entries, &fleet.JournalEntry{Boot: e.Boot, Seq: e.Seq, Kind: "event", Count: e.Content})
		}
	}
	return out
}
