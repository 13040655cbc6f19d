package identity

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-edge/coracle/controlplane/api/enrollment"
	"github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/internal/durable"
)

// JoinOptions say what to join.
type JoinOptions struct {
	Options
	// Line is the parsed join line.
	Line enrollment.Line
	// NodeName, if set, must be the one the line is for.
	NodeName string
}

// Join makes the board a node: it makes the keys, asks for a certificate, and
// stores what it was granted. On a board that has joined the same cluster it is
// Load. As long as the control plane can't be reached or has no time it tries
// again, until ctx ends; every other answer is returned: see the errors of
// enrollment, ErrWrongCA, ErrOtherCluster, ErrOtherName.
func Join(ctx context.Context, opts JoinOptions) (*Identity, error) {
	opts.Options = opts.Options.withDefaults()
	if err := opts.Line.Check(); err != nil {
		return nil, err
	}
	if opts.NodeName != "" && opts.NodeName != opts.Line.Node {
		return nil, fmt.Errorf("%w: --node-name says %q, the join line is for %q; make a line with `coracle token create %s`",
			ErrOtherName, opts.NodeName, opts.Line.Node, opts.NodeName)
	}
	id, err := Load(opts.Options)
	if err == nil {
		return id, sameCluster(id, opts.Line)
	}
	if !errors.Is(err, ErrNotJoined) {
		return nil, err
	}
	signing, sealing, err := ensureKeys(opts.Dir)
	if err != nil {
		return nil, err
	}
	id = &Identity{NodeName: opts.Line.Node, SigningKey: signing, SealingKey: sealing, opts: opts.Options, renewed: make(chan struct{}, 1), others: make(chan wish, 1)}
	request, err := json.Marshal(enrollment.JoinRequest{
		Token: opts.Line.Token, Node: opts.Line.Node,
		SigningKey: signing.Public().(ed25519.PublicKey),
		SealingKey: sealing.PublicKey().Bytes(), KEM: SealingKEM().ID(),
	})
	if err != nil {
		return nil, err
	}
	config := pinned(opts.Line.CAHash, enrollment.FleetServerName, id.Now, func(*x509.Certificate) {})
	var grant enrollment.Grant
	err = retry(ctx, opts.Options, "join", func() error {
		var err error
		grant, err = askAny(ctx, opts.Line.URLs, enrollment.JoinPath, request, signing, config)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("join as node %q: %w", opts.Line.Node, err)
	}
	return id, id.accept(granted{Version: grantVersion, URLs: opts.Line.URLs, CAHash: opts.Line.CAHash, Grant: grant})
}

func sameCluster(id *Identity, line enrollment.Line) error {
	known := slices.Contains(id.rootHashes(), line.CAHash) // of a root that the cluster got since
	if id.grant.CAHash != line.CAHash && id.grant.Cluster.ID != line.CAHash && !known {
		return fmt.Errorf("%w: it is node %q of the cluster with CA sha256:%s, the line is for CA sha256:%s. To move it, remove %s first: "+
			"its pods and their data are the old cluster's", ErrOtherCluster, id.NodeName, id.grant.CAHash, line.CAHash, id.opts.Dir)
	}
	if id.NodeName != line.Node {
		return fmt.Errorf("%w: it is node %q of this cluster already, the line is for %q", ErrOtherName, id.NodeName, line.Node)
	}
	return nil
}

// rootHashes are those of the roots that are trusted now.
func (id *Identity) rootHashes() []string {
	id.mu.RLock()
	defer id.mu.RUnlock()
	var out []string
	for _, der := range id.grant.Roots {
		if c, err := x509.ParseCertificate(der); err == nil {
			out = append(out, RootHash(c))
		}
	}
	return out
}

// accept checks g, makes it durable and takes it over.
func (id *Identity) accept(g granted) error {
	probe := &Identity{NodeName: id.NodeName, SigningKey: id.SigningKey, opts: Options{Now: id.opts.Now}}
	if err := probe.use(g); err != nil {
		return fmt.Errorf("the control plane's answer: %w", err)
	}
	data, err := json.MarshalIndent(g, "", " ")
	if err != nil {
		return err
	}
	path := filepath.Join(id.opts.Dir, "identity.json")
	data = append(data, '\n')
	if have, err := os.ReadFile(path); err != nil || !bytes.Equal(have, data) { // a refused node asks often
		if err := durable.WriteFile(path, data, 0o600); err != nil {
			return fmt.Errorf("identity: %w", err)
		}
	}
	return id.use(g)
}

// NeedsRenewal says whether two thirds of the certificate's life are over.
func (id *Identity) NeedsRenewal() bool {
	leaf := id.Certificate().Leaf
	return !id.Now().Before(enrollment.RenewAt(leaf.NotBefore, leaf.NotAfter))
}

// Renew asks for a certificate; the old one may have expired. Where that is good
// for long it comes again, so this also asks whether the cluster knows this node:
// enrollment.Ended(err) if its identity was ended. The link calls it when
// the other side says that our certificate has expired (see Expired): a board
// without a clock doesn't know by itself.
func (id *Identity) Renew(ctx context.Context) error {
	before := id.Certificate()
	id.renewMu.Lock()
	defer id.renewMu.Unlock()
	if id.Certificate() != before {
		return nil // another caller was faster
	}
	request, err := json.Marshal(enrollment.RenewRequest{Node: id.NodeName, SigningKey: id.SigningKey.Public().(ed25519.PublicKey)})
	if err != nil {
		return err
	}
	grant, err := askAny(ctx, id.FleetURLs(), enrollment.RenewPath, request, id.SigningKey, id.anonymousTLS())
	if err != nil {
		return fmt.Errorf("renew the certificate of node %q: %w", id.NodeName, err)
	}
	id.mu.RLock()
	next := id.grant
	id.mu.RUnlock()
	next.Grant = grant
	if err := id.accept(next); err != nil {
		return err
	}
	if bytes.Equal(id.Certificate().Certificate[0], before.Certificate[0]) {
		return nil
	}
	select {
	case id.renewed <- struct{}{}:
	default:
	}
	return nil
}

// anonymousTLS shows no certificate: a server would refuse an expired one before
// it could hear why we come.
func (id *Identity) anonymousTLS() *tls.Config {
	c := id.ClientTLS(enrollment.FleetServerName)
	c.GetClientCertificate = nil
	return c
}

// Renewed has a value after a renewal, for whoever keeps long connections with
// the old certificate. Capacity 1: several renewals are one.
func (id *Identity) Renewed() <-chan struct{} { return id.renewed }

// alert is the TLS alert that the other side sent, if that is what err is. The
// package crypto/tls doesn't export its type outside of QUIC: it is a number,
// wrapped in an operation called "remote error".
func alert(err error) (uint64, bool) {
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "remote error" || op.Err == nil {
		return 0, false
	}
	v := reflect.ValueOf(op.Err)
	if v.Kind() != reflect.Uint8 {
		return 0, false
	}
	return v.Uint(), true
}

// unreachable wraps what may go away by itself.
type unreachable struct{ err error }

func (e *unreachable) Error() string { return e.err.Error() }
func (e *unreachable) Unwrap() error { return e.err }

func retry(ctx context.Context, opts Options, what string, try func() error) error {
	for wait := time.Second; ; wait = min(2*wait, 30*time.Second) {
		err := try()
		var u *unreachable
		if err == nil || !(errors.As(err, &u) || enrollment.Temporary(err)) {
			return err
		}
		opts.Logger.Warn(what+": no answer yet", "err", err, "again", wait)
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(wait):
		}
	}
}

// askAny asks the endpoints in turn until one answers. An answer that is an
// error ends it too, unless another endpoint might do better.
func askAny(ctx context.Context, urls []string, path string, body []byte, key ed25519.PrivateKey, config *tls.Config) (enrollment.Grant, error) {
	var errs []error
	for _, base := range urls {
		grant, err := ask(ctx, base, path, body, key, config)
		if err == nil {
			return grant, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", base, err))
		var u *unreachable
		if !(errors.As(err, &u) || enrollment.Temporary(err) || errors.Is(err, ErrWrongCA)) {
			break
		}
	}
	if len(errs) == 0 {
		return enrollment.Grant{}, errors.New("no address of the control plane is known")
	}
	return enrollment.Grant{}, errors.Join(errs...)
}

// ask sends one signed request on a connection of its own: the signature is
// bound to that connection, so it has to exist before the request does.
func ask(ctx context.Context, base, path string, body []byte, key ed25519.PrivateKey, config *tls.Config) (enrollment.Grant, error) {
	var grant enrollment.Grant
	answer, err := exchange(ctx, base, path, body, key, config)
	if err != nil {
		return grant, err
	}
	if err := json.Unmarshal(answer, &grant); err != nil {
		return grant, fmt.Errorf("the answer: %w", err)
	}
	return grant, nil
}

// exchange is one signed request and the body of its answer, if that is no problem.
func exchange(ctx context.Context, base, path string, body []byte, key ed25519.PrivateKey, config *tls.Config) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	u, err := url.Parse(base)
	if err != nil {
		return nil, err
	}
	conn, err := DialFleet(ctx, u, config)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	state := conn.ConnectionState()
	text, err := enrollment.ProofText(path, &state, body)
	if err != nil {
		return nil, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, u.JoinPath(path).String(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set(enrollment.ProofHeader, base64.StdEncoding.EncodeToString(ed25519.Sign(key, text)))
	// One request, then the connection is closed by the deferred call above.
	transport := &http.Transport{
		DialTLSContext:    func(context.Context, string, string) (net.Conn, error) { return conn, nil },
		DisableKeepAlives: true,
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return nil, &unreachable{err}
	}
	defer response.Body.Close()
	answer, err := enrollment.ReadAtMost(response.Body, enrollment.MaxBody)
	if err != nil {
		return nil, &unreachable{fmt.Errorf("read the answer: %w", err)}
	}
	if response.StatusCode != http.StatusOK {
		var p enrollment.Problem
		if json.Unmarshal(answer, &p) != nil || p.Code == "" {
			return nil, fmt.Errorf("%w: it answered %s, not as a fleet endpoint does", enrollment.ErrInternal, response.Status)
		}
		return nil, p.Err()
	}
	return answer, nil
}

// lostAfter is when a fleet endpoint that is silent below TLS counts as gone.
const lostAfter = time.Minute

type meterKey struct{}

// WithMeter returns a context in which DialFleet tells count the bytes on the
// sockets that it opens.
func WithMeter(ctx context.Context, count func(sent, received int)) context.Context {
	return context.WithValue(ctx, meterKey{}, count)
}

// DialFleet opens a TLS connection to a fleet endpoint. The port is 443 unless u says another.
func DialFleet(ctx context.Context, u *url.URL, config *tls.Config) (*tls.Conn, error) {
	port := u.Port()
	if port == "" {
		port = "443"
	}
	d := net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: lostAfter / 2, Interval: lostAfter / 6, Count: 3},
		// Keep-alives say nothing about what was sent and never acknowledged.
		Control: func(_, _ string, raw syscall.RawConn) error {
			return raw.Control(func(fd uintptr) {
				_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(lostAfter/time.Millisecond))
			})
		},
	}
	raw, err := d.DialContext(ctx, "tcp", net.JoinHostPort(u.Hostname(), port))
	if err != nil {
		return nil, &unreachable{err}
	}
	if count, ok := ctx.Value(meterKey{}).(func(sent, received int)); ok {
		raw = fleet.Meter(raw, count)
	}
	config = config.Clone()
	config.NextProtos = []string{"http/1.1"}
	conn := tls.Client(raw, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		if !refused(err) {
			return nil, &unreachable{err}
		}
		return nil, fmt.Errorf("TLS with %s: %w", u.Host, err)
	}
	return conn, nil
}

// refused says whether a handshake failed by somebody's decision, as opposed to a lost connection.
func refused(err error) bool {
	var notTLS tls.RecordHeaderError
	_, told := alert(err)
	return errors.Is(err, ErrWrongCA) || errors.Is(err, ErrUntrusted) || told || errors.As(err, &notTLS)
}
