package wasm

import (
	"errors"
	"io"
	"sync"
	"time"
)

const (
	// tapHigh is how many bytes may wait for one who is attached before the
	// stream is read no further. One read more can come on top.
	tapHigh = 256 << 10
	// tapPatience is how long a stream waits for one who takes nothing. Output
	// meanwhile waits in the FIFO, then the guest does, as with any pipe.
	tapPatience = 10 * time.Second
)

// errTapSlow ends an attachment whose reader takes nothing.
var errTapSlow = errors.New("the attached reader took nothing for " + tapPatience.String() + " and was cut off; the container's log has everything")

// taps are those who follow one stream of a guest. The zero value is ready.
type taps struct {
	mu     sync.Mutex
	all    map[*tap]struct{}
	closed bool
}

// tap is a bounded queue between a stream and one who is attached to it.
type tap struct {
	mu   sync.Mutex
	buf  []byte
	err  error         // why nothing more comes; io.EOF at the stream's end
	more chan struct{} // capacity 1: buf or err changed
	room chan struct{} // capacity 1: buf was taken
}

// add begins to follow; a stream that has ended gives io.EOF at once.
func (ts *taps) add() *tap {
	t := &tap{more: make(chan struct{}, 1), room: make(chan struct{}, 1)}
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if ts.closed {
		t.end(io.EOF)
		return t
	}
	if ts.all == nil {
		ts.all = map[*tap]struct{}{}
	}
	ts.all[t] = struct{}{}
	return t
}

func (ts *taps) remove(t *tap) {
	ts.mu.Lock()
	delete(ts.all, t)
	ts.mu.Unlock()
	t.end(io.EOF) // whoever waits for it to be read needn't
}

func (ts *taps) list() []*tap {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	out := make([]*tap, 0, len(ts.all))
	for t := range ts.all {
		out = append(out, t)
	}
	return out
}

// put never blocks; awaitRoom is called after it.
func (ts *taps) put(data []byte) {
	for _, t := range ts.list() {
		t.mu.Lock()
		if t.err == nil {
			t.buf = append(t.buf, data...)
		}
		t.mu.Unlock()
		signal(t.more)
	}
}

// awaitRoom returns when nobody is far behind, or cuts off who stays so. It is
// called without locks: other containers' logs go on.
func (ts *taps) awaitRoom(ending <-chan struct{}) {
	for _, t := range ts.list() {
		last := -1
		for {
			n, over := t.behind()
			if over || n < tapHigh {
				break
			}
			if n == last {
				t.end(errTapSlow)
				break
			}
			last = n
			timer := time.NewTimer(tapPatience)
			select {
			case <-t.room:
				last = -1
			case <-timer.C:
			case <-ending:
				timer.Stop()
				return
			}
			timer.Stop()
		}
	}
}

func (ts *taps) close() {
	ts.mu.Lock()
	ts.closed = true
	ts.mu.Unlock()
	for _, t := range ts.list() {
		t.end(io.EOF)
	}
}

func (t *tap) behind() (n int, over bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.buf), t.err != nil
}

// end is told once; what is queued can still be taken, unless it was cut off.
func (t *tap) end(err error) {
	t.mu.Lock()
	if t.err == nil {
		t.err = err
	}
	t.mu.Unlock()
	signal(t.more)
	signal(t.room)
}

// take returns what has come; with an error when nothing more will.
func (t *tap) take() ([]byte, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := t.buf
	t.buf = nil
	signal(t.room)
	if len(out) > 0 {
		return out, nil
	}
	return nil, t.err
}

// copyTo writes what comes to w until the stream ends (nil), the tap is cut off,
// done is closed (nil) or w fails.
func (t *tap) copyTo(w io.Writer, done <-chan struct{}) error {
	for {
		data, err := t.take()
		switch {
		case len(data) > 0:
			if _, err := w.Write(data); err != nil {
				return err
			}
			continue
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		select {
		case <-t.more:
		case <-done:
			return nil
		}
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
