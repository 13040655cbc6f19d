package pki

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/coracle-edge/coracle/internal/durable"
)

const (
	// rootsFile says which generation of the root signs and which are trusted. It is
	// written last: without it, what lies beside it doesn't count.
	rootsFile = "roots.json"
	// trustFile holds all trusted roots, for the parts of upstream that read files.
	trustFile = "trust.crt"
	// maxGenerations bounds the chain that every certificate carries.
	maxGenerations = 16
)

// generations is roots.json.
type generations struct {
	Active int `json:"active"`
	// Trusted are those that certificates of clients and nodes may be signed by, the
	// active one among them.
	Trusted []int `json:"trusted"`
}

// first is what there is without a roots.json.
var first = generations{Active: 1, Trusted: []int{1}}

// roots is the root in all its generations, as of now; immutable.
type roots struct {
	generations
	active  *ca
	trusted []*x509.Certificate // the active one first, then newest first
	// cross lead from the active root to the first one: each generation's key,
	// certified by the one before, the newest first.
	cross [][]byte
	first *x509.Certificate
}

func rootName(generation int) string {
	if generation == 1 {
		return "ca"
	}
	return fmt.Sprintf("ca-%d", generation)
}

func crossName(generation int) string { return rootName(generation) + ".cross.crt" }

// parseGenerations reads a roots.json.
func parseGenerations(data []byte) (generations, error) {
	var g generations
	if err := json.Unmarshal(data, &g); err != nil {
		return g, err
	}
	switch {
	case g.Active < 1 || g.Active > maxGenerations:
		return g, fmt.Errorf("active is %d, want 1 to %d", g.Active, maxGenerations)
	case !slices.Contains(g.Trusted, g.Active):
		return g, fmt.Errorf("the active root %d isn't trusted", g.Active)
	}
	seen := map[int]bool{}
	for _, n := range g.Trusted {
		if n < 1 || n > g.Active || seen[n] {
			return g, fmt.Errorf("trusted has %d, want each of 1 to %d at most once", n, g.Active)
		}
		seen[n] = true
	}
	slices.Sort(g.Trusted)
	slices.Reverse(g.Trusted)
	return g, nil
}

func (a *Authority) readGenerations() (generations, error) {
	data, err := os.ReadFile(a.path(rootsFile))
	if errors.Is(err, fs.ErrNotExist) {
		return first, nil
	}
	if err != nil {
		return generations{}, fmt.Errorf("PKI: %w", err)
	}
	g, err := parseGenerations(data)
	if err != nil {
		return g, fmt.Errorf("%w: %s: %w. %s", ErrCorrupt, a.path(rootsFile), err, remedy(a.path(rootsFile)))
	}
	return g, nil
}

func (a *Authority) writeGenerations(g generations) error {
	data, err := json.Marshal(g)
	if err != nil {
		return err
	}
	return durable.WriteFile(a.path(rootsFile), append(data, '\n'), 0o600)
}

// needed are the files that must be there for these generations, and are never
// made a second time.
func (g generations) needed() []string {
	names := []string{"ca.crt", rootName(g.Active) + ".key"}
	for _, n := range g.Trusted {
		names = append(names, rootName(n)+".crt")
	}
	for n := 2; n <= g.Active; n++ {
		names = append(names, crossName(n))
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// loadRoots reads the files of g, and checks that they hang together.
func (a *Authority) loadRoots(g generations) (*roots, error) {
	r := &roots{generations: g}
	var err error
	if r.active, err = a.loadRoot(rootName(g.Active)); err != nil {
		return nil, err
	}
	for _, n := range g.Trusted {
		cert, err := readCert(a.path(rootName(n) + ".crt"))
		if err != nil {
			return nil, err
		}
		r.trusted = append(r.trusted, cert)
	}
	if r.first, err = readCert(a.path("ca.crt")); err != nil {
		return nil, err
	}
	above := r.active.cert
	for n := g.Active; n >= 2; n-- {
		cross, err := readCert(a.path(crossName(n)))
		if err != nil {
			return nil, err
		}
		if !bytes.Equal(cross.RawSubject, above.RawSubject) || !samePublic(cross.PublicKey, above.PublicKey) {
			return nil, fmt.Errorf("%w: %s isn't for the key of root %d; restore both from one backup", ErrMismatch, a.path(crossName(n)), n)
		}
		r.cross = append(r.cross, cross.Raw)
		if above, err = readCert(a.path(rootName(n-1) + ".crt")); err != nil {
			return nil, err
		}
		if err := cross.CheckSignatureFrom(above); err != nil {
			return nil, fmt.Errorf("%w: %s wasn't signed by root %d: %w; restore both from one backup", ErrMismatch, a.path(crossName(n)), n-1, err)
		}
	}
	return r, nil
}

// writeTrust brings trust.crt up to date. It is made of the others, so it may be
// missing or old.
func (a *Authority) writeTrust(r *roots) error {
	text := r.pem()
	if have, err := os.ReadFile(a.path(trustFile)); err == nil && bytes.Equal(have, text) {
		return nil
	}
	return durable.WriteFile(a.path(trustFile), text, 0o600)
}

func (r *roots) pem() []byte {
	var out []byte
	for _, c := range r.trusted {
		out = append(out, certPEM(c.Raw)...)
	}
	return out
}

// chain is a certificate that the active root signed, with what leads from there
// to all earlier roots.
func (r *roots) chain(der []byte) [][]byte { return append([][]byte{der}, r.cross...) }

// hash is how join lines and nodes name a root: hex sha256 of its SubjectPublicKeyInfo.
func hash(c *x509.Certificate) string {
	sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:])
}

// Reload takes over what another process made of the roots, and says whether that
// was anything: then all certificates were issued anew and Changed was signalled.
func (a *Authority) Reload() (bool, error) {
	g, err := a.readGenerations()
	if err != nil {
		return false, err
	}
	if now := a.roots.Load(); now.Active == g.Active && slices.Equal(now.Trusted, g.Trusted) {
		return false, nil
	}
	r, err := a.loadRoots(g)
	if err != nil {
		return false, err
	}
	// What is trusted first: nobody may be shown a certificate of a root that the
	// other side of this very process doesn't know.
	if err := a.writeTrust(r); err != nil {
		return false, fmt.Errorf("%s: %w", a.path(trustFile), err)
	}
	a.roots.Store(r)
	a.logger.Info("the cluster's root changed", "active", g.Active, "trusted", g.Trusted, "hash", hash(r.active.cert))
	err = a.Renew()
	a.mu.Lock()
	close(a.changed)
	a.changed = make(chan struct{})
	a.mu.Unlock()
	return true, err
}

// Changed is closed when the roots change; ask again then.
func (a *Authority) Changed() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.changed
}
