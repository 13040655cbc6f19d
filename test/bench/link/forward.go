package main

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
)

// forwarder passes TCP connections on to one address and counts their bytes.
type forwarder struct {
	l     net.Listener
	to    string
	bytes atomic.Int64
	group sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]bool
	done  bool
}

func forward(listen, to string) (*forwarder, error) {
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return nil, err
	}
	f := &forwarder{l: l, to: to, conns: map[net.Conn]bool{}}
	f.group.Go(f.accept)
	return f, nil
}

func (f *forwarder) count() int64 { return f.bytes.Load() }

func (f *forwarder) accept() {
	for {
		in, err := f.l.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", f.to)
		if err != nil || !f.keep(in, out) {
			_ = in.Close()
			continue
		}
		f.group.Go(func() { f.copy(in, out) })
		f.group.Go(func() { f.copy(out, in) })
	}
}

func (f *forwarder) keep(conns ...net.Conn) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range conns {
		if f.done {
			_ = c.Close()
			continue
		}
		f.conns[c] = true
	}
	return !f.done
}

// copy ends both when one does.
func (f *forwarder) copy(to, from net.Conn) {
	_, _ = io.Copy(counting{to, &f.bytes}, from)
	_ = to.Close()
	_ = from.Close()
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.conns, from)
}

func (f *forwarder) stop() {
	_ = f.l.Close()
	f.mu.Lock()
	f.done = true
	for c := range f.conns {
		_ = c.Close()
	}
	f.mu.Unlock()
	f.group.Wait()
}

type counting struct {
	w     io.Writer
	bytes *atomic.Int64
}

func (c counting) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.bytes.Add(int64(n))
	return n, err
}
