package nodetoken

import (
	"net"
	"sync"
	"time"
)

// Connections knows which connections of the API server serve which node and its
// pods: a request is authenticated when it begins, and a watch goes on for an hour.
type Connections struct {
	mu     sync.Mutex
	open   map[string]net.Conn // by remote address
	node   map[string]string   // of it
	byNode map[string]map[string]bool
}

// NewConnections returns one without any.
func NewConnections() *Connections {
	return &Connections{open: map[string]net.Conn{}, node: map[string]string{}, byNode: map[string]map[string]bool{}}
}

// Listener wraps that of the API server.
func (c *Connections) Listener(l net.Listener) net.Listener { return &listener{l, c} }

// End closes the connections by which a node or a pod of it came.
func (c *Connections) End(node string) {
	c.mu.Lock()
	var ended []net.Conn
	for remote := range c.byNode[node] {
		ended = append(ended, c.open[remote])
	}
	c.mu.Unlock()
	for _, conn := range ended {
		conn.Close() // forgets itself
	}
}

// note says who came by a connection; the last one counts.
func (c *Connections) note(remote, node string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.open[remote]; !ok || c.node[remote] == node {
		return
	}
	c.forgetNode(remote)
	c.node[remote] = node
	if c.byNode[node] == nil {
		c.byNode[node] = map[string]bool{}
	}
	c.byNode[node][remote] = true
}

func (c *Connections) add(conn *connection) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open[conn.remote] = conn
}

func (c *Connections) forget(conn *connection) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open[conn.remote] == conn {
		delete(c.open, conn.remote)
		c.forgetNode(conn.remote)
	}
}

// forgetNode needs the lock.
func (c *Connections) forgetNode(remote string) {
	node, ok := c.node[remote]
	if !ok {
		return
	}
	delete(c.node, remote)
	if delete(c.byNode[node], remote); len(c.byNode[node]) == 0 {
		delete(c.byNode, node)
	}
}

type listener struct {
	net.Listener
	c *Connections
}

func (l *listener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		// Upstream does this where it sees a *net.TCPConn.
		_ = tcp.SetKeepAlive(true)
		_ = tcp.SetKeepAlivePeriod(3 * time.Minute)
	}
	tracked := &connection{Conn: conn, c: l.c, remote: conn.RemoteAddr().String()}
	l.c.add(tracked)
	return tracked, nil
}

type connection struct {
	net.Conn
	c      *Connections
	remote string
}

func (c *connection) Close() error {
	c.c.forget(c)
	return c.Conn.Close()
}
