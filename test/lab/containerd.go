package lab

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/coracle-edge/coracle/crishim/oci"
)

// StartContainerd runs a containerd of the test's own, with a bridge network
// and the pause image, until the test ends. The test must be inside Main's
// namespaces. hosts is a registry hosts directory or "".
func StartContainerd(t testing.TB, hosts string) *oci.Private {
	t.Helper()
	NeedNamespaces(t)
	Need(t, "containerd", "runc")
	// A short path: sockets have 107 bytes.
	dir, err := os.MkdirTemp("", "cor-ctd-*")
	if err != nil {
		t.Fatal(err)
	}
	return StartContainerdIn(t, dir, hosts, true)
}

// StartContainerdIn is StartContainerd in a folder that the caller keeps when
// remove is false, for tests that kill and restart it.
func StartContainerdIn(t testing.TB, dir, hosts string, remove bool) *oci.Private {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	p, err := oci.StartPrivate(ctx, oci.PrivateConfig{
		Dir: dir, Subnet: netip.MustParsePrefix("10.231.7.0/24"), RegistryHosts: hosts,
		Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})), StartTimeout: time.Minute,
	})
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.Stop()
		cancel()
		if remove {
			if err := unmountBelow(dir); err != nil {
				t.Log(err)
			}
			os.RemoveAll(dir)
		}
	})
	return p
}
