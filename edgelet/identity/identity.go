package identity

import (
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/hpke"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/coracle-edge/coracle/controlplane/api/enrollment"
	"github.com/coracle-edge/coracle/internal/durable"
)

// SealingKEM is the KEM of the sealing key: X25519, because its overhead of 32
// bytes goes into every sealed secret, over links that are paid by the byte.
func SealingKEM() hpke.KEM { return hpke.DHKEM(ecdh.X25519()) }

var (
	// ErrNotJoined is returned when the folder holds no identity.
	ErrNotJoined = errors.New("this board hasn't joined a cluster")
	// ErrDamaged is returned when a file of the identity can't be read as one.
	ErrDamaged = errors.New("the node's identity is damaged")
	// ErrOtherCluster is returned when a board that belongs to one cluster is given a join line of another.
	ErrOtherCluster = errors.New("this board belongs to another cluster")
	// ErrOtherName is returned when a board is to join under a name that isn't the one its join line or identity says.
	ErrOtherName = errors.New("this board has another name")
)

// Floor is the persisted time floor; edgelet/state is one. Its methods may be
// called from any goroutine.
type Floor interface {
	TimeFloor() time.Time
	RaiseTimeFloor(time.Time) error
}

// Options of Load and Join.
type Options struct {
	// Dir is made if it doesn't exist.
	Dir string
	// Floor may be nil: then there is none.
	Floor Floor
	// Now is the clock, right or wrong; nil means time.Now.
	Now    func() time.Time
	Logger *slog.Logger
}

// Identity of a node. Safe for concurrent use.
type Identity struct {
	// NodeName never changes.
	NodeName string
	// SigningKey signs reports, pod tokens and TLS handshakes.
	SigningKey ed25519.PrivateKey
	// SealingKey opens what is sealed to this node.
	SealingKey hpke.PrivateKey

	opts Options

	mu      sync.RWMutex
	grant   granted
	cert    *tls.Certificate
	roots   *x509.CertPool
	trust   []byte     // names roots
	renewMu sync.Mutex // held over a renewal, so that there is one at a time; taken before mu
	renewed chan struct{}
	others  chan wish // other roots than ours are the cluster's
}

// granted is identity.json.
type granted struct {
	Version int      `json:"version"`
	URLs    []string `json:"urls"` // of the join line: the last resort when all others moved
	CAHash  string   `json:"caHash"`
	enrollment.Grant
}

const grantVersion = 1

// Load reads the identity in opts.Dir. It returns ErrNotJoined if there is none.
// It looks at no clock and no network.
func Load(opts Options) (*Identity, error) {
	opts = opts.withDefaults()
	path := filepath.Join(opts.Dir, "identity.json")
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s doesn't exist; get a line from `coracle token create NODE` and run `edgelet --join LINE`", ErrNotJoined, path)
	}
	if err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	var g granted
	if err := json.Unmarshal(data, &g); err != nil {
		return nil, damaged(path, err)
	}
	if g.Version != grantVersion {
		return nil, fmt.Errorf("identity: %s has version %d, this edgelet knows %d; run the edgelet that wrote it, or a newer one", path, g.Version, grantVersion)
	}
	signing, sealing, err := loadKeys(opts.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, damaged(keysPath(opts.Dir), errors.New("it is missing beside identity.json"))
	}
	if err != nil {
		return nil, err
	}
	id := &Identity{NodeName: g.Node, SigningKey: signing, SealingKey: sealing, opts: opts, renewed: make(chan struct{}, 1), others: make(chan wish, 1)}
	if err := id.use(g); err != nil {
		return nil, damaged(path, err)
	}
	return id, nil
}

func damaged(path string, err error) error {
	return fmt.Errorf("%w: %s: %w. Remove the folder %s and join again with a new line from `coracle token create --replace NODE`",
		ErrDamaged, path, err, filepath.Dir(path))
}

// use takes g over, after checking that it is for our key and hangs together.
func (id *Identity) use(g granted) error {
	if len(g.Chain) == 0 || len(g.Roots) == 0 {
		return errors.New("certificate or roots are missing")
	}
	leaf, err := x509.ParseCertificate(g.Chain[0])
	if err != nil {
		return fmt.Errorf("certificate: %w", err)
	}
	if !id.SigningKey.Public().(ed25519.PublicKey).Equal(leaf.PublicKey) {
		return errors.New("the certificate is for another key")
	}
	if enrollment.NodeOf(leaf) != g.Node || g.Node != id.NodeName {
		return fmt.Errorf("the certificate names %q, the node is %q", leaf.Subject.CommonName, id.NodeName)
	}
	trusted, err := parseAll(g.Roots)
	if err != nil {
		return fmt.Errorf("root: %w", err)
	}
	between, err := parseAll(g.Chain[1:])
	if err != nil {
		return fmt.Errorf("chain: %w", err)
	}
	roots := poolOf(trusted)
	if _, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: poolOf(between), CurrentTime: leaf.NotBefore, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	}); err != nil {
		return fmt.Errorf("certificate: %w", err)
	}
	id.mu.Lock()
	id.grant, id.roots, id.trust = g, roots, enrollment.TrustID(trusted)
	id.cert = &tls.Certificate{Certificate: g.Chain, PrivateKey: id.SigningKey, Leaf: leaf}
	id.mu.Unlock()
	// It was signed by a root we trust, so that time has been.
	return id.raise(leaf.NotBefore)
}

func parseAll(list [][]byte) ([]*x509.Certificate, error) {
	out := make([]*x509.Certificate, len(list))
	for i, der := range list {
		var err error
		if out[i], err = x509.ParseCertificate(der); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func poolOf(list []*x509.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, c := range list {
		pool.AddCert(c)
	}
	return pool
}

// Certificate is the node's, as of now.
func (id *Identity) Certificate() *tls.Certificate {
	id.mu.RLock()
	defer id.mu.RUnlock()
	return id.cert
}

// Roots are what the node trusts, as of now. Don't change the pool.
func (id *Identity) Roots() *x509.CertPool {
	id.mu.RLock()
	defer id.mu.RUnlock()
	return id.roots
}

// TrustID names the roots that the node trusts now.
func (id *Identity) TrustID() []byte {
	id.mu.RLock()
	defer id.mu.RUnlock()
	return id.trust
}

// Cluster is what the control plane said of itself when it last granted a certificate.
func (id *Identity) Cluster() enrollment.Cluster {
	id.mu.RLock()
	defer id.mu.RUnlock()
	return id.grant.Cluster
}

// FleetURLs are where the fleet endpoint may be, in the order in which to try.
func (id *Identity) FleetURLs() []string {
	id.mu.RLock()
	defer id.mu.RUnlock()
	var urls []string
	for _, list := range [][]string{id.grant.Cluster.Fleet, id.grant.URLs} {
		for _, u := range list {
			if !contains(urls, u) {
				urls = append(urls, u)
			}
		}
	}
	return urls
}

// HubKey is the key that orders are signed with, from the certificate of the last grant.
func (id *Identity) HubKey() (ed25519.PublicKey, error) {
	der := id.Cluster().Hub
	if der == nil {
		return nil, fmt.Errorf("%w: none was granted", enrollment.ErrNotHub)
	}
	return id.VerifyHub([][]byte{der})
}

// VerifyHub returns the key of a hub's certificate (its chain, DER, leaf first), if
// it is our cluster's, and raises the time floor by it.
func (id *Identity) VerifyHub(chain [][]byte) (ed25519.PublicKey, error) {
	certs, err := parseAll(chain)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", enrollment.ErrNotHub, err)
	}
	key, err := enrollment.VerifyHub(certs, id.Roots(), id.Now())
	if err != nil {
		return nil, err
	}
	return key, id.raise(certs[0].NotBefore)
}

// Now is the later of the clock and the time floor: the best the node knows.
func (id *Identity) Now() time.Time {
	now := id.opts.Now()
	if id.opts.Floor != nil {
		if floor := id.opts.Floor.TimeFloor(); floor.After(now) {
			return floor
		}
	}
	return now
}

func (id *Identity) raise(t time.Time) error {
	if id.opts.Floor == nil || !t.After(id.opts.Floor.TimeFloor()) {
		return nil
	}
	if err := id.opts.Floor.RaiseTimeFloor(t); err != nil {
		return fmt.Errorf("raise time floor: %w", err)
	}
	return nil
}

// RootHash is the hex sha256 of a root's SubjectPublicKeyInfo, as join lines carry it.
func RootHash(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:])
}

func keysPath(dir string) string { return filepath.Join(dir, "keys.pem") }

// loadKeys reads both keys; the error satisfies fs.ErrNotExist if there are none yet.
func loadKeys(dir string) (ed25519.PrivateKey, hpke.PrivateKey, error) {
	path := keysPath(dir)
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, fmt.Errorf("identity: %w", err)
	}
	var keys []any
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			break
		}
		key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			return nil, nil, damaged(path, err)
		}
		keys = append(keys, key)
	}
	if len(keys) != 2 {
		return nil, nil, damaged(path, fmt.Errorf("it holds %d keys, want 2", len(keys)))
	}
	signing, ok1 := keys[0].(ed25519.PrivateKey)
	dh, ok2 := keys[1].(*ecdh.PrivateKey)
	if !ok1 || !ok2 {
		return nil, nil, damaged(path, fmt.Errorf("it holds a %T and a %T, want Ed25519 and X25519", keys[0], keys[1]))
	}
	sealing, err := hpke.NewDHKEMPrivateKey(dh)
	if err != nil {
		return nil, nil, damaged(path, err)
	}
	return signing, sealing, nil
}

// ensureKeys loads the keys, or makes them: durable before anyone hears of them.
func ensureKeys(dir string) (ed25519.PrivateKey, hpke.PrivateKey, error) {
	signing, sealing, err := loadKeys(dir)
	if !errors.Is(err, fs.ErrNotExist) {
		return signing, sealing, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, fmt.Errorf("identity: %w", err)
	}
	_, newSigning, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("identity: %w", err)
	}
	dh, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("identity: %w", err)
	}
	var text []byte
	for _, key := range []any{newSigning, dh} {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return nil, nil, fmt.Errorf("identity: %w", err)
		}
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})...)
	}
	if err := durable.Create(keysPath(dir), text, 0o600); err != nil {
		return nil, nil, fmt.Errorf("identity: %w", err)
	}
	return loadKeys(dir)
}

func (o Options) withDefaults() Options {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}
