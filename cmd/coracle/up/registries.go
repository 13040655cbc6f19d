package up

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/coracle-edge/coracle/cmd/coracle/registry"
)

// nodeRegistries makes the registry hosts directory of the nodes: the cluster's
// own registry, what the operator's directory says, and the mirror of all others.
// What listens on loopback is also offered where isolated nodes reach it.
func nodeRegistries(o Options, reg *registry.Registry, own net.Listener, lan *lan, start func(func(context.Context) error)) (string, error) {
	if lan == nil && o.RegistryMirror == "" && o.RegistryHosts == "" {
		return reg.HostsDir(), nil
	}
	dir := filepath.Join(reg.Dir, "nodes.d")
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o755)); err != nil {
		return "", err
	}
	if o.RegistryHosts != "" {
		entries, err := os.ReadDir(o.RegistryHosts)
		if err != nil {
			return "", fmt.Errorf("--registry-hosts: %w", err)
		}
		for _, e := range entries {
			if err := os.Symlink(filepath.Join(o.RegistryHosts, e.Name()), filepath.Join(dir, e.Name())); err != nil {
				return "", err
			}
		}
	}
	if o.RegistryMirror != "" {
		mirror, err := mirrorFor(o.RegistryMirror, lan, start)
		if err != nil {
			return "", err
		}
		// Itself the server: nobody is asked if it hasn't an image.
		text := fmt.Sprintf("server = %[1]q\n\n[host.%[1]q]\n  capabilities = [\"pull\", \"resolve\"]\n", mirror)
		if err := writeHosts(dir, "_default", []byte(text)); err != nil {
			return "", err
		}
	}
	address := own.Addr().String()
	if lan != nil {
		theirs, err := forward(netip.AddrPortFrom(lan.host(), netip.MustParseAddrPort(address).Port()), address, start)
		if err != nil {
			return "", err
		}
		address = theirs
	}
	return dir, writeHosts(dir, registry.Name, []byte(reg.Hosts(address)))
}

func writeHosts(dir, host string, text []byte) error {
	dir = filepath.Join(dir, host)
	if err := os.RemoveAll(dir); err != nil { // a link into the operator's
		return err
	}
	return writeFile(filepath.Join(dir, "hosts.toml"), text, 0o644)
}

// mirrorFor is the URL under which nodes reach the mirror.
func mirrorFor(mirror string, lan *lan, start func(func(context.Context) error)) (string, error) {
	u, err := url.Parse(mirror)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return "", fmt.Errorf("--registry-mirror %q: give a URL such as http://127.0.0.1:5000", mirror)
	}
	ip, err := netip.ParseAddr(u.Hostname())
	if lan == nil || u.Hostname() != "localhost" && (err != nil || !ip.IsLoopback()) {
		return mirror, nil
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	if u.Host, err = forward(netip.AddrPortFrom(lan.host(), 0), net.JoinHostPort(u.Hostname(), port), start); err != nil {
		return "", err
	}
	return u.String(), nil
}

// forward listens at an address, or at another port of it if that is taken, for
// connections that it passes on to another. It returns where it listens.
func forward(at netip.AddrPort, to string, start func(func(context.Context) error)) (string, error) {
	l, err := net.Listen("tcp", at.String())
	if err != nil && at.Port() != 0 {
		l, err = net.Listen("tcp", netip.AddrPortFrom(at.Addr(), 0).String())
	}
	if err != nil {
		return "", fmt.Errorf("an address for nodes to reach %s: %w", to, err)
	}
	f := &forwarder{to: to, slots: make(chan struct{}, maxForwarded)}
	start(func(ctx context.Context) error { return f.serve(ctx, l) })
	return l.Addr().String(), nil
}

// forwarder passes connections on.
type forwarder struct {
	to    string
	slots chan struct{} // one for each connection
}

const (
	maxForwarded   = 256
	forwardTimeout = 10 * time.Second // of the dial
)

func (f *forwarder) serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	var passing sync.WaitGroup
	defer passing.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case f.slots <- struct{}{}:
		}
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("%s, for nodes to reach %s: %w", l.Addr(), f.to, err)
		}
		passing.Go(func() {
			defer func() { <-f.slots }()
			f.pass(ctx, conn)
		})
	}
}

// pass copies both ways until both have ended.
func (f *forwarder) pass(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	dialer := net.Dialer{Timeout: forwardTimeout}
	other, err := dialer.DialContext(ctx, "tcp", f.to)
	if err != nil {
		return // the caller sees that nobody answers
	}
	defer other.Close()
	stop := context.AfterFunc(ctx, func() { _, _ = conn.Close(), other.Close() })
	defer stop()
	var back sync.WaitGroup
	back.Go(func() { copyHalf(conn, other) })
	copyHalf(other, conn)
	back.Wait()
}

func copyHalf(to, from net.Conn) {
	_, _ = io.Copy(to, from)
	if t, ok := to.(*net.TCPConn); ok {
		_ = t.CloseWrite()
	}
}
