package wasi

import (
	"encoding/binary"
	"net/netip"
	stdstrings "strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

// Names are looked up by the runner and not through the Go library's resolver,
// which reads files that the jail hides and would have every guest pay for
// package net.

const (
	dnsTimeout  = 5 * time.Second // per server and try, as resolv.conf(5) has it
	dnsTries    = 2
	dnsMessage  = 1232 // of a datagram; what is longer comes by a stream
	mostAnswers = 64
)

// lookUp finds the addresses of a name: in the hosts file, then by its servers.
func (s *System) lookUp(name string, family byte) ([]netip.Addr, errno) {
	o := s.cfg.Outbound
	name = stdstrings.ToLower(name)
	var found []netip.Addr
	for _, h := range o.Hosts {
		if h.Name == stdstrings.TrimSuffix(name, ".") {
			found = append(found, h.Addr)
		}
	}
	if len(found) > 0 {
		return found, ok
	}
	// RFC 6761: it is this machine, whatever a server would say.
	if n := stdstrings.TrimSuffix(name, "."); n == "localhost" || stdstrings.HasSuffix(n, ".localhost") {
		return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}, ok
	}
	result := eAiNoname
	for _, candidate := range o.candidates(name) {
		addrs, e := o.query(candidate, family)
		if e == ok && len(addrs) > 0 {
			return addrs, ok
		}
		if e == eAiAgain {
			result = e // no answer is no denial
		}
	}
	return nil, result
}

// candidates are the full names to ask for, as resolv.conf(5) orders them.
func (o *Outbound) candidates(name string) []string {
	if stdstrings.HasSuffix(name, ".") {
		return []string{name}
	}
	var list []string
	for _, search := range o.Searches {
		list = append(list, name+"."+stdstrings.TrimSuffix(search, ".")+".")
	}
	if stdstrings.Count(name, ".") >= max(o.Ndots, 1) {
		return append([]string{name + "."}, list...)
	}
	return append(list, name+".")
}

// query asks for the addresses of the wanted families of one full name.
func (o *Outbound) query(name string, family byte) ([]netip.Addr, errno) {
	qname, err := dnsmessage.NewName(name)
	if err == nil {
		_, err = packQuestion(0, dnsmessage.Question{Name: qname, Class: dnsmessage.ClassINET})
	}
	if err != nil {
		return nil, eAiNoname // no name that could be asked for
	}
	types := []dnsmessage.Type{dnsmessage.TypeA, dnsmessage.TypeAAAA}
	switch family {
	case family4:
		types = types[:1]
	case family6:
		types = types[1:]
	}
	var found []netip.Addr
	result := ok
	for _, t := range types {
		addrs, e := o.ask(dnsmessage.Question{Name: qname, Type: t, Class: dnsmessage.ClassINET})
		if e != ok {
			result = e
		}
		found = append(found, addrs...)
	}
	if len(found) > 0 {
		return found, ok
	}
	return nil, result
}

// ask puts a question to one server after the other until one has an answer.
func (o *Outbound) ask(q dnsmessage.Question) ([]netip.Addr, errno) {
	for range dnsTries {
		for _, server := range o.Servers {
			answer, id, err := exchange(server, q, unix.SOCK_DGRAM)
			if err != nil {
				continue
			}
			addrs, truncated, e := readAnswer(answer, id, q)
			if truncated {
				if answer, id, err = exchange(server, q, unix.SOCK_STREAM); err != nil {
					continue
				}
				addrs, _, e = readAnswer(answer, id, q)
			}
			if e == ok || e == eAiNoname {
				return addrs, e
			}
		}
	}
	return nil, eAiAgain
}

// exchange sends a question and waits for an answer that has its number.
func exchange(server netip.AddrPort, q dnsmessage.Question, how int) ([]byte, uint16, error) {
	var random [2]byte
	if _, err := unix.Getrandom(random[:], 0); err != nil {
		return nil, 0, err
	}
	id := binary.BigEndian.Uint16(random[:])
	request, err := packQuestion(id, q)
	if err != nil {
		return nil, 0, err
	}
	family, sa := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: int(server.Port()), Addr: server.Addr().As16()})
	if addr := server.Addr().Unmap(); addr.Is4() {
		family, sa = unix.AF_INET, &unix.SockaddrInet4{Port: int(server.Port()), Addr: addr.As4()}
	}
	fd, err := unix.Socket(family, how|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, 0, err
	}
	defer unix.Close(fd)
	c := dnsConn{fd: fd, deadline: time.Now().Add(dnsTimeout)}
	if err := unix.Connect(fd, sa); err == unix.EINPROGRESS {
		if err := c.wait(unix.POLLOUT); err != nil {
			return nil, 0, err
		}
	} else if err != nil {
		return nil, 0, err
	}
	if how == unix.SOCK_STREAM {
		answer, err := c.stream(request)
		return answer, id, err
	}
	if _, err := unix.Write(fd, request); err != nil {
		return nil, 0, err
	}
	b := make([]byte, dnsMessage)
	for {
		if err := c.wait(unix.POLLIN); err != nil {
			return nil, 0, err
		}
		n, err := unix.Read(fd, b)
		switch {
		case err == unix.EAGAIN || err == unix.EINTR:
			continue
		case err != nil:
			return nil, 0, err
		case n < 12 || binary.BigEndian.Uint16(b) != id:
			continue // somebody else's: the true one may still come
		}
		return b[:n], id, nil
	}
}

func packQuestion(id uint16, q dnsmessage.Question) ([]byte, error) {
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: id, RecursionDesired: true})
	if err := b.StartQuestions(); err != nil {
		return nil, err
	}
	if err := b.Question(q); err != nil {
		return nil, err
	}
	if err := b.StartAdditionals(); err != nil {
		return nil, err
	}
	var size dnsmessage.ResourceHeader
	if err := size.SetEDNS0(dnsMessage, dnsmessage.RCodeSuccess, false); err != nil {
		return nil, err
	}
	if err := b.OPTResource(size, dnsmessage.OPTResource{}); err != nil {
		return nil, err
	}
	return b.Finish()
}

// dnsConn waits on a socket that doesn't block.
type dnsConn struct {
	fd       int
	deadline time.Time
}

func (c dnsConn) wait(events int16) error {
	for {
		left := unix.NsecToTimespec(int64(max(0, time.Until(c.deadline))))
		fds := []unix.PollFd{{Fd: int32(c.fd), Events: events}}
		n, err := unix.Ppoll(fds, &left, nil)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return err
		case n == 0:
			return unix.ETIMEDOUT
		}
		return nil
	}
}

// stream is the exchange over TCP, with a length before each message.
func (c dnsConn) stream(request []byte) ([]byte, error) {
	out := append(binary.BigEndian.AppendUint16(nil, uint16(len(request))), request...)
	for len(out) > 0 {
		if err := c.wait(unix.POLLOUT); err != nil {
			return nil, err
		}
		n, err := unix.SendmsgBuffers(c.fd, [][]byte{out}, nil, nil, unix.MSG_NOSIGNAL)
		if err != nil && err != unix.EAGAIN && err != unix.EINTR {
			return nil, err
		}
		out = out[max(n, 0):]
	}
	var length [2]byte
	if err := c.full(length[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint16(length[:]))
	return b, c.full(b)
}

func (c dnsConn) full(b []byte) error {
	for len(b) > 0 {
		if err := c.wait(unix.POLLIN); err != nil {
			return err
		}
		n, err := unix.Read(c.fd, b)
		if err != nil && err != unix.EAGAIN && err != unix.EINTR {
			return err
		}
		if err == nil && n == 0 {
			return unix.ECONNRESET
		}
		b = b[max(n, 0):]
	}
	return nil
}

// readAnswer takes the addresses out of a message that answers q: those of the
// name, or of what it is an alias of. eAiNoname: there are none, the server is
// sure; eAiAgain: it couldn't say.
func readAnswer(message []byte, id uint16, q dnsmessage.Question) (addrs []netip.Addr, truncated bool, e errno) {
	var p dnsmessage.Parser
	h, err := p.Start(message)
	if err != nil || h.ID != id || !h.Response {
		return nil, false, eAiAgain
	}
	asked, err := p.Question()
	if err != nil || asked.Type != q.Type || asked.Class != q.Class || !stdstrings.EqualFold(asked.Name.String(), q.Name.String()) {
		return nil, false, eAiAgain
	}
	switch {
	case h.Truncated:
		return nil, true, eAiAgain
	case h.RCode == dnsmessage.RCodeNameError:
		return nil, false, eAiNoname
	case h.RCode != dnsmessage.RCodeSuccess:
		return nil, false, eAiAgain
	}
	if p.SkipAllQuestions() != nil {
		return nil, false, eAiAgain
	}
	name := q.Name.String()
	for range mostAnswers {
		rh, err := p.AnswerHeader()
		if err == dnsmessage.ErrSectionDone {
			break
		}
		if err != nil {
			return nil, false, eAiAgain
		}
		ours := stdstrings.EqualFold(rh.Name.String(), name) && rh.Class == dnsmessage.ClassINET
		switch {
		case ours && rh.Type == dnsmessage.TypeCNAME:
			r, err := p.CNAMEResource()
			if err != nil {
				return nil, false, eAiAgain
			}
			name = r.CNAME.String()
		case ours && rh.Type == q.Type && q.Type == dnsmessage.TypeA:
			r, err := p.AResource()
			if err != nil {
				return nil, false, eAiAgain
			}
			addrs = append(addrs, netip.AddrFrom4(r.A))
		case ours && rh.Type == q.Type && q.Type == dnsmessage.TypeAAAA:
			r, err := p.AAAAResource()
			if err != nil {
				return nil, false, eAiAgain
			}
			addrs = append(addrs, netip.AddrFrom16(r.AAAA))
		default:
			if p.SkipAnswer() != nil {
				return nil, false, eAiAgain
			}
		}
	}
	if len(addrs) == 0 {
		return nil, false, eAiNoname
	}
	return addrs, false, ok
}
