package wasi

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

func outboundModule(t *testing.T) string { return clang(t, "outbound.wasm", "sockets/outbound.c") }

// echo answers "ping" with "pong" on connections, as many as come.
func echo(t *testing.T, network, addr string) string {
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Skipf("no %s here: %v", network, err)
	}
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				defer c.Close()
				b := make([]byte, 4)
				if _, err := io.ReadFull(c, b); err == nil {
					fmt.Fprintf(c, "pong to %s", b)
				}
			})
		}
	})
	t.Cleanup(func() { l.Close(); conns.Wait() })
	return l.Addr().String()
}

// echoUDP answers datagrams.
func echoUDP(t *testing.T, answer func(request []byte) []byte) string {
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 2048)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			c.WriteTo(answer(b[:n]), from)
		}
	}()
	t.Cleanup(func() { c.Close(); <-done })
	return c.LocalAddr().String()
}

func TestOutbound(t *testing.T) {
	module := outboundModule(t)
	tcp := echo(t, "tcp", "127.0.0.1:0")
	udp := echoUDP(t, func(b []byte) []byte { return append([]byte("pong to "), b...) })
	for _, user := range []int{os.Getuid(), ordinary} {
		if user != os.Getuid() && os.Getuid() != 0 {
			continue
		}
		r := finish(t, command(t, user, "--sockets", module, "tcp="+tcp, "nonblock="+tcp, "udp="+udp, "refused"), "")
		want := `tcp: pong to ping
nonblock: event 1, error 0
udp: pong to ping from 127.0.0.1
udp: 2, truncated 1
refused: bind 76, listen 76, family 5, type 58, address 21 28, port 28, option 58
refused: not a socket 57, closed 8, nobody there 14
`
		if r.code != 0 || r.stdout != want {
			t.Errorf("uid %d: %+v, want\n%s", user, r, want)
		}
	}
}

func TestOutboundIPv6(t *testing.T) {
	module := outboundModule(t)
	addr := netip.MustParseAddrPort(echo(t, "tcp6", "[::1]:0"))
	r := guest(t, "", "--sockets", module, fmt.Sprintf("tcp6=%d", addr.Port()))
	if r.code != 0 || r.stdout != "tcp6: pong to ping\n" {
		t.Errorf("%+v", r)
	}
}

// A module that imports sockets isn't started unless they are allowed.
func TestOutboundIsOffByDefault(t *testing.T) {
	r := guest(t, "", outboundModule(t), "refused")
	if r.code != 125 || r.stdout != "" || !strings.Contains(r.stderr, "--sockets") || !strings.Contains(r.stderr, "sock_") || !strings.Contains(r.stderr, "outbound.wasm") {
		t.Errorf("%+v", r)
	}
}

// zone is what the name server of TestNames knows.
var zone = func() map[string][]string {
	return map[string][]string{
		"one.test.":          {"192.0.2.1"},
		"both.test.":         {"192.0.2.2", "2001:db8::2"},
		"alias.test.":        {"both.test."},
		"short.search.test.": {"192.0.2.3"},
		"many.test.":         {"192.0.2.4", "192.0.2.5", "192.0.2.6"},
	}
}

// serve answers a DNS request, or with what a client must not believe.
func serve(request []byte) []byte {
	var p dnsmessage.Parser
	h, err := p.Start(request)
	if err != nil {
		return nil
	}
	q, err := p.Question()
	if err != nil {
		return nil
	}
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: h.ID, Response: true}, Questions: []dnsmessage.Question{q}}
	name := q.Name
	if q.Name.String() == "forged.test." { // an answer to what wasn't asked
		m.Answers = append(m.Answers, record(dnsmessage.MustNewName("other.test."), "192.0.2.66"))
	}
	known := zone()
	for i := 0; i < 4; i++ {
		values, have := known[name.String()]
		if !have {
			break
		}
		next := name
		for _, v := range values {
			if strings.HasSuffix(v, ".") {
				next = dnsmessage.MustNewName(v)
				m.Answers = append(m.Answers, dnsmessage.Resource{
					Header: dnsmessage.ResourceHeader{Name: name, Class: dnsmessage.ClassINET}, Body: &dnsmessage.CNAMEResource{CNAME: next},
				})
			} else if (q.Type == dnsmessage.TypeA) == netip.MustParseAddr(v).Is4() {
				m.Answers = append(m.Answers, record(name, v))
			}
		}
		if next == name {
			break
		}
		name = next
	}
	if len(m.Answers) == 0 {
		if _, have := known[q.Name.String()]; !have {
			m.RCode = dnsmessage.RCodeNameError
		}
	}
	out, err := m.Pack()
	if err != nil {
		return nil
	}
	return out
}

func record(name dnsmessage.Name, addr string) dnsmessage.Resource {
	ip := netip.MustParseAddr(addr)
	r := dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: name, Class: dnsmessage.ClassINET}}
	if ip.Is4() {
		r.Body = &dnsmessage.AResource{A: ip.As4()}
	} else {
		r.Body = &dnsmessage.AAAAResource{AAAA: ip.As16()}
	}
	return r
}

func TestNames(t *testing.T) {
	module := outboundModule(t)
	server := echoUDP(t, serve)
	r := guest(t, "", "--sockets", "--dns", server, module,
		"name=127.0.0.9", "name=localhost", "name=one.test", "name=ONE.test.", "name=both.test", "name=alias.test", "name=many.test",
		"name=nothing.test", "name=forged.test", "name=bad..name")
	want := `127.0.0.9: 127.0.0.9
localhost: 127.0.0.1 0000::01
one.test: 192.0.2.1
ONE.test.: 192.0.2.1
both.test: 192.0.2.2 2001::02
alias.test: 192.0.2.2 2001::02
many.test: 192.0.2.4 192.0.2.5 192.0.2.6
nothing.test: errno 84
forged.test: errno 84
bad..name: errno 84
`
	got := r.stdout
	// A hosts file may know localhost by one address only.
	if i := strings.Index(got, "localhost: 127.0.0.1\n"); i >= 0 {
		got = strings.Replace(got, "localhost: 127.0.0.1\n", "localhost: 127.0.0.1 0000::01\n", 1)
	}
	if r.code != 0 || got != want {
		t.Errorf("%+v, want\n%s", r, want)
	}
}
