package wasi

import (
	"golang.org/x/sys/unix"
)

func sockAccept(s *System, m memory, a []uint64) errno {
	f, e := s.get(uint32(a[0]), 0)
	if e != ok {
		return e
	}
	if a[1]&^flagNonblock != 0 {
		return eInval
	}
	if !f.listener {
		return eNotsock
	}
	if f.base&rightAccept == 0 {
		return eNotcap
	}
	flags := unix.SOCK_CLOEXEC
	if a[1]&flagNonblock != 0 {
		flags |= unix.SOCK_NONBLOCK
	}
	fd, err := retry(func() (int, error) {
		fd, _, err := unix.Accept4(f.fd, flags)
		return fd, err
	})
	if err != nil {
		return toErrno(err)
	}
	return s.opened(m, a[2], &file{fd: fd, dirFD: -1, kind: typeStream, flags: uint16(a[1]), base: rightsSocket})
}

// socket finds a connected one. The standard streams are none, whatever they
// lead to: some parents make their pipes of socket pairs, and what they share
// with a guest isn't the guest's to shut down.
func (s *System) socket(fd uint64, rights uint64) (*file, errno) {
	f, e := s.get(uint32(fd), 0)
	switch {
	case e != ok:
		return nil, e
	case f.kind != typeStream && f.kind != typeDatagram || f.preopen != "" || f.stdio:
		return nil, eNotsock
	case f.base&rights != rights:
		return nil, eNotcap
	}
	return f, ok
}

// Flags of sock_recv.
const (
	recvPeek    = 1
	recvWaitall = 2
)

func sockRecv(s *System, m memory, a []uint64) errno {
	f, e := s.socket(a[0], rightRead)
	if e != ok {
		return e
	}
	if a[3]&^(recvPeek|recvWaitall) != 0 {
		return eInval
	}
	iovs, e := s.vectors(m, a[1], a[2])
	if e != ok {
		return e
	}
	var truncated uint16
	n, err := retry(func() (int, error) {
		n, _, rflags, _, err := unix.RecvmsgBuffers(f.fd, iovs, nil, recvFlags(a[3]))
		if rflags&unix.MSG_TRUNC != 0 {
			truncated = 1
		}
		return n, err
	})
	if err != nil {
		return toErrno(err)
	}
	if e := m.put32(a[4], uint32(n)); e != ok {
		return e
	}
	return m.put16(a[5], truncated)
}

func recvFlags(of uint64) (flags int) {
	if of&recvPeek != 0 {
		flags |= unix.MSG_PEEK
	}
	if of&recvWaitall != 0 {
		flags |= unix.MSG_WAITALL
	}
	return flags
}

func sockSend(s *System, m memory, a []uint64) errno {
	f, e := s.socket(a[0], rightWrite)
	if e != ok {
		return e
	}
	if a[3] != 0 {
		return eInval
	}
	iovs, e := s.vectors(m, a[1], a[2])
	if e != ok {
		return e
	}
	n, err := retry(func() (int, error) {
		return unix.SendmsgBuffers(f.fd, iovs, nil, nil, unix.MSG_NOSIGNAL)
	})
	if err != nil {
		return toErrno(err)
	}
	return m.put32(a[4], uint32(n))
}

func sockShutdown(s *System, _ memory, a []uint64) errno {
	f, e := s.socket(a[0], rightShutdown)
	if e != ok {
		return e
	}
	how := 0
	switch a[1] {
	case 1:
		how = unix.SHUT_RD
	case 2:
		how = unix.SHUT_WR
	case 3:
		how = unix.SHUT_RDWR
	default:
		return eInval
	}
	return toErrno(unix.Shutdown(f.fd, how))
}
