package join_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coracle-edge/coracle/controlplane/api/enrollment"
	"github.com/coracle-edge/coracle/controlplane/join"
	"github.com/coracle-edge/coracle/controlplane/join/noderecord"
	"github.com/coracle-edge/coracle/controlplane/pki"
	"github.com/coracle-edge/coracle/edgelet/identity"
)

// former is the control plane as it was: another process with the PKI of before
// the rotation, on the same records.
func (c *cluster) former(dir string) *cluster {
	c.t.Helper()
	copied := filepath.Join(c.t.TempDir(), "pki")
	if out, err := exec.Command("cp", "-a", dir, copied).CombinedOutput(); err != nil {
		c.t.Fatalf("%v: %s", err, out)
	}
	old := &cluster{t: c.t, clock: c.clock, client: c.client, tunnels: &recordingTunnels{}}
	var err error
	if old.authority, err = pki.Open(pki.Options{Dir: copied, Now: c.clock.Now}); err != nil {
		c.t.Fatal(err)
	}
	old.serve()
	return old
}

// broker is a TLS server as the embedded broker is: it takes clients with a
// certificate of a root that is trusted now, and no others.
func (c *cluster) broker() string {
	c.t.Helper()
	leaf, err := c.authority.Broker()
	if err != nil {
		c.t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{MinVersion: tls.VersionTLS13, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		return &tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: leaf.GetCertificate, ClientCAs: c.authority.RootPool(), ClientAuth: tls.RequireAndVerifyClientCert, Time: c.clock.Now}, nil
	}})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				if conn.(*tls.Conn).Handshake() == nil {
					io.WriteString(conn, "ok")
				}
			}()
		}
	}()
	return l.Addr().String()
}

// connects is what a node's connection to a broker comes to.
func connects(address string, id *identity.Identity) error {
	conn, err := tls.Dial("tcp", address, id.ClientTLS(enrollment.MQTTServerName))
	if err != nil {
		return err
	}
	defer conn.Close()
	answer, err := io.ReadAll(conn) // a refusal comes with the first answer
	if err == nil && string(answer) != "ok" {
		err = errors.New("no answer")
	}
	return err
}

// fleetGet asks the endpoint as the node does, trusting what it trusts.
func fleetGet(id *identity.Identity, url string) (int, error) {
	c := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: id.ClientTLS(enrollment.FleetServerName), DisableKeepAlives: true}}
	r, err := c.Get(url + enrollment.ObjectsPath + "00")
	if err != nil {
		return 0, err
	}
	r.Body.Close()
	return r.StatusCode, nil
}

// serves is a connection from the API server into the node's tunnel, both ways verified.
func (c *cluster) serves(id *identity.Identity) error {
	c.t.Helper()
	kubelet, err := c.authority.KubeletClient()
	if err != nil {
		c.t.Fatal(err)
	}
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	done := make(chan error, 1)
	go func() { done <- tls.Server(far, id.ServerTLS(enrollment.KubeletClientName)).Handshake() }()
	conn := tls.Client(near, &tls.Config{RootCAs: c.authority.RootPool(), ServerName: id.NodeName, GetClientCertificate: kubelet.GetClientCertificate, Time: c.clock.Now})
	if err := conn.Handshake(); err != nil {
		return err
	}
	go io.Copy(io.Discard, conn)
	return <-done
}

// works is everything that a node does with its identity.
func (c *cluster) works(t *testing.T, what string, id *identity.Identity) {
	t.Helper()
	if err := connects(c.broker(), id); err != nil {
		t.Errorf("%s: broker: %v", what, err)
	}
	if code, err := fleetGet(id, c.url); err != nil || code != 200 {
		t.Errorf("%s: fleet endpoint: %d, %v", what, code, err)
	}
	if err := c.serves(id); err != nil {
		t.Errorf("%s: tunnel: %v", what, err)
	}
	hub, err := c.authority.Hub()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := id.VerifyHub(hub.Current().Certificate); err != nil {
		t.Errorf("%s: hub: %v", what, err)
	}
}

func TestRotationUnderRunningNodes(t *testing.T) {
	c := start(t)
	there, _ := c.mustJoin("there")
	away, awayDir := c.mustJoin("away")
	old := c.former(c.dir)
	first := c.authority.Root()
	oldLine := c.token("late")

	if err := c.authority.Rotate(); err != nil {
		t.Fatal(err)
	}
	if err := c.server.Publish(t.Context(), join.Member{ID: "1", Addresses: join.Addresses{Fleet: []string{c.url}}, Alone: true}); err != nil {
		t.Fatal(err)
	}
	// An old node and a new server.
	c.works(t, "old node, new server", there)
	before := there.Certificate().Leaf
	if there.NeedsRenewal() {
		t.Error("the certificate itself says nothing of the rotation")
	}
	// The new root comes with the renewal, which Run does when it is told.
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- there.Run(ctx) }()
	defer func() { cancel(); <-done }()
	there.RootsAre(c.authority.TrustID(), 10*time.Millisecond)
	await(t, "the new root", func() bool { return string(there.TrustID()) == string(c.authority.TrustID()) })
	if leaf := there.Certificate().Leaf; leaf.Equal(before) || leaf.CheckSignatureFrom(c.authority.Root()) != nil {
		t.Error("the renewed certificate isn't the new root's")
	}
	c.works(t, "new node, new server", there)
	// A new node and an old server: a control plane that wasn't told yet.
	old.works(t, "new node, old server", there)
	// Boards that join now, with a line of before and with one of now.
	late, err := c.join(t.TempDir(), oldLine)
	if err != nil {
		t.Fatal(err)
	}
	c.works(t, "joined by an old line", late)
	line := c.token("latest")
	if line.CAHash != c.authority.RootHash() || line.CAHash == c.authority.ClusterID() {
		t.Errorf("the line names %s", line.CAHash)
	}
	latest, err := c.join(t.TempDir(), line)
	if err != nil {
		t.Fatal(err)
	}
	c.works(t, "joined by a new line", latest)
	old.works(t, "joined by a new line, old server", latest)
	if latest.Cluster().ID != away.Cluster().ID {
		t.Error("the cluster has another id")
	}
	// A member knows its cluster by either root.
	lateDir := t.TempDir()
	if _, err := c.join(lateDir, c.token("member")); err != nil {
		t.Fatal(err)
	}
	for _, hash := range []string{c.authority.ClusterID(), c.authority.RootHash()} {
		l := c.token("member", replace)
		l.CAHash = hash
		if _, err := c.join(lateDir, l); err != nil {
			t.Errorf("a line of root %.8s on a member: %v", hash, err)
		}
	}

	if err := c.authority.Retire(); err != nil {
		t.Fatal(err)
	}
	there.RootsAre(c.authority.TrustID(), 0)
	await(t, "the end of the former root", func() bool { return string(there.TrustID()) == string(c.authority.TrustID()) })
	c.works(t, "after the retirement", there)
	c.clock.Advance(48 * time.Hour)
	if err := there.Renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := len(there.Certificate().Certificate); n != 1 {
		t.Errorf("it shows %d certificates to those who need one", n)
	}
	// Whoever has the former root's key can't pretend to be the control plane any more.
	if _, err := fleetGet(there, old.url); !errors.Is(err, identity.ErrUntrusted) {
		t.Errorf("the former server is trusted: %v", err)
	}

	// The node that was away all the time.
	if err := connects(c.broker(), away); !identity.Rejected(err) || identity.Expired(err) {
		t.Errorf("its certificate at the broker: %v", err)
	}
	if code, err := fleetGet(away, c.url); err != nil || code != 401 {
		t.Errorf("its certificate at the fleet endpoint: %d, %v", code, err)
	}
	if err := away.Renew(t.Context()); err != nil {
		t.Fatalf("a node that was away doesn't come back: %v", err)
	}
	c.works(t, "back again", away)
	if back, err := identity.Load(identity.Options{Dir: awayDir}); err != nil || string(back.TrustID()) != string(c.authority.TrustID()) {
		t.Errorf("what it was granted isn't durable: %v", err)
	}
	if _, err := fleetGet(away, old.url); !errors.Is(err, identity.ErrUntrusted) {
		t.Errorf("the former server is trusted: %v", err)
	}
	if pool := x509.NewCertPool(); true {
		pool.AddCert(first)
		if away.Roots().Equal(pool) {
			t.Error("the first root is still trusted")
		}
	}
}

// Two rotations and years later.
func TestANodeThatWasAwayForTwoRotations(t *testing.T) {
	c := start(t)
	id, _ := c.mustJoin("pi-1")
	for range 2 {
		if err := errors.Join(c.authority.Rotate(), c.authority.Retire()); err != nil {
			t.Fatal(err)
		}
		c.clock.Advance(400 * 24 * time.Hour)
		if err := c.authority.Renew(); err != nil {
			t.Fatal(err)
		}
	}
	if !id.NeedsRenewal() {
		t.Fatal("its certificate is still good")
	}
	if err := id.Renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.works(t, "back again", id)
}

// An identity of a root that has nothing to do with ours isn't led to it by anything we show.
func TestAnotherClustersNodeFollowsNoChain(t *testing.T) {
	c, other := start(t), start(t)
	stranger, _ := other.mustJoin("pi-1")
	if err := c.authority.Rotate(); err != nil {
		t.Fatal(err)
	}
	if _, err := fleetGet(stranger, c.url); !errors.Is(err, identity.ErrUntrusted) {
		t.Errorf("error %v", err)
	}
	if err := connects(c.broker(), stranger); err == nil {
		t.Error("it connects")
	}
	if _, err := c.join(t.TempDir(), func() enrollment.Line { l := other.token("pi-2"); l.URLs = []string{c.url}; return l }()); !errors.Is(err, identity.ErrWrongCA) {
		t.Errorf("join by another cluster's line: %v", err)
	}
}

// A node in good standing that asks and gets the same writes nothing to its flash.
func TestRenewalOfTheSameWritesNothing(t *testing.T) {
	c := start(t)
	id, dir := c.mustJoin("pi-1")
	path := filepath.Join(dir, "identity.json")
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := id.Renew(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if after, err := os.Stat(path); err != nil || !os.SameFile(before, after) || !after.ModTime().Equal(before.ModTime()) {
		t.Errorf("it was written again: %v", err)
	}
	select {
	case <-id.Renewed():
		t.Error("a renewal is told that was none")
	default:
	}
}

// What a record says decides: who may connect, who may do more, and with what text it is refused.
func TestStandings(t *testing.T) {
	c := start(t)
	id, _ := c.mustJoin("pi-1")
	store := noderecord.Store{Client: c.client}
	record := func() noderecord.Record {
		r, err := store.Get(t.Context(), "pi-1")
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	fingerprint := enrollment.Fingerprint(record().SigningKey)
	now := c.clock.Now()
	for name, test := range map[string]struct {
		make    func() error
		want    error
		refused bool
		says    []string
	}{
		"revoked": {func() error { return store.Revoke(t.Context(), "pi-1", "sold", now) }, enrollment.ErrRevoked, true, []string{"sold", "coracle node readmit pi-1"}},
		"cloned":  {func() error { return store.Clone(t.Context(), "pi-1", fingerprint, "a and b", now) }, enrollment.ErrCloned, true, []string{"a and b", "edgelet reset", "coracle node readmit pi-1"}},
		"removed": {func() error {
			return errors.Join(store.Registered(t.Context(), "pi-1", "uid-1"), store.Remove(t.Context(), "pi-1", "uid-1", now))
		}, enrollment.ErrRemoved, false, []string{"deleted", "coracle node readmit pi-1"}},
	} {
		t.Run(name, func(t *testing.T) {
			if err := test.make(); err != nil {
				t.Fatal(err)
			}
			r := record()
			if err := r.Standing(); !errors.Is(err, test.want) {
				t.Errorf("standing %v", err)
			} else {
				for _, word := range test.says {
					if !strings.Contains(err.Error(), word) {
						t.Errorf("%q lacks %q", err, word)
					}
				}
			}
			if (r.Refused() != nil) != test.refused {
				t.Errorf("refused: %v", r.Refused())
			}
			if code, err := fleetGet(id, c.url); err != nil || code != 403 {
				t.Errorf("fleet endpoint: %d, %v", code, err)
			}
			if err := id.Renew(t.Context()); (err != nil) != test.refused || test.refused && !enrollment.Ended(err) {
				t.Errorf("renew: %v", err)
			}
			if _, err := join.CreateToken(t.Context(), c.client, join.TokenOptions{Node: "pi-1"}); !errors.Is(err, enrollment.ErrNodeTaken) || !strings.Contains(err.Error(), name) {
				t.Errorf("a token for its name: %v", err)
			}
			was, err := store.Readmit(t.Context(), "pi-1")
			if err != nil || !errors.Is(was, test.want) {
				t.Fatalf("readmit: was %v, %v", was, err)
			}
			if code, err := fleetGet(id, c.url); err != nil || code != 200 {
				t.Errorf("after readmission: %d, %v", code, err)
			}
		})
	}
	// What was decided of another Node, or another key, changes nothing.
	if err := errors.Join(store.Registered(t.Context(), "pi-1", "uid-2"), store.Remove(t.Context(), "pi-1", "uid-1", now), store.Clone(t.Context(), "pi-1", "other key", "a and b", now)); err != nil {
		t.Fatal(err)
	}
	if r := record(); r.Standing() != nil || r.NodeUID != "uid-2" {
		t.Errorf("%+v", r)
	}
	list, err := store.List(t.Context())
	if err != nil || len(list) != 1 || list[0].Node != "pi-1" {
		t.Errorf("list: %v, %v", list, err)
	}
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never: " + what)
		}
	}
}
