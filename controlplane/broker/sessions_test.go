package broker

import (
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"testing"
	"time"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

// handshake connects a client with its cache and says whether it resumed, and
// how many bytes both sides sent.
func handshake(t *testing.T, server, client *tls.Config) (resumed bool, bytes int64) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0") // a pipe has no room for two who write at once
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	b, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	a, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	var flow fleet.Flow
	s, c := tls.Server(fleet.Meter(a, flow.Add), server), tls.Client(b, client)
	done := make(chan error, 1)
	go func() {
		err := s.Handshake()
		if err == nil {
			_, err = s.Write([]byte("x")) // the ticket goes before
		}
		done <- err
	}()
	if err := c.Handshake(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if user := s.ConnectionState().PeerCertificates[0].Subject.CommonName; user != "system:node:board-a" {
		t.Errorf("the server sees %q", user)
	}
	return c.ConnectionState().DidResume, flow.Bytes().Total()
}

// certificate is signed by root, or by itself.
func certificate(t *testing.T, name string, root *x509.Certificate, rootKey ed25519.PrivateKey) (*x509.Certificate, ed25519.PrivateKey) {
	t.Helper()
	public, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true, IsCA: root == nil,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}
	if root == nil {
		root, rootKey = template, key
	}
	raw, err := x509.CreateCertificate(nil, template, root, public, rootKey)
	if err != nil {
		t.Fatal(err)
	}
	out, err := x509.ParseCertificate(raw)
	if err != nil {
		t.Fatal(err)
	}
	return out, key
}

func TestAResumedSessionIsCheap(t *testing.T) {
	root, key := certificate(t, "root", nil, nil)
	pool := x509.NewCertPool()
	pool.AddCert(root)
	pair := func(name string) []tls.Certificate {
		leaf, leafKey := certificate(t, name, root, key)
		return []tls.Certificate{{Certificate: [][]byte{leaf.Raw}, PrivateKey: leafKey}}
	}
	configs := func(own bool) (server, client *tls.Config) {
		server = &tls.Config{Certificates: pair("broker"), ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13}
		client = &tls.Config{Certificates: pair("system:node:board-a"), RootCAs: pool, ServerName: "broker",
			ClientSessionCache: tls.NewLRUClientSessionCache(4), CurvePreferences: []tls.CurveID{tls.X25519}}
		if own {
			newSessions(10).serve(server)
		}
		return server, client
	}
	server, client := configs(true)
	if resumed, _ := handshake(t, server, client); resumed {
		t.Fatal("the first session was resumed")
	}
	for range 5 {
		resumed, bytes := handshake(t, server, client)
		if !resumed {
			t.Fatal("not resumed")
		}
		if bytes > 1000 {
			t.Errorf("a resumed handshake took %d bytes", bytes)
		}
	}
	server, client = configs(false)
	handshake(t, server, client)
	_, ours := handshake(t, server, client)
	t.Logf("with crypto/tls's own tickets it takes %d bytes", ours)
	// Another process knows no session and does a full handshake.
	server, _ = configs(true)
	if resumed, _ := handshake(t, server, client); resumed {
		t.Error("a session was resumed that this server never saw")
	}
}

func TestSessionsAreBounded(t *testing.T) {
	s := newSessions(10)
	cert := func(i int) tls.ConnectionState {
		return tls.ConnectionState{PeerCertificates: []*x509.Certificate{{Raw: []byte(fmt.Sprint("node-", i))}}}
	}
	state := &tls.SessionState{}
	var last []byte
	for i := range 1000 {
		for range 5 {
			var err error
			if last, err = s.wrap(cert(i), state); err != nil {
				t.Skip("a bare session state has no bytes:", err)
			}
		}
	}
	if len(s.states) > 10 || len(s.nodes) > 10 || len(s.order) > 30 {
		t.Errorf("%d sessions, %d nodes, %d in order", len(s.states), len(s.nodes), len(s.order))
	}
	if s.gone(string(last)) {
		t.Error("the newest session is gone")
	}
	for node, names := range s.nodes {
		if len(names) > sessionsPerNode {
			t.Errorf("node %x has %d sessions", node[:2], len(names))
		}
		for _, n := range names {
			if s.gone(n) {
				t.Error("a node's session is gone")
			}
		}
	}
	if got, err := s.unwrap([]byte("nobody's"), tls.ConnectionState{}); got != nil || err != nil {
		t.Errorf("an unknown session: %v, %v", got, err)
	}
	if name, err := s.wrap(tls.ConnectionState{}, state); err != nil || !s.gone(string(name)) {
		t.Error("a session of nobody is kept")
	}
}
