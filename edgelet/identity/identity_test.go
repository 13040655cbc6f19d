package identity

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hpke"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coracle-edge/coracle/controlplane/api/enrollment"
)

// authority is the least of a control plane that an identity needs.
type authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{t: t, key: key}
	a.cert = a.issue(&x509.Certificate{IsCA: true, BasicConstraintsValid: true, NotBefore: day(0), NotAfter: day(9999)}, &key.PublicKey)
	return a
}

func day(n int) time.Time { return time.Date(2026, 1, 1+n, 0, 0, 0, 0, time.UTC) }

func (a *authority) issue(template *x509.Certificate, public any) *x509.Certificate {
	a.t.Helper()
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	parent := a.cert
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert
}

func (a *authority) server(name string, from, until int) tls.Certificate {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	cert := a.issue(&x509.Certificate{
		DNSNames: []string{name}, NotBefore: day(from), NotAfter: day(until), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, &key.PublicKey)
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
}

func (a *authority) grant(node string, key ed25519.PrivateKey, from, until int) granted {
	cert := a.issue(&x509.Certificate{
		Subject:   pkix.Name{CommonName: enrollment.NodeUserPrefix + node, Organization: []string{enrollment.NodesGroup}},
		NotBefore: day(from), NotAfter: day(until), DNSNames: []string{node},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}, key.Public())
	return granted{Version: grantVersion, URLs: []string{"https://192.0.2.1:6444"}, CAHash: RootHash(a.cert), Grant: enrollment.Grant{
		Node: node, Chain: [][]byte{cert.Raw}, Roots: [][]byte{a.cert.Raw}, Cluster: enrollment.Cluster{Fleet: []string{"https://192.0.2.2:6444"}},
	}}
}

// member writes the files of a node that joined.
func (a *authority) member(dir string, from, until int) {
	a.t.Helper()
	key, _, err := ensureKeys(dir)
	if err != nil {
		a.t.Fatal(err)
	}
	data, err := json.Marshal(a.grant("pi-1", key, from, until))
	if err != nil {
		a.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "identity.json"), data, 0o600); err != nil {
		a.t.Fatal(err)
	}
}

type floor struct{ at time.Time }

func (f *floor) TimeFloor() time.Time { return f.at }
func (f *floor) RaiseTimeFloor(t time.Time) error {
	f.at = t
	return nil
}

func TestKeysAreMadeOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "identity")
	first, sealing, err := ensureKeys(dir)
	if err != nil {
		t.Fatal(err)
	}
	second, _, err := ensureKeys(dir)
	if err != nil || !first.Equal(second) {
		t.Fatalf("second time: %v", err)
	}
	// What is sealed to the public half, as the control plane does, opens with the stored private one.
	public, err := SealingKEM().NewPublicKey(sealing.PublicKey().Bytes())
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := hpke.Seal(public, hpke.HKDFSHA256(), hpke.ChaCha20Poly1305(), nil, []byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	_, again, err := loadKeys(dir)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := hpke.Open(again, hpke.HKDFSHA256(), hpke.ChaCha20Poly1305(), nil, sealed); err != nil || string(got) != "secret" {
		t.Errorf("%q, %v", got, err)
	}
}

// Neither a clock at 1970 nor an expired certificate keeps a node from starting.
func TestLoadLooksAtNoClock(t *testing.T) {
	a, dir := newAuthority(t), t.TempDir()
	a.member(dir, 100, 200)
	for name, now := range map[string]time.Time{"1970": time.Unix(0, 0), "valid": day(150), "years later": day(5000)} {
		f := &floor{}
		id, err := Load(Options{Dir: dir, Floor: f, Now: func() time.Time { return now }})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !f.at.Equal(day(100)) {
			t.Errorf("%s: the floor is %s, want the certificate's beginning", name, f.at)
		}
		if want := name == "years later"; id.NeedsRenewal() != want {
			t.Errorf("%s: needs renewal %v", name, !want)
		}
	}
}

func TestDamageIsNamed(t *testing.T) {
	a, other := newAuthority(t), newAuthority(t)
	_, foreign, _ := ed25519.GenerateKey(rand.Reader)
	tests := map[string]struct {
		harm func(dir string)
		want error
		says string
	}{
		"nothing":           {func(dir string) { os.RemoveAll(dir) }, ErrNotJoined, "coracle token create"},
		"not joined yet":    {func(dir string) { os.Remove(filepath.Join(dir, "identity.json")) }, ErrNotJoined, "edgelet --join"},
		"keys gone":         {func(dir string) { os.Remove(filepath.Join(dir, "keys.pem")) }, ErrDamaged, "keys.pem"},
		"keys empty":        {func(dir string) { os.WriteFile(filepath.Join(dir, "keys.pem"), nil, 0o600) }, ErrDamaged, "keys.pem"},
		"identity cut off":  {func(dir string) { os.Truncate(filepath.Join(dir, "identity.json"), 40) }, ErrDamaged, "identity.json"},
		"identity of other": {func(dir string) { writeGrant(dir, a.grant("pi-1", foreign, 0, 9)) }, ErrDamaged, "another key"},
		"wrong root": {func(dir string) {
			key, _, _ := loadKeys(dir)
			g := other.grant("pi-1", key, 0, 9)
			g.Roots = [][]byte{a.cert.Raw}
			writeGrant(dir, g)
		}, ErrDamaged, "certificate"},
		"newer version": {func(dir string) {
			key, _, _ := loadKeys(dir)
			g := a.grant("pi-1", key, 0, 9)
			g.Version = 99
			writeGrant(dir, g)
		}, nil, "version 99"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "identity")
			a.member(dir, 0, 100)
			test.harm(dir)
			_, err := Load(Options{Dir: dir})
			if err == nil || test.want != nil && !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.says) {
				t.Errorf("error %v, want %v with %q", err, test.want, test.says)
			}
		})
	}
}

func writeGrant(dir string, g granted) {
	data, _ := json.Marshal(g)
	os.WriteFile(filepath.Join(dir, "identity.json"), data, 0o600)
}

// The time that TLS is verified at: the later of clock, floor and the peer's own beginning.
func TestServerIsVerifiedAtTheRightTime(t *testing.T) {
	a, other := newAuthority(t), newAuthority(t)
	dir := t.TempDir()
	a.member(dir, 0, 365)
	const name = enrollment.FleetServerName
	tests := map[string]struct {
		clock, floor int
		server       tls.Certificate
		says         string // "" is success
		floorAfter   int
	}{
		"right clock":                   {50, 0, a.server(name, 40, 90), "", 40},
		"clock before all":              {-9999, 0, a.server(name, 40, 90), "", 40},
		"clock before, floor within":    {-9999, 60, a.server(name, 40, 90), "", 60},
		"clock within, floor after end": {50, 100, a.server(name, 40, 90), "set this board's clock", 100},
		"clock after end":               {5000, 0, a.server(name, 40, 90), "set this board's clock", 0},
		"another root":                  {50, 0, other.server(name, 40, 90), "trusted", 0},
		"another root, later beginning": {50, 0, other.server(name, 4000, 9000), "trusted", 0},
		"another name":                  {50, 0, a.server("mqtt.coracle.internal", 40, 90), "trusted", 0},
	}
	for testName, test := range tests {
		t.Run(testName, func(t *testing.T) {
			f := &floor{at: day(test.floor)}
			id, err := Load(Options{Dir: dir, Floor: f, Now: func() time.Time { return day(test.clock) }})
			if err != nil {
				t.Fatal(err)
			}
			err = handshake(t, id.ClientTLS(name), test.server)
			if (err == nil) != (test.says == "") || err != nil && (!errors.Is(err, ErrUntrusted) || !strings.Contains(err.Error(), test.says)) {
				t.Errorf("error %v, want %q", err, test.says)
			}
			if !f.at.Equal(day(test.floorAfter)) {
				t.Errorf("floor %s, want %s", f.at, day(test.floorAfter))
			}
		})
	}
}

func handshake(t *testing.T, client *tls.Config, server tls.Certificate) error {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		if raw, err := l.Accept(); err == nil {
			conn := tls.Server(raw, &tls.Config{Certificates: []tls.Certificate{server}})
			conn.Handshake()
			io.Copy(io.Discard, conn)
			conn.Close()
		}
	}()
	conn, err := tls.Dial("tcp", l.Addr().String(), client)
	if err == nil {
		conn.Close()
	}
	return err
}

// The link asks Expired whether to renew: that has to be what a Go server says to an expired certificate.
func TestExpiredIsRecognised(t *testing.T) {
	a, dir := newAuthority(t), t.TempDir()
	a.member(dir, 0, 10)
	id, err := Load(Options{Dir: dir, Now: func() time.Time { return day(5) }}) // it believes itself valid
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{a.server(enrollment.MQTTServerName, 0, 100)},
		ClientCAs:    pool, ClientAuth: tls.RequireAndVerifyClientCert, Time: func() time.Time { return day(50) },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		if conn, err := l.Accept(); err == nil {
			conn.(*tls.Conn).Handshake()
			conn.Close()
		}
	}()
	conn, err := tls.Dial("tcp", l.Addr().String(), id.ClientTLS(enrollment.MQTTServerName))
	if err == nil {
		_, err = conn.Read(make([]byte, 1)) // TLS 1.3: the refusal comes with the first answer
		conn.Close()
	}
	if !Expired(fmt.Errorf("broker: %w", err)) {
		t.Errorf("not recognised: %v", err)
	}
	if Expired(io.EOF) || Expired(nil) {
		t.Error("EOF counts as expired")
	}
}

func TestPodTokenIsWhatItSays(t *testing.T) {
	a, dir := newAuthority(t), t.TempDir()
	a.member(dir, 100, 400)
	// A clock at 1970: the token is dated by the floor.
	id, err := Load(Options{Dir: dir, Floor: &floor{}, Now: func() time.Time { return time.Unix(0, 0) }})
	if err != nil {
		t.Fatal(err)
	}
	request := PodTokenRequest{Namespace: "shop", PodName: "till-0", PodUID: "u", ServiceAccount: "till", Audience: "api", Life: time.Hour}
	token, expires, err := id.PodToken(request)
	if err != nil || !expires.Equal(day(100).Add(time.Hour)) {
		t.Fatalf("expires %s, %v", expires, err)
	}
	node, claims, verify, err := enrollment.ParsePodToken(token)
	if err != nil || node != "pi-1" || claims.Subject != "system:serviceaccount:shop:till" || claims.Kubernetes.Pod.UID != "u" {
		t.Errorf("%s %+v %v", node, claims, err)
	}
	if err := verify(id.SigningKey.Public().(ed25519.PublicKey)); err != nil {
		t.Error(err)
	}
	request.PodUID = ""
	if _, _, err := id.PodToken(request); err == nil {
		t.Error("a token bound to no pod was signed")
	}
}

// Nobody listens: Join goes on trying until its context ends, and says why.
func TestJoinWithoutNetwork(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err = Join(ctx, JoinOptions{Options: Options{Dir: t.TempDir()}, Line: enrollment.Line{
		URLs: []string{"https://" + address}, CAHash: strings.Repeat("00", 32), Token: "abcd.aaaaaaaaaaaaaaaa", Node: "pi-1",
	}})
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), address) {
		t.Errorf("error %v", err)
	}
}

func FuzzParsePodTokenAnswer(f *testing.F) {
	f.Add([]byte(`{"token":"a.b.c","expires":"2031-01-01T00:00:00Z","seconds":600}`))
	f.Add([]byte(`{"token":"","seconds":-1}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if a, err := parsePodTokenAnswer(raw); err == nil && (a.Token == "" || a.Seconds <= 0 || a.Seconds > maxTokenSeconds) {
			t.Fatalf("accepted %+v", a)
		}
	})
}
