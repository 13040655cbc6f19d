package apiserver

import (
	"bufio"
	"context"
	"errors"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"

	"k8s.io/apiserver/pkg/endpoints/responsewriter"
)

// client is who reads a stream of a pod. When the link to the pod's node breaks,
// upstream's proxies end the stream as if the pod had: exec says that its command
// succeeded, a log is at its end. And a client of port-forward that says nothing isn't
// told at all: tunnelingWebsocketUpgraderConn.Close waits for a Read of the client
// that nothing ends (k8s.io/apiserver/pkg/util/proxy/websocket.go). So the client's
// connection is cut off, before the proxy hears of it, and the client says so.
type client struct {
	mu     sync.Mutex
	conn   net.Conn // once it was hijacked
	code   int      // of the answer, once it was begun
	broken bool
}

type clientKey struct{}

// untilLinkBreaks has requests for streams of pods end with an error where the link
// to the node breaks.
func untilLinkBreaks(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		inner, ok := w.(responsewriter.CloseNotifierFlusher)
		if !ok || !isPodStream(req.URL.Path) {
			next.ServeHTTP(w, req)
			return
		}
		c := &client{}
		var to http.ResponseWriter = &clientWriter{w, inner, c}
		if h, ok := w.(http.Hijacker); ok {
			to = &hijackedClientWriter{clientWriter{w, inner, c}, h}
		}
		next.ServeHTTP(to, req.WithContext(context.WithValue(req.Context(), clientKey{}, c)))
		if c.cutOff() {
			inner.Flush()               // what came is the client's
			panic(http.ErrAbortHandler) // net/http's way to end an answer that isn't whole
		}
	})
}

// isPodStream is whether path is /api/v1/namespaces/NS/pods/NAME/ and one of the
// subresources that a node serves.
func isPodStream(path string) bool {
	rest, ok := strings.CutPrefix(path, "/api/v1/namespaces/")
	parts := strings.Split(rest, "/")
	if !ok || len(parts) != 4 || parts[1] != "pods" {
		return false
	}
	switch parts[3] {
	case "exec", "attach", "portforward", "log":
		return true
	}
	return false
}

// linkBroke cuts the client off.
func (c *client) linkBroke() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.broken = true
	if c.conn != nil {
		_ = c.conn.Close()
	}
}

// cutOff is whether an answer that was begun will never be whole.
func (c *client) cutOff() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.broken && c.code != 0 && c.code < http.StatusBadRequest && c.conn == nil
}

func (c *client) begun(code int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.code == 0 {
		c.code = code
	}
}

// clientWriter notes when an answer begins.
type clientWriter struct {
	http.ResponseWriter
	responsewriter.CloseNotifierFlusher
	client *client
}

func (w *clientWriter) WriteHeader(code int) {
	w.client.begun(code)
	w.ResponseWriter.WriteHeader(code)
}

func (w *clientWriter) Write(b []byte) (int, error) {
	w.client.begun(http.StatusOK)
	return w.ResponseWriter.Write(b)
}

func (w *clientWriter) Flush() {
	w.client.begun(http.StatusOK)
	w.CloseNotifierFlusher.Flush()
}

// hijackedClientWriter is one of HTTP/1.
type hijackedClientWriter struct {
	clientWriter
	hijacker http.Hijacker
}

// Hijack implements http.Hijacker.
func (w *hijackedClientWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, buffered, err := w.hijacker.Hijack()
	if err == nil {
		w.client.mu.Lock()
		w.client.conn = conn
		w.client.mu.Unlock()
	}
	return conn, buffered, err
}

// dialNode is DialNode, for a request that may have to hear of the link's end.
func (s *Server) dialNode(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := s.cfg.DialNode(ctx, network, address)
	if c, ok := ctx.Value(clientKey{}).(*client); ok && err == nil {
		return &linkConn{conn, c}, nil
	}
	return conn, err
}

// linkConn tells the client when the link breaks under it.
type linkConn struct {
	net.Conn
	client *client
}

func (l *linkConn) Read(b []byte) (int, error) {
	n, err := l.Conn.Read(b)
	l.look(err)
	return n, err
}

func (l *linkConn) Write(b []byte) (int, error) {
	n, err := l.Conn.Write(b)
	l.look(err)
	return n, err
}

// look tells what only a network says from what either end does: a node whose
// command has ended closes with the client's last words unread, which is a reset
// here, and the client must still get what came before.
func (l *linkConn) look(err error) {
	for _, broken := range []error{syscall.ETIMEDOUT, syscall.EHOSTUNREACH, syscall.ENETUNREACH} {
		if errors.Is(err, broken) {
			l.client.linkBroke()
			return
		}
	}
}
