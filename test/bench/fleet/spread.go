package main

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
)

// spreader is a way to the fleet endpoint on which each connection has a source
// address of its own, as boards at many places do: the endpoint takes ten joins a
// second of one address.
type spreader struct {
	l     net.Listener
	to    string
	next  atomic.Uint32
	group sync.WaitGroup
}

func spread(to string) (*spreader, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &spreader{l: l, to: to}
	s.group.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			s.group.Go(func() { s.pass(in) })
		}
	})
	return s, nil
}

func (s *spreader) url() string { return "https://" + s.l.Addr().String() }

// pass ends when either side does.
func (s *spreader) pass(in net.Conn) {
	defer in.Close()
	n := s.next.Add(1)
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 1+byte(n>>16), byte(n>>8), byte(n))}}
	out, err := d.Dial("tcp", s.to)
	if err != nil {
		return
	}
	defer out.Close()
	s.group.Go(func() {
		_, _ = io.Copy(out, in)
		_ = out.Close()
	})
	_, _ = io.Copy(in, out)
}

// stop waits for connections under way.
func (s *spreader) stop() {
	_ = s.l.Close()
	s.group.Wait()
}
