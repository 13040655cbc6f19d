package pki

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coracle-edge/coracle/controlplane/api/enrollment"
)

type clock struct{ now time.Time }

func (c *clock) Now() time.Time { return c.now }

func open(t *testing.T, dir string, c *clock) *Authority {
	t.Helper()
	a, err := Open(Options{Dir: dir, Now: c.Now})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func newClock() *clock { return &clock{now: time.Date(2027, 3, 4, 5, 6, 7, 0, time.UTC)} }

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func allLeaves(t *testing.T, a *Authority) map[string]*Leaf {
	t.Helper()
	m := must[*Leaf](t)
	return map[string]*Leaf{
		"apiserver": m(a.APIServer("10.0.0.1", "cp.example")), "fleet": m(a.Serving("fleet")), "admin": m(a.Admin()),
		"kubelet-client": m(a.KubeletClient()), "front-proxy-client": m(a.FrontProxyClient()), "hub": m(a.Hub()),
	}
}

func TestSecondStartFindsTheSameClusterAndWritesNothing(t *testing.T) {
	dir, c := filepath.Join(t.TempDir(), "pki"), newClock()
	first := open(t, dir, c)
	before := map[string]string{}
	for name, l := range allLeaves(t, first) {
		before[name] = string(l.Current().Certificate[0])
	}
	snapshot := contents(t, dir)

	second := open(t, dir, c)
	if second.RootHash() != first.RootHash() {
		t.Fatal("the root changed")
	}
	for name, l := range allLeaves(t, second) {
		if before[name] != string(l.Current().Certificate[0]) {
			t.Errorf("%s was issued again", name)
		}
	}
	for name, content := range contents(t, dir) {
		if snapshot[name] != content {
			t.Errorf("%s changed", name)
		}
	}
	if years := first.Root().NotAfter.Sub(c.now).Hours() / 24 / 365; years < 20 {
		t.Errorf("the root lives %.1f years, want at least 20", years)
	}
}

func TestEveryFileIsPrivate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	a := open(t, dir, newClock())
	allLeaves(t, a)
	kubeconfig := filepath.Join(dir, "kubeconfig")
	if err := a.WriteKubeconfig(kubeconfig, "https://127.0.0.1:6443", must[*Leaf](t)(a.Admin())); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) < 18 {
		t.Fatalf("%d entries, %v", len(entries), err)
	}
	for _, e := range entries {
		if info, err := e.Info(); err != nil || info.Mode() != 0o600 {
			t.Errorf("%s has mode %v, %v", e.Name(), info.Mode(), err)
		}
	}
}

func TestDamageIsNamedAndNothingIsMadeAgain(t *testing.T) {
	tests := map[string]struct {
		harm func(t *testing.T, dir string)
		want error
		says []string
	}{
		"root key gone":      {remove("ca.key"), ErrIncomplete, []string{"ca.key", "backup"}},
		"root cert gone":     {remove("ca.crt"), ErrIncomplete, []string{"ca.crt", "backup"}},
		"token key gone":     {remove("sa.key"), ErrIncomplete, []string{"sa.key", "backup"}},
		"root cert empty":    {overwrite("ca.crt", ""), ErrCorrupt, []string{"ca.crt", "0 bytes", "backup"}},
		"root key is a cert": {copyOver("ca.crt", "ca.key"), ErrCorrupt, []string{"ca.key", "CERTIFICATE"}},
		"root key of other":  {copyOver("front-proxy-ca.key", "ca.key"), ErrMismatch, []string{"ca.key", "ca.crt"}},
		"leaf cut off":       {overwrite("apiserver.crt", "-----BEGIN CERT"), ErrCorrupt, []string{"apiserver.crt", "Remove it"}},
		"leaf of other key":  {copyOver("fleet.key", "apiserver.key"), ErrMismatch, []string{"apiserver.key", "Remove it"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			dir, c := filepath.Join(t.TempDir(), "pki"), newClock()
			allLeaves(t, open(t, dir, c))
			test.harm(t, dir)
			before := contents(t, dir)
			a, err := Open(Options{Dir: dir, Now: c.Now})
			if err == nil {
				_, err = a.APIServer("10.0.0.1", "cp.example")
			}
			if !errors.Is(err, test.want) {
				t.Fatalf("error %v, want %v", err, test.want)
			}
			for _, word := range test.says {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("error %q lacks %q", err, word)
				}
			}
			for name, content := range contents(t, dir) {
				if before[name] != content {
					t.Errorf("%s was written", name)
				}
			}
		})
	}
}

func TestLeafRenewal(t *testing.T) {
	dir, c := filepath.Join(t.TempDir(), "pki"), newClock()
	a := open(t, dir, c)
	l := must[*Leaf](t)(a.APIServer())
	first := l.Current().Leaf

	c.now = c.now.Add(leafLife / 2)
	if err := a.Renew(); err != nil || l.Current().Leaf != first {
		t.Fatalf("renewed with half of its life left, or %v", err)
	}
	c.now = c.now.Add(leafLife / 4)
	if err := a.Renew(); err != nil {
		t.Fatal(err)
	}
	second := l.Current().Leaf
	if second == first || !second.NotAfter.After(first.NotAfter) {
		t.Fatal("not renewed with a quarter of its life left")
	}
	if !samePublic(first.PublicKey, second.PublicKey) {
		t.Error("renewal changed the key: files can't be replaced atomically then")
	}
	if onDisk := must[*x509.Certificate](t)(readCert(l.CertFile())); !onDisk.Equal(second) {
		t.Error("the file is not the one in memory")
	}
	// Another host at the next start, as when a machine gets another address.
	l = must[*Leaf](t)(open(t, dir, c).APIServer("192.0.2.7"))
	if err := l.Current().Leaf.VerifyHostname("192.0.2.7"); err != nil {
		t.Error(err)
	}
	for _, host := range []string{"127.0.0.1", "localhost", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"} {
		if err := l.Current().Leaf.VerifyHostname(host); err != nil {
			t.Error(err)
		}
	}
}

// A control plane on a board without a clock issues a root at 1970; its
// certificates have to work when the time is known.
func TestRootMadeAt1970(t *testing.T) {
	dir, c := filepath.Join(t.TempDir(), "pki"), &clock{now: time.Unix(3, 0)}
	a := open(t, dir, c)
	c.now = time.Date(2040, 1, 1, 0, 0, 0, 0, time.UTC)
	l := must[*Leaf](t)(a.APIServer())
	if _, err := l.Current().Leaf.Verify(x509.VerifyOptions{Roots: a.RootPool(), CurrentTime: c.now}); err != nil {
		t.Fatal(err)
	}
	c.now = time.Unix(99, 0) // and back, after a power cut
	l = must[*Leaf](t)(open(t, dir, c).Serving("other"))
	if _, err := l.Current().Leaf.Verify(x509.VerifyOptions{Roots: a.RootPool(), CurrentTime: a.Now()}); err != nil {
		t.Fatal(err)
	}
}

func TestHubCertificateIsNoOneElses(t *testing.T) {
	dir, c := filepath.Join(t.TempDir(), "pki"), newClock()
	a := open(t, dir, c)
	hub := must[*Leaf](t)(a.Hub())
	key, err := enrollment.VerifyHub([]*x509.Certificate{hub.Current().Leaf}, a.RootPool(), time.Unix(0, 0))
	if err != nil || !key.Equal(hub.Signer().Public()) {
		t.Fatalf("key %v, %v", key, err)
	}
	// What a certificate signing request could get: the right name, but not the usage.
	pretender := must[*Leaf](t)(a.Client("pretender", enrollment.HubName))
	if _, err := enrollment.VerifyHub([]*x509.Certificate{pretender.Current().Leaf}, a.RootPool(), c.now); !errors.Is(err, enrollment.ErrNotHub) {
		t.Errorf("pretender: %v", err)
	}
	other := open(t, filepath.Join(t.TempDir(), "pki"), c)
	if _, err := enrollment.VerifyHub([]*x509.Certificate{must[*Leaf](t)(other.Hub()).Current().Leaf}, a.RootPool(), c.now); !errors.Is(err, enrollment.ErrNotHub) {
		t.Errorf("hub of another cluster: %v", err)
	}
	if _, err := enrollment.VerifyHub([]*x509.Certificate{hub.Current().Leaf}, a.RootPool(), c.now.Add(hubLife+time.Hour)); !errors.Is(err, enrollment.ErrNotHub) {
		t.Errorf("expired: %v", err)
	}
}

func TestNodeCertificate(t *testing.T) {
	c := newClock()
	a := open(t, filepath.Join(t.TempDir(), "pki"), c)
	pub, _, _ := ed25519.GenerateKey(rand.Reader)
	cert := must[*x509.Certificate](t)(x509.ParseCertificate(must[[]byte](t)(a.IssueNode("pi-1", pub))))
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
		if _, err := cert.Verify(x509.VerifyOptions{Roots: a.RootPool(), CurrentTime: c.now, DNSName: "pi-1", KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
			t.Error(err)
		}
	}
	if got := enrollment.NodeOf(cert); got != "pi-1" {
		t.Errorf("NodeOf = %q", got)
	}
	if name, err := a.VerifyNode(cert); err != nil || name != "pi-1" {
		t.Errorf("VerifyNode = %q, %v", name, err)
	}
	if _, err := a.VerifyNode(must[*Leaf](t)(a.Admin()).Current().Leaf); err == nil {
		t.Error("the administrator passed for a node")
	}
	other := open(t, filepath.Join(t.TempDir(), "pki"), c)
	if _, err := other.VerifyNode(cert); err == nil {
		t.Error("a node of another cluster passed")
	}
}

// OpenSSL stands for mosquitto and every client that isn't Go.
func TestOpenSSLAcceptsOurCertificates(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("openssl isn't installed")
	}
	dir := filepath.Join(t.TempDir(), "pki")
	a, err := Open(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	allLeaves(t, a)
	pub, _, _ := ed25519.GenerateKey(rand.Reader)
	node := filepath.Join(dir, "node.crt")
	if err := os.WriteFile(node, certPEM(must[[]byte](t)(a.IssueNode("pi-1", pub))), 0o600); err != nil {
		t.Fatal(err)
	}
	for file, purpose := range map[string]string{"apiserver.crt": "sslserver", "admin.crt": "sslclient", "node.crt": "sslclient", "hub.crt": "any"} {
		out, err := exec.Command(openssl, "verify", "-x509_strict", "-purpose", purpose, "-CAfile", a.CAFile(), filepath.Join(dir, file)).CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v: %s", file, err, out)
		}
	}
}

func TestAdminHandshake(t *testing.T) {
	a, err := Open(Options{Dir: filepath.Join(t.TempDir(), "pki")})
	if err != nil {
		t.Fatal(err)
	}
	server, admin := must[*Leaf](t)(a.APIServer()), must[*Leaf](t)(a.Admin())
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{GetCertificate: server.GetCertificate, ClientCAs: a.RootPool(), ClientAuth: tls.RequireAndVerifyClientCert})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan string, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			done <- err.Error()
			return
		}
		defer conn.Close()
		if err := conn.(*tls.Conn).Handshake(); err != nil {
			done <- err.Error()
			return
		}
		done <- conn.(*tls.Conn).ConnectionState().PeerCertificates[0].Subject.String()
		io.Copy(io.Discard, conn)
	}()
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", l.Addr().String(), &tls.Config{RootCAs: a.RootPool(), GetClientCertificate: admin.GetClientCertificate})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got := <-done; got != "CN=coracle:admin,O=system:masters" {
		t.Errorf("server saw %q", got)
	}
}

func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		out[e.Name()] = string(data)
	}
	return out
}

func remove(name string) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
}

func overwrite(name, content string) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func copyOver(from, to string) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		data, err := os.ReadFile(filepath.Join(dir, from))
		if err != nil {
			t.Fatal(err)
		}
		overwrite(to, string(data))(t, dir)
	}
}
