package broker

import (
	"net"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

// Count returns conn with its bytes counted as fleet.ClassSocket; counters may be
// nil.
func Count(conn net.Conn, counters *fleet.Counters) net.Conn {
	if counters == nil {
		return conn
	}
	return &counted{conn, counters}
}

type counted struct {
	net.Conn
	counters *fleet.Counters
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.counters.Received(fleet.ClassSocket, n)
	return n, err
}

func (c *counted) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.counters.Sent(fleet.ClassSocket, n)
	return n, err
}
