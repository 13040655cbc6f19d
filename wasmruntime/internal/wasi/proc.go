package wasi

import (
	"time"

	"golang.org/x/sys/unix"
)

func sizes(m memory, a []uint64, list []string) errno {
	total := 0
	for _, s := range list {
		total += len(s) + 1
	}
	if e := m.put32(a[0], uint32(len(list))); e != ok {
		return e
	}
	return m.put32(a[1], uint32(total))
}

func strings(m memory, a []uint64, list []string) errno {
	pointers, at := a[0], a[1]
	for _, s := range list {
		if e := m.put32(pointers, uint32(at)); e != ok {
			return e
		}
		b, in := m.bytes(at, uint64(len(s)+1))
		if !in {
			return eFault
		}
		copy(b, s)
		b[len(s)] = 0
		pointers += 4
		at += uint64(len(s) + 1)
	}
	return ok
}

func argsGet(s *System, m memory, a []uint64) errno         { return strings(m, a, s.cfg.Args) }
func argsSizesGet(s *System, m memory, a []uint64) errno    { return sizes(m, a, s.cfg.Args) }
func environGet(s *System, m memory, a []uint64) errno      { return strings(m, a, s.cfg.Env) }
func environSizesGet(s *System, m memory, a []uint64) errno { return sizes(m, a, s.cfg.Env) }

// Clocks of preview 1.
const (
	clockRealtime = iota
	clockMonotonic
	clockProcess
	clockThread
)

// now reads a clock in nanoseconds. Wall and monotonic come from the vDSO.
func (s *System) now(id uint64) (int64, errno) {
	switch id {
	case clockRealtime:
		return time.Now().UnixNano(), ok
	case clockMonotonic:
		return s.mono + int64(time.Since(s.start)), ok
	case clockProcess, clockThread:
		var ts unix.Timespec
		host := int32(unix.CLOCK_PROCESS_CPUTIME_ID)
		if id == clockThread {
			host = unix.CLOCK_THREAD_CPUTIME_ID
		}
		if err := unix.ClockGettime(host, &ts); err != nil {
			return 0, toErrno(err)
		}
		return ts.Nano(), ok
	}
	return 0, eInval
}

func clockResGet(_ *System, m memory, a []uint64) errno {
	if a[0] > clockThread {
		return eInval
	}
	return m.put64(a[1], 1)
}

func clockTimeGet(s *System, m memory, a []uint64) errno {
	t, e := s.now(a[0])
	if e != ok {
		return e
	}
	return m.put64(a[2], uint64(t))
}

func procExit(s *System, _ memory, a []uint64) errno {
	s.cfg.Exit(uint32(a[0]))
	return ok
}

// procRaise ends the guest for the signals that end a process; preview 1 has
// no way to deliver one to the guest.
func procRaise(s *System, _ memory, a []uint64) errno {
	switch sig := uint32(a[0]); sig {
	case 0, 16, 19, 20, 21, 22, 26, 27: // none, CHLD, TSTP, TTIN, TTOU, URG, WINCH, POLL: ignored
		return ok
	case 17, 18: // CONT, STOP
		return eNotsup
	default:
		if sig > 30 {
			return eInval
		}
		s.cfg.Exit(128 + sig)
	}
	return ok
}

func schedYield(*System, memory, []uint64) errno {
	unix.Syscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
	return ok
}

func randomGet(_ *System, m memory, a []uint64) errno {
	b, in := m.bytes(a[0], a[1])
	if !in {
		return eFault
	}
	for len(b) > 0 {
		n, err := unix.Getrandom(b, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return toErrno(err)
		}
		b = b[n:]
	}
	return ok
}
