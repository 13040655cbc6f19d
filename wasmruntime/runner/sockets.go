package runner

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/coracle-edge/coracle/wasmruntime/internal/bundle"
	"github.com/coracle-edge/coracle/wasmruntime/internal/wasi"
)

// openSockets goes into the network namespace, for good, and opens the
// listening sockets there.
func (s *stage) openSockets() error {
	if s.spec.NetNS != "" {
		fd, err := unix.Open(s.spec.NetNS, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("network namespace: %w", err)
		}
		err = unix.Setns(fd, unix.CLONE_NEWNET)
		unix.Close(fd)
		if err != nil {
			return fmt.Errorf("enter network namespace %s: %w", s.spec.NetNS, err)
		}
	}
	for _, l := range s.spec.Listen {
		fd, err := listen(l)
		if err == nil {
			fd, err = s.hold(fd)
		}
		if err != nil {
			return fmt.Errorf("listen on %s %s: %w", l.Network, l.Address, err)
		}
		s.order.Listeners = append(s.order.Listeners, wasi.Listener{FD: fd, NonBlocking: l.NonBlocking || s.index.Go})
	}
	return nil
}

func listen(l bundle.Listen) (int, error) {
	switch l.Network {
	case "tcp", "tcp4", "tcp6", "":
	default:
		return -1, fmt.Errorf("WASI preview 1 has no sockets for %s, only for tcp", l.Network)
	}
	addr, err := netip.ParseAddrPort(l.Address)
	if err != nil {
		return -1, err
	}
	// An unspecified IPv4 address of "tcp" means both families, as elsewhere.
	if l.Network != "tcp4" && addr.Addr() == netip.IPv4Unspecified() {
		if fd, err := bind(netip.AddrPortFrom(netip.IPv6Unspecified(), addr.Port()), false); err == nil {
			return fd, nil
		}
	}
	return bind(addr, l.Network == "tcp6")
}

func bind(addr netip.AddrPort, only6 bool) (int, error) {
	family, sa := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: int(addr.Port()), Addr: addr.Addr().As16()})
	if addr.Addr().Is4() {
		family, sa = unix.AF_INET, &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	// Accepted connections inherit it. WASI has no such option, and an answer in
	// two writes would wait 40 ms for the peer's delayed acknowledgement.
	unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	if family == unix.AF_INET6 {
		v6only := 0
		if only6 {
			v6only = 1
		}
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, v6only)
	}
	err = unix.Bind(fd, sa)
	if err == nil {
		err = unix.Listen(fd, 128)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}
