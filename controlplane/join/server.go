package join

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"k8s.io/client-go/kubernetes"

	"github.com/coracle-edge/coracle/controlplane/api/enrollment"
	"github.com/coracle-edge/coracle/controlplane/join/noderecord"
	"github.com/coracle-edge/coracle/controlplane/pki"
)

// Tunnels takes the streams that nodes bring; controlplane/tunnel is one. The
// node is authenticated and in good standing. ServeTunnel answers the request
// and returns when the stream was handed over or refused.
type Tunnels interface {
	ServeTunnel(w http.ResponseWriter, r *http.Request, node, id string)
}

// Config of a Server. All of it is needed unless said otherwise.
type Config struct {
	Authority *pki.Authority
	// Serving is the fleet endpoint's certificate, by Authority.Fleet.
	Serving *pki.Leaf
	Client  kubernetes.Interface
	// Records answers who a node is. Its Run is the caller's.
	Records *noderecord.Directory
	// Cluster is asked for each grant; ID and Hub are filled in.
	Cluster func() enrollment.Cluster
	// Hub is the hub's certificate, by Authority.Hub.
	Hub *pki.Leaf
	// Tunnels may be nil: then there are none.
	Tunnels Tunnels
	// Objects serves enrollment.ObjectsPath to admitted nodes, NodeFrom says which; may be nil.
	Objects http.Handler
	// PodToken asks the API for a token as the node, which is admitted; may be nil.
	PodToken func(ctx context.Context, node string, r enrollment.PodTokenRequest) (enrollment.PodTokenAnswer, error)
	// Relay may be nil: then other control planes reach no node through this one.
	Relay Relay
	// Now is the clock; nil means time.Now.
	Now    func() time.Time
	Logger *slog.Logger
	// PerSource and Concurrent bound join and renew: requests per second of one
	// address (in bursts of ten times that), and how many are worked on at once. 0
	// means 10 and 32.
	PerSource  float64
	Concurrent int
}

// Server is the fleet endpoint.
type Server struct {
	cfg      Config
	records  noderecord.Store
	sources  *sources
	slots    chan struct{}
	handlers *http.ServeMux
}

// New returns a Server that isn't listening yet.
func New(cfg Config) (*Server, error) {
	if cfg.Authority == nil || cfg.Serving == nil || cfg.Client == nil || cfg.Records == nil || cfg.Cluster == nil || cfg.Hub == nil {
		return nil, errors.New("join: Authority, Serving, Client, Records, Cluster and Hub are needed")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.PerSource == 0 {
		cfg.PerSource = 10
	}
	if cfg.Concurrent == 0 {
		cfg.Concurrent = 32
	}
	s := &Server{
		cfg:     cfg,
		records: noderecord.Store{Client: cfg.Client},
		sources: newSources(cfg.PerSource, cfg.Now),
		slots:   make(chan struct{}, cfg.Concurrent),
	}
	s.handlers = http.NewServeMux()
	s.handlers.HandleFunc("POST "+enrollment.JoinPath, s.enroll(s.join))
	s.handlers.HandleFunc("POST "+enrollment.RenewPath, s.enroll(s.renew))
	s.handlers.HandleFunc("GET "+enrollment.TunnelPath+"{id}", s.tunnel)
	s.handlers.HandleFunc("GET "+enrollment.ObjectsPath, s.objects)
	if cfg.PodToken != nil {
		s.handlers.HandleFunc("POST "+enrollment.PodTokenPath, s.podToken)
	}
	if cfg.Relay != nil {
		s.handlers.HandleFunc("GET "+enrollment.RelayPath+"{node}", s.relay)
	}
	s.handlers.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	return s, nil
}

// Handler is the endpoint without its listener. It needs to be served over TLS
// with the configuration of TLSConfig.
func (s *Server) Handler() http.Handler { return s.handlers }

// TLSConfig asks for a client certificate but takes any or none: each handler
// verifies what it needs, because an expired one must be able to say so. The roots
// are sent along, for boards that know the hash of one only.
func (s *Server) TLSConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"http/1.1"},
		ClientAuth: tls.RequestClientCert,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			c := *s.cfg.Serving.Current()
			c.Certificate = slices.Clone(c.Certificate)
			for _, root := range s.cfg.Authority.Roots() {
				c.Certificate = append(c.Certificate, root.Raw)
			}
			return &c, nil
		},
	}
}

// Serve answers on l until ctx ends, then closes l. Streams that were handed
// over are no longer its concern.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	server := &http.Server{
		Handler:           s.handlers,
		TLSConfig:         s.TLSConfig(),
		TLSNextProto:      map[string]func(*http.Server, *tls.Conn, http.Handler){}, // no HTTP/2: a tunnel needs a connection of its own
		ReadHeaderTimeout: 15 * time.Second,
		IdleTimeout:       30 * time.Second,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(s.cfg.Logger.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	done := make(chan error, 1)
	go func() { done <- server.ServeTLS(l, "", "") }()
	select {
	case err := <-done:
		return fmt.Errorf("fleet endpoint on %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if server.Shutdown(grace) != nil {
		server.Close()
	}
	<-done
	return nil
}

// Tend deletes what is long over, hourly, until ctx ends.
func (s *Server) Tend(ctx context.Context) error {
	tick := time.NewTicker(time.Hour)
	defer tick.Stop()
	for {
		if err := pruneTokens(ctx, s.cfg.Client, s.cfg.Now()); err != nil && ctx.Err() == nil {
			s.cfg.Logger.Warn("prune join tokens", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// sealed is a request whose sender proved to hold the key it names.
type enrollFunc func(ctx context.Context, body []byte, proven func(key []byte) error) (enrollment.Grant, error)

// enroll is what join and renew share: bounds, the proof, the answer.
func (s *Server) enroll(do enrollFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if !s.sources.allow(r.RemoteAddr) {
			s.refuse(w, r, fmt.Errorf("%w from your address; try again in some seconds", enrollment.ErrBusy))
			return
		}
		select {
		case s.slots <- struct{}{}:
			defer func() { <-s.slots }()
		default:
			s.refuse(w, r, fmt.Errorf("%w at once; try again in some seconds", enrollment.ErrBusy))
			return
		}
		deadline := time.Now().Add(15 * time.Second)
		http.NewResponseController(w).SetReadDeadline(deadline)
		ctx, cancel := context.WithDeadline(r.Context(), deadline)
		defer cancel()
		body, err := enrollment.ReadAtMost(r.Body, enrollment.MaxBody)
		if err != nil {
			s.refuse(w, r, fmt.Errorf("%w: body: %v", enrollment.ErrBadRequest, err))
			return
		}
		grant, err := do(ctx, body, func(key []byte) error { return checkProof(r, body, key) })
		if err != nil {
			s.refuse(w, r, err)
			return
		}
		answer(w, http.StatusOK, grant)
	}
}

func checkProof(r *http.Request, body, key []byte) error {
	if len(key) != ed25519.PublicKeySize {
		return fmt.Errorf("%w: the signing key has %d bytes, want %d", enrollment.ErrBadRequest, len(key), ed25519.PublicKeySize)
	}
	signature, err := base64.StdEncoding.DecodeString(r.Header.Get(enrollment.ProofHeader))
	if err != nil {
		return fmt.Errorf("%w: header %s isn't base64", enrollment.ErrProof, enrollment.ProofHeader)
	}
	text, err := enrollment.ProofText(r.URL.Path, r.TLS, body)
	if err != nil {
		return fmt.Errorf("%w: %w", enrollment.ErrProof, err)
	}
	if !ed25519.Verify(key, text, signature) {
		return fmt.Errorf("%w: the request isn't signed, on this connection, by the key it names; nothing may terminate TLS between the board and this endpoint", enrollment.ErrProof)
	}
	return nil
}

func (s *Server) refuse(w http.ResponseWriter, r *http.Request, err error) {
	problem, status := enrollment.ProblemOf(err)
	level := slog.LevelInfo
	if problem.Code == "Internal" {
		level = slog.LevelError
	}
	s.cfg.Logger.Log(r.Context(), level, "refused", "path", r.URL.Path, "from", r.RemoteAddr, "err", err)
	if enrollment.Temporary(problem.Err()) {
		problem.RetryAfter = 5
		w.Header().Set("Retry-After", "5")
	}
	answer(w, status, problem)
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	// The connection may be gone; the node asks again.
	_ = json.NewEncoder(w).Encode(v)
}

type nodeKey struct{}

// NodeFrom says which node a request to Config.Objects is from.
func NodeFrom(ctx context.Context) string {
	node, _ := ctx.Value(nodeKey{}).(string)
	return node
}

func (s *Server) tunnel(w http.ResponseWriter, r *http.Request) {
	node, err := s.admitted(r)
	if err == nil && s.cfg.Tunnels == nil {
		err = fmt.Errorf("%w: no tunnels here", enrollment.ErrBadRequest)
	}
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	s.cfg.Tunnels.ServeTunnel(w, r, node, r.PathValue("id"))
}

func (s *Server) objects(w http.ResponseWriter, r *http.Request) {
	node, err := s.admitted(r)
	if err == nil && s.cfg.Objects == nil {
		err = fmt.Errorf("%w: no objects here", enrollment.ErrBadRequest)
	}
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	s.cfg.Objects.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), nodeKey{}, node)))
}

// admitted returns the node whose certificate the request came with, if it is
// valid now, holds the key on record, and the node wasn't revoked.
func (s *Server) admitted(r *http.Request) (string, error) {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return "", fmt.Errorf("%w: a node's certificate is needed", enrollment.ErrProof)
	}
	cert := r.TLS.PeerCertificates[0]
	node, err := s.cfg.Authority.VerifyNode(cert, r.TLS.PeerCertificates[1:]...)
	if err != nil {
		return "", fmt.Errorf("%w: %w", enrollment.ErrProof, err)
	}
	// Not valid yet is our clock's fault, not the node's: we issued it.
	if now := s.cfg.Now(); now.After(cert.NotAfter) {
		return "", fmt.Errorf("%w: the certificate of node %q ended at %s; renew it at %s", enrollment.ErrProof, node, cert.NotAfter.Format(time.RFC3339), enrollment.RenewPath)
	}
	record, err := s.cfg.Records.Admitted(r.Context(), node)
	if err != nil {
		return "", err
	}
	if !record.SigningKey.Equal(cert.PublicKey) {
		return "", fmt.Errorf("%w: %q joined with another one at %s", enrollment.ErrNodeKey, node, record.JoinedAt.Format(time.RFC3339))
	}
	return node, nil
}

func decode(body []byte, into any) error {
	d := json.NewDecoder(strings.NewReader(string(body)))
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("%w: body: %v", enrollment.ErrBadRequest, err)
	}
	return nil
}
