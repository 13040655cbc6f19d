package rawcall

import (
	"context"
	"net"
	"sync"

	"google.golang.org/grpc"
)

// ServeLater serves what first connects and all that come after, with a server that is
// made then: a node on which nobody ever calls has a socket and one goroutine. It
// closes the listener and returns nil when ctx ends.
func ServeLater(ctx context.Context, l net.Listener, server func() *grpc.Server) error {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	first, err := l.Accept()
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	s := server()
	stopServer := context.AfterFunc(ctx, s.Stop)
	defer stopServer()
	if err := s.Serve(&primed{Listener: l, first: first}); err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}

// primed is a listener whose first connection was accepted before.
type primed struct {
	net.Listener
	once  sync.Once
	first net.Conn
}

func (p *primed) Accept() (c net.Conn, err error) {
	p.once.Do(func() { c = p.first })
	if c != nil {
		return c, nil
	}
	return p.Listener.Accept()
}
