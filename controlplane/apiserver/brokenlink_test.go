package apiserver

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"syscall"
	"testing"
)

// dying is a connection to a node that says something and breaks.
type dying struct {
	net.Conn
	says io.Reader
	err  error
}

func (d *dying) Read(b []byte) (int, error) {
	n, err := d.says.Read(b)
	if err == io.EOF {
		err = d.err
	}
	return n, err
}

func TestAStreamWhoseLinkBreaksIsNoWholeOne(t *testing.T) {
	timedOut := &net.OpError{Op: "read", Err: os.NewSyscallError("read", syscall.ETIMEDOUT)}
	for _, c := range []struct {
		what, path string
		err        error
		fails      bool
		code       int
	}{
		{"the link breaks", "/api/v1/namespaces/a/pods/b/log", timedOut, true, 200},
		{"the log ends", "/api/v1/namespaces/a/pods/b/log", io.EOF, false, 200},
		{"it breaks before an answer began, which says so", "/api/v1/namespaces/a/pods/b/log", timedOut, false, 502},
		{"not a stream of a pod", "/api/v1/namespaces/a/pods/b", timedOut, false, 200},
	} {
		s := &Server{}
		s.cfg.DialNode = func(context.Context, string, string) (net.Conn, error) {
			return &dying{says: strings.NewReader("a line\n"), err: c.err}, nil
		}
		for _, h2 := range []bool{false, true} {
			front := httptest.NewUnstartedServer(untilLinkBreaks(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				conn, err := s.dialNode(r.Context(), "tcp", "n:10250")
				if err != nil {
					t.Error(err)
					return
				}
				if c.code != http.StatusOK {
					_, _ = io.Copy(io.Discard, conn)
					http.Error(w, "the node is away", c.code)
					return
				}
				w.(http.Flusher).Flush()
				_, _ = io.Copy(w, conn) // as upstream does, which ends the answer well
			})))
			front.EnableHTTP2 = h2
			front.StartTLS()
			resp, err := front.Client().Get(front.URL + c.path)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if (err != nil) != c.fails || resp.StatusCode != c.code || c.code == 200 && string(body) != "a line\n" {
				t.Errorf("%s: %d %q, %v", c.what, resp.StatusCode, body, err)
			}
			front.Close()
		}
	}
}

// A client that says nothing hears of it at once.
func TestAHijackedClientIsCutOff(t *testing.T) {
	s := &Server{}
	s.cfg.DialNode = func(context.Context, string, string) (net.Conn, error) {
		return &dying{says: strings.NewReader(""), err: syscall.ETIMEDOUT}, nil
	}
	front := httptest.NewServer(untilLinkBreaks(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		node, err := s.dialNode(r.Context(), "tcp", "n:10250")
		if err != nil {
			t.Error(err)
			return
		}
		go func() { _, _ = node.Read(make([]byte, 1)) }()
		_, _ = conn.Read(make([]byte, 1)) // upstream's proxy, which waits for the client
	})))
	defer front.Close()
	conn, err := net.Dial("tcp", front.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET /api/v1/namespaces/a/pods/b/portforward HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client reads %v", err)
	}
}

type failingConn struct {
	net.Conn
	err error
}

func (c failingConn) Read([]byte) (int, error)  { return 0, c.err }
func (c failingConn) Write([]byte) (int, error) { return 0, c.err }

// A node that has ended a stream may reset the connection: the client's last words
// came too late to be read. Cutting the client off would lose what came before.
func TestOnlyTheNetworkBreaksALink(t *testing.T) {
	for err, broken := range map[error]bool{
		io.EOF: false, net.ErrClosed: false, syscall.ECONNRESET: false, syscall.EPIPE: false,
		syscall.ETIMEDOUT: true, syscall.EHOSTUNREACH: true, syscall.ENETUNREACH: true,
	} {
		for name, use := range map[string]func(net.Conn){
			"read":  func(c net.Conn) { _, _ = c.Read(nil) },
			"write": func(c net.Conn) { _, _ = c.Write(nil) },
		} {
			c := &client{}
			use(&linkConn{failingConn{err: &net.OpError{Op: name, Err: os.NewSyscallError(name, err)}}, c})
			if c.broken != broken {
				t.Errorf("%s that ends with %v: broken %v", name, err, c.broken)
			}
		}
	}
}
