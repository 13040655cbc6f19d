package state

import (
	"fmt"
	"slices"

	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

// Kinds of journal entries.
const (
	EntryEvent = "event" // becomes an Event in the API
	EntryExit  = "exit"  // a container ended
	EntryOOM   = "oom"
	EntryNote  = "note"
)

// Entry is one fact for the journal. Boot, sequence and times are added.
type Entry struct {
	Kind string // EntryEvent ...
	// The object it is about.
	ObjectKind, Namespace, Name, UID, FieldPath string
	// As of an Event.
	Type, Reason, Message, Component string
	Count                            uint32
	// Data is for kinds that need more.
	Data []byte
}

const maxEntryMessage = 1024 // bytes, as upstream's Events

type mark struct {
	boot, seq uint64
	size      int
}

func (m mark) upTo(boot, seq uint64) bool {
	return m.boot < boot || (m.boot == boot && m.seq <= seq)
}

// journal in memory: the list of what is on disk or will be, and what isn't yet.
type journal struct {
	seq     uint64
	marks   []mark // in order
	bytes   int
	acked   mark // of boot and seq
	gaps    []*fleet.Gap
	pending []*fleet.JournalEntry // not on disk
	writing []*fleet.JournalEntry // being written
	removed []mark                // on disk, to be deleted
	meta    bool                  // acked or gaps changed
	gapDel  []*fleet.Gap
}

// dirtyJournal is what one transaction writes of it.
type dirtyJournal struct {
	entries []*fleet.JournalEntry
	removed []mark
	acked   *mark
	gaps    []*fleet.Gap
	gapDel  []*fleet.Gap
}

func (j *journal) load(tx *bolt.Tx) error {
	if err := tx.Bucket(bucketJournal).ForEach(func(k, v []byte) error {
		boot, seq := fromPair(k)
		j.marks = append(j.marks, mark{boot, seq, len(v)})
		j.bytes += len(v)
		return nil
	}); err != nil {
		return err
	}
	j.acked.boot, j.acked.seq = fromPair(getMeta(tx, keyJournalAcked))
	return tx.Bucket(bucketGaps).ForEach(func(k, v []byte) error {
		g := &fleet.Gap{}
		if err := proto.Unmarshal(v, g); err != nil {
			return fmt.Errorf("gap: %w", err)
		}
		j.gaps = append(j.gaps, g)
		return nil
	})
}

// Journal appends an entry. It is durable within FlushDelay. If the journal is
// full its oldest entries go; if they weren't acknowledged a gap is noted, which
// the hub is told.
func (s *Store) Journal(e Entry) error {
	now := s.opts.Now()
	if len(e.Message) > maxEntryMessage {
		e.Message = e.Message[:maxEntryMessage-3] + "..."
	}
	if len(e.Data) > 4<<10 {
		return fmt.Errorf("journal entry %s of %s/%s: %d bytes of data: %w", e.Kind, e.Namespace, e.Name, len(e.Data), fleet.ErrTooLarge)
	}
	if e.Count == 0 {
		e.Count = 1
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	j := &s.journal
	j.seq++
	msg := &fleet.JournalEntry{
		Boot: s.boot, Seq: j.seq, Kind: e.Kind, Wall: now.UnixNano(), Uptime: int64(now.Sub(s.started)),
		ObjectKind: e.ObjectKind, Namespace: e.Namespace, Name: e.Name, Uid: e.UID, FieldPath: e.FieldPath,
		Type: e.Type, Reason: e.Reason, Message: e.Message, Component: e.Component, Count: e.Count, Data: slices.Clone(e.Data),
	}
	size := proto.Size(msg)
	j.pending = append(j.pending, msg)
	j.marks = append(j.marks, mark{s.boot, j.seq, size})
	j.bytes += size
	for len(j.marks) > s.opts.JournalEntries || j.bytes > s.opts.JournalBytes {
		j.dropOldest()
	}
	s.wake()
	signal(s.outbox)
	return nil
}

func (j *journal) dropOldest() {
	m := j.marks[0]
	j.marks = j.marks[1:]
	j.bytes -= m.size
	if len(j.pending) > 0 && j.pending[0].GetBoot() == m.boot && j.pending[0].GetSeq() == m.seq {
		j.pending = j.pending[1:]
	} else {
		j.removed = append(j.removed, m)
	}
	if m.upTo(j.acked.boot, j.acked.seq) {
		return
	}
	j.meta = true
	if n := len(j.gaps); n > 0 && j.gaps[n-1].GetBoot() == m.boot && j.gaps[n-1].GetTo()+1 == m.seq {
		j.gaps[n-1] = &fleet.Gap{Boot: m.boot, From: j.gaps[n-1].GetFrom(), To: m.seq}
		return
	}
	j.gaps = append(j.gaps, &fleet.Gap{Boot: m.boot, From: m.seq, To: m.seq})
}

// JournalPending returns, in order, entries and gaps that aren't acknowledged
// and come after (boot, seq), up to so many bytes (but at least one).
func (s *Store) JournalPending(boot, seq uint64, limit int) (*fleet.Journal, error) {
	s.mu.Lock()
	j := &s.journal
	after := mark{boot: boot, seq: seq}
	if after.upTo(j.acked.boot, j.acked.seq) {
		after = j.acked
	}
	out := &fleet.Journal{}
	for _, g := range j.gaps {
		if !(mark{boot: g.GetBoot(), seq: g.GetTo()}).upTo(after.boot, after.seq) {
			out.Gaps = append(out.Gaps, g)
		}
	}
	var want []mark
	total := 0
	for _, m := range j.marks {
		if m.upTo(after.boot, after.seq) {
			continue
		}
		if total += m.size; total > limit && len(want) > 0 {
			break
		}
		want = append(want, m)
	}
	fresh := map[mark]*fleet.JournalEntry{}
	for _, e := range slices.Concat(j.writing, j.pending) {
		fresh[mark{boot: e.GetBoot(), seq: e.GetSeq()}] = e
	}
	s.mu.Unlock()

	err := s.db.View(func(tx *bolt.Tx) error {
		b := tx.Bucket(bucketJournal)
		for _, m := range want {
			if e, ok := fresh[mark{boot: m.boot, seq: m.seq}]; ok {
				out.Entries = append(out.Entries, e)
				continue
			}
			value := b.Get(pair(m.boot, m.seq))
			if value == nil {
				continue // dropped right now
			}
			e := &fleet.JournalEntry{}
			if err := proto.Unmarshal(value, e); err != nil {
				return fmt.Errorf("%w: journal entry %d/%d in %s: %w", ErrDamaged, m.boot, m.seq, s.path, err)
			}
			out.Entries = append(out.Entries, e)
		}
		return nil
	})
	return out, err
}

// JournalAcked releases all entries and gaps up to (boot, seq). Entries stay
// readable until the journal needs their room.
func (s *Store) JournalAcked(boot, seq uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	j := &s.journal
	if (mark{boot: boot, seq: seq}).upTo(j.acked.boot, j.acked.seq) {
		return
	}
	j.acked = mark{boot: boot, seq: seq}
	j.meta = true
	j.gaps = slices.DeleteFunc(j.gaps, func(g *fleet.Gap) bool {
		done := (mark{boot: g.GetBoot(), seq: g.GetTo()}).upTo(boot, seq)
		if done {
			j.gapDel = append(j.gapDel, g)
		}
		return done
	})
}

// JournalTail returns the newest entries that are still there, acknowledged or
// not, up to limit, oldest first.
func (s *Store) JournalTail(limit int) ([]*fleet.JournalEntry, error) {
	if err := s.Sync(); err != nil {
		return nil, err
	}
	var out []*fleet.JournalEntry
	err := s.db.View(func(tx *bolt.Tx) error {
		c := tx.Bucket(bucketJournal).Cursor()
		for k, v := c.Last(); k != nil && len(out) < limit; k, v = c.Prev() {
			e := &fleet.JournalEntry{}
			if err := proto.Unmarshal(v, e); err != nil {
				return fmt.Errorf("%w: journal of %s: %w", ErrDamaged, s.path, err)
			}
			out = append(out, e)
		}
		return nil
	})
	slices.Reverse(out)
	return out, err
}

func (j *journal) take() dirtyJournal {
	d := dirtyJournal{entries: j.pending, removed: j.removed, gapDel: j.gapDel}
	if j.meta {
		acked := j.acked
		d.acked, d.gaps = &acked, slices.Clone(j.gaps)
	}
	j.writing = j.pending
	j.pending, j.removed, j.gapDel, j.meta = nil, nil, nil, false
	return d
}

func (d dirtyJournal) empty() bool {
	return len(d.entries) == 0 && len(d.removed) == 0 && len(d.gapDel) == 0 && d.acked == nil
}

func (j *journal) putBack(d dirtyJournal) {
	j.pending = slices.Concat(d.entries, j.pending)
	j.writing = nil
	j.removed = append(d.removed, j.removed...)
	j.gapDel = append(d.gapDel, j.gapDel...)
	j.meta = j.meta || d.acked != nil
}

func (d dirtyJournal) write(tx *bolt.Tx) error {
	b := tx.Bucket(bucketJournal)
	for _, e := range d.entries {
		value, err := proto.Marshal(e)
		if err != nil {
			return err
		}
		if err := b.Put(pair(e.GetBoot(), e.GetSeq()), value); err != nil {
			return err
		}
	}
	for _, m := range d.removed {
		if err := b.Delete(pair(m.boot, m.seq)); err != nil {
			return err
		}
	}
	gaps := tx.Bucket(bucketGaps)
	for _, g := range d.gapDel {
		if err := gaps.Delete(pair(g.GetBoot(), g.GetFrom())); err != nil {
			return err
		}
	}
	if d.acked == nil {
		return nil
	}
	for _, g := range d.gaps {
		value, err := proto.Marshal(g)
		if err != nil {
			return err
		}
		if err := gaps.Put(pair(g.GetBoot(), g.GetFrom()), value); err != nil {
			return err
		}
	}
	return putMeta(tx, keyJournalAcked, pair(d.acked.boot, d.acked.seq))
}

// HasJournal is true if there are entries or gaps that aren't acknowledged.
func (s *Store) HasJournal() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	j := &s.journal
	n := len(j.marks)
	return len(j.gaps) > 0 || n > 0 && !j.marks[n-1].upTo(j.acked.boot, j.acked.seq)
}
