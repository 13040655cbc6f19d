package up

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/coracle-edge/coracle/cmd/coracle/registry"
)

// parts runs what is started until the test ends.
func parts(t *testing.T) func(func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		all.Wait()
	})
	return func(run func(context.Context) error) {
		all.Go(func() {
			if err := run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
}

// Nodes with a network of their own are led to what listens on this machine's
// loopback, under an address that they reach; what the operator says stays.
func TestNodesAreLedToRegistries(t *testing.T) {
	mirror := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "mirror") }))
	defer mirror.Close()
	theirs := t.TempDir()
	for _, host := range []string{"registry.example", registry.Name} {
		if err := os.MkdirAll(filepath.Join(theirs, host), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(theirs, host, "hosts.toml"), []byte("# of "+host), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	reg := &registry.Registry{Dir: t.TempDir(), Addresses: []net.IP{net.IPv4(127, 9, 8, 1)}}
	l, err := reg.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	start := parts(t)
	start(func(ctx context.Context) error { return reg.Serve(ctx, l) })
	// Loopback has sixteen million addresses: one stands for the bridge's.
	n := &lan{subnet: netip.MustParsePrefix("127.9.8.0/24")}
	dir, err := nodeRegistries(Options{RegistryMirror: mirror.URL, RegistryHosts: theirs}, reg, l, n, start)
	if err != nil {
		t.Fatal(err)
	}
	read := func(host string) string {
		raw, err := os.ReadFile(filepath.Join(dir, host, "hosts.toml"))
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	if got := read("registry.example"); got != "# of registry.example" {
		t.Errorf("the operator's: %q", got)
	}
	if raw, err := os.ReadFile(filepath.Join(theirs, registry.Name, "hosts.toml")); err != nil || string(raw) != "# of "+registry.Name {
		t.Errorf("the operator's file was changed: %q %v", raw, err)
	}
	own := read(registry.Name)
	if !strings.Contains(own, `"https://127.9.8.1:`) {
		t.Errorf("the cluster's own registry is at\n%s", own)
	}
	other := read("_default")
	_, url, _ := strings.Cut(other, `server = "`)
	url, _, _ = strings.Cut(url, `"`)
	if !strings.HasPrefix(url, "http://127.9.8.1:") || !strings.Contains(other, `[host."`+url+`"]`) {
		t.Fatalf("the mirror is at\n%s", other)
	}
	resp, err := http.Get(url + "/v2/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "mirror" {
		t.Errorf("by the forwarder: %q %v", body, err)
	}
}

func TestMirrorURLs(t *testing.T) {
	for _, c := range []struct {
		url  string
		good bool
	}{
		{"http://127.0.0.1:5000", true}, {"https://mirror.example/path", true}, {"http://localhost:5000", true},
		{"127.0.0.1:5000", false}, {"mirror.example", false}, {"ftp://mirror.example", false}, {"", false}, {"http://", false},
	} {
		got, err := mirrorFor(c.url, nil, nil) // nodes share this machine's loopback
		if (err == nil) != c.good || err == nil && got != c.url {
			t.Errorf("%q: %q, %v", c.url, got, err)
		}
	}
}

func TestForwarderEndsWithItsConnections(t *testing.T) {
	quiet, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer quiet.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	f := &forwarder{to: quiet.Addr().String(), slots: make(chan struct{}, 1)}
	ended := make(chan error, 1)
	go func() { ended <- f.serve(ctx, l) }()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	there, err := quiet.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer there.Close()
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection is open still: %v", err)
	}
}

func TestAddressesOfBoards(t *testing.T) {
	n := &lan{layout: Layout{Root: "/x"}, subnet: netip.MustParsePrefix("10.200.7.0/24")}
	seen := map[string]bool{n.host().String(): true}
	for i := 1; i <= maxBoards; i++ {
		a, pods := n.address(i), n.pods(i)
		if !n.subnet.Contains(a) || seen[a.String()] || !podPool.Contains(pods.Addr()) || seen[pods.String()] || a.As4()[3] == 255 {
			t.Errorf("board %d: %s, pods %s", i, a, pods)
		}
		seen[a.String()], seen[pods.String()] = true, true
	}
	if name := lanDevice(n.layout); len(name) > 15 {
		t.Errorf("%s is too long for an interface", name)
	}
}

func TestIsolateIsOneOfThree(t *testing.T) {
	i := IsolateAuto
	if err := i.Set("sometimes"); err == nil || i != IsolateAuto {
		t.Errorf("%s, %v", i, err)
	}
	if err := i.Set("never"); err != nil || i != IsolateNever {
		t.Errorf("%s, %v", i, err)
	}
}
