package tunnel_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes/fake"

	"github.com/coracle-edge/coracle/controlplane/api/enrollment"
	"github.com/coracle-edge/coracle/controlplane/join"
	"github.com/coracle-edge/coracle/controlplane/join/noderecord"
	"github.com/coracle-edge/coracle/controlplane/join/permissions"
	"github.com/coracle-edge/coracle/controlplane/pki"
	"github.com/coracle-edge/coracle/controlplane/tunnel"
	"github.com/coracle-edge/coracle/edgelet/identity"
	nodetunnel "github.com/coracle-edge/coracle/edgelet/tunnel"
)

// fleet is a control plane with nodes; the fleet link is a function call.
type fleet struct {
	t         *testing.T
	authority *pki.Authority
	client    *fake.Clientset
	tunnels   *tunnel.Tunnels
	url       string
	listener  *breakable

	mu    sync.Mutex
	nodes map[string]func(nodetunnel.Request) error
}

func (f *fleet) RequestTunnel(_ context.Context, node, id, purpose string) error {
	f.mu.Lock()
	ask := f.nodes[node]
	f.mu.Unlock()
	if ask == nil {
		return errors.New("last heard of 3 minutes ago")
	}
	if err := ask(nodetunnel.Request{ID: id, Purpose: purpose, URL: f.url}); err != nil {
		go f.tunnels.Refused(node, id, err.Error()) // as the link does, later
	}
	return nil
}

// breakable is a listener whose connections can be made to stop without a word.
type breakable struct {
	net.Listener
	dead atomic.Bool
}

func (b *breakable) Accept() (net.Conn, error) {
	conn, err := b.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &frozen{Conn: conn, dead: &b.dead}, nil
}

type frozen struct {
	net.Conn
	dead *atomic.Bool
}

func (f *frozen) Write(b []byte) (int, error) {
	if f.dead.Load() {
		return len(b), nil // into the void, as on a link that broke silently
	}
	return f.Conn.Write(b)
}

func start(t *testing.T, config tunnel.Config) *fleet {
	t.Helper()
	f := &fleet{t: t, client: fake.NewClientset(), nodes: map[string]func(nodetunnel.Request) error{}}
	config.Asker = f
	f.tunnels = tunnel.New(config)
	var err error
	if f.authority, err = pki.Open(pki.Options{Dir: filepath.Join(t.TempDir(), "pki")}); err != nil {
		t.Fatal(err)
	}
	serving, hub := check(f.authority.Fleet())(t), check(f.authority.Hub())(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f.url = "https://" + l.Addr().String()
	server, err := join.New(join.Config{
		Authority: f.authority, Serving: serving, Hub: hub, Client: f.client, Records: noderecord.NewDirectory(f.client, nil),
		Cluster: func() enrollment.Cluster { return enrollment.Cluster{Fleet: []string{f.url}} }, Tunnels: f.tunnels, Relay: f.tunnels,
	})
	if err != nil {
		t.Fatal(err)
	}
	f.listener = &breakable{Listener: l}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx, f.listener) }()
	t.Cleanup(func() { cancel(); <-done })
	return f
}

func check[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func (f *fleet) identity(node string) *identity.Identity {
	f.t.Helper()
	line := check(join.CreateToken(f.t.Context(), f.client, join.TokenOptions{Node: node, URLs: []string{f.url}, CAHash: f.authority.RootHash()}))(f.t)
	return check(identity.Join(f.t.Context(), identity.JoinOptions{Options: identity.Options{Dir: f.t.TempDir()}, Line: line}))(f.t)
}

// node joins one and lets it serve.
func (f *fleet) node(name string, pods nodetunnel.Pods) *nodetunnel.Tunnels {
	f.t.Helper()
	n := nodetunnel.New(nodetunnel.Config{Identity: f.identity(name), Handler: nodetunnel.NewAPI(nodetunnel.APIConfig{Pods: pods}), Streams: 4})
	f.run(name, n)
	return n
}

func (f *fleet) run(name string, n *nodetunnel.Tunnels) {
	f.t.Helper()
	ctx, cancel := context.WithCancel(f.t.Context())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	f.t.Cleanup(func() {
		cancel()
		select {
		case <-done:
		case <-time.After(5 * time.Second):
			f.t.Error("the node's tunnels don't end")
		}
	})
	for n.Request(nodetunnel.Request{ID: "probe", Purpose: "nothing"}) == nodetunnel.ErrStopped {
		time.Sleep(time.Millisecond)
	}
	f.connect(name, n.Request)
}

func (f *fleet) connect(node string, ask func(nodetunnel.Request) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.nodes[node] = ask
}

// kubelet is the API server's client of nodes.
func (f *fleet) kubelet(cert *pki.Leaf) *http.Client {
	transport := &http.Transport{
		DialContext:         f.tunnels.DialContext,
		TLSClientConfig:     &tls.Config{RootCAs: f.authority.RootPool(), GetClientCertificate: cert.GetClientCertificate},
		TLSHandshakeTimeout: 2 * time.Second,
	}
	f.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func (f *fleet) apiServer() *http.Client { return f.kubelet(check(f.authority.KubeletClient())(f.t)) }

func get(t *testing.T, client *http.Client, url string) (int, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	request := check(http.NewRequestWithContext(ctx, http.MethodGet, url, nil))(t)
	response, err := client.Do(request)
	if err != nil {
		return 0, err.Error()
	}
	defer response.Body.Close()
	return response.StatusCode, string(check(io.ReadAll(response.Body))(t))
}

// pods is one container with a log.
type pods struct {
	path    string
	running atomic.Bool
	err     error
}

func newPods(t *testing.T, lines ...string) *pods {
	p := &pods{path: filepath.Join(t.TempDir(), "0.log")}
	p.running.Store(true)
	p.say(t, lines...)
	return p
}

func (p *pods) say(t *testing.T, lines ...string) {
	t.Helper()
	f := check(os.OpenFile(p.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600))(t)
	defer f.Close()
	for _, line := range lines {
		if _, err := fmt.Fprintf(f, "%s stdout F %s\n", time.Now().UTC().Format(time.RFC3339Nano), line); err != nil {
			t.Fatal(err)
		}
	}
}

func (p *pods) ContainerLog(namespace, pod, container string, previous bool) (nodetunnel.Log, error) {
	switch {
	case pod != "hello":
		return nodetunnel.Log{}, nodetunnel.ErrPodNotFound
	case container != "main":
		return nodetunnel.Log{}, nodetunnel.ErrContainerNotFound
	case p.err != nil:
		return nodetunnel.Log{}, p.err
	case previous:
		return nodetunnel.Log{}, fmt.Errorf("previous terminated container %q in pod %q not found", container, pod)
	}
	return nodetunnel.Log{Path: p.path, Running: p.running.Load}, nil
}

const base = "https://pi-1:10250/containerLogs/default/hello/main"

func TestLogsThroughTheTunnel(t *testing.T) {
	f := start(t, tunnel.Config{})
	p := newPods(t, "one", "two", "three")
	f.node("pi-1", p)
	client := f.apiServer()
	for _, test := range []struct {
		url    string
		status int
		body   string
	}{
		{base, 200, "one\ntwo\nthree\n"},
		{base + "?tailLines=1", 200, "three\n"},
		{base + "?tailLines=0", 200, ""},
		{base + "?sinceSeconds=3600&limitBytes=5", 200, "one\nt"},
		{base + "?previous=true", 400, `previous terminated container "main" in pod "hello" not found`},
		{base + "?tailLines=x", 400, `{"message": "Unable to decode query."}`},
		{base + "?tailLines=-1", 422, `{"message": "Invalid request."}`},
		{"https://pi-1:10250/containerLogs/default/nobody/main", 404, `pod "nobody" does not exist`},
		{"https://pi-1:10250/containerLogs/default/hello/side", 404, `container "side" not found in pod "hello"`},
		{"https://pi-1:10250/healthz", 200, "ok"},
		{"https://pi-1:10250/healthz/syncloop", 200, "ok"},
		{"https://pi-1:10250/healthz?verbose", 200, "[+]ping ok\n[+]log ok\n[+]syncloop ok\nhealthz check passed\n"},
		{"https://pi-1:10250/debug/pprof/profile", 405, "profiling endpoint is disabled.\n"},
		{"https://pi-1:10250/logs/", 405, "logs endpoint is disabled.\n"},
		{"https://pi-1:10250/etc/passwd", 404, "404 page not found\n"},
	} {
		if status, body := get(t, client, test.url); status != test.status || body != test.body {
			t.Errorf("%s: %d %q, want %d %q", test.url, status, body, test.status, test.body)
		}
	}
	p.err = fmt.Errorf(`container "main" in pod "hello" is waiting to start: ContainerCreating`)
	if status, body := get(t, client, base); status != 400 || body != p.err.Error() {
		t.Errorf("waiting container: %d %q", status, body)
	}
}

func TestFollowStreams(t *testing.T) {
	f := start(t, tunnel.Config{})
	p := newPods(t, "one")
	f.node("pi-1", p)
	response := check(f.apiServer().Get(base + "?follow=true"))(t)
	defer response.Body.Close()
	lines := bufio.NewScanner(response.Body)
	for _, want := range []string{"one", "two", "three"} {
		if want != "one" {
			p.say(t, want)
		}
		if !lines.Scan() || lines.Text() != want {
			t.Fatalf("got %q, %v; want %q at once", lines.Text(), lines.Err(), want)
		}
	}
	p.running.Store(false)
	if lines.Scan() || lines.Err() != nil {
		t.Errorf("after the container's end: %q, %v; want a clean end", lines.Text(), lines.Err())
	}
}

// When the reader goes, the node's stream has to end too.
func TestFollowEndsWithItsReader(t *testing.T) {
	f := start(t, tunnel.Config{})
	p := newPods(t, "one")
	f.node("pi-1", p)
	for i := range 12 { // three times what the node allows at once
		ctx, cancel := context.WithCancel(t.Context())
		request := check(http.NewRequestWithContext(ctx, http.MethodGet, base+"?follow=true", nil))(t)
		var err error
		// The node notices the end of the former ones a moment later.
		for range 100 {
			var response *http.Response
			if response, err = f.apiServer().Do(request); err == nil {
				bufio.NewReader(response.Body).ReadString('\n')
				cancel()
				response.Body.Close()
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		cancel()
		if err != nil {
			t.Fatalf("reader %d: %v", i, err)
		}
	}
}

func TestNodeAway(t *testing.T) {
	f := start(t, tunnel.Config{Timeout: 300 * time.Millisecond})
	_, body := get(t, f.apiServer(), base)
	for _, word := range []string{`node "pi-1"`, "away", "3 minutes ago"} {
		if !strings.Contains(body, word) {
			t.Errorf("%q lacks %q", body, word)
		}
	}
	// Connected as far as anyone knows, but silent.
	f.connect("pi-1", func(nodetunnel.Request) error { return nil })
	began := time.Now()
	_, body = get(t, f.apiServer(), base)
	for _, word := range []string{`node "pi-1"`, "silent", "away"} {
		if !strings.Contains(body, word) {
			t.Errorf("%q lacks %q", body, word)
		}
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("took %s", took)
	}
	// It refuses, with a reason.
	f.connect("pi-1", func(nodetunnel.Request) error { return nodetunnel.ErrBusy })
	if _, body = get(t, f.apiServer(), base); !strings.Contains(body, `node "pi-1"`) || !strings.Contains(body, nodetunnel.ErrBusy.Error()) {
		t.Errorf("refused: %q", body)
	}
}

// A node that dials and then says nothing must not hold the API server.
func TestHalfOpenBeforeTLS(t *testing.T) {
	f := start(t, tunnel.Config{})
	id := f.identity("pi-1")
	f.connect("pi-1", func(r nodetunnel.Request) error {
		go dialOnly(t, f, id, r.ID)
		return nil
	})
	began := time.Now()
	if _, body := get(t, f.apiServer(), base); !strings.Contains(body, "TLS handshake timeout") {
		t.Errorf("got %q", body)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("took %s", took)
	}
}

// The link breaks without a word while a log is followed: new requests fail with
// a clear error, and the old one doesn't hold anyone else up.
func TestLinkBreaksSilently(t *testing.T) {
	f := start(t, tunnel.Config{Timeout: 300 * time.Millisecond})
	p := newPods(t, "one")
	f.node("pi-1", p)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	request := check(http.NewRequestWithContext(ctx, http.MethodGet, base+"?follow=true", nil))(t)
	response := check(f.apiServer().Do(request))(t)
	defer response.Body.Close()
	client := f.apiServer()
	if status, _ := get(t, client, base); status != 200 {
		t.Fatalf("status %d", status)
	}
	f.listener.dead.Store(true)
	// The same client, that has just had an answer: it must not wait on that connection.
	if _, body := get(t, client, base); !strings.Contains(body, `node "pi-1"`) || !strings.Contains(body, "silent") {
		t.Errorf("got %q", body)
	}
	f.listener.dead.Store(false)
	if status, body := get(t, f.apiServer(), base); status != 200 || body != "one\n" {
		t.Errorf("after the link is back: %d %q", status, body)
	}
}

func TestOnlyTheAPIServerMayUseTheNode(t *testing.T) {
	f := start(t, tunnel.Config{})
	f.node("pi-1", newPods(t, "secret"))
	other := start(t, tunnel.Config{})
	admin := check(f.authority.Admin())(t)
	hub := check(f.authority.Hub())(t)
	stranger := check(other.authority.KubeletClient())(t)
	for name, cert := range map[string]*pki.Leaf{"administrator": admin, "hub": hub, "other cluster's API server": stranger} {
		if status, body := get(t, f.kubelet(cert), base); status != 0 {
			t.Errorf("%s got %d %q", name, status, body)
		}
	}
	if status, body := get(t, f.apiServer(), base); status != 200 {
		t.Errorf("the API server got %d %q", status, body)
	}
}

// A node may only answer for itself.
func TestNodeCannotTakeAnothersTunnel(t *testing.T) {
	f := start(t, tunnel.Config{Timeout: 500 * time.Millisecond})
	thief := f.identity("thief")
	taken := make(chan string, 1)
	f.connect("pi-1", func(r nodetunnel.Request) error {
		go func() { taken <- dialOnly(t, f, thief, r.ID) }()
		return nil
	})
	if _, body := get(t, f.apiServer(), base); !strings.Contains(body, "silent") {
		t.Errorf("got %q", body)
	}
	if answer := <-taken; !strings.Contains(answer, "404") {
		t.Errorf("the thief was told %q", answer)
	}
}

// The line of the table of permissions that is about tunnels: as that node, as
// another, as a revoked one.
func TestTheTableOfPermissionsHoldsForTunnels(t *testing.T) {
	f := start(t, tunnel.Config{Timeout: 2 * time.Second})
	rule, ok := permissions.Find(check(permissions.Table())(t), permissions.Fleet, "GET /v1/tunnel/ID", "get")
	if !ok {
		t.Fatal("the table has no line for tunnels")
	}
	ids := map[string]*identity.Identity{"own": f.identity("pi-1"), "other": f.identity("pi-2")}
	takes := func(as string) bool {
		answer := make(chan string, 1)
		f.connect("pi-1", func(r nodetunnel.Request) error {
			go func() { answer <- dialOnly(t, f, ids[as], r.ID) }()
			return nil
		})
		get(t, f.apiServer(), base)
		return strings.Contains(<-answer, "101")
	}
	if got := takes("own"); got != rule.Own {
		t.Errorf("as that node: %v, the table says %v", got, rule.Own)
	}
	if got := takes("other"); got != rule.Others {
		t.Errorf("as another node: %v, the table says %v", got, rule.Others)
	}
	if err := (noderecord.Store{Client: f.client}).Revoke(t.Context(), "pi-1", "", time.Now()); err != nil {
		t.Fatal(err)
	}
	if takes("own") {
		t.Error("a revoked node opens a tunnel")
	}
}

// A node that is refused loses what it has: streams, and those who wait for one.
func TestEndClosesTheNodesStreams(t *testing.T) {
	f := start(t, tunnel.Config{Timeout: 20 * time.Second})
	f.node("pi-1", newPods(t, "one"))
	f.node("pi-2", newPods(t, "one"))
	follow := func(node string) *bufio.Reader {
		response := check(f.apiServer().Get(strings.Replace(base, "pi-1", node, 1) + "?follow=true"))(t)
		t.Cleanup(func() { response.Body.Close() })
		lines := bufio.NewReader(response.Body)
		if line, err := lines.ReadString('\n'); err != nil || line != "one\n" {
			t.Fatalf("%q, %v", line, err)
		}
		return lines
	}
	ended, stays := follow("pi-1"), follow("pi-2")
	f.connect("pi-1", func(nodetunnel.Request) error { return nil }) // asked, and silent
	waiting := make(chan error, 1)
	go func() {
		_, err := f.tunnels.DialContext(t.Context(), "tcp", "pi-1:10250")
		waiting <- err
	}()
	// End as soon as both are there; the waiter may come a moment later.
	for err := error(nil); err == nil; {
		f.tunnels.End("pi-1", "revoked")
		select {
		case err = <-waiting:
			if !errors.Is(err, tunnel.ErrRefused) || !strings.Contains(err.Error(), "revoked") {
				t.Errorf("who waits is told %v", err)
			}
		case <-time.After(5 * time.Millisecond):
		}
	}
	if _, err := ended.ReadString('\n'); err == nil {
		t.Error("the stream goes on")
	}
	more := make(chan error, 1)
	go func() { _, err := stays.ReadByte(); more <- err }()
	select {
	case err := <-more:
		t.Errorf("another node's stream ended: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
}

// What is asked of a node at once is bounded; what is more waits for its turn, and
// not for ever.
func TestPendingIsBounded(t *testing.T) {
	f := start(t, tunnel.Config{Timeout: 5 * time.Second, PendingPerNode: 3, Pending: 5})
	asked := make(chan struct{}, 10)
	f.connect("pi-1", func(nodetunnel.Request) error { asked <- struct{}{}; return nil })
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() { f.tunnels.DialContext(ctx, "tcp", "pi-1:10250") })
		<-asked
	}
	soon, end := context.WithTimeout(ctx, 50*time.Millisecond)
	defer end()
	_, err := f.tunnels.DialContext(soon, "tcp", "pi-1:10250")
	if !errors.Is(err, tunnel.ErrTooMany) || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), `"pi-1"`) {
		t.Errorf("fourth request: %v", err)
	}
	if len(asked) > 0 {
		t.Error("the node was asked for a fourth")
	}
	// Two wait; there is no room for a third, whomever it is for.
	for range 2 {
		wg.Go(func() { f.tunnels.DialContext(ctx, "tcp", "pi-1:10250") })
	}
	for err = nil; !errors.Is(err, tunnel.ErrTooMany); {
		short, end := context.WithTimeout(ctx, time.Millisecond)
		_, err = f.tunnels.DialContext(short, "tcp", "pi-2:10250")
		end()
	}
	cancel()
	wg.Wait()
	// What was given up doesn't count any more.
	f.node("pi-1", newPods(t, "one"))
	if status, _ := get(t, f.apiServer(), base); status != 200 {
		t.Errorf("afterwards: %d", status)
	}
}

// More readers than the node has streams for: they wait for their turn.
func TestReadersWaitForAStream(t *testing.T) {
	f := start(t, tunnel.Config{})
	f.node("pi-1", newPods(t, "one")) // 4 streams
	client := f.apiServer()
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if status, body := get(t, client, base); status != 200 || body != "one\n" {
				t.Errorf("%d %q", status, body)
			}
		})
	}
	wg.Wait()
}

// All streams are taken and stay so: who waits is told, in words.
func TestBusyNodeSaysSo(t *testing.T) {
	f := start(t, tunnel.Config{})
	n := nodetunnel.New(nodetunnel.Config{Identity: f.identity("pi-1"), Handler: nodetunnel.NewAPI(nodetunnel.APIConfig{Pods: newPods(t, "one")}),
		Streams: 1, Waiting: 1, Wait: 100 * time.Millisecond})
	f.run("pi-1", n)
	response := check(f.apiServer().Get(base + "?follow=true"))(t)
	defer response.Body.Close()
	status, body := get(t, f.apiServer(), base)
	for _, word := range []string{"too many tunnels", "1 for purpose", "kubelet", "try again"} {
		if status != http.StatusServiceUnavailable || !strings.Contains(body, word) {
			t.Errorf("%d %q lacks %q", status, body, word)
		}
	}
}

func TestAddresses(t *testing.T) {
	f := start(t, tunnel.Config{})
	for _, address := range []string{"pi-1:22", "pi-1", "PI_1:10250", "[::1]:10250"} {
		if _, err := f.tunnels.DialContext(t.Context(), "tcp", address); !errors.Is(err, tunnel.ErrAddress) {
			t.Errorf("%s: %v", address, err)
		}
	}
}

// The hub may say a thing twice.
func TestDuplicateRequestOpensOneStream(t *testing.T) {
	f := start(t, tunnel.Config{})
	n := f.node("pi-1", newPods(t, "one"))
	f.connect("pi-1", func(r nodetunnel.Request) error {
		return errors.Join(n.Request(r), n.Request(r))
	})
	if status, _ := get(t, f.apiServer(), base); status != 200 {
		t.Errorf("status %d", status)
	}
}

// dialOnly opens the tunnel as id and then says nothing; it returns the status line.
func dialOnly(t *testing.T, f *fleet, id *identity.Identity, request string) string {
	conn, err := tls.Dial("tcp", strings.TrimPrefix(f.url, "https://"), id.ClientTLS(enrollment.FleetServerName))
	if err != nil {
		return err.Error()
	}
	t.Cleanup(func() { conn.Close() })
	fmt.Fprintf(conn, "GET %s%s HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", enrollment.TunnelPath, request, enrollment.TunnelProtocol)
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return err.Error()
	}
	return line
}
