package wasi

import (
	"golang.org/x/sys/unix"
)

// Event types of poll_oneoff.
const (
	eventClock = iota
	eventRead
	eventWrite
)

const (
	subscriptionSize = 48
	eventSize        = 32
)

// pollOneoff waits for the first of several clocks and descriptors, in the
// kernel. Files and directories are always ready.
func pollOneoff(s *System, m memory, a []uint64) errno {
	n := a[2]
	if n == 0 {
		return eInval
	}
	if n > maxFiles {
		return eInval
	}
	in, good := m.bytes(a[0], n*subscriptionSize)
	if !good {
		return eFault
	}
	out, good := m.bytes(a[1], n*eventSize)
	if !good {
		return eFault
	}
	w := waiter{s: s, in: in, out: out, deadline: -1}
	if e := w.collect(int(n)); e != ok {
		return e
	}
	if e := w.wait(); e != ok {
		return e
	}
	w.fire(int(n))
	return m.put32(a[3], uint32(w.events))
}

// waiter is one call of poll_oneoff.
type waiter struct {
	s        *System
	in, out  []byte
	deadline int64 // CLOCK_MONOTONIC in ns, the earliest; -1: none
	ready    bool  // something is ready without waiting
	events   int
}

func (w *waiter) sub(i int) []byte { return w.in[i*subscriptionSize:][:subscriptionSize] }

// due is the monotonic time at which clock subscription i fires.
func (w *waiter) due(sub []byte) (int64, errno) {
	id, timeout, flags := uint64(le.Uint32(sub[16:])), le.Uint64(sub[24:]), le.Uint16(sub[40:])
	if id != clockRealtime && id != clockMonotonic {
		return 0, eNotsup
	}
	mono, _ := w.s.now(clockMonotonic)
	left := timeout
	if flags&1 != 0 { // an absolute time
		now, e := w.s.now(id)
		if e != ok {
			return 0, e
		}
		left = 0
		if timeout > uint64(now) {
			left = timeout - uint64(now)
		}
	}
	if left > 1<<62 {
		left = 1 << 62
	}
	return mono + int64(left), ok
}

// collect fills the list for ppoll. Clocks are turned into monotonic times at
// once, so that a relative time isn't counted anew after the wait.
func (w *waiter) collect(n int) errno {
	s := w.s
	s.pollFDs, s.pollSubs, s.pollDue = s.pollFDs[:0], s.pollSubs[:0], s.pollDue[:0]
	for i := range n {
		sub := w.sub(i)
		due := int64(-1)
		switch sub[8] {
		case eventClock:
			at, e := w.due(sub)
			if e != ok {
				w.emit(sub, e, 0, 0)
				break
			}
			if due = at; w.deadline < 0 || at < w.deadline {
				w.deadline = at
			}
		case eventRead, eventWrite:
			f, e := s.get(le.Uint32(sub[16:]), 0)
			if e == ok && f.base&rightPoll == 0 && !f.isDir() {
				e = eNotcap
			}
			switch {
			case e != ok:
				w.emit(sub, e, 0, 0)
			case f.alwaysReady():
				w.ready = true
			default:
				events := int16(unix.POLLIN)
				if sub[8] == eventWrite {
					events = unix.POLLOUT
				}
				s.pollFDs = append(s.pollFDs, unix.PollFd{Fd: int32(f.fd), Events: events})
				s.pollSubs = append(s.pollSubs, int32(i))
			}
		default:
			return eInval
		}
		s.pollDue = append(s.pollDue, due)
	}
	return ok
}

// alwaysReady: what poll(2) has nothing to say about.
func (f *file) alwaysReady() bool { return f.kind == typeRegular || f.isDir() || f.fd < 0 }

func (w *waiter) wait() errno {
	for {
		var ts *unix.Timespec
		if w.ready || w.events > 0 {
			ts = &unix.Timespec{}
		} else if w.deadline >= 0 {
			now, _ := w.s.now(clockMonotonic)
			t := unix.NsecToTimespec(max(0, w.deadline-now))
			ts = &t
		}
		_, err := unix.Ppoll(w.s.pollFDs, ts, nil)
		if err == nil {
			return ok
		}
		if err != unix.EINTR {
			return toErrno(err)
		}
	}
}

// fire writes the events of everything that is ready now.
func (w *waiter) fire(n int) {
	now, _ := w.s.now(clockMonotonic)
	next := 0
	for i := range n {
		sub := w.sub(i)
		if sub[8] == eventClock {
			if due := w.s.pollDue[i]; due >= 0 && due <= now {
				w.emit(sub, ok, 0, 0)
			}
			continue
		}
		if next < len(w.s.pollSubs) && int(w.s.pollSubs[next]) == i {
			w.fireFD(sub, &w.s.pollFDs[next])
			next++
			continue
		}
		if f, e := w.s.get(le.Uint32(sub[16:]), 0); e == ok && f.alwaysReady() && (f.base&rightPoll != 0 || f.isDir()) {
			w.emit(sub, ok, f.readable(sub[8]), 0)
		}
	}
}

func (w *waiter) fireFD(sub []byte, p *unix.PollFd) {
	if p.Revents == 0 {
		return
	}
	var flags uint16
	if p.Revents&(unix.POLLHUP|unix.POLLERR) != 0 {
		flags = 1 // hangup
	}
	if p.Revents&unix.POLLNVAL != 0 {
		w.emit(sub, eBadf, 0, 0)
		return
	}
	var bytes uint64
	if sub[8] == eventRead {
		if n, err := unix.IoctlGetInt(int(p.Fd), unix.TIOCINQ); err == nil && n > 0 {
			bytes = uint64(n)
		}
	} else {
		bytes = 4096
	}
	w.emit(sub, ok, bytes, flags)
}

// readable is how many bytes a file has left.
func (f *file) readable(event byte) uint64 {
	if event != eventRead || f.kind != typeRegular {
		return 1
	}
	var st unix.Stat_t
	at, err := unix.Seek(f.fd, 0, unix.SEEK_CUR)
	if err != nil || unix.Fstat(f.fd, &st) != nil || st.Size <= at {
		return 0
	}
	return uint64(st.Size - at)
}

func (w *waiter) emit(sub []byte, e errno, bytes uint64, flags uint16) {
	b := w.out[w.events*eventSize:][:eventSize]
	var userdata [8]byte
	copy(userdata[:], sub[:8])
	kind := sub[8]
	clear(b)
	copy(b, userdata[:])
	le.PutUint16(b[8:], uint16(e))
	b[10] = kind
	le.PutUint64(b[16:], bytes)
	le.PutUint16(b[24:], flags)
	w.events++
}
