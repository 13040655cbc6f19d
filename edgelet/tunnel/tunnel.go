package tunnel

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coracle-edge/coracle/controlplane/api/enrollment"
	"github.com/coracle-edge/coracle/edgelet/identity"
)

// Purposes of tunnels.
const (
	PurposeKubelet = enrollment.PurposeKubelet
	PurposeDial    = enrollment.PurposeDial
)

// Defaults of [Config].
const (
	// DefaultStreams costs about 100 KiB each while open: TLS within TLS.
	DefaultStreams = 256
	defaultWaiting = 256
	// defaultWait leaves the control plane, which waits 15 s, time for the answer
	// that there are too many.
	defaultWait = 8 * time.Second
	// busyStreams are those on which that is said.
	busyStreams = 4
)

var (
	// ErrBusy is returned when as many streams are open as the node allows, and as
	// many requests wait.
	ErrBusy = errors.New("this node has too many tunnels open")
	// ErrPurpose is returned for a purpose that this edgelet doesn't know.
	ErrPurpose = errors.New("this node doesn't know the tunnel's purpose")
	// ErrStopped is returned before Run and after its end.
	ErrStopped = errors.New("this node opens no tunnels now")
)

// Request is what the hub sends.
type Request struct {
	ID      string
	Purpose string
	// URL is https://HOST:PORT, with or without the path; if empty, the fleet
	// endpoints of the identity are tried.
	URL string
}

// Config of Tunnels.
type Config struct {
	Identity *identity.Identity
	// Handler is the API, by NewAPI.
	Handler http.Handler
	// Dial serves [PurposeDial], by NewDial; nil refuses it.
	Dial http.Handler
	// Streams bounds what is open at once for one purpose, so that neither keeps
	// the other out; 0 means [DefaultStreams]. Up to Waiting further requests wait
	// for Wait each; 0 means 256 and 8 s.
	Streams, Waiting int
	Wait             time.Duration
	// Count, if set, returns what is told the bytes on the sockets of tunnels for a
	// purpose.
	Count func(purpose string) func(sent, received int)
	// Clients are the common names that may use the API; nil means the API server.
	Clients []string
	Logger  *slog.Logger
}

// Tunnels of a node.
type Tunnels struct {
	cfg   Config
	lanes map[string]*lane // by purpose
	busy  chan struct{}    // a token for each stream that only says so

	mu     sync.Mutex
	ctx    context.Context // nil unless Run runs
	recent []string        // ids, because a request may come twice
	wg     sync.WaitGroup
}

// lane is what is open and what waits for one purpose.
type lane struct {
	handler http.Handler
	slots   chan struct{}
	waiting int // guarded by Tunnels.mu
}

// recentIDs is how many ids are remembered.
const recentIDs = 1024

// New returns Tunnels that refuse requests until Run.
func New(cfg Config) *Tunnels {
	if cfg.Streams == 0 {
		cfg.Streams = DefaultStreams
	}
	if cfg.Waiting == 0 {
		cfg.Waiting = defaultWaiting
	}
	if cfg.Wait == 0 {
		cfg.Wait = defaultWait
	}
	if cfg.Clients == nil {
		cfg.Clients = []string{enrollment.KubeletClientName}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	t := &Tunnels{cfg: cfg, lanes: map[string]*lane{}, busy: make(chan struct{}, busyStreams)}
	for purpose, handler := range map[string]http.Handler{PurposeKubelet: cfg.Handler, PurposeDial: cfg.Dial} {
		if handler != nil {
			t.lanes[purpose] = &lane{handler: handler, slots: make(chan struct{}, cfg.Streams)}
		}
	}
	return t
}

// Run serves requests until ctx ends, and then until all streams are closed.
func (t *Tunnels) Run(ctx context.Context) error {
	t.mu.Lock()
	t.ctx = ctx
	t.mu.Unlock()
	<-ctx.Done()
	t.mu.Lock()
	t.ctx = nil
	t.mu.Unlock()
	t.wg.Wait()
	return nil
}

// Request starts to serve one and returns at once. An error is for the hub to be
// told. The second of two requests with one id is ignored.
func (t *Tunnels) Request(r Request) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ctx == nil {
		return ErrStopped
	}
	l := t.lanes[r.Purpose]
	if l == nil {
		return fmt.Errorf("%w: %.64q", ErrPurpose, r.Purpose)
	}
	if slices.Contains(t.recent, r.ID) {
		return nil
	}
	if l.waiting >= t.cfg.Waiting {
		return fmt.Errorf("%w: %d for purpose %q, and %d wait; end some, or try again later", ErrBusy, t.cfg.Streams, r.Purpose, l.waiting)
	}
	t.recent = append(t.recent[max(0, len(t.recent)+1-recentIDs):], r.ID)
	l.waiting++
	ctx := t.ctx
	t.wg.Go(func() {
		if err := t.serveInTurn(ctx, r, l); err != nil && ctx.Err() == nil {
			t.cfg.Logger.Info("tunnel", "id", r.ID, "purpose", r.Purpose, "err", err)
		}
	})
	return nil
}

// serveInTurn serves a request when one of its lane's streams is free.
func (t *Tunnels) serveInTurn(ctx context.Context, r Request, l *lane) error {
	got := t.turn(ctx, l)
	t.mu.Lock()
	l.waiting--
	t.mu.Unlock()
	if got {
		defer func() { <-l.slots }()
		return t.serve(ctx, r, l.handler)
	}
	if ctx.Err() != nil {
		return nil
	}
	err := fmt.Errorf("%w: %d for purpose %q; end some, or try again later", ErrBusy, t.cfg.Streams, r.Purpose)
	select {
	case t.busy <- struct{}{}:
		defer func() { <-t.busy }()
		return errors.Join(err, t.serve(ctx, r, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			fail(w, http.StatusServiceUnavailable, err.Error())
		})))
	default:
		return err
	}
}

func (t *Tunnels) turn(ctx context.Context, l *lane) bool {
	select {
	case l.slots <- struct{}{}:
		return true
	default:
	}
	timer := time.NewTimer(t.cfg.Wait)
	defer timer.Stop()
	select {
	case l.slots <- struct{}{}:
		return true
	case <-timer.C:
	case <-ctx.Done():
	}
	return false
}

// serve opens the stream and serves it until either side closes it or ctx ends.
func (t *Tunnels) serve(ctx context.Context, r Request, handler http.Handler) error {
	conn, err := t.dial(ctx, r)
	if err != nil {
		return err
	}
	stream := &stream{Conn: conn, closed: make(chan struct{})}
	defer stream.Close()
	server := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 30 * time.Second,
		MaxHeaderBytes:    32 << 10,
		TLSNextProto:      map[string]func(*http.Server, *tls.Conn, http.Handler){},
		ErrorLog:          slog.NewLogLogger(t.cfg.Logger.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	// One request per stream: a connection that the API server kept for the next one
	// would cost the link keep-alives, and, when the link broke meanwhile, the next
	// request would wait on it instead of learning that the node is away.
	server.SetKeepAlivesEnabled(false)
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	inner := tls.Server(stream, t.cfg.Identity.ServerTLS(t.cfg.Clients...))
	err = server.Serve(&oneListener{conn: inner, stream: stream})
	if errors.Is(err, errStreamEnded) || errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// dial opens a stream to the first endpoint that takes it.
func (t *Tunnels) dial(ctx context.Context, r Request) (net.Conn, error) {
	if t.cfg.Count != nil {
		ctx = identity.WithMeter(ctx, t.cfg.Count(r.Purpose))
	}
	urls := t.cfg.Identity.FleetURLs()
	if r.URL != "" {
		urls = []string{r.URL}
	}
	var errs []error
	for _, text := range urls {
		conn, err := t.upgrade(ctx, text, r.ID)
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
	}
	if len(errs) == 0 {
		return nil, errors.New("no address of a fleet endpoint is known")
	}
	return nil, errors.Join(errs...)
}

func (t *Tunnels) upgrade(ctx context.Context, text, id string) (net.Conn, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" {
		return nil, fmt.Errorf("tunnel address %q isn't https://HOST:PORT", text)
	}
	u.Path = enrollment.TunnelPath + url.PathEscape(id)
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	conn, err := identity.DialFleet(ctx, u, t.cfg.Identity.ClientTLS(enrollment.FleetServerName))
	if err != nil {
		return nil, err
	}
	stream, err := handshake(ctx, conn, u)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("tunnel at %s: %w", u.Host, err)
	}
	return stream, nil
}

func handshake(ctx context.Context, conn net.Conn, u *url.URL) (net.Conn, error) {
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return nil, err
	}
	_, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", u.EscapedPath(), u.Host, enrollment.TunnelProtocol)
	if err != nil {
		return nil, err
	}
	// The answer's head is read from the connection's own buffer; what follows it belongs to the stream.
	response, reader, err := enrollment.ReadAnswer(conn, http.MethodGet)
	if err != nil {
		return nil, fmt.Errorf("read the answer: %w", err)
	}
	if response.StatusCode != http.StatusSwitchingProtocols {
		defer response.Body.Close()
		var p enrollment.Problem
		body, err := enrollment.ReadAtMost(response.Body, enrollment.MaxBody)
		if err != nil || json.Unmarshal(body, &p) != nil || p.Message == "" {
			return nil, fmt.Errorf("it answered %s", response.Status)
		}
		return nil, p.Err()
	}
	if !strings.EqualFold(response.Header.Get("Upgrade"), enrollment.TunnelProtocol) {
		return nil, fmt.Errorf("it upgrades to %q", response.Header.Get("Upgrade"))
	}
	return &early{Conn: conn, reader: reader}, conn.SetDeadline(time.Time{})
}

// early is a connection of which some bytes may have been read already.
type early struct {
	net.Conn
	reader *bufio.Reader
}

func (e *early) Read(b []byte) (int, error) {
	if n := e.reader.Buffered(); n > 0 {
		return e.reader.Read(b[:min(len(b), n)])
	}
	return e.Conn.Read(b)
}

// stream says when it was closed.
type stream struct {
	net.Conn
	once   sync.Once
	closed chan struct{}
}

func (s *stream) Close() error {
	err := s.Conn.Close()
	s.once.Do(func() { close(s.closed) })
	return err
}

var errStreamEnded = errors.New("the stream ended")

// oneListener is a listener with one connection: http.Server serves it, and
// stops when it is closed, also if a handler has taken it over.
type oneListener struct {
	mu     sync.Mutex
	conn   net.Conn
	stream *stream
}

func (l *oneListener) Accept() (net.Conn, error) {
	l.mu.Lock()
	conn := l.conn
	l.conn = nil
	l.mu.Unlock()
	if conn != nil {
		return conn, nil
	}
	<-l.stream.closed
	return nil, errStreamEnded
}

func (l *oneListener) Close() error   { return l.stream.Close() }
func (l *oneListener) Addr() net.Addr { return l.stream.LocalAddr() }
