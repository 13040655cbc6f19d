package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coracle-edge/coracle/controlplane/api/enrollment"
	"github.com/coracle-edge/coracle/internal/durable"
)

const (
	// rootLife is as long as a board may lie in a drawer and still know its cluster.
	rootLife = 30 * 365 * 24 * time.Hour
	// leafLife is that of serving and client certificates.
	leafLife = 365 * 24 * time.Hour
	// hubLife is longer: a node that was away for years first meets the hub's certificate, then renews.
	hubLife = 10 * 365 * 24 * time.Hour
	// backdate allows for peers whose clock is behind ours.
	backdate = time.Hour
)

// earliest is before any certificate of ours was issued: a control plane on a
// board without a clock must not make a root that ends in 2000.
var earliest = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

var (
	// ErrCorrupt is returned when a file of the PKI can't be read as what its name says.
	ErrCorrupt = errors.New("file of the cluster's PKI is damaged")
	// ErrIncomplete is returned when the PKI folder lacks a file that must never be made a second time.
	ErrIncomplete = errors.New("file of the cluster's PKI is missing")
	// ErrMismatch is returned when a certificate doesn't belong to its key or wasn't signed by the root beside it.
	ErrMismatch = errors.New("files of the cluster's PKI don't belong together")
)

// Options of an Authority.
type Options struct {
	// Dir is made by the first Open, with a new root in it.
	Dir string
	// Now is the clock; nil means time.Now.
	Now    func() time.Time
	Logger *slog.Logger
}

// Authority is the opened PKI. It is safe for concurrent use.
type Authority struct {
	dir    string
	clock  func() time.Time
	logger *slog.Logger

	roots          atomic.Pointer[roots]
	frontProxy     *ca
	serviceAccount *ecdsa.PrivateKey

	mu      sync.Mutex
	leaves  []*Leaf
	changed chan struct{} // closed when roots change
}

type ca struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// onceOnly are the files besides the root's that are made with the folder and never again.
var onceOnly = []string{"front-proxy-ca.crt", "front-proxy-ca.key", "sa.key", "sa.pub"}

// Open reads the PKI in opts.Dir. If that folder doesn't exist or is empty it is
// made, with a new root: this is the birth of a cluster.
func Open(opts Options) (*Authority, error) {
	a := &Authority{dir: opts.Dir, clock: opts.Now, logger: opts.Logger, changed: make(chan struct{})}
	if a.clock == nil {
		a.clock = time.Now
	}
	if a.logger == nil {
		a.logger = slog.New(slog.DiscardHandler)
	}
	entries, err := os.ReadDir(a.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("PKI folder: %w", err)
	}
	if len(entries) == 0 {
		if err := a.create(); err != nil {
			return nil, fmt.Errorf("create PKI in %s: %w", a.dir, err)
		}
		a.logger.Info("new cluster root", "dir", a.dir)
	}
	if err := a.load(); err != nil {
		return nil, err
	}
	return a, nil
}

// Root is the certificate that signs now and that new boards pin.
func (a *Authority) Root() *x509.Certificate { return a.roots.Load().active.cert }

// Roots are all that are trusted now, the one that signs first.
func (a *Authority) Roots() []*x509.Certificate { return a.roots.Load().trusted }

// RootPEM is what clients trust: all roots, PEM encoded.
func (a *Authority) RootPEM() []byte { return a.roots.Load().pem() }

// RootPool holds the trusted roots as of now.
func (a *Authority) RootPool() *x509.CertPool { return pool(a.roots.Load().trusted...) }

// RootHash is the hash that join lines carry: hex sha256 of the active root's SubjectPublicKeyInfo.
func (a *Authority) RootHash() string { return hash(a.Root()) }

// ClusterID is the hash of the first root the cluster had. It never changes.
func (a *Authority) ClusterID() string { return hash(a.roots.Load().first) }

// TrustID names the set of trusted roots in a few bytes, as enrollment.TrustID does.
func (a *Authority) TrustID() []byte { return enrollment.TrustID(a.roots.Load().trusted) }

// Chain is a certificate (DER) that the active root signed, with what leads from
// there to the roots before it.
func (a *Authority) Chain(der []byte) [][]byte { return a.roots.Load().chain(der) }

// Rotating says whether a former root is still trusted.
func (a *Authority) Rotating() bool { return len(a.roots.Load().trusted) > 1 }

// settle is how long after a rotation somebody may still go by what he read
// before it: client-go looks at files every five minutes.
const settle = 24 * time.Hour

// Settling says whether a certificate of the active root needs its chain to be
// understood by everybody in the cluster.
func (a *Authority) Settling() bool {
	r := a.roots.Load()
	return len(r.trusted) > 1 || r.Active > 1 && a.Now().Before(r.active.cert.NotBefore.Add(backdate+settle))
}

// FrontProxyPool verifies the clients that may set request headers (aggregation).
func (a *Authority) FrontProxyPool() *x509.CertPool { return pool(a.frontProxy.cert) }

// ServiceAccountKey signs service account tokens with ES256; its public half is in ServiceAccountPublicFile.
func (a *Authority) ServiceAccountKey() *ecdsa.PrivateKey { return a.serviceAccount }

// Paths, for the parts of upstream that read files.

// CAFile and CAKeyFile are the active root's, as of now; TrustFile, which holds
// all that are trusted, stays where it is.
func (a *Authority) CAFile() string                   { return a.path(rootName(a.roots.Load().Active) + ".crt") }
func (a *Authority) CAKeyFile() string                { return a.path(rootName(a.roots.Load().Active) + ".key") }
func (a *Authority) TrustFile() string                { return a.path(trustFile) }
func (a *Authority) FrontProxyCAFile() string         { return a.path("front-proxy-ca.crt") }
func (a *Authority) ServiceAccountKeyFile() string    { return a.path("sa.key") }
func (a *Authority) ServiceAccountPublicFile() string { return a.path("sa.pub") }

// Now is the time certificates are issued at: the clock's, unless that is
// before the root was made, which a board without a clock would say.
func (a *Authority) Now() time.Time {
	now := a.clock()
	if r := a.roots.Load(); r != nil {
		if at := r.active.cert.NotBefore.Add(backdate); now.Before(at) {
			return at
		}
	}
	if now.Before(earliest) {
		return earliest
	}
	return now
}

func (a *Authority) path(name string) string { return filepath.Join(a.dir, name) }

// create builds everything that exists once per cluster in a folder beside dir
// and renames it into place, so a power cut leaves all of it or nothing.
func (a *Authority) create() error {
	parent := filepath.Dir(a.dir)
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(parent, "."+filepath.Base(a.dir)+".new-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	for _, c := range []struct{ file, name string }{
		{"ca", "coracle-root"}, {"front-proxy-ca", "coracle-front-proxy"},
	} {
		if err := a.createRoot(tmp, c.file, c.name); err != nil {
			return err
		}
	}
	sa, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	pub, err := x509.MarshalPKIXPublicKey(&sa.PublicKey)
	if err != nil {
		return err
	}
	if err := writeKey(filepath.Join(tmp, "sa.key"), sa); err != nil {
		return err
	}
	if err := durable.WriteFile(filepath.Join(tmp, "sa.pub"), pemBlock("PUBLIC KEY", pub), 0o600); err != nil {
		return err
	}
	if err := os.Rename(tmp, a.dir); err != nil {
		return err
	}
	return durable.SyncDir(parent)
}

func (a *Authority) load() error {
	g, err := a.readGenerations()
	if err != nil {
		return err
	}
	var missing []string
	for _, name := range append(g.needed(), onceOnly...) {
		if _, err := os.Stat(a.path(name)); errors.Is(err, fs.ErrNotExist) {
			missing = append(missing, a.path(name))
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("%w: %s. Restore it from a backup of %s; only if this cluster may be given up, move that folder away, "+
			"and the next start makes a new cluster that no joined node trusts", ErrIncomplete, strings.Join(missing, ", "), a.dir)
	}
	r, err := a.loadRoots(g)
	if err != nil {
		return err
	}
	if len(g.Trusted) == 1 {
		// A retirement that was cut off leaves keys behind.
		if err := a.destroyFormer(g.Active); err != nil {
			return fmt.Errorf("remove the key of a former root: %w", err)
		}
	}
	if err := a.writeTrust(r); err != nil {
		return fmt.Errorf("%s: %w", a.path(trustFile), err)
	}
	a.roots.Store(r)
	if a.frontProxy, err = a.loadRoot("front-proxy-ca"); err != nil {
		return err
	}
	key, err := readKey(a.path("sa.key"))
	if err != nil {
		return err
	}
	sa, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return fmt.Errorf("%w: %s holds a %T, want an ECDSA key; restore it from a backup", ErrCorrupt, a.path("sa.key"), key)
	}
	a.serviceAccount = sa
	return nil
}

func (a *Authority) loadRoot(name string) (*ca, error) {
	cert, err := readCert(a.path(name + ".crt"))
	if err != nil {
		return nil, err
	}
	key, err := readKey(a.path(name + ".key"))
	if err != nil {
		return nil, err
	}
	if !samePublic(cert.PublicKey, key.Public()) {
		return nil, fmt.Errorf("%w: %s isn't the key of %s; restore both from one backup", ErrMismatch, a.path(name+".key"), a.path(name+".crt"))
	}
	if !cert.IsCA {
		return nil, fmt.Errorf("%w: %s isn't a certificate authority; restore it from a backup", ErrCorrupt, a.path(name+".crt"))
	}
	return &ca{cert: cert, key: key}, nil
}

// request is what a certificate is to say.
type request struct {
	frontProxy   bool // signed by its root, not by the cluster's
	subject      pkix.Name
	public       crypto.PublicKey
	life         time.Duration
	dns          []string
	ips          []string
	usages       []x509.ExtKeyUsage
	customUsages []string
}

// by is who signs r now.
func (a *Authority) by(r request) *ca {
	if r.frontProxy {
		return a.frontProxy
	}
	return a.roots.Load().active
}

// issue signs one certificate and returns its DER.
func (a *Authority) issue(r request) ([]byte, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	now, by := a.Now(), a.by(r)
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               r.subject,
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(r.life),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           r.usages,
		BasicConstraintsValid: true,
		DNSNames:              r.dns,
	}
	if template.IPAddresses, err = parseIPs(r.ips); err != nil {
		return nil, err
	}
	if template.UnknownExtKeyUsage, err = parseOIDs(r.customUsages); err != nil {
		return nil, err
	}
	if template.NotAfter.After(by.cert.NotAfter) {
		template.NotAfter = by.cert.NotAfter
	}
	return x509.CreateCertificate(rand.Reader, template, by.cert, r.public, by.key)
}

// IssueNode signs a node's certificate: client and server of TLS, as
// system:node:NAME of system:nodes, for a year. The node made the key; nothing
// is stored here. It returns DER.
func (a *Authority) IssueNode(name string, public ed25519.PublicKey) ([]byte, error) {
	der, err := a.issue(request{
		subject: pkix.Name{CommonName: "system:node:" + name, Organization: []string{"system:nodes"}},
		public:  public,
		life:    leafLife,
		dns:     []string{name},
		usages:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	})
	if err != nil {
		return nil, fmt.Errorf("certificate of node %q: %w", name, err)
	}
	return der, nil
}

// VerifyNode says whether the certificate was signed by a trusted root, at whatever
// time, and for which node. between is what came with it: a root that we don't know
// yet, certified by one that we know, may have signed it. Whether it is still valid
// or was revoked is the caller's question.
func (a *Authority) VerifyNode(cert *x509.Certificate, between ...*x509.Certificate) (node string, err error) {
	if err := signedBy(cert, a.roots.Load().trusted, between); err != nil {
		return "", fmt.Errorf("certificate of %q: %w", cert.Subject.CommonName, err)
	}
	name, ok := strings.CutPrefix(cert.Subject.CommonName, "system:node:")
	if !ok || !slices.Contains(cert.Subject.Organization, "system:nodes") {
		return "", fmt.Errorf("certificate of %q isn't a node's", cert.Subject.CommonName)
	}
	return name, nil
}

// signedBy follows cert to one of roots, by way of between.
func signedBy(cert *x509.Certificate, roots, between []*x509.Certificate) error {
	var err error
	for range min(len(between), maxGenerations) + 1 {
		for _, root := range roots {
			if err = cert.CheckSignatureFrom(root); err == nil {
				return nil
			}
		}
		i := slices.IndexFunc(between, func(c *x509.Certificate) bool { return cert.CheckSignatureFrom(c) == nil })
		if i < 0 {
			return err
		}
		cert, between = between[i], slices.Delete(slices.Clone(between), i, i+1)
	}
	return err
}

func newSerial() (*big.Int, error) {
	// 127 bits: positive in 16 bytes, and the top bit set so that the first bytes are never absent.
	limit := new(big.Int).Lsh(big.NewInt(1), 126)
	n, err := rand.Int(rand.Reader, limit)
	if err != nil {
		return nil, err
	}
	return n.Add(n, limit), nil
}
