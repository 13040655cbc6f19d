package wasi

import "golang.org/x/sys/unix"

// Socket options of the extension, in its order; all of the level SOL_SOCKET.
const (
	optReuseaddr = iota
	optType
	optError
	optDontroute
	optBroadcast
	optSndbuf
	optRcvbuf
	optKeepalive
	optOobinline
	optLinger
	optRcvlowat
	optRcvtimeo
	optSndtimeo
	optAcceptconn
)

// hostOption is the host's number of an option that is an int, or -1.
func hostOption(name uint64) int {
	list := [...]int{
		optReuseaddr: unix.SO_REUSEADDR, optType: unix.SO_TYPE, optError: unix.SO_ERROR, optDontroute: -1,
		optBroadcast: unix.SO_BROADCAST, optSndbuf: unix.SO_SNDBUF, optRcvbuf: unix.SO_RCVBUF, optKeepalive: unix.SO_KEEPALIVE,
		optOobinline: unix.SO_OOBINLINE, optLinger: -1, optRcvlowat: unix.SO_RCVLOWAT, optRcvtimeo: -1, optSndtimeo: -1,
		optAcceptconn: unix.SO_ACCEPTCONN,
	}
	if name >= uint64(len(list)) {
		return -1
	}
	return list[name]
}

// timeoutOption is a guest's struct timeval: two numbers of 64 bits.
func timeoutOption(name uint64) (host int, is bool) {
	switch name {
	case optRcvtimeo:
		return unix.SO_RCVTIMEO, true
	case optSndtimeo:
		return unix.SO_SNDTIMEO, true
	}
	return 0, false
}

func sockGetsockopt(s *System, m memory, a []uint64) errno {
	f, e := s.socket(a[0], 0)
	if e != ok {
		return e
	}
	room, e := m.get32(a[4])
	if e != ok {
		return e
	}
	if a[1] != 0 {
		return eNotsup
	}
	if host, is := timeoutOption(a[2]); is {
		tv, err := unix.GetsockoptTimeval(f.fd, unix.SOL_SOCKET, host)
		if err != nil {
			return toErrno(err)
		}
		b, in := m.bytes(a[3], 16)
		if !in || room < 16 {
			return eFault
		}
		le.PutUint64(b, uint64(tv.Sec))
		le.PutUint64(b[8:], uint64(tv.Usec))
		return m.put32(a[4], 16)
	}
	host := hostOption(a[2])
	if host < 0 {
		return eNotsup
	}
	v, err := unix.GetsockoptInt(f.fd, unix.SOL_SOCKET, host)
	if err != nil {
		return toErrno(err)
	}
	switch a[2] {
	case optError:
		if v != 0 {
			v = int(toErrno(unix.Errno(v)))
		}
	case optType:
		v = typeConn
		if f.kind == typeDatagram {
			v = typeDgram
		}
	}
	if room < 4 {
		return eInval
	}
	if e := m.put32(a[3], uint32(v)); e != ok {
		return e
	}
	return m.put32(a[4], 4)
}

func sockSetsockopt(s *System, m memory, a []uint64) errno {
	f, e := s.socket(a[0], 0)
	if e != ok {
		return e
	}
	b, in := m.bytes(a[3], a[4])
	if !in {
		return eFault
	}
	if a[1] != 0 {
		return eNotsup
	}
	if host, is := timeoutOption(a[2]); is {
		if len(b) != 16 {
			return eInval
		}
		sec, usec := le.Uint64(b), le.Uint64(b[8:])
		if sec > 1<<31 || usec >= 1e6 {
			return eInval
		}
		tv := unix.NsecToTimeval(int64(sec)*1e9 + int64(usec)*1e3)
		return toErrno(unix.SetsockoptTimeval(f.fd, unix.SOL_SOCKET, host, &tv))
	}
	host := hostOption(a[2])
	if host < 0 || a[2] == optType || a[2] == optError || a[2] == optAcceptconn {
		return eNotsup
	}
	if len(b) < 4 {
		return eInval
	}
	v := int(int32(le.Uint32(b)))
	if a[2] == optSndbuf || a[2] == optRcvbuf {
		v = min(v, maxSockBuf) // kernel memory, which isn't everywhere the guest's own
	}
	return toErrno(unix.SetsockoptInt(f.fd, unix.SOL_SOCKET, host, v))
}
