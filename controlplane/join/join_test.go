package join_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/coracle-edge/coracle/controlplane/api/enrollment"
	"github.com/coracle-edge/coracle/controlplane/join"
	"github.com/coracle-edge/coracle/controlplane/join/noderecord"
	"github.com/coracle-edge/coracle/controlplane/pki"
	"github.com/coracle-edge/coracle/edgelet/identity"
)

// clock can be set; it starts at the real time, because TLS handshakes of the
// server have no other.
type clock struct {
	mu     sync.Mutex
	offset time.Duration
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.offset)
}

func (c *clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.offset += d
}

// cluster is a control plane as far as joining goes.
type cluster struct {
	t         *testing.T
	clock     *clock
	authority *pki.Authority
	client    *fake.Clientset
	url       string
	tunnels   *recordingTunnels
	server    *join.Server
	dir       string // of the PKI
}

type recordingTunnels struct {
	mu   sync.Mutex
	seen []string
}

func (r *recordingTunnels) ServeTunnel(w http.ResponseWriter, _ *http.Request, node, id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seen = append(r.seen, node+" "+id)
	w.WriteHeader(http.StatusTeapot)
}

func start(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{t: t, clock: &clock{}, client: newClient(), tunnels: &recordingTunnels{}, dir: filepath.Join(t.TempDir(), "pki")}
	var err error
	if c.authority, err = pki.Open(pki.Options{Dir: c.dir, Now: c.clock.Now}); err != nil {
		t.Fatal(err)
	}
	c.serve()
	if err := c.server.Publish(t.Context(), join.Member{ID: "1", Addresses: join.Addresses{Fleet: []string{c.url}}, Alone: true}); err != nil {
		t.Fatal(err)
	}
	return c
}

// serve runs a fleet endpoint until the test ends.
func (c *cluster) serve() {
	t := c.t
	t.Helper()
	serving, err := c.authority.Fleet()
	if err != nil {
		t.Fatal(err)
	}
	hub, err := c.authority.Hub()
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c.url = "https://" + l.Addr().String()
	c.server, err = join.New(join.Config{
		Authority: c.authority, Serving: serving, Hub: hub, Client: c.client, Now: c.clock.Now, Tunnels: c.tunnels,
		Records: noderecord.NewDirectory(c.client, nil),
		Cluster: func() enrollment.Cluster {
			return enrollment.Cluster{Incarnation: "first", Fleet: []string{c.url}, MQTT: []string{"mqtts://127.0.0.1:8883"}}
		},
		Objects: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, join.NodeFrom(r.Context())) }),
		PodToken: func(_ context.Context, node string, r enrollment.PodTokenRequest) (enrollment.PodTokenAnswer, error) {
			if r.Pod == "anothers" {
				return enrollment.PodTokenAnswer{}, apierrors.NewForbidden(schema.GroupResource{Resource: "serviceaccounts"}, r.ServiceAccount, errors.New("not its pod"))
			}
			return enrollment.PodTokenAnswer{Token: strings.Join([]string{node, r.Namespace, r.ServiceAccount, r.Pod, r.PodUID, r.Audience}, " "),
				Expires: time.Date(2031, 1, 1, 0, 0, 0, 0, time.UTC), Seconds: r.Seconds}, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.server.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// newClient is a fake that refuses a write of an old version, as the API server does.
func newClient() *fake.Clientset {
	client := fake.NewClientset()
	var mu sync.Mutex
	versioned := func(action clienttesting.Action) (bool, runtime.Object, error) {
		mu.Lock()
		defer mu.Unlock()
		tracker, resource := client.Tracker(), action.GetResource()
		secret := action.(clienttesting.CreateAction).GetObject().(*corev1.Secret).DeepCopy()
		if action.GetVerb() == "create" {
			secret.ResourceVersion = "1"
			err := tracker.Create(resource, secret, secret.Namespace)
			return true, secret, err
		}
		old, err := tracker.Get(resource, secret.Namespace, secret.Name)
		if err != nil {
			return true, nil, err
		}
		have := old.(*corev1.Secret).ResourceVersion
		if secret.ResourceVersion != have {
			return true, nil, apierrors.NewConflict(resource.GroupResource(), secret.Name, errors.New("old version"))
		}
		n, _ := strconv.Atoi(have)
		secret.ResourceVersion = strconv.Itoa(n + 1)
		return true, secret, tracker.Update(resource, secret, secret.Namespace)
	}
	client.PrependReactor("create", "secrets", versioned)
	client.PrependReactor("update", "secrets", versioned)
	return client
}

func (c *cluster) token(node string, change ...func(*join.TokenOptions)) enrollment.Line {
	c.t.Helper()
	opts := join.TokenOptions{Node: node, Now: c.clock.Now}
	for _, f := range change {
		f(&opts)
	}
	line, err := join.CreateToken(c.t.Context(), c.client, opts)
	if err != nil {
		c.t.Fatal(err)
	}
	// What is typed on the board is the text.
	parsed, err := enrollment.ParseLine(line.String())
	if err != nil {
		c.t.Fatal(err)
	}
	return parsed
}

func replace(o *join.TokenOptions) { o.Replace = true }

func (c *cluster) join(dir string, line enrollment.Line) (*identity.Identity, error) {
	return identity.Join(c.t.Context(), identity.JoinOptions{Options: identity.Options{Dir: dir, Now: c.clock.Now}, Line: line})
}

func (c *cluster) mustJoin(node string) (*identity.Identity, string) {
	c.t.Helper()
	dir := c.t.TempDir()
	id, err := c.join(dir, c.token(node))
	if err != nil {
		c.t.Fatal(err)
	}
	return id, dir
}

func TestJoinEndToEnd(t *testing.T) {
	c := start(t)
	id, dir := c.mustJoin("pi-1")
	if id.NodeName != "pi-1" || id.Cluster().Incarnation != "first" || id.Cluster().ID != c.authority.RootHash() {
		t.Errorf("identity %q, cluster %+v", id.NodeName, id.Cluster())
	}
	if _, err := id.HubKey(); err != nil {
		t.Error(err)
	}
	again, err := identity.Load(identity.Options{Dir: dir})
	if err != nil || !again.SigningKey.Equal(id.SigningKey) {
		t.Fatalf("load: %v", err)
	}
	for _, file := range []string{"keys.pem", "identity.json"} {
		if info, err := os.Stat(filepath.Join(dir, file)); err != nil || info.Mode() != 0o600 {
			t.Errorf("%s: %v, %v", file, info, err)
		}
	}
	// Nothing that left the node has a private key in it.
	for _, secret := range c.secrets() {
		for key, value := range secret.Data {
			if strings.Contains(string(value), string(id.SigningKey.Seed())) {
				t.Errorf("the private key is in %s, %s", secret.Name, key)
			}
		}
	}
	// And a node can do with it what it is for.
	if got := c.get(id, enrollment.ObjectsPath+"00"); got != "200 pi-1" {
		t.Errorf("objects: %s", got)
	}
	// Joining again on the same board, with the same line, is no network at all.
	c.client.ClearActions()
	if _, err := c.join(dir, c.token("pi-1", replace)); err != nil {
		t.Error(err)
	}
}

// A control plane that has just started publishes its endpoint a moment after it
// answers.
func TestTokenOfAClusterThatJustStarts(t *testing.T) {
	client := newClient()
	_, err := join.CreateToken(t.Context(), client, join.TokenOptions{Node: "pi-1"})
	if !errors.Is(err, join.ErrNoEndpoint) {
		t.Fatalf("without an endpoint: %v, want ErrNoEndpoint", err)
	}
	short, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := join.CreateToken(short, client, join.TokenOptions{Node: "pi-1", Wait: time.Hour}); err == nil {
		t.Error("it didn't end with its context")
	}
	asked := make(chan struct{})
	var once sync.Once
	client.PrependReactor("get", "configmaps", func(clienttesting.Action) (bool, runtime.Object, error) {
		once.Do(func() { close(asked) })
		return false, nil, nil
	})
	type answer struct {
		line enrollment.Line
		err  error
	}
	answers := make(chan answer, 1)
	go func() {
		line, err := join.CreateToken(t.Context(), client, join.TokenOptions{Node: "pi-1", Wait: time.Minute})
		answers <- answer{line, err}
	}()
	<-asked
	endpoint := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: noderecord.Namespace, Name: "coracle-fleet-endpoint"},
		Data: map[string]string{"urls": `["https://127.0.0.1:1"]`, "ca-hash": strings.Repeat("ab", 32)}}
	if _, err := client.CoreV1().ConfigMaps(noderecord.Namespace).Create(t.Context(), endpoint, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if a := <-answers; a.err != nil || a.line.URLs[0] != "https://127.0.0.1:1" {
		t.Errorf("%+v", a)
	}
}

func TestTokenIsStoredHashed(t *testing.T) {
	c := start(t)
	line := c.token("pi-1")
	_, secret, _ := enrollment.SplitToken(line.Token)
	for _, s := range c.secrets() {
		if text, _ := json.Marshal(s); strings.Contains(string(text), secret) {
			t.Errorf("Secret %s holds the token", s.Name)
		}
		for _, v := range s.Data {
			if strings.Contains(string(v), secret) {
				t.Errorf("Secret %s holds the token", s.Name)
			}
		}
	}
}

// The point of "When things go wrong": each wrong token is told apart, and the text says what to do.
func TestTokenMatrix(t *testing.T) {
	tests := map[string]struct {
		line func(c *cluster) enrollment.Line
		want error
		says []string
	}{
		"wrong id": {func(c *cluster) enrollment.Line {
			l := c.token("pi-1")
			l.Token = "aaaaaaaa" + l.Token[8:]
			return l
		}, enrollment.ErrTokenUnknown, []string{"mistyped", "coracle token create"}},
		"wrong secret": {func(c *cluster) enrollment.Line {
			l := c.token("pi-1")
			l.Token = l.Token[:9] + strings.Repeat("a", 32)
			return l
		}, enrollment.ErrTokenUnknown, []string{"mistyped"}},
		"used by another key": {func(c *cluster) enrollment.Line {
			l := c.token("pi-1")
			if _, err := c.join(c.t.TempDir(), l); err != nil {
				c.t.Fatal(err)
			}
			// Even where the name is free again.
			if err := c.client.CoreV1().Secrets(noderecord.Namespace).Delete(c.t.Context(), noderecord.SecretName("pi-1"), metav1.DeleteOptions{}); err != nil {
				c.t.Fatal(err)
			}
			return l
		}, enrollment.ErrTokenUsed, []string{"line of its own"}},
		"expired": {func(c *cluster) enrollment.Line {
			l := c.token("pi-1")
			c.clock.Advance(join.DefaultTokenLife + time.Minute)
			return l
		}, enrollment.ErrTokenExpired, []string{"coracle token create pi-1"}},
		"for another node": {func(c *cluster) enrollment.Line {
			l := c.token("pi-1")
			l.Node = "pi-2"
			return l
		}, enrollment.ErrTokenNode, []string{`"pi-1"`, `"pi-2"`}},
		"name taken": {func(c *cluster) enrollment.Line {
			l := c.token("pi-1")
			c.mustJoin("pi-1")
			return l
		}, enrollment.ErrNodeTaken, []string{`"pi-1"`, "--replace"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			c := start(t)
			dir := t.TempDir()
			_, err := c.join(dir, test.line(c))
			if !errors.Is(err, test.want) {
				t.Fatalf("error %v, want %v", err, test.want)
			}
			for _, word := range test.says {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("%q lacks %q", err, word)
				}
			}
			if _, err := identity.Load(identity.Options{Dir: dir}); !errors.Is(err, identity.ErrNotJoined) {
				t.Errorf("after a refusal: %v, want ErrNotJoined", err)
			}
		})
	}
}

func TestTokenOfAnotherCluster(t *testing.T) {
	ours, other := start(t), start(t)
	line := ours.token("pi-1")
	line.URLs = []string{other.url}
	_, err := ours.join(t.TempDir(), line)
	if !errors.Is(err, identity.ErrWrongCA) {
		t.Fatalf("error %v, want ErrWrongCA", err)
	}
	for _, word := range []string{ours.authority.RootHash(), other.authority.RootHash(), "coracle token create"} {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%q lacks %q", err, word)
		}
	}
	// The token must not have been sent to the stranger: it still serves.
	line.URLs = []string{ours.url}
	if _, err := ours.join(t.TempDir(), line); err != nil {
		t.Error(err)
	}
}

// A node's certificate is a serving certificate too: it must not pass for the endpoint.
func TestNodeCannotPretendToBeTheEndpoint(t *testing.T) {
	c := start(t)
	thief, _ := c.mustJoin("thief")
	cert := *thief.Certificate()
	cert.Certificate = append(cert.Certificate[:1:1], c.authority.Root().Raw)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.(*tls.Conn).Handshake()
			conn.Close()
		}
	}()
	line := c.token("pi-1")
	line.URLs = []string{"https://" + l.Addr().String()}
	if _, err := c.join(t.TempDir(), line); !errors.Is(err, identity.ErrUntrusted) {
		t.Fatalf("error %v, want ErrUntrusted", err)
	}
}

// The answer to a join may be lost: the board asks again, with the same key,
// also when the token has expired or was deleted meanwhile, and after a crash at any step.
func TestLostAnswerStrandsNobody(t *testing.T) {
	for name, between := range map[string]func(c *cluster, line enrollment.Line){
		"at once": func(*cluster, enrollment.Line) {},
		"expired": func(c *cluster, _ enrollment.Line) { c.clock.Advance(2 * join.DefaultTokenLife) },
		"pruned": func(c *cluster, line enrollment.Line) {
			id, _, _ := enrollment.SplitToken(line.Token)
			c.client.CoreV1().Secrets(noderecord.Namespace).Delete(c.t.Context(), "join-token-"+id, metav1.DeleteOptions{})
		},
		"record not written": func(c *cluster, _ enrollment.Line) {
			c.clock.Advance(2 * join.DefaultTokenLife)
			c.client.CoreV1().Secrets(noderecord.Namespace).Delete(c.t.Context(), noderecord.SecretName("pi-1"), metav1.DeleteOptions{})
		},
	} {
		t.Run(name, func(t *testing.T) {
			c, dir := start(t), t.TempDir()
			line := c.token("pi-1")
			first, err := c.join(dir, line)
			if err != nil {
				t.Fatal(err)
			}
			// As if the power went after the request: the keys are there, the grant isn't.
			if err := os.Remove(filepath.Join(dir, "identity.json")); err != nil {
				t.Fatal(err)
			}
			between(c, line)
			second, err := c.join(dir, line)
			if err != nil {
				t.Fatal(err)
			}
			if !second.SigningKey.Equal(first.SigningKey) {
				t.Error("the board made a second key")
			}
			if name == "at once" && string(second.Certificate().Certificate[0]) != string(first.Certificate().Certificate[0]) {
				t.Error("the answer wasn't repeated but made anew")
			}
		})
	}
}

func TestTwoBoardsOneToken(t *testing.T) {
	c := start(t)
	line := c.token("pi-1")
	const boards = 8
	errs := make(chan error, boards)
	for range boards {
		dir := t.TempDir()
		go func() {
			_, err := c.join(dir, line)
			errs <- err
		}()
	}
	won := 0
	for range boards {
		switch err := <-errs; {
		case err == nil:
			won++
		case !errors.Is(err, enrollment.ErrTokenUsed) && !errors.Is(err, enrollment.ErrNodeTaken):
			t.Errorf("unexpected: %v", err)
		}
	}
	if won != 1 {
		t.Errorf("%d boards joined with one token", won)
	}
}

// With --replace the record lets the name go, so only the token itself is left
// to say that it serves one key.
func TestTwoBoardsOneReplacingToken(t *testing.T) {
	c := start(t)
	c.mustJoin("pi-1")
	line := c.token("pi-1", replace)
	// Another request binds the token after ours read it and before ours writes.
	rival := strings.Repeat("ab", 32)
	done := false
	c.client.PrependReactor("update", "secrets", func(action clienttesting.Action) (bool, runtime.Object, error) {
		secret := action.(clienttesting.UpdateAction).GetObject().(*corev1.Secret).DeepCopy()
		if secret.Type != join.TokenSecretType || done {
			return false, nil, nil
		}
		done = true
		secret.Data["used-by"] = []byte(rival)
		secret.ResourceVersion = "2"
		return false, nil, c.client.Tracker().Update(action.GetResource(), secret, secret.Namespace)
	})
	_, err := c.join(t.TempDir(), line)
	if !errors.Is(err, enrollment.ErrTokenUsed) || !strings.Contains(err.Error(), rival[:16]) {
		t.Errorf("the slower board: %v, want ErrTokenUsed and the faster one's key", err)
	}
	if !done {
		t.Error("the token was never written")
	}
}

func TestReplacedBoard(t *testing.T) {
	c := start(t)
	old, _ := c.mustJoin("pi-1")
	line := c.token("pi-1", replace)
	young, err := c.join(t.TempDir(), line)
	if err != nil {
		t.Fatal(err)
	}
	if got := c.get(young, enrollment.ObjectsPath+"00"); got != "200 pi-1" {
		t.Errorf("the new board: %s", got)
	}
	if got := c.get(old, enrollment.ObjectsPath+"00"); !strings.HasPrefix(got, "409") {
		t.Errorf("the replaced board: %s", got)
	}
	if err := old.Renew(t.Context()); !errors.Is(err, enrollment.ErrNodeKey) || !strings.Contains(err.Error(), "--replace") {
		t.Errorf("the replaced board renews: %v", err)
	}
	if _, err := join.CreateToken(t.Context(), c.client, join.TokenOptions{Node: "pi-1"}); !errors.Is(err, enrollment.ErrNodeTaken) {
		t.Errorf("token for a taken name: %v", err)
	}
}

func TestRenewWithExpiredCertificate(t *testing.T) {
	c := start(t)
	id, dir := c.mustJoin("pi-1")
	first := id.Certificate().Leaf
	if id.NeedsRenewal() {
		t.Fatal("a new certificate needs renewal")
	}
	c.clock.Advance(3 * 365 * 24 * time.Hour)
	if err := c.authority.Renew(); err != nil { // as Run does in three years
		t.Fatal(err)
	}
	if !id.NeedsRenewal() || !c.clock.Now().After(first.NotAfter) {
		t.Fatal("not expired after three years")
	}
	if got := c.get(id, enrollment.ObjectsPath+"00"); !strings.HasPrefix(got, "401") || !strings.Contains(got, enrollment.RenewPath) {
		t.Errorf("with the expired certificate: %s", got)
	}
	if err := id.Renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	if second := id.Certificate().Leaf; !second.NotAfter.After(c.clock.Now()) || !first.PublicKey.(ed25519.PublicKey).Equal(second.PublicKey) {
		t.Errorf("new certificate until %s, of the same key", second.NotAfter)
	}
	select {
	case <-id.Renewed():
	default:
		t.Error("nobody is told of the renewal")
	}
	if got := c.get(id, enrollment.ObjectsPath+"00"); got != "200 pi-1" {
		t.Errorf("with the new one: %s", got)
	}
	again, err := identity.Load(identity.Options{Dir: dir})
	if err != nil || !again.Certificate().Leaf.Equal(id.Certificate().Leaf) {
		t.Errorf("the renewed certificate isn't durable: %v", err)
	}
}

func TestRevokedIsRefusedAndToldSo(t *testing.T) {
	c := start(t)
	id, _ := c.mustJoin("pi-1")
	store := noderecord.Store{Client: c.client}
	if err := store.Revoke(t.Context(), "pi-1", "stolen from the hall", c.clock.Now()); err != nil {
		t.Fatal(err)
	}
	err := id.Renew(t.Context())
	if !errors.Is(err, enrollment.ErrRevoked) || !strings.Contains(err.Error(), "stolen from the hall") || !strings.Contains(err.Error(), "readmit") {
		t.Errorf("renew: %v", err)
	}
	for _, path := range []string{enrollment.ObjectsPath + "00", enrollment.TunnelPath + "abc"} {
		if got := c.get(id, path); !strings.HasPrefix(got, "403") {
			t.Errorf("%s: %s", path, got)
		}
	}
	if was, err := store.Readmit(t.Context(), "pi-1"); err != nil || !errors.Is(was, enrollment.ErrRevoked) {
		t.Fatalf("was %v, %v", was, err)
	}
	if err := id.Renew(t.Context()); err != nil {
		t.Errorf("after readmission: %v", err)
	}
	if err := c.client.CoreV1().Secrets(noderecord.Namespace).Delete(t.Context(), noderecord.SecretName("pi-1"), metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := id.Renew(t.Context()); !errors.Is(err, enrollment.ErrNodeUnknown) {
		t.Errorf("without a record: %v", err)
	}
}

func TestTunnelNeedsANodesCertificate(t *testing.T) {
	c := start(t)
	id, _ := c.mustJoin("pi-1")
	if got := c.get(id, enrollment.TunnelPath+"abc"); !strings.HasPrefix(got, "418") {
		t.Errorf("node: %s", got)
	}
	if len(c.tunnels.seen) != 1 || c.tunnels.seen[0] != "pi-1 abc" {
		t.Errorf("handed over: %q", c.tunnels.seen)
	}
	admin, err := c.authority.Admin()
	if err != nil {
		t.Fatal(err)
	}
	other := start(t)
	stranger, _ := other.mustJoin("pi-1")
	_, own, _ := ed25519.GenerateKey(rand.Reader)
	selfSigned := selfSign(t, own)
	for name, cert := range map[string]*tls.Certificate{
		"none": nil, "administrator": admin.Current(), "another cluster's": stranger.Certificate(), "self-signed": selfSigned,
	} {
		if got := c.getWith(cert, enrollment.TunnelPath+"abc"); !strings.HasPrefix(got, "401") {
			t.Errorf("%s: %s", name, got)
		}
	}
}

// A token for an audience that isn't the API's: the node asks, the API decides, and
// the time is that of the node's own clock.
func TestNodesAskForTokensThatTheyMayNotSign(t *testing.T) {
	c := start(t)
	id, _ := c.mustJoin("pi-1")
	ask := identity.PodTokenRequest{Namespace: "shop", PodName: "till-0", PodUID: "u", ServiceAccount: "till", Audience: "vault", Life: 10 * time.Minute}
	token, expires, err := id.AskPodToken(t.Context(), ask)
	if err != nil || token != "pi-1 shop till till-0 u vault" {
		t.Fatalf("%q, %v", token, err)
	}
	if left := expires.Sub(c.clock.Now()); left < 9*time.Minute || left > 10*time.Minute {
		t.Errorf("it is good for %v", left)
	}
	ask.PodName = "anothers"
	if _, _, err := id.AskPodToken(t.Context(), ask); err == nil || !strings.Contains(err.Error(), "not its pod") || !strings.Contains(err.Error(), "shop/anothers") {
		t.Errorf("of another's pod: %v", err)
	}
	ask.PodName, ask.Audience = "till-0", ""
	if _, _, err := id.AskPodToken(t.Context(), ask); err == nil || !strings.Contains(err.Error(), "audience") {
		t.Errorf("without an audience: %v", err)
	}
	// A revoked node gets none.
	if err := (noderecord.Store{Client: c.client}).Revoke(t.Context(), "pi-1", "sold", c.clock.Now()); err != nil {
		t.Fatal(err)
	}
	ask.Audience = "vault"
	if _, _, err := id.AskPodToken(t.Context(), ask); !errors.Is(err, enrollment.ErrRevoked) {
		t.Errorf("a revoked node: %v", err)
	}
}

// A board without a clock says 1970; nothing in joining may depend on it, and
// it learns from the certificates that it is later.
func TestJoinAt1970(t *testing.T) {
	c := start(t)
	floor := &memoryFloor{}
	opts := identity.Options{Dir: t.TempDir(), Floor: floor, Now: func() time.Time { return time.Unix(42, 0) }}
	id, err := identity.Join(t.Context(), identity.JoinOptions{Options: opts, Line: c.token("pi-1")})
	if err != nil {
		t.Fatal(err)
	}
	if behind := time.Since(floor.TimeFloor()); behind > 2*time.Hour || behind < 0 {
		t.Errorf("the time floor is %s behind", behind)
	}
	if !id.Now().Equal(floor.TimeFloor()) {
		t.Error("Now isn't the floor")
	}
	if got := c.get(id, enrollment.ObjectsPath+"00"); got != "200 pi-1" {
		t.Errorf("objects: %s", got)
	}
}

func TestJoinLineOfOtherClusterOnAMember(t *testing.T) {
	ours, other := start(t), start(t)
	_, dir := ours.mustJoin("pi-1")
	if _, err := other.join(dir, other.token("pi-1")); !errors.Is(err, identity.ErrOtherCluster) {
		t.Errorf("error %v, want ErrOtherCluster", err)
	}
	if _, err := ours.join(dir, ours.token("pi-2")); !errors.Is(err, identity.ErrOtherName) {
		t.Errorf("error %v, want ErrOtherName", err)
	}
}

// A proof made on one connection is worth nothing on another.
func TestProofCannotBeReplayed(t *testing.T) {
	c := start(t)
	_, key, _ := ed25519.GenerateKey(rand.Reader)
	line := c.token("pi-1")
	body, _ := json.Marshal(enrollment.JoinRequest{
		Token: line.Token, Node: "pi-1", SigningKey: key.Public().(ed25519.PublicKey), SealingKey: make([]byte, 32), KEM: 0x20,
	})
	config := &tls.Config{InsecureSkipVerify: true}
	other, err := tls.Dial("tcp", strings.TrimPrefix(c.url, "https://"), config)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	state := other.ConnectionState()
	text, err := enrollment.ProofText(enrollment.JoinPath, &state, body)
	if err != nil {
		t.Fatal(err)
	}
	problem := c.post(enrollment.JoinPath, body, ed25519.Sign(key, text))
	if !errors.Is(problem.Err(), enrollment.ErrProof) {
		t.Errorf("answer %+v, want ErrProof", problem)
	}
}

func TestBodiesAreBounded(t *testing.T) {
	c := start(t)
	problem := c.post(enrollment.JoinPath, make([]byte, enrollment.MaxBody+1), nil)
	if !errors.Is(problem.Err(), enrollment.ErrBadRequest) {
		t.Errorf("answer %+v", problem)
	}
}

func TestTooManyRequestsFromOneAddress(t *testing.T) {
	c := start(t)
	busy := 0
	for range 150 {
		if problem := c.post(enrollment.RenewPath, []byte("{}"), nil); errors.Is(problem.Err(), enrollment.ErrBusy) {
			if problem.RetryAfter == 0 {
				t.Fatal("busy without saying for how long")
			}
			busy++
		}
	}
	if busy == 0 {
		t.Error("150 requests in a row were all answered")
	}
}

type memoryFloor struct {
	mu sync.Mutex
	at time.Time
}

func (f *memoryFloor) TimeFloor() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.at
}

func (f *memoryFloor) RaiseTimeFloor(t time.Time) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.at = t
	return nil
}

func (c *cluster) secrets() []corev1.Secret {
	c.t.Helper()
	list, err := c.client.CoreV1().Secrets(noderecord.Namespace).List(c.t.Context(), metav1.ListOptions{})
	if err != nil {
		c.t.Fatal(err)
	}
	return list.Items
}

// get asks as the node and returns "STATUS BODY".
func (c *cluster) get(id *identity.Identity, path string) string {
	return c.getWith(id.Certificate(), path)
}

func (c *cluster) getWith(cert *tls.Certificate, path string) string {
	c.t.Helper()
	config := &tls.Config{RootCAs: c.authority.RootPool(), ServerName: enrollment.FleetServerName, Time: c.clock.Now}
	if cert != nil {
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	client := http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}, Timeout: 10 * time.Second}
	response, err := client.Get(c.url + path)
	if err != nil {
		c.t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return strings.TrimSpace(strconv.Itoa(response.StatusCode) + " " + string(body))
}

func (c *cluster) post(path string, body, proof []byte) enrollment.Problem {
	c.t.Helper()
	config := &tls.Config{RootCAs: c.authority.RootPool(), ServerName: enrollment.FleetServerName}
	client := http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}, Timeout: 10 * time.Second}
	request, err := http.NewRequest(http.MethodPost, c.url+path, strings.NewReader(string(body)))
	if err != nil {
		c.t.Fatal(err)
	}
	request.Header.Set(enrollment.ProofHeader, b64(proof))
	response, err := client.Do(request)
	if err != nil {
		c.t.Fatal(err)
	}
	defer response.Body.Close()
	var problem enrollment.Problem
	if err := json.NewDecoder(response.Body).Decode(&problem); err != nil {
		c.t.Fatal(err)
	}
	return problem
}

func selfSign(t *testing.T, key ed25519.PrivateKey) *tls.Certificate {
	t.Helper()
	template := &x509.Certificate{SerialNumber: bigOne(), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	template.Subject.CommonName = enrollment.NodeUserPrefix + "pi-1"
	template.Subject.Organization = []string{enrollment.NodesGroup}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
