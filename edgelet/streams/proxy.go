package streams

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coracle-edge/coracle/controlplane/api/enrollment"
)

const (
	// answerTimeout bounds connecting to the runtime's stream and its first answer.
	answerTimeout = 15 * time.Second
	// maxAnswer bounds what a runtime may say of why it doesn't upgrade, in bytes.
	maxAnswer = 64 << 10
)

// errURL is returned when a runtime's URL isn't one that can be used.
var errURL = errors.New("the runtime's URL can't be used")

// proxy passes a request for another protocol, and all that follows, to a URL of
// the runtime. The answer has been given when it returns.
func (s *Server) proxy(w http.ResponseWriter, r *http.Request, target string) error {
	if !upgrades(r.Header) {
		fail(w, http.StatusBadRequest, "Upgrade request required")
		return nil
	}
	backend, answer, err := s.ask(r, target)
	if err != nil {
		fail(w, http.StatusInternalServerError, err.Error())
		return err
	}
	defer backend.Close()
	if answer.StatusCode != http.StatusSwitchingProtocols {
		defer answer.Body.Close()
		return relayAnswer(w, answer)
	}
	client, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		fail(w, http.StatusInternalServerError, "this connection can't be a stream")
		return err
	}
	defer client.Close()
	answer.Body = nil // the header only; what follows is the stream
	if err := answer.Write(client); err != nil {
		return fmt.Errorf("the client is gone: %w", err)
	}
	if err := splice(r.Context(), withEarly(client, buffered.Reader), backend, s.cfg.Idle); err != nil {
		return fmt.Errorf("stream ended: %w", err)
	}
	return nil
}

// ask sends the request to the runtime and reads the head of its answer.
func (s *Server) ask(r *http.Request, target string) (net.Conn, *http.Response, error) {
	u, err := url.Parse(target)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, nil, fmt.Errorf("%w: %.200q isn't http://HOST:PORT/PATH", errURL, target)
	}
	ctx, cancel := context.WithTimeout(r.Context(), answerTimeout)
	defer cancel()
	conn, err := dialURL(ctx, u)
	if err != nil {
		return nil, nil, fmt.Errorf("the runtime's streams at %s: %w", u.Host, err)
	}
	deadline, _ := ctx.Deadline()
	out := &http.Request{Method: r.Method, URL: u, Host: u.Host, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: r.Header.Clone()}
	var reader *bufio.Reader
	err = conn.SetDeadline(deadline)
	if err == nil {
		err = out.Write(conn)
	}
	var answer *http.Response
	if err == nil {
		answer, reader, err = enrollment.ReadAnswer(conn, out.Method)
	}
	if err == nil && answer.StatusCode == http.StatusSwitchingProtocols {
		err = conn.SetDeadline(time.Time{})
	}
	if err != nil {
		conn.Close()
		return nil, nil, fmt.Errorf("the runtime's streams at %s: %w", u.Host, err)
	}
	return withEarly(conn, reader), answer, nil
}

// dialURL connects to a runtime's server. Its certificate isn't verified, as a
// kubelet doesn't: it is on this machine.
func dialURL(ctx context.Context, u *url.URL) (net.Conn, error) {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	address := net.JoinHostPort(u.Hostname(), port)
	if u.Scheme == "https" {
		return (&tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}}}).DialContext(ctx, "tcp", address)
	}
	return (&net.Dialer{}).DialContext(ctx, "tcp", address)
}

// relayAnswer tells the client why the runtime doesn't upgrade.
func relayAnswer(w http.ResponseWriter, answer *http.Response) error {
	body, _ := io.ReadAll(io.LimitReader(answer.Body, maxAnswer))
	if answer.StatusCode < 400 {
		err := fmt.Errorf("invalid upgrade response: status code %d", answer.StatusCode)
		fail(w, http.StatusInternalServerError, err.Error())
		return err
	}
	if t := answer.Header.Get("Content-Type"); t != "" {
		w.Header().Set("Content-Type", t)
	}
	w.WriteHeader(answer.StatusCode)
	_, err := w.Write(body)
	return err
}

// early is a connection of which some bytes were read already.
type early struct {
	net.Conn
	reader *bufio.Reader
}

func withEarly(conn net.Conn, reader *bufio.Reader) net.Conn {
	if reader.Buffered() == 0 {
		return conn
	}
	return &early{conn, reader}
}

func (e *early) Read(b []byte) (int, error) {
	if n := e.reader.Buffered(); n > 0 {
		return e.reader.Read(b[:min(len(b), n)])
	}
	return e.Conn.Read(b)
}

// errIdle is returned when nothing passed for too long.
var errIdle = errors.New("nothing was said for too long")

// splice passes bytes on in both directions until one of them ends, ctx does, or
// nothing has passed for idle. Both protocols, SPDY and WebSocket, say the end of
// their streams inside, so half a connection is none.
func splice(ctx context.Context, a, b net.Conn, idle time.Duration) error {
	var once sync.Once
	var why error
	end := func(err error) {
		once.Do(func() {
			why = err
			_ = a.Close()
			_ = b.Close()
		})
	}
	stop := context.AfterFunc(ctx, func() { end(context.Cause(ctx)) })
	defer stop()
	began := time.Now()
	var last atomic.Int64 // since began
	var timer *time.Timer
	var mu sync.Mutex
	mu.Lock()
	timer = time.AfterFunc(idle, func() {
		mu.Lock()
		defer mu.Unlock()
		if quiet := time.Since(began) - time.Duration(last.Load()); quiet < idle {
			timer.Reset(idle - quiet)
			return
		}
		end(fmt.Errorf("%w: %s", errIdle, idle))
	})
	mu.Unlock()
	var both sync.WaitGroup
	pass := func(to, from net.Conn) {
		_, _ = io.Copy(to, &noted{from, func() { last.Store(int64(time.Since(began))) }})
		end(nil)
	}
	both.Go(func() { pass(a, b) })
	both.Go(func() { pass(b, a) })
	both.Wait()
	mu.Lock()
	timer.Stop()
	mu.Unlock()
	return why
}

// noted calls passed when something was read.
type noted struct {
	from   io.Reader
	passed func()
}

func (n *noted) Read(b []byte) (int, error) {
	k, err := n.from.Read(b)
	if k > 0 {
		n.passed()
	}
	return k, err
}
