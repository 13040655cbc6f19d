package registry

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/filesystem"
	"github.com/sirupsen/logrus"
)

// Name is the host under which manifests name this registry. Nodes map it to
// the port that was free by their hosts.toml, so a manifest stays the same on a
// machine where the port is taken.
const Name = "localhost:5443"

// Registry serves OCI images from Dir.
type Registry struct {
	// Dir holds blobs, the registry's key and certificate, and hosts.d, the
	// registry hosts directory (containerd's certs.d layout) that leads to it.
	Dir string
	// Addresses are others than loopback under which it is reached, for its
	// certificate.
	Addresses []net.IP
}

// HostsDir is the folder to give to whoever pulls or pushes.
func (r *Registry) HostsDir() string { return filepath.Join(r.Dir, "hosts.d") }

// Listen takes addr, or any free port of the same host if addr is taken, and
// writes hosts.toml for it. The caller passes the listener to Serve.
func (r *Registry) Listen(addr string) (net.Listener, error) {
	cert, err := r.certificate()
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		host, _, splitErr := net.SplitHostPort(addr)
		if splitErr != nil {
			return nil, fmt.Errorf("registry address %q: %w", addr, splitErr)
		}
		if l, err = net.Listen("tcp", net.JoinHostPort(host, "0")); err != nil {
			return nil, fmt.Errorf("registry: no free port on %s: %w", host, err)
		}
	}
	dir := filepath.Join(r.HostsDir(), Name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	hosts := r.Hosts(l.Addr().String())
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(hosts), 0o644); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}), nil
}

// Hosts is a hosts.toml that leads to the registry at an address.
func (r *Registry) Hosts(address string) string {
	url := "https://" + address
	return fmt.Sprintf("server = %q\nca = %q\n\n[host.%q]\n  capabilities = [\"pull\", \"resolve\", \"push\"]\n  ca = %q\n",
		url, r.certFile(), url, r.certFile())
}

// Serve answers on l until ctx ends.
func (r *Registry) Serve(ctx context.Context, l net.Listener) error {
	logrus.SetOutput(io.Discard) // the library's only logger; errors reach the client as HTTP
	secret := make([]byte, 16)
	if _, err := rand.Read(secret); err != nil {
		return err
	}
	cfg := &configuration.Configuration{
		Storage: configuration.Storage{
			"filesystem":  configuration.Parameters{"rootdirectory": filepath.Join(r.Dir, "data")},
			"delete":      configuration.Parameters{"enabled": true},
			"maintenance": configuration.Parameters{"uploadpurging": map[any]any{"enabled": false}},
		},
	}
	cfg.HTTP.Secret = hex.EncodeToString(secret)
	cfg.Catalog.MaxEntries = 1000
	srv := &http.Server{Handler: handlers.NewApp(ctx, cfg), ReadHeaderTimeout: 10 * time.Second}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	select {
	case err := <-done:
		return fmt.Errorf("registry on %s: %w", l.Addr(), err)
	case <-ctx.Done():
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
		defer cancel()
		err := srv.Shutdown(stop)
		<-done
		if errors.Is(err, context.DeadlineExceeded) {
			return srv.Close()
		}
		return err
	}
}

func (r *Registry) certFile() string { return filepath.Join(r.Dir, "tls.crt") }

// certificate loads the registry's self-signed certificate, or makes one. It is
// its own authority: it is trusted by the hosts.toml beside it and by nothing else.
func (r *Registry) certificate() (tls.Certificate, error) {
	keyFile := filepath.Join(r.Dir, "tls.key")
	if c, err := tls.LoadX509KeyPair(r.certFile(), keyFile); err == nil && time.Now().Before(c.Leaf.NotAfter.AddDate(0, -1, 0)) && r.names(c.Leaf) {
		return c, nil
	}
	if err := os.MkdirAll(r.Dir, 0o755); err != nil {
		return tls.Certificate{}, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return tls.Certificate{}, err
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "coracle local registry"},
		NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: time.Now().AddDate(10, 0, 0),
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, IsCA: true, BasicConstraintsValid: true,
		DNSNames: []string{"localhost"}, IPAddresses: append([]net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}, r.Addresses...),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return tls.Certificate{}, err
	}
	if err := os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600); err != nil {
		return tls.Certificate{}, err
	}
	if err := os.WriteFile(r.certFile(), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644); err != nil {
		return tls.Certificate{}, err
	}
	return tls.LoadX509KeyPair(r.certFile(), keyFile)
}

// names says whether the certificate has all our addresses.
func (r *Registry) names(c *x509.Certificate) bool {
	for _, a := range r.Addresses {
		if c.VerifyHostname(a.String()) != nil {
			return false
		}
	}
	return true
}
