package state

import (
	"fmt"
	"time"

	bolt "go.etcd.io/bbolt"
)

// write is one caller that waits for durability.
type write struct {
	what string
	fn   func(*bolt.Tx) error
	err  chan error
}

// commit runs fn in a transaction, together with whoever else waits and all that
// is buffered, and returns when it is durable.
func (s *Store) commit(what string, fn func(*bolt.Tx) error) error {
	w := &write{what: what, fn: fn, err: make(chan error, 1)}
	select {
	case s.writes <- w:
		return <-w.err
	case <-s.quit:
		return fmt.Errorf("%s: %w", what, ErrClosed)
	}
}

// Sync makes everything that was said before durable.
func (s *Store) Sync() error {
	return s.commit("writing reports and journal", func(*bolt.Tx) error { return nil })
}

// wake has buffered things flushed after FlushDelay.
func (s *Store) wake() { signal(s.kick) }

// writer is the only goroutine that writes.
func (s *Store) writer() {
	defer close(s.done)
	var timer *time.Timer
	var due <-chan time.Time
	retry := s.opts.FlushDelay
	arm := func(d time.Duration) {
		if due == nil {
			timer = time.NewTimer(d)
			due = timer.C
		}
	}
	disarm := func() {
		if due != nil {
			timer.Stop()
			due = nil
		}
	}
	for {
		var batch []*write
		select {
		case <-s.quit:
			disarm()
			return
		case <-s.kick:
			arm(s.opts.FlushDelay)
			continue
		case <-due:
			due = nil
		case w := <-s.writes:
			batch = append(batch, w)
			for more := true; more; {
				select {
				case w := <-s.writes:
					batch = append(batch, w)
				default:
					more = false
				}
			}
		}
		if err := s.flush(batch); err != nil {
			retry = min(retry*2, time.Minute)
			arm(retry)
			continue
		}
		retry = s.opts.FlushDelay
		disarm()
	}
}

// flush writes the batch and what is buffered. If that fails with more than one
// caller, each is tried alone, so that nobody fails for another's reason.
func (s *Store) flush(batch []*write) error {
	err := s.transact(batch)
	if err != nil && len(batch) > 1 {
		for _, w := range batch {
			one := s.transact([]*write{w})
			w.err <- s.writeError(w.what, one)
		}
		return err
	}
	for _, w := range batch {
		w.err <- s.writeError(w.what, err)
	}
	return err
}

func (s *Store) transact(batch []*write) (err error) {
	s.mu.Lock()
	dirty := s.takeDirty()
	s.mu.Unlock()
	if dirty == nil && len(batch) == 0 {
		return nil
	}
	var stats bolt.TxStats
	var pages int64
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v", ErrDisk, p)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		before := s.health
		s.health = s.writeError("writing state", err)
		if err != nil {
			s.putBack(dirty)
			if before == nil {
				s.opts.Logger.Error("state isn't durable", "error", s.health)
			}
			return
		}
		s.journal.writing = nil
		if before != nil {
			s.opts.Logger.Info("state is durable again", "file", s.path)
		}
		if pages > 0 {
			s.commits.Add(1)
			s.bytes.Add(pages)
			s.syncs.Add(2)
		}
	}()
	tx, err := s.db.Begin(true)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // a no-op after Commit
	if dirty != nil {
		if err := dirty.write(tx); err != nil {
			return err
		}
	}
	for _, w := range batch {
		if err := w.fn(tx); err != nil {
			return err
		}
	}
	size := int64(s.db.Info().PageSize)
	if err := tx.Commit(); err != nil {
		return err
	}
	stats = tx.Stats()
	// What Commit allocates is what it writes, and one meta page.
	pages = stats.GetPageAlloc() + size
	return nil
}
