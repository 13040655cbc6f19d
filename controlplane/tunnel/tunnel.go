package tunnel

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-edge/coracle/controlplane/api/enrollment"
	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

// KubeletPort is the one port that nodes have: their API.
const KubeletPort = "10250"

var (
	// ErrAway is returned when the node isn't connected, so it can't be asked.
	ErrAway = errors.New("the node is away")
	// ErrNoAnswer is returned when the node was asked and didn't dial in time.
	ErrNoAnswer = errors.New("the node didn't open its tunnel")
	// ErrRefused is returned when the node said that it won't dial.
	ErrRefused = errors.New("the node refused the tunnel")
	// ErrTooMany is returned when too many tunnels are being waited for.
	ErrTooMany = errors.New("too many tunnels are being opened")
	// ErrAddress is returned for an address that isn't NODE:10250.
	ErrAddress = errors.New("no tunnel leads there")
)

// Asker sends a tunnel request to a node. It returns an error if the node is away;
// nil says only that the request is on its way.
type Asker interface {
	RequestTunnel(ctx context.Context, node, id, purpose string) error
}

// Config of Tunnels.
type Config struct {
	Asker Asker
	// Timeout is how long a node has for dialing; 0 means 15 s: a handshake over a
	// satellite takes 3.
	Timeout time.Duration
	// Count, if set, returns what is told the bytes of a stream to a node.
	Count func(node, purpose string) func(sent, received int)
	// Pending bounds the requests of all nodes, 0 means 1024. Of them PendingPerNode
	// are being waited for at once at one node, 0 means 32; as many as Pending allows
	// wait for their turn, within Timeout.
	Pending, PendingPerNode int
	Logger                  *slog.Logger
}

// Tunnels matches those who dial a node with the node's streams.
type Tunnels struct {
	cfg Config

	mu      sync.Mutex
	pending map[string]*request
	queues  map[string]*queue           // by node
	all     int                         // requests in queues
	streams map[string]map[*stream]bool // handed over and not closed yet, by node
}

// request is one that a dialer waits for.
type request struct {
	node    string
	purpose string
	stream  chan net.Conn // unbuffered: whoever sends knows that the dialer took it
	failed  chan error    // capacity 1
	gone    chan struct{} // closed when the dialer no longer waits
}

// New returns Tunnels without any.
func New(cfg Config) *Tunnels {
	if cfg.Timeout == 0 {
		cfg.Timeout = 15 * time.Second
	}
	if cfg.Pending == 0 {
		cfg.Pending = 1024
	}
	if cfg.PendingPerNode == 0 {
		cfg.PendingPerNode = 32
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Tunnels{cfg: cfg, pending: map[string]*request{}, queues: map[string]*queue{}, streams: map[string]map[*stream]bool{}}
}

// End closes a node's streams and fails those who wait for one: the node is no
// longer one of the cluster's.
func (t *Tunnels) End(node, reason string) {
	t.mu.Lock()
	var open []*stream
	for s := range t.streams[node] {
		open = append(open, s)
	}
	var waiting []*request
	for id, r := range t.pending {
		if r.node == node {
			delete(t.pending, id) // so that it is answered once
			waiting = append(waiting, r)
		}
	}
	t.mu.Unlock()
	for _, s := range open {
		s.Close()
	}
	for _, r := range waiting {
		r.failed <- fmt.Errorf("%w: node %q: %s", ErrRefused, node, reason)
	}
}

// stream is one that is known until it is closed.
type stream struct {
	net.Conn
	t    *Tunnels
	node string
}

func (t *Tunnels) track(node string, conn net.Conn) *stream {
	s := &stream{conn, t, node}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.streams[node] == nil {
		t.streams[node] = map[*stream]bool{}
	}
	t.streams[node][s] = true
	return s
}

func (s *stream) Close() error {
	s.t.mu.Lock()
	delete(s.t.streams[s.node], s)
	if len(s.t.streams[s.node]) == 0 {
		delete(s.t.streams, s.node)
	}
	s.t.mu.Unlock()
	return s.Conn.Close()
}

// DialContext has the form of net.Dialer's. address is NODE:10250; the network is
// ignored. The errors name the node.
func (t *Tunnels) DialContext(ctx context.Context, _, address string) (net.Conn, error) {
	node, err := NodeOf(address)
	if err != nil {
		return nil, err
	}
	return t.Dial(ctx, node, enrollment.PurposeKubelet)
}

// NodeOf reads NODE:10250; anything else is ErrAddress.
func NodeOf(address string) (string, error) {
	node, port, err := net.SplitHostPort(address)
	if err != nil || port != KubeletPort || enrollment.CheckNodeName(node) != nil {
		return "", fmt.Errorf("%w: %.300q; want NODE:%s", ErrAddress, address, KubeletPort)
	}
	return node, nil
}

// Dial opens a stream to a node for one of enrollment's purposes. On it the node is
// a TLS server. The errors name the node.
func (t *Tunnels) Dial(ctx context.Context, node, purpose string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, t.cfg.Timeout)
	defer cancel()
	leave, err := t.inTurn(ctx, node)
	if err != nil {
		return nil, err
	}
	defer leave()
	id, r := t.expect(node, purpose)
	defer t.forget(id, r)
	if err := t.cfg.Asker.RequestTunnel(ctx, node, id, purpose); err != nil {
		return nil, fmt.Errorf("%w: node %q: %w", ErrAway, node, err)
	}
	select {
	case conn := <-r.stream:
		return conn, nil
	case err := <-r.failed:
		return nil, err
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: node %q was asked and is silent: it is away, or on a very slow link: %w", ErrNoAnswer, node, context.Cause(ctx))
	}
}

// queue is of those who dial one node.
type queue struct {
	slots chan struct{}
	users int // guarded by Tunnels.mu
}

// inTurn waits until the node may be asked for one more stream. leave is to be
// called when it has answered.
func (t *Tunnels) inTurn(ctx context.Context, node string) (leave func(), err error) {
	t.mu.Lock()
	if t.all >= t.cfg.Pending {
		defer t.mu.Unlock()
		return nil, fmt.Errorf("%w: %d of all nodes, while dialing node %q; try again later", ErrTooMany, t.all, node)
	}
	q := t.queues[node]
	if q == nil {
		q = &queue{slots: make(chan struct{}, t.cfg.PendingPerNode)}
		t.queues[node] = q
	}
	q.users++
	t.all++
	t.mu.Unlock()
	gone := func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.all--
		if q.users--; q.users == 0 {
			delete(t.queues, node)
		}
	}
	select {
	case q.slots <- struct{}{}:
		return func() { <-q.slots; gone() }, nil
	case <-ctx.Done():
		gone()
		return nil, fmt.Errorf("%w: %d of node %q, which is slow or away; try again later: %w", ErrTooMany, t.cfg.PendingPerNode, node, context.Cause(ctx))
	}
}

// ServeTunnel answers a node that comes for the request id, and hands its stream
// to whoever waits for it. The caller authenticated the node.
func (t *Tunnels) ServeTunnel(w http.ResponseWriter, r *http.Request, node, id string) {
	if r.Header.Get("Upgrade") != enrollment.TunnelProtocol {
		refuse(w, http.StatusUpgradeRequired, "BadRequest", "this path is for an Upgrade to "+enrollment.TunnelProtocol)
		return
	}
	req := t.claim(node, id)
	if req == nil {
		refuse(w, http.StatusNotFound, "TunnelUnknown", fmt.Sprintf("nobody waits for tunnel %.64q of node %q (any more)", id, node))
		return
	}
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		t.cfg.Logger.Error("tunnel", "node", node, "err", err)
		refuse(w, http.StatusInternalServerError, "Internal", "this connection can't be a tunnel")
		return
	}
	upgraded, err := upgrade(conn, buffered)
	if err != nil {
		conn.Close()
		t.cfg.Logger.Info("tunnel", "node", node, "err", err)
		return
	}
	if t.cfg.Count != nil {
		upgraded = fleet.Meter(upgraded, t.cfg.Count(node, req.purpose))
	}
	stream := t.track(node, upgraded)
	select {
	case req.stream <- stream:
		t.cfg.Logger.Debug("tunnel open", "node", node, "id", id)
	case <-req.gone:
		stream.Close()
	}
}

// Refused tells whoever waits for the request that the node won't come, because of reason.
func (t *Tunnels) Refused(node, id, reason string) {
	if r := t.claim(node, id); r != nil {
		r.failed <- fmt.Errorf("%w: node %q: %s", ErrRefused, node, reason)
	}
}

// expect registers a new request.
func (t *Tunnels) expect(node, purpose string) (string, *request) {
	var random [16]byte
	rand.Read(random[:]) // never fails, says its documentation
	id := hex.EncodeToString(random[:])
	r := &request{node: node, purpose: purpose, stream: make(chan net.Conn), failed: make(chan error, 1), gone: make(chan struct{})}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.pending[id] = r
	return id, r
}

// claim takes the request, so that it is answered once. It returns nil if there
// is none, or if it is another node's.
func (t *Tunnels) claim(node, id string) *request {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.pending[id]
	if r == nil || r.node != node {
		return nil
	}
	delete(t.pending, id)
	return r
}

// forget ends a request, answered or not.
func (t *Tunnels) forget(id string, r *request) {
	close(r.gone)
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.pending, id)
}

// upgrade says 101 and returns the stream, with what was read too early.
func upgrade(conn net.Conn, buffered *bufio.ReadWriter) (net.Conn, error) {
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return nil, err
	}
	_, err := fmt.Fprintf(buffered, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", enrollment.TunnelProtocol)
	if err == nil {
		err = buffered.Flush()
	}
	if err == nil {
		err = conn.SetDeadline(time.Time{})
	}
	if err != nil {
		return nil, err
	}
	keepAlive(conn)
	if buffered.Reader.Buffered() == 0 {
		return conn, nil
	}
	return &prefixed{Conn: conn, early: buffered.Reader}, nil
}

// lostAfter is when a node that is silent below HTTP counts as gone.
const lostAfter = time.Minute

// keepAlive notices that the node is gone, where a log is followed and nothing is
// sent, and where something is sent and never acknowledged.
func keepAlive(conn net.Conn) {
	if c, ok := conn.(*tls.Conn); ok {
		conn = c.NetConn()
	}
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return
	}
	_ = tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: lostAfter / 2, Interval: lostAfter / 6, Count: 3})
	if raw, err := tcp.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(lostAfter/time.Millisecond))
		})
	}
}

// prefixed is a connection of which some bytes were read already.
type prefixed struct {
	net.Conn
	early *bufio.Reader
}

func (p *prefixed) Read(b []byte) (int, error) {
	if p.early.Buffered() > 0 {
		return p.early.Read(b[:min(len(b), p.early.Buffered())])
	}
	return p.Conn.Read(b)
}

func refuse(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(enrollment.Problem{Code: code, Message: message})
}
