package wasi

import (
	"net/netip"
	"strconv"
	stdstrings "strings"
)

// The layout of the extension's addrinfo and of the socket address in it:
//
//	addrinfo  flags u16, family u8, socktype u8, protocol u8, 3 of nothing,
//	          addrlen u32, *address, *canonname, canonnamelen u32, *next
//	address   family u8, 3 of nothing, length u32, *data
//
// data is struct sockaddr_in or sockaddr_in6 of the system without its family.
// The guest hands in a list with all of that made; it is filled in.
const (
	addrinfoSize = 28
	addressSize  = 12
	data4        = 14
	data6        = 26
)

const (
	aiNumericHost = 4
	aiNumericServ = 8
	aiAllFlags    = 127
	protocolTCP   = 1
	protocolUDP   = 2
)

// hints are what the guest wants of an answer.
type hints struct {
	flags            uint16
	family, socktype byte
	protocol         byte
}

func sockGetaddrinfo(s *System, m memory, a []uint64) errno {
	node, e := cString(m, a[0], a[1])
	if e != ok {
		return e
	}
	service, e := cString(m, a[2], a[3])
	if e != ok {
		return e
	}
	h, e := readHints(m, a[4])
	if e != ok {
		return e
	}
	most := a[6]
	switch {
	case node == "" && service == "":
		return eAiNoname
	case most == 0:
		return eAiMemory
	}
	port, e := servicePort(service, h)
	if e != ok {
		return e
	}
	addrs, e := s.addresses(node, h)
	if e != ok {
		return e
	}
	at, e := m.get32(a[5])
	if e != ok {
		return e
	}
	n := uint32(0)
	for _, addr := range addrs {
		for _, kind := range h.kinds() {
			if uint64(n) >= most || at == 0 {
				break
			}
			if at, e = putAddrinfo(m, uint64(at), h, kind, addr, port); e != ok {
				return e
			}
			n++
		}
	}
	return m.put32(a[7], n)
}

// cString takes a string up to its length or a NUL.
func cString(m memory, at, n uint64) (string, errno) {
	if n > 4096 {
		return "", eInval
	}
	b, in := m.bytes(at, n)
	if !in {
		return "", eFault
	}
	text, _, _ := stdstrings.Cut(string(b), "\x00")
	return text, ok
}

func readHints(m memory, at uint64) (h hints, e errno) {
	if at == 0 {
		return h, ok // nothing in particular
	}
	b, in := m.bytes(at, addrinfoSize)
	if !in {
		return h, eFault
	}
	h = hints{flags: le.Uint16(b), family: b[2], socktype: b[3], protocol: b[4]}
	switch {
	case h.flags&^aiAllFlags != 0:
		return h, eAiBadflag
	case h.family > family6:
		return h, eAiFamily
	case h.socktype > typeConn || h.protocol > protocolUDP,
		h.socktype == typeConn && h.protocol == protocolUDP, h.socktype == typeDgram && h.protocol == protocolTCP:
		return h, eAiSocktype
	}
	return h, ok
}

// kinds are the types of socket that an answer is for.
func (h hints) kinds() []byte {
	switch {
	case h.socktype != 0:
		return []byte{h.socktype}
	case h.protocol == protocolTCP:
		return []byte{typeConn}
	case h.protocol == protocolUDP:
		return []byte{typeDgram}
	}
	return []byte{typeConn, typeDgram}
}

func (h hints) wants(addr netip.Addr) bool {
	return h.family == 0 || (h.family == family4) == addr.Is4()
}

// servicePort is a port of a number, or of a name that is the same everywhere.
func servicePort(service string, h hints) (uint16, errno) {
	if service == "" {
		return 0, ok
	}
	n, err := strconv.ParseUint(service, 10, 16)
	if err == nil {
		return uint16(n), ok
	}
	if h.flags&aiNumericServ == 0 {
		switch service {
		case "http":
			return 80, ok
		case "https":
			return 443, ok
		case "domain":
			return 53, ok
		case "ntp":
			return 123, ok
		}
	}
	return 0, eAiService
}

// addresses of a node: without a name, this one.
func (s *System) addresses(node string, h hints) ([]netip.Addr, errno) {
	var found []netip.Addr
	switch addr, err := netip.ParseAddr(node); {
	case node == "" && h.flags&1 != 0: // passive
		found = []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
	case node == "":
		found = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}
	case err == nil:
		found = []netip.Addr{addr.WithZone("")}
	case h.flags&aiNumericHost != 0:
		return nil, eAiNoname
	default:
		var e errno
		if found, e = s.lookUp(node, h.family); e != ok {
			return nil, e
		}
	}
	var out []netip.Addr
	for _, addr := range found {
		if addr = addr.Unmap(); h.wants(addr) {
			out = append(out, addr)
		}
	}
	if len(out) == 0 {
		return nil, eAiNoname
	}
	return out, ok
}

// putAddrinfo fills in one element of the guest's list and gives the next.
func putAddrinfo(m memory, at uint64, h hints, kind byte, addr netip.Addr, port uint16) (next uint32, e errno) {
	b, in := m.bytes(at, addrinfoSize)
	if !in {
		return 0, eFault
	}
	family, size := byte(family4), uint32(data4)
	if addr.Is6() {
		family, size = family6, data6
	}
	sa, in := m.bytes(uint64(le.Uint32(b[12:])), addressSize)
	if !in {
		return 0, eFault
	}
	data, in := m.bytes(uint64(le.Uint32(sa[8:])), uint64(size))
	if !in {
		return 0, eFault
	}
	le.PutUint16(b, h.flags)
	b[2], b[3], b[4] = family, kind, protocolTCP
	if kind == typeDgram {
		b[4] = protocolUDP
	}
	le.PutUint32(b[8:], size+2)
	le.PutUint32(b[20:], 0) // no canonical name
	sa[0] = family
	le.PutUint32(sa[4:], size)
	clear(data)
	data[0], data[1] = byte(port>>8), byte(port)
	if addr.Is6() {
		copy(data[6:], addr.AsSlice())
	} else {
		copy(data[2:], addr.AsSlice())
	}
	return le.Uint32(b[24:]), ok
}
