package brokertest

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

// PKI is a throw-away certificate authority.
type PKI struct {
	t    testing.TB
	cert *x509.Certificate
	key  ed25519.PrivateKey
}

// NewPKI makes an authority.
func NewPKI(t testing.TB) *PKI {
	t.Helper()
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test root"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, _ := x509.ParseCertificate(der)
	return &PKI{t, cert, key}
}

// Pool has the root.
func (p *PKI) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(p.cert)
	return pool
}

// Issue makes a certificate that is good for client and server on loopback.
func (p *PKI) Issue(commonName string) tls.Certificate {
	p.t.Helper()
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		p.t.Fatal(err)
	}
	serial, _ := rand.Int(rand.Reader, big.NewInt(1<<62))
	subject := pkix.Name{CommonName: commonName}
	if strings.HasPrefix(commonName, fleet.NodeUserPrefix) {
		subject.Organization = []string{"system:nodes"} // as the cluster's authority has it
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: subject,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		DNSNames:    []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, p.cert, public, p.key)
	if err != nil {
		p.t.Fatal(err)
	}
	leaf, _ := x509.ParseCertificate(der)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// Server is a server's configuration that asks for certificates of this authority.
func (p *PKI) Server() *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{p.Issue("broker")}, ClientCAs: p.Pool(),
		ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13}
}

// Client is a client's configuration with a certificate of this common name.
func (p *PKI) Client(commonName string) *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{p.Issue(commonName)}, RootCAs: p.Pool(),
		ServerName: "localhost", MinVersion: tls.VersionTLS13}
}

// Write puts root, certificate and key into dir as PEM files.
func (p *PKI) Write(dir, commonName string) (ca, certFile, keyFile string) {
	p.t.Helper()
	c := p.Issue(commonName)
	key, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		p.t.Fatal(err)
	}
	put := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o644); err != nil {
			p.t.Fatal(err)
		}
		return path
	}
	return put("ca.pem", "CERTIFICATE", p.cert.Raw), put("cert.pem", "CERTIFICATE", c.Certificate[0]), put("key.pem", "PRIVATE KEY", key)
}
