package streams

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"

	"github.com/coracle-edge/coracle/crishim/connect"
)

// serveExec runs a command in a Wasm container.
func (s *Server) serveExec(w http.ResponseWriter, r *http.Request, id string, o options) {
	w, r, end := untilClosed(w, r)
	defer end()
	remotecommand.ServeExec(w, r, local{connect.Connector{Runtime: s.cfg.InProcess}}, "", "", id, o.command, o.remote(),
		s.cfg.Idle, creation, remotecommand.SupportedStreamingProtocols)
}

// serveAttach attaches to a Wasm container.
func (s *Server) serveAttach(w http.ResponseWriter, r *http.Request, id string, o options) {
	w, r, end := untilClosed(w, r)
	defer end()
	remotecommand.ServeAttach(w, r, local{connect.Connector{Runtime: s.cfg.InProcess}}, "", "", id, o.remote(),
		s.cfg.Idle, creation, remotecommand.SupportedStreamingProtocols)
}

// servePortForward connects to ports of a pod of Wasm containers.
func (s *Server) servePortForward(w http.ResponseWriter, r *http.Request, sandboxID string, ports []int32) {
	w, r, end := untilClosed(w, r)
	defer end()
	portforward.ServePortForward(w, r, local{connect.Connector{Runtime: s.cfg.InProcess}}, sandboxID, "", &portforward.V4Options{Ports: ports},
		s.cfg.Idle, creation, portforward.SupportedProtocols)
}

func (o options) remote() *remotecommand.Options {
	return &remotecommand.Options{Stdin: o.stdin, Stdout: o.stdout, Stderr: o.stderr, TTY: o.tty}
}

// local is the protocol servers' view of a connector.
type local struct{ c connect.Connector }

// ExecInContainer implements remotecommand.Executor.
func (l local) ExecInContainer(ctx context.Context, _, _, id string, cmd []string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize, _ time.Duration) error {
	return l.c.Exec(ctx, id, cmd, in, out, errOut, tty, resize)
}

// AttachContainer implements remotecommand.Attacher.
func (l local) AttachContainer(ctx context.Context, _, _, id string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	return l.c.Attach(ctx, id, in, out, errOut, tty, resize)
}

// PortForward implements portforward.PortForwarder.
func (l local) PortForward(ctx context.Context, sandboxID, _ string, port int32, stream io.ReadWriteCloser) error {
	return l.c.PortForward(ctx, sandboxID, port, stream)
}

// untilClosed has the request's context end with its connection, also after a
// protocol has taken that over: a guest whose user is gone isn't left running. end
// is to be called at the end of the handler.
func untilClosed(w http.ResponseWriter, r *http.Request) (http.ResponseWriter, *http.Request, func()) {
	ctx, cancel := context.WithCancel(r.Context())
	own := &hijacker{ResponseWriter: w, cancel: cancel}
	// The agent's end is the connection's end, too.
	stop := context.AfterFunc(r.Context(), own.close)
	return own, r.WithContext(ctx), func() {
		cancel()
		stop()
		own.close()
	}
}

// hijacker hands out connections that it knows. It has no Unwrap: who looked for
// the writer behind it would take the connection past it.
type hijacker struct {
	http.ResponseWriter
	cancel context.CancelFunc

	mu     sync.Mutex
	conn   net.Conn
	closed bool
}

// Hijack implements http.Hijacker.
func (h *hijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, buffered, err := http.NewResponseController(h.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	seen := &watched{Conn: conn, gone: h.cancel}
	h.mu.Lock()
	h.conn = conn
	closed := h.closed
	h.mu.Unlock()
	if closed {
		_ = conn.Close()
	}
	// What the server has read already is still in its buffer.
	return seen, bufio.NewReadWriter(bufio.NewReader(io.MultiReader(io.LimitReader(buffered.Reader, int64(buffered.Reader.Buffered())), seen)), buffered.Writer), nil
}

func (h *hijacker) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed = true; h.conn != nil {
		_ = h.conn.Close()
	}
}

// watched says when nothing more can be read: the peer has gone.
type watched struct {
	net.Conn
	gone context.CancelFunc
}

func (c *watched) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil {
		c.gone()
	}
	return n, err
}

func (c *watched) Close() error {
	c.gone()
	return c.Conn.Close()
}
