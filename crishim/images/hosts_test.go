package images

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coracle-edge/coracle/test/lab"
)

// forward serves a registry through f.
func forward(t *testing.T, reg *lab.Registry, f func(w http.ResponseWriter, r *http.Request, next http.Handler)) http.Handler {
	t.Helper()
	tr := http.DefaultTransport.(*http.Transport).Clone()
	tr.TLSClientConfig = insecure()
	t.Cleanup(tr.CloseIdleConnections)
	next := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		req := r.Clone(r.Context())
		req.RequestURI, req.URL.Scheme, req.URL.Host, req.Host = "", "https", reg.Addr, reg.Addr
		req.Header.Del("Authorization")
		resp, err := tr.RoundTrip(req)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer resp.Body.Close()
		for k, v := range resp.Header {
			w.Header()[k] = v
		}
		w.WriteHeader(resp.StatusCode)
		_, _ = copyBody(w, resp.Body)
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { f(w, r, next) })
}

// hostsDir writes a hosts.toml for the registry.
func hostsDir(t *testing.T, toml string) string {
	t.Helper()
	root := t.TempDir()
	dir := filepath.Join(root, lab.RegistryName)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(toml), 0o644); err != nil {
		t.Fatal(err)
	}
	return root
}

// TestHostsToml: a registry's hosts.toml means what it means to containerd.
func TestHostsToml(t *testing.T) {
	reg := lab.StartRegistry(t)
	ref := reg.Push(t, "mirrored:1", lab.CNCF(module))
	var mu sync.Mutex
	var seen []string
	log := func(name string, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		what := r.Method
		if strings.Contains(r.URL.Path, "/blobs/") {
			what += " blob"
		}
		if entry := name + " " + what; !slices.Contains(seen, entry) {
			seen = append(seen, entry)
		}
	}
	serve := func(name string, f func(w http.ResponseWriter, r *http.Request, next http.Handler)) *httptest.Server {
		srv := httptest.NewServer(forward(t, reg, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			log(name, r)
			f(w, r, next)
		}))
		t.Cleanup(srv.Close)
		return srv
	}
	ok := func(w http.ResponseWriter, r *http.Request, next http.Handler) { next.ServeHTTP(w, r) }
	fails := func(code int) func(http.ResponseWriter, *http.Request, http.Handler) {
		return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { w.WriteHeader(code) }
	}
	origin, mirror := serve("origin", ok), serve("mirror", ok)
	lacks, broken := serve("lacks", fails(404)), serve("broken", fails(500))
	noBlobs := serve("noblobs", func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.Contains(r.URL.Path, "/blobs/") {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		next.ServeHTTP(w, r)
	})
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	wantsHeader := serve("header", func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Header.Get("X-Board") != "seven" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
	secure := httptest.NewTLSServer(forward(t, reg, ok))
	t.Cleanup(secure.Close)
	caFile := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(caFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	certFile, pool := clientCertificate(t)
	mutual := httptest.NewUnstartedServer(forward(t, reg, ok))
	mutual.TLS = &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool}
	mutual.StartTLS()
	t.Cleanup(mutual.Close)

	host := func(url string, more ...string) string {
		return fmt.Sprintf("[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n%s\n", url, strings.Join(more, "\n"))
	}
	server := func(url string) string { return fmt.Sprintf("server = %q\n", url) }
	for _, c := range []struct {
		name, toml string
		want       error
		text       string
		seen       []string
		not        string
	}{
		{name: "a mirror is asked first", toml: server(origin.URL) + host(mirror.URL), seen: []string{"mirror HEAD", "mirror GET blob"}, not: "origin"},
		{name: "a mirror that is gone", toml: server(origin.URL) + host(gone.URL), seen: []string{"origin HEAD", "origin GET blob"}},
		{name: "a mirror that lacks it", toml: server(origin.URL) + host(lacks.URL), seen: []string{"lacks HEAD", "origin HEAD", "origin GET blob"}},
		{name: "a mirror that is broken", toml: server(origin.URL) + host(broken.URL), seen: []string{"broken HEAD", "origin GET blob"}},
		{name: "a mirror that lacks the blobs", toml: server(origin.URL) + host(noBlobs.URL), seen: []string{"noblobs HEAD", "noblobs GET blob", "origin GET blob"}},
		{name: "a mirror that may not resolve tags", toml: server(origin.URL) + fmt.Sprintf("[host.%q]\n  capabilities = [\"pull\"]\n", mirror.URL),
			seen: []string{"origin HEAD", "mirror GET blob"}},
		{name: "two mirrors, in their order", toml: server(origin.URL) + host(lacks.URL) + host(mirror.URL), seen: []string{"lacks HEAD", "mirror HEAD", "mirror GET blob"}, not: "origin"},
		{name: "a header", toml: server(origin.URL) + host(wantsHeader.URL, "  [host.\""+wantsHeader.URL+"\".header]", "    X-Board = \"seven\""), seen: []string{"header HEAD", "header GET blob"}, not: "origin"},
		{name: "a path of its own", toml: server(origin.URL) + host(mirror.URL+"/v2", "  override_path = true"), seen: []string{"mirror HEAD"}, not: "origin"},
		{name: "its CA", toml: server(secure.URL) + host(secure.URL, "  ca = \""+caFile+"\"")},
		{name: "another CA", toml: server(secure.URL), want: ErrRegistry, text: "name the registry's CA in hosts.toml"},
		{name: "no verification", toml: server(secure.URL) + "skip_verify = true\n"},
		{name: "a client certificate", toml: server(mutual.URL) + host(mutual.URL, "  skip_verify = true", "  client = \""+certFile+"\"")},
		{name: "no client certificate", toml: server(mutual.URL) + "skip_verify = true\n", want: ErrRegistry, text: ref},
	} {
		t.Run(c.name, func(t *testing.T) {
			mu.Lock()
			seen = nil
			mu.Unlock()
			s := open(t, Options{HostsDir: hostsDir(t, c.toml)})
			_, err := s.Pull(t.Context(), PullRequest{Ref: ref})
			switch {
			case c.want == nil && err != nil:
				t.Fatal(err)
			case c.want != nil && (!errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text)):
				t.Fatalf("got %v, want %v with %q", err, c.want, c.text)
			}
			mu.Lock()
			defer mu.Unlock()
			for _, want := range c.seen {
				if !slices.Contains(seen, want) {
					t.Errorf("%q isn't among %q", want, seen)
				}
			}
			for _, got := range seen {
				if c.not != "" && strings.HasPrefix(got, c.not) {
					t.Errorf("%q was asked: %q", c.not, seen)
				}
			}
		})
	}
}

// clientCertificate makes one, in a file with its key.
func clientCertificate(t *testing.T) (file string, pool *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "board"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	raw, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyRaw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	out := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: raw})
	out = append(out, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyRaw})...)
	file = filepath.Join(t.TempDir(), "client.pem")
	if err := os.WriteFile(file, out, 0o600); err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(raw)
	if err != nil {
		t.Fatal(err)
	}
	pool = x509.NewCertPool()
	pool.AddCert(cert)
	return file, pool
}

// TestPullWithTokens: a registry behind a token server, as most are.
func TestPullWithTokens(t *testing.T) {
	reg := lab.StartRegistry(t)
	ref := reg.Push(t, "tokens:1", lab.CNCF(module))
	var srv *httptest.Server
	srv = httptest.NewServer(forward(t, reg, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.URL.Path == "/token" {
			_ = r.ParseForm()
			user, pass, _ := r.BasicAuth()
			good := r.PostForm.Get("grant_type") == "refresh_token" && r.PostForm.Get("refresh_token") == "identity" ||
				r.PostForm.Get("grant_type") == "password" && r.PostForm.Get("username") == "me" && r.PostForm.Get("password") == "s3cret" ||
				r.Method == http.MethodGet && user == "me" && pass == "s3cret"
			if !good {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			_ = json.NewEncoder(w).Encode(map[string]string{"access_token": "granted", "token": "granted"})
			return
		}
		if a := r.Header.Get("Authorization"); a != "Bearer granted" && a != "Bearer given" {
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="lab",scope="repository:tokens:pull"`, srv.URL))
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	hosts := hostsDir(t, fmt.Sprintf("server = %q\n", srv.URL))
	address := strings.TrimPrefix(srv.URL, "http://")
	for _, c := range []struct {
		name  string
		creds *Credentials
		ok    bool
	}{
		{"none", nil, false},
		{"user and password", &Credentials{Username: "me", Password: "s3cret"}, true},
		{"wrong password", &Credentials{Username: "me", Password: "x"}, false},
		{"auth", &Credentials{Auth: "bWU6czNjcmV0"}, true},
		{"auth isn't base64", &Credentials{Auth: "?"}, false},
		{"auth without a colon", &Credentials{Auth: "bWU="}, false},
		{"identity token", &Credentials{IdentityToken: "identity"}, true},
		{"wrong identity token", &Credentials{IdentityToken: "x"}, false},
		{"registry token", &Credentials{RegistryToken: "given"}, true},
		{"wrong registry token", &Credentials{RegistryToken: "x"}, false},
		{"for this registry", &Credentials{Username: "me", Password: "s3cret", ServerAddress: srv.URL}, true},
		{"for this registry, without a scheme", &Credentials{RegistryToken: "given", ServerAddress: address}, true},
		{"for another registry", &Credentials{RegistryToken: "given", ServerAddress: "https://quay.io"}, false},
		{"a user's word goes before a token's", &Credentials{Username: "me", Password: "s3cret", IdentityToken: "x", RegistryToken: "x"}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := open(t, Options{HostsDir: hosts})
			_, err := s.Pull(t.Context(), PullRequest{Ref: ref, Credentials: c.creds})
			if c.ok && err != nil || !c.ok && !errors.Is(err, ErrUnauthorized) {
				t.Errorf("got %v", err)
			}
			if err != nil && (strings.Contains(err.Error(), "s3cret") || strings.Contains(err.Error(), "bWU6")) {
				t.Errorf("the error tells the password: %v", err)
			}
		})
	}
}

func TestPullByDigest(t *testing.T) {
	reg := lab.StartRegistry(t)
	img := lab.CNCF(module)
	tagged := reg.Push(t, "digest:1", img)
	name := strings.TrimSuffix(tagged, ":1") + "@" + img.Desc().Digest.String()
	s := open(t, Options{HostsDir: reg.HostsDir})
	res, err := s.Pull(t.Context(), PullRequest{Ref: name})
	if err != nil {
		t.Fatal(err)
	}
	if len(res.Image.Refs) != 0 || !slices.Equal(res.Image.Digests, []string{name}) {
		t.Errorf("names %q, digests %q", res.Image.Refs, res.Image.Digests)
	}
	// Tag and digest together: the digest counts.
	if res, err = s.Pull(t.Context(), PullRequest{Ref: tagged + "@" + img.Desc().Digest.String()}); err != nil || res.Image.ID != img.Desc().Digest {
		t.Errorf("%+v, %v", res, err)
	}
	// A registry that has other bytes under it.
	wrong := strings.Repeat("0", 64)
	hosts := proxy(t, reg, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		r.URL.Path = strings.Replace(r.URL.Path, wrong, img.Desc().Digest.Encoded(), 1)
		next.ServeHTTP(w, r)
	})
	s = open(t, Options{HostsDir: hosts})
	if _, err := s.Pull(context.Background(), PullRequest{Ref: strings.TrimSuffix(tagged, ":1") + "@sha256:" + wrong}); err == nil {
		t.Error("other bytes than the digest says were taken")
	}
	if l := left(t, s); len(l) > 0 {
		t.Errorf("left: %v", l)
	}
}
