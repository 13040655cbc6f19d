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

// PurposeKubelet is the one purpose known so far: serve the kubelet's API.
const PurposeKubelet = "kubelet"

var (
	// ErrBusy is returned when as many streams are open as the node allows.
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
	// Streams bounds what is open at once; 0 means 32.
	Streams int
	// Count, if set, returns what is told the bytes on the sockets of tunnels for a
	// purpose.
	Count func(purpose string) func(sent, received int)
	// Clients are the common names that may use the API; nil means the API server.
	Clients []string
	Logger  *slog.Logger
}

// Tunnels of a node.
type Tunnels struct {
	cfg Config

	mu     sync.Mutex
	ctx    context.Context // nil unless Run runs
	open   int
	recent []string // ids, because a request may come twice
	wg     sync.WaitGroup
}

// recentIDs is how many ids are remembered.
const recentIDs = 64

// New returns Tunnels that refuse requests until Run.
func New(cfg Config) *Tunnels {
	if cfg.Streams == 0 {
		cfg.Streams = 32
	}
	if cfg.Clients == nil {
		cfg.Clients = []string{enrollment.KubeletClientName}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Tunnels{cfg: cfg}
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
	if r.Purpose != PurposeKubelet {
		return fmt.Errorf("%w: %q", ErrPurpose, r.Purpose)
	}
	if slices.Contains(t.recent, r.ID) {
		return nil
	}
	if t.open >= t.cfg.Streams {
		return fmt.Errorf("%w: %d", ErrBusy, t.open)
	}
	t.recent = append(t.recent[max(0, len(t.recent)+1-recentIDs):], r.ID)
	t.open++
	ctx := t.ctx
	t.wg.Go(func() {
		if err := t.Serve(ctx, r); err != nil && ctx.Err() == nil {
			t.cfg.Logger.Info("tunnel", "id", r.ID, "err", err)
		}
		t.mu.Lock()
		t.open--
		t.mu.Unlock()
	})
	return nil
}

// Serve opens the stream and serves it until either side closes it or ctx ends.
func (t *Tunnels) Serve(ctx context.Context, r Request) error {
	conn, err := t.dial(ctx, r)
	if err != nil {
		return err
	}
	stream := &stream{Conn: conn, closed: make(chan struct{})}
	defer stream.Close()
	server := &http.Server{
		Handler:           t.cfg.Handler,
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
	reader := bufio.NewReaderSize(conn, 4096)
	response, err := http.ReadResponse(reader, &http.Request{Method: http.MethodGet})
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
