package inprocess

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"
)

// responseWindow is how far a handler may run ahead of the reader of its response, in bytes.
const responseWindow = 256 << 10

// serveTimeout is how long a request waits for a handler.
const serveTimeout = 10 * time.Second

// ErrNotServing is returned for requests when there still is no handler after 10 s.
var ErrNotServing = errors.New("API server isn't assembled yet")

// Server is what clients are made for before it can serve.
type Server struct {
	handler http.Handler
	serving chan struct{} // closed once handler is set
}

// NewServer returns one whose requests wait for Serve.
func NewServer() *Server { return &Server{serving: make(chan struct{})} }

// Serve lets h answer all requests, those that wait too. It must be called once.
func (s *Server) Serve(h http.Handler) {
	s.handler = h
	close(s.serving)
}

func (s *Server) wait(ctx context.Context) (http.Handler, error) {
	select {
	case <-s.serving:
		return s.handler, nil
	default:
	}
	select {
	case <-s.serving:
		return s.handler, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(serveTimeout):
		return nil, ErrNotServing
	}
}

// Transport returns an http.RoundTripper whose requests are made as u.
//
// A round trip starts the handler and returns with its header; the body streams. Closing the body cancels the request and
// waits for the handler to return.
func (s *Server) Transport(u user.Info) http.RoundTripper { return &transport{server: s, user: u} }

type identityKey struct{}

// Authenticator accepts requests of clients in this process. Their identity is a context value, which nothing that comes
// over a network can set.
type Authenticator struct{}

// AuthenticateRequest is an authenticator.Request's.
func (Authenticator) AuthenticateRequest(req *http.Request) (*authenticator.Response, bool, error) {
	u, ok := req.Context().Value(identityKey{}).(user.Info)
	if !ok {
		return nil, false, nil
	}
	return &authenticator.Response{User: u}, true, nil
}

type transport struct {
	server *Server
	user   user.Info
}

func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	handler, err := t.server.wait(req.Context())
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(req.Context())
	served := req.WithContext(context.WithValue(ctx, identityKey{}, t.user))
	served.RequestURI = req.URL.RequestURI()
	served.RemoteAddr = "127.0.0.1:0"
	served.Proto, served.ProtoMajor, served.ProtoMinor = "HTTP/2.0", 2, 0
	served.Header = req.Header.Clone()
	if served.Body == nil {
		served.Body = http.NoBody
	}
	if served.Host == "" {
		served.Host = req.URL.Host
	}
	w := newResponse(cancel)
	stop := context.AfterFunc(ctx, func() { w.abort(ctx.Err()) })
	go func() {
		defer stop()
		defer w.finish()
		defer served.Body.Close()
		defer func() {
			if r := recover(); r != nil {
				w.abort(fmt.Errorf("%w: handler panicked: %v", io.ErrUnexpectedEOF, r))
			}
		}()
		handler.ServeHTTP(w, served)
	}()
	select {
	case <-w.started:
	case <-req.Context().Done(): // not ctx, which a handler that has returned already cancels
		return nil, req.Context().Err()
	}
	return &http.Response{
		Status:        http.StatusText(w.code),
		StatusCode:    w.code,
		Proto:         "HTTP/2.0",
		ProtoMajor:    2,
		Header:        w.sent,
		Body:          w,
		ContentLength: -1,
		Request:       req,
	}, nil
}

// response is an http.ResponseWriter on one side and a body on the other.
type response struct {
	cancel   context.CancelFunc
	header   http.Header // the handler's
	sent     http.Header // as of WriteHeader
	code     int
	started  chan struct{} // closed with the header
	finished chan struct{} // closed when the handler returned
	gone     chan bool     // http.CloseNotifier

	mu     sync.Mutex
	change sync.Cond
	buf    bytes.Buffer
	done   bool  // the handler returned
	err    error // what readers and writers get
}

func newResponse(cancel context.CancelFunc) *response {
	w := &response{
		cancel:   cancel,
		header:   http.Header{},
		started:  make(chan struct{}),
		finished: make(chan struct{}),
		gone:     make(chan bool, 1),
	}
	w.change.L = &w.mu
	return w
}

func (w *response) Header() http.Header { return w.header }

func (w *response) WriteHeader(code int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.writeHeader(code)
}

func (w *response) writeHeader(code int) {
	if w.code != 0 || (code >= 100 && code < 200) {
		return
	}
	w.code = code
	w.sent = w.header.Clone()
	close(w.started)
}

func (w *response) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.writeHeader(http.StatusOK)
	for w.buf.Len() >= responseWindow && w.err == nil {
		w.change.Wait()
	}
	if w.err != nil {
		return 0, w.err
	}
	w.buf.Write(p)
	w.change.Broadcast()
	return len(p), nil
}

// Flush does nothing: what was written can be read at once.
func (w *response) Flush() { w.WriteHeader(http.StatusOK) }

// CloseNotify is asked for by upstream's watch and proxy handlers.
func (w *response) CloseNotify() <-chan bool { return w.gone }

func (w *response) Read(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.buf.Len() == 0 && !w.done && w.err == nil {
		w.change.Wait()
	}
	if w.buf.Len() > 0 && !errors.Is(w.err, errBodyClosed) {
		n, _ := w.buf.Read(p)
		if w.buf.Len() == 0 && w.buf.Cap() > responseWindow {
			w.buf = bytes.Buffer{}
		}
		w.change.Broadcast()
		return n, nil
	}
	if w.err != nil {
		return 0, w.err
	}
	return 0, io.EOF
}

var errBodyClosed = errors.New("response body is closed")

// Close is the reader's: it ends the request and waits for the handler.
func (w *response) Close() error {
	w.abort(errBodyClosed)
	w.cancel()
	<-w.finished
	return nil
}

func (w *response) abort(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil && !w.done {
		w.err = err
		select {
		case w.gone <- true:
		default:
		}
	}
	w.change.Broadcast()
}

func (w *response) finish() {
	w.mu.Lock()
	w.writeHeader(http.StatusOK)
	w.done = true
	w.change.Broadcast()
	w.mu.Unlock()
	w.cancel()
	close(w.finished)
}
