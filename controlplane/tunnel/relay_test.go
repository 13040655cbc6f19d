package tunnel_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coracle-edge/coracle/controlplane/api/enrollment"
	"github.com/coracle-edge/coracle/controlplane/pki"
	"github.com/coracle-edge/coracle/controlplane/tunnel"
)

// other is the API server's client of nodes on another control plane, which reaches
// them through the first one.
func (f *fleet) other(urls ...string) *http.Client {
	cert := check(f.authority.KubeletClient())(f.t)
	if len(urls) == 0 {
		urls = []string{f.url}
	}
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			node, _, _ := net.SplitHostPort(address)
			return tunnel.DialRelay(ctx, urls, f.relayTLS(cert), node, enrollment.PurposeKubelet)
		},
		TLSClientConfig: &tls.Config{RootCAs: f.authority.RootPool(), GetClientCertificate: cert.GetClientCertificate},
	}
	f.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func (f *fleet) relayTLS(cert *pki.Leaf) *tls.Config {
	return &tls.Config{RootCAs: f.authority.RootPool(), GetClientCertificate: cert.GetClientCertificate}
}

func TestLogsThroughAnotherControlPlane(t *testing.T) {
	f := start(t, tunnel.Config{Timeout: time.Second})
	p := newPods(t, "one")
	f.node("pi-1", p)
	if status, body := get(t, f.other(), base); status != 200 || body != "one\n" {
		t.Errorf("%d %q", status, body)
	}
	// Nothing listens at the first address.
	if status, body := get(t, f.other("https://127.0.0.1:1", f.url), base); status != 200 || body != "one\n" {
		t.Errorf("%d %q", status, body)
	}
	response := check(f.other().Get(base + "?follow=true"))(t)
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
	for _, word := range []string{`node "pi-2"`, "away", "3 minutes ago"} {
		if _, body := get(t, f.other(), strings.Replace(base, "pi-1", "pi-2", 1)); !strings.Contains(body, word) {
			t.Errorf("a node that is away: %q lacks %q", body, word)
		}
	}
}

// When the reader goes, the stream has to end on the node, too, through both.
func TestRelayEndsWithItsReader(t *testing.T) {
	f := start(t, tunnel.Config{})
	f.node("pi-1", newPods(t, "one"))
	for i := range 12 { // three times what the node allows at once
		var err error
		for range 200 {
			ctx, cancel := context.WithCancel(t.Context())
			var response *http.Response
			if response, err = f.other().Do(check(http.NewRequestWithContext(ctx, http.MethodGet, base+"?follow=true", nil))(t)); err == nil {
				_, err = bufio.NewReader(response.Body).ReadString('\n')
				cancel()
				response.Body.Close()
				break
			}
			cancel()
			time.Sleep(20 * time.Millisecond)
		}
		if err != nil {
			t.Fatalf("reader %d: %v", i, err)
		}
	}
}

func TestRelayIsForAPIServersOnly(t *testing.T) {
	f := start(t, tunnel.Config{Timeout: time.Second})
	f.node("pi-1", newPods(t, "one"))
	foreign := check(pki.Open(pki.Options{Dir: filepath.Join(t.TempDir(), "pki")}))(t)
	node := f.identity("pi-2").Certificate()
	for who, config := range map[string]*tls.Config{
		"nobody":             {RootCAs: f.authority.RootPool()},
		"a node":             {RootCAs: f.authority.RootPool(), Certificates: []tls.Certificate{*node}},
		"the administrator":  f.relayTLS(check(f.authority.Admin())(t)),
		"the hub":            f.relayTLS(check(f.authority.Hub())(t)),
		"another cluster's":  f.relayTLS(check(foreign.KubeletClient())(t)),
		"a server's own key": f.relayTLS(check(f.authority.APIServer())(t)),
	} {
		if conn, err := tunnel.DialRelay(t.Context(), []string{f.url}, config, "pi-1", enrollment.PurposeKubelet); err == nil || !errors.Is(err, tunnel.ErrRelay) {
			t.Errorf("%s: %v", who, err)
			conn.Close()
		}
	}
	cert := check(f.authority.KubeletClient())(t)
	for _, name := range []string{"..", "a/b", "", "UPPER", "mqtt.coracle.internal"} {
		if conn, err := tunnel.DialRelay(t.Context(), []string{f.url}, f.relayTLS(cert), name, enrollment.PurposeKubelet); err == nil {
			t.Errorf("node %q", name)
			conn.Close()
		}
	}
	// And it verifies whom it asks.
	wrong := &tls.Config{RootCAs: foreign.RootPool(), GetClientCertificate: cert.GetClientCertificate}
	if _, err := tunnel.DialRelay(t.Context(), []string{f.url}, wrong, "pi-1", enrollment.PurposeKubelet); err == nil {
		t.Error("any server is believed")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := tunnel.DialRelay(ctx, []string{f.url}, f.relayTLS(cert), "pi-1", enrollment.PurposeKubelet); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
