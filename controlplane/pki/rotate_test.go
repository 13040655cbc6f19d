package pki

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// verifies says whether somebody who trusts root follows chain, leaf first, to it.
func verifies(t *testing.T, root *x509.Certificate, chain [][]byte, at time.Time) error {
	t.Helper()
	between := x509.NewCertPool()
	for _, der := range chain[1:] {
		between.AddCert(must[*x509.Certificate](t)(x509.ParseCertificate(der)))
	}
	leaf := must[*x509.Certificate](t)(x509.ParseCertificate(chain[0]))
	_, err := leaf.Verify(x509.VerifyOptions{Roots: pool(root), Intermediates: between, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	return err
}

func node(t *testing.T, a *Authority) *x509.Certificate {
	t.Helper()
	pub, _, _ := ed25519.GenerateKey(nil)
	return must[*x509.Certificate](t)(x509.ParseCertificate(must[[]byte](t)(a.IssueNode("pi-1", pub))))
}

func TestRotationTakesEverybodyAlong(t *testing.T) {
	dir, c := filepath.Join(t.TempDir(), "pki"), newClock()
	a := open(t, dir, c)
	leaves := allLeaves(t, a)
	first, id := a.Root(), a.ClusterID()
	member := node(t, a)
	frontProxy := leaves["front-proxy-client"].Current().Leaf
	changed := a.Changed()

	if err := a.Rotate(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-changed:
	default:
		t.Error("nobody is told")
	}
	second := a.Root()
	if second.Equal(first) || a.RootHash() == hash(first) || a.ClusterID() != id || !a.Rotating() || len(a.Roots()) != 2 {
		t.Fatal("no second root, or another cluster")
	}
	for name, l := range leaves {
		if name == "front-proxy-client" {
			if !l.Current().Leaf.Equal(frontProxy) {
				t.Error("the front proxy's certificate, of another root, was issued again")
			}
			continue
		}
		shown := l.Current().Certificate
		for generation, root := range map[string]*x509.Certificate{"first": first, "second": second} {
			if err := verifies(t, root, shown, c.now); err != nil {
				t.Errorf("%s for who trusts the %s root: %v", name, generation, err)
			}
		}
		// What upstream reads from the file is the same.
		fromFile := must[[]*x509.Certificate](t)(ParseCertificates(must[[]byte](t)(os.ReadFile(l.CertFile()))))
		if len(fromFile) != len(shown) {
			t.Errorf("%s: %d certificates in the file, %d shown", name, len(fromFile), len(shown))
		}
	}
	if trust := must[[]*x509.Certificate](t)(ParseCertificates([]byte(contents(t, dir)["trust.crt"]))); len(trust) != 2 || !trust[0].Equal(second) {
		t.Errorf("trust.crt has %d certificates", len(trust))
	}
	young := node(t, a)
	for _, cert := range []*x509.Certificate{member, young} {
		if _, err := a.VerifyNode(cert); err != nil {
			t.Error(err)
		}
	}
	if a.SignedByActive(member.Raw) || !a.SignedByActive(young.Raw) {
		t.Error("it can't be told which node has the new root")
	}
	if err := a.Rotate(); !errors.Is(err, ErrRotating) {
		t.Errorf("a rotation within a rotation: %v", err)
	}

	// The same after a start, and nothing is written.
	before := contents(t, dir)
	again := open(t, dir, c)
	allLeaves(t, again)
	if !again.Root().Equal(second) || again.ClusterID() != id {
		t.Error("another root after a start")
	}
	for name, content := range contents(t, dir) {
		if before[name] != content {
			t.Errorf("%s was written", name)
		}
	}

	if err := a.Retire(); err != nil {
		t.Fatal(err)
	}
	if _, err := a.VerifyNode(member); err == nil {
		t.Error("a certificate of the retired root is taken")
	}
	if _, err := a.VerifyNode(young); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "ca.key")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the key of the retired root: %v", err)
	}
	if err := verifies(t, first, leaves["fleet"].Current().Certificate, c.now); err != nil {
		t.Errorf("who was away finds no way to the new root: %v", err)
	}
	if err := a.Retire(); !errors.Is(err, ErrNotRotating) {
		t.Errorf("retired twice: %v", err)
	}
	// And once more: two generations later the first root still leads there.
	c.now = c.now.Add(24 * time.Hour)
	if err := a.Rotate(); err != nil {
		t.Fatal(err)
	}
	if err := a.Retire(); err != nil {
		t.Fatal(err)
	}
	third := open(t, dir, c)
	fleet := must[*Leaf](t)(third.Fleet()).Current().Certificate
	for _, root := range []*x509.Certificate{first, second, third.Root()} {
		if err := verifies(t, root, fleet, c.now); err != nil {
			t.Error(err)
		}
	}
	if third.ClusterID() != id {
		t.Error("the cluster's id changed")
	}
	if list := must[[]Generation](t)(third.Generations()); len(list) != 3 || list[0].Trusted || !list[2].Active || list[0].Hash != id {
		t.Errorf("generations %+v", list)
	}
}

// The control plane that runs takes over what the operator's tool did.
func TestARunningAuthorityFollows(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	running := must[*Authority](t)(Open(Options{Dir: dir}))
	fleet := must[*Leaf](t)(running.Fleet("edge.example"))
	old := running.Root()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- running.Run(ctx) }()
	defer func() { cancel(); <-done }()
	await := func(what string) {
		t.Helper()
		select {
		case <-running.Changed():
		case <-time.After(30 * time.Second):
			t.Fatal(what + " isn't taken over")
		}
	}
	tool := must[*Authority](t)(Open(Options{Dir: dir}))
	changed := running.Changed()
	if err := tool.Rotate(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-changed:
	case <-time.After(30 * time.Second):
		t.Fatal("the rotation isn't taken over")
	}
	if !running.Root().Equal(tool.Root()) || fleet.Current().Leaf.CheckSignatureFrom(tool.Root()) != nil {
		t.Error("what is shown wasn't signed by the new root")
	}
	if err := verifies(t, old, fleet.Current().Certificate, time.Now()); err != nil {
		t.Error(err)
	}
	if err := tool.Retire(); err != nil {
		t.Fatal(err)
	}
	if running.Rotating() {
		await("the retirement")
	}
	for end := time.Now().Add(30 * time.Second); running.Rotating(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the retirement isn't taken over")
		}
	}
}

// A power cut at any moment of a rotation leaves the root before it, or after it.
func TestARotationThatWasCutOff(t *testing.T) {
	for name, left := range map[string][]string{
		"after the key":         {"ca-2.key"},
		"after the certificate": {"ca-2.key", "ca-2.crt"},
		"before its last word":  {"ca-2.key", "ca-2.crt", "ca-2.cross.crt"},
	} {
		t.Run(name, func(t *testing.T) {
			dir, c := filepath.Join(t.TempDir(), "pki"), newClock()
			a := open(t, dir, c)
			first := a.Root()
			if err := a.Rotate(); err != nil {
				t.Fatal(err)
			}
			for _, f := range []string{"roots.json", "ca-2.key", "ca-2.crt", "ca-2.cross.crt"} {
				if !strings.Contains(strings.Join(left, " ")+" ", f+" ") {
					if err := os.Remove(filepath.Join(dir, f)); err != nil {
						t.Fatal(err)
					}
				}
			}
			again := open(t, dir, c)
			if !again.Root().Equal(first) || again.Rotating() {
				t.Fatal("half a rotation counts")
			}
			if err := again.Rotate(); err != nil {
				t.Fatal(err)
			}
			if err := verifies(t, first, must[*Leaf](t)(again.Fleet()).Current().Certificate, c.now); err != nil {
				t.Error(err)
			}
		})
	}
	// The key of a retired root that is still there when the power comes back.
	dir, c := filepath.Join(t.TempDir(), "pki"), newClock()
	a := open(t, dir, c)
	key := contents(t, dir)["ca.key"]
	if err := errors.Join(a.Rotate(), a.Retire()); err != nil {
		t.Fatal(err)
	}
	overwrite("ca.key", key)(t, dir)
	open(t, dir, c)
	if _, err := os.Stat(filepath.Join(dir, "ca.key")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the key of the retired root: %v", err)
	}
}

func TestDamagedRootsAreNamed(t *testing.T) {
	for name, test := range map[string]struct {
		harm func(*testing.T, string)
		want error
		says string
	}{
		"no JSON":             {overwrite("roots.json", "{"), ErrCorrupt, "roots.json"},
		"an untrusted active": {overwrite("roots.json", `{"active":2,"trusted":[1]}`), ErrCorrupt, "isn't trusted"},
		"a root to come":      {overwrite("roots.json", `{"active":2,"trusted":[2,3]}`), ErrCorrupt, "trusted has 3"},
		"one named twice":     {overwrite("roots.json", `{"active":2,"trusted":[2,2]}`), ErrCorrupt, "trusted has 2"},
		"none":                {overwrite("roots.json", `{}`), ErrCorrupt, "active is 0"},
		"active key gone":     {remove("ca-2.key"), ErrIncomplete, "ca-2.key"},
		"cross gone":          {remove("ca-2.cross.crt"), ErrIncomplete, "ca-2.cross.crt"},
		"first root gone":     {remove("ca.crt"), ErrIncomplete, "ca.crt"},
		"cross of another":    {copyOver("ca-2.crt", "ca-2.cross.crt"), ErrMismatch, "wasn't signed by root 1"},
		"cross of first":      {copyOver("ca.crt", "ca-2.cross.crt"), ErrMismatch, "isn't for the key of root 2"},
	} {
		t.Run(name, func(t *testing.T) {
			dir, c := filepath.Join(t.TempDir(), "pki"), newClock()
			if err := open(t, dir, c).Rotate(); err != nil {
				t.Fatal(err)
			}
			test.harm(t, dir)
			if _, err := Open(Options{Dir: dir, Now: c.Now}); !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.says) || !strings.Contains(err.Error(), "backup") {
				t.Errorf("error %v, want %v with %q", err, test.want, test.says)
			}
		})
	}
}

func TestOneRotationAtATime(t *testing.T) {
	dir, c := filepath.Join(t.TempDir(), "pki"), newClock()
	a := open(t, dir, c)
	err := a.exclusively(func(generations) error { return open(t, dir, c).Rotate() })
	if !errors.Is(err, ErrBusy) {
		t.Errorf("a rotation beside another: %v", err)
	}
}

// OpenSSL follows the chain as Go does: mosquitto, and clients of the API.
func TestOpenSSLFollowsTheCrossSignedChain(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("openssl isn't installed")
	}
	dir := filepath.Join(t.TempDir(), "pki")
	a := must[*Authority](t)(Open(Options{Dir: dir}))
	first := filepath.Join(t.TempDir(), "first.crt")
	if err := os.WriteFile(first, a.RootPEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	leaf := must[*Leaf](t)(a.Broker("edge.example"))
	if err := a.Rotate(); err != nil {
		t.Fatal(err)
	}
	for _, root := range []string{first, a.TrustFile()} {
		out, err := exec.Command(openssl, "verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", root, "-untrusted", leaf.CertFile(), leaf.CertFile()).CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v: %s", root, err, out)
		}
	}
}

func FuzzParseGenerations(f *testing.F) {
	f.Add([]byte(`{"active":2,"trusted":[2,1]}`))
	f.Add([]byte(`{"active":1,"trusted":[1]}`))
	f.Add([]byte(`{"active":-1,"trusted":[0]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		g, err := parseGenerations(data)
		if err != nil {
			return
		}
		if g.Active < 1 || g.Active > maxGenerations || len(g.Trusted) == 0 || len(g.Trusted) > g.Active || g.Trusted[0] != g.Active {
			t.Errorf("%q is taken for %+v", data, g)
		}
		for _, name := range g.needed() {
			if name != filepath.Base(name) {
				t.Errorf("%q needs %q", data, name)
			}
		}
	})
}
