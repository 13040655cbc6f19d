package wasi

import (
	"net/netip"

	"golang.org/x/sys/unix"
)

// Outbound is what a guest that may make connections needs to know.
type Outbound struct {
	Servers  []netip.AddrPort
	Searches []string
	Ndots    int
	Hosts    []Host
}

// Host is a line of a hosts file.
type Host struct {
	Name string // in lower case
	Addr netip.Addr
}

// The socket extension of WasmEdge, as the crate wasmedge_wasi_socket and
// WasmEdge's libc shims call it. An address is {pointer, length}, its port
// apart: 4 or 16 bytes, or in the second version 128 that begin with the
// family. It is for connections to others: what listens is handed in.

// Address families and socket types of the extension.
const (
	family4    = 1
	family6    = 2
	typeDgram  = 1
	typeConn   = 2
	longForm   = 128 // bytes of an address of the second version
	maxSockBuf = 1 << 20
)

// socketFunction finds a function by its name and signature.
func socketFunction(name, signature string) hostFunc {
	switch name {
	case "sock_open", "sock_open_v2":
		return outbound(sockOpen)
	case "sock_bind", "sock_bind_v2":
		return outbound(sockBind)
	case "sock_connect", "sock_connect_v2":
		return outbound(sockConnect)
	case "sock_listen", "sock_listen_v2":
		return sockListen
	case "sock_accept":
		return func(s *System, m memory, a []uint64) errno { return sockAccept(s, m, []uint64{a[0], 0, a[1]}) }
	case "sock_accept_v2":
		return sockAccept
	case "sock_recv_v2":
		return sockRecv
	case "sock_send_v2":
		return sockSend
	case "sock_send_to", "sock_send_to_v2":
		return outbound(sockSendTo)
	case "sock_recv_from", "sock_recv_from_v2":
		if signature == "iiiiiii:i" { // no port
			return outbound(func(s *System, m memory, a []uint64) errno {
				return sockRecvFrom(s, m, []uint64{a[0], a[1], a[2], a[3], a[4], noPointer, a[5], a[6]})
			})
		}
		return outbound(sockRecvFrom)
	case "sock_getlocaladdr", "sock_getlocaladdr_v2":
		return sockName(signature, unix.Getsockname)
	case "sock_getpeeraddr", "sock_getpeeraddr_v2":
		return sockName(signature, unix.Getpeername)
	case "sock_getaddrinfo":
		return outbound(sockGetaddrinfo)
	case "sock_getsockopt":
		return sockGetsockopt
	case "sock_setsockopt":
		return outbound(sockSetsockopt)
	}
	return nil
}

// noPointer stands for a result that nobody asked for.
const noPointer = 1 << 40

// outbound is a second lock: a guest that may not connect isn't even started
// when it imports these.
func outbound(f hostFunc) hostFunc {
	return func(s *System, m memory, a []uint64) errno {
		if s.cfg.Outbound == nil {
			return eNotcap
		}
		return f(s, m, a)
	}
}

func sockOpen(s *System, m memory, a []uint64) errno {
	family, kind := unix.AF_INET, byte(typeStream)
	switch a[0] & 0xff {
	case family4:
	case family6:
		family = unix.AF_INET6
	default:
		return eAfnosupport
	}
	how := unix.SOCK_STREAM
	switch a[1] & 0xff {
	case typeConn:
	case typeDgram:
		how, kind = unix.SOCK_DGRAM, typeDatagram
	default:
		return eNotsup
	}
	fd, err := unix.Socket(family, how|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return toErrno(err)
	}
	return s.opened(m, a[2], &file{fd: fd, dirFD: -1, kind: kind, base: rightsSocket})
}

// addressOf gives the bytes of an {pointer, length}.
func addressOf(m memory, at uint64) ([]byte, errno) {
	b, in := m.bytes(at, 8)
	if !in {
		return nil, eFault
	}
	out, in := m.bytes(uint64(le.Uint32(b)), uint64(le.Uint32(b[4:])))
	if !in {
		return nil, eFault
	}
	return out, ok
}

// readAddress makes the kernel's address of the guest's.
func readAddress(m memory, at, port uint64) (unix.Sockaddr, errno) {
	b, e := addressOf(m, at)
	if e != ok {
		return nil, e
	}
	if port > 65535 {
		return nil, eInval
	}
	if len(b) == longForm {
		switch le.Uint16(b) {
		case family4:
			b = b[2:6]
		case family6:
			b = b[2:18]
		default:
			return nil, eAfnosupport
		}
	}
	switch len(b) {
	case 4:
		return &unix.SockaddrInet4{Port: int(port), Addr: [4]byte(b)}, ok
	case 16:
		return &unix.SockaddrInet6{Port: int(port), Addr: [16]byte(b)}, ok
	}
	return nil, eInval
}

// writeAddress puts an address where the guest has room for it. kind is the
// number of its family that programs expect beside it.
func writeAddress(m memory, at uint64, sa unix.Sockaddr) (kind uint32, port uint16, e errno) {
	b, e := addressOf(m, at)
	if e != ok {
		return 0, 0, e
	}
	var ip []byte
	family := uint16(family4)
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		ip, port, kind = sa.Addr[:], uint16(sa.Port), 4
	case *unix.SockaddrInet6:
		ip, port, kind, family = sa.Addr[:], uint16(sa.Port), 6, family6
	default:
		return 0, 0, eAfnosupport
	}
	if len(b) == longForm {
		clear(b)
		le.PutUint16(b, family)
		b = b[2:]
	} else if len(b) < len(ip) {
		return 0, 0, eInval
	}
	copy(b, ip)
	return kind, port, ok
}

// sockBind is for who receives datagrams, or needs a port of its own for
// them; streams that listen are handed in.
func sockBind(s *System, m memory, a []uint64) errno {
	f, e := s.socket(a[0], 0)
	if e != ok {
		return e
	}
	if f.kind != typeDatagram {
		return eNotcap
	}
	sa, e := readAddress(m, a[1], a[2])
	if e != ok {
		return e
	}
	return toErrno(unix.Bind(f.fd, sa))
}

func sockListen(s *System, _ memory, a []uint64) errno {
	f, e := s.socket(a[0], 0)
	if e != ok {
		return e
	}
	if f.listener {
		return ok // it does
	}
	return eNotcap
}

func sockConnect(s *System, m memory, a []uint64) errno {
	f, e := s.socket(a[0], 0)
	if e != ok {
		return e
	}
	sa, e := readAddress(m, a[1], a[2])
	if e != ok {
		return e
	}
	err := unix.Connect(f.fd, sa)
	if err == unix.EINTR {
		// It goes on by itself, and is done when the socket can be written.
		err = connected(f.fd)
	}
	return toErrno(err)
}

// connected waits for a connection that was begun.
func connected(fd int) error {
	for {
		_, err := unix.Ppoll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, nil, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && code != 0 {
			err = unix.Errno(code)
		}
		return err
	}
}

func sockSendTo(s *System, m memory, a []uint64) errno {
	f, e := s.socket(a[0], rightWrite)
	if e != ok {
		return e
	}
	if a[5] != 0 {
		return eInval
	}
	iovs, e := s.vectors(m, a[1], a[2])
	if e != ok {
		return e
	}
	sa, e := readAddress(m, a[3], a[4])
	if e != ok {
		return e
	}
	n, err := retry(func() (int, error) {
		return unix.SendmsgBuffers(f.fd, iovs, nil, sa, unix.MSG_NOSIGNAL)
	})
	if err != nil {
		return toErrno(err)
	}
	return m.put32(a[6], uint32(n))
}

func sockRecvFrom(s *System, m memory, a []uint64) errno {
	f, e := s.socket(a[0], rightRead)
	if e != ok {
		return e
	}
	if a[4]&^(recvPeek|recvWaitall) != 0 {
		return eInval
	}
	iovs, e := s.vectors(m, a[1], a[2])
	if e != ok {
		return e
	}
	var from unix.Sockaddr
	var truncated uint16
	n, err := retry(func() (int, error) {
		n, _, rflags, sa, err := unix.RecvmsgBuffers(f.fd, iovs, nil, recvFlags(a[4]))
		from = sa
		if rflags&unix.MSG_TRUNC != 0 {
			truncated = 1
		}
		return n, err
	})
	if err != nil {
		return toErrno(err)
	}
	if from == nil { // a stream says who it is to those who ask
		if from, err = unix.Getpeername(f.fd); err != nil {
			return toErrno(err)
		}
	}
	_, port, e := writeAddress(m, a[3], from)
	if e != ok {
		return e
	}
	if a[5] != noPointer {
		if e := m.put32(a[5], uint32(port)); e != ok {
			return e
		}
	}
	if e := m.put32(a[6], uint32(n)); e != ok {
		return e
	}
	return m.put16(a[7], truncated)
}

// sockName is sock_getlocaladdr and sock_getpeeraddr; the first version wants
// the kind of the address too.
func sockName(signature string, of func(int) (unix.Sockaddr, error)) hostFunc {
	return func(s *System, m memory, a []uint64) errno {
		f, e := s.socket(a[0], 0)
		if e != ok {
			return e
		}
		sa, err := of(f.fd)
		if err != nil {
			return toErrno(err)
		}
		kind, port, e := writeAddress(m, a[1], sa)
		if e != ok {
			return e
		}
		if signature == "iii:i" {
			return m.put32(a[2], uint32(port))
		}
		if e := m.put32(a[2], kind); e != ok {
			return e
		}
		return m.put32(a[3], uint32(port))
	}
}
