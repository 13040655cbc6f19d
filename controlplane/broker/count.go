package broker

import (
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

// counted is a connection below TLS that counts its bytes, for all nodes and,
// once it is known whose it is, for that node; and remembers when it last
// brought any.
type counted struct {
	net.Conn
	total *fleet.Counters // may be nil
	heard atomic.Int64    // Unix nanoseconds

	mu    sync.Mutex
	early fleet.Bytes     // before own was known
	own   *fleet.Counters // may be nil
}

func count(conn net.Conn, total *fleet.Counters) *counted {
	return &counted{Conn: conn, total: total}
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 {
		c.heard.Store(time.Now().UnixNano())
		c.add(0, n)
	}
	return n, err
}

func (c *counted) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.add(n, 0)
	return n, err
}

func (c *counted) add(sent, received int) {
	if c.total != nil {
		c.total.Socket.Add(sent, received)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.own != nil {
		c.own.Socket.Add(sent, received)
		return
	}
	c.early.Sent += int64(sent)
	c.early.Received += int64(received)
}

// belongs says whose connection it is, from its first byte on.
func (c *counted) belongs(own *fleet.Counters) {
	if own == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.own = own
	own.Socket.Add(int(c.early.Sent), int(c.early.Received))
	c.early = fleet.Bytes{}
}
