package pods

import (
	"context"
	"sync"
	"time"
)

// turns is who may have a goroutine. A node of a hundred pods that do nothing would
// have a hundred stacks, each as large as the deepest call made of it: a worker has a
// goroutine only while there is something to do, a timer only if it waits for a time.
type turns struct {
	mu   sync.Mutex // of all seats; after Manager.mu, and nothing is taken below it
	over bool       // Manager.Run ends: nobody gets another
}

// seat is a worker's place among the turns.
type seat struct {
	begin func() // has a goroutine take the turn; nil: not yet, or not any more
	taken bool
	timer *time.Timer // of the next turn, nil if it isn't known when that is
}

// sit lets a worker have turns, the first one now.
func (w *worker) sit(begin func()) {
	t := &w.m.turns
	t.mu.Lock()
	w.seat.begin = begin
	t.mu.Unlock()
	w.take()
}

// signal has the worker look again, soon.
func (w *worker) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
	w.take()
}

// take begins a turn. One that is being taken sees what was signalled.
func (w *worker) take() {
	t := &w.m.turns
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over || w.seat.taken || w.seat.begin == nil {
		return
	}
	if w.seat.timer != nil {
		w.seat.timer.Stop()
		w.seat.timer = nil
	}
	w.seat.taken = true
	w.seat.begin()
}

// give ends a turn, unless there is a newer word; the next one is at a time or, if
// that is zero, when somebody signals.
func (w *worker) give(next time.Time) bool {
	t := &w.m.turns
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(w.wake) > 0 {
		return false
	}
	w.seat.taken = false
	if !next.IsZero() && !t.over {
		w.seat.timer = time.AfterFunc(max(time.Until(next), time.Millisecond), w.take)
	}
	return true
}

// turn looks and acts until there is nothing to do.
func (w *worker) turn(ctx context.Context) {
	for {
		select {
		case <-w.wake: // what it says is read now
		default:
		}
		next := w.sync(ctx)
		w.pod = nil
		switch {
		case w.finished:
			w.m.leave(w) // with its seat taken for ever
			return
		case ctx.Err() != nil:
			return // endTurns sees to it
		case w.give(next):
			return
		}
	}
}

// endTurns waits for all goroutines of Run, whose context is over, and ends the
// workers.
func (m *Manager) endTurns() {
	m.turns.mu.Lock()
	m.turns.over = true
	m.turns.mu.Unlock()
	m.wg.Wait()
	m.mu.Lock()
	left := make([]*worker, 0, len(m.workers))
	for _, w := range m.workers {
		left = append(left, w)
	}
	m.mu.Unlock()
	for _, w := range left {
		m.turns.mu.Lock()
		if w.seat.timer != nil {
			w.seat.timer.Stop()
		}
		m.turns.mu.Unlock()
		m.leave(w)
	}
}
