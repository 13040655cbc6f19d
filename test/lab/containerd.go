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
	return StartContainerdOf(t, oci.PrivateConfig{Dir: dir, RegistryHosts: hosts}, remove)
}

// Pool is where pods of the tests have their addresses.
const Pool = "10.231.0.0/16"

// StartContainerdOf is StartContainerdIn of a containerd with more said of it,
// such as its program. Pool, logger and timeout are set here.
func StartContainerdOf(t testing.TB, cfg oci.PrivateConfig, remove bool) *oci.Private {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	dir := cfg.Dir
	cfg.Pool, cfg.StartTimeout = netip.MustParsePrefix(Pool), time.Minute
	cfg.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	p, err := oci.StartPrivate(ctx, cfg)
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.Stop()
		cancel()
		if remove {
			if err := oci.RemoveNetwork(cfg); err != nil {
				t.Log(err)
			}
			if err := UnmountBelow(dir); err != nil {
				t.Log(err)
			}
			os.RemoveAll(dir)
		}
	})
	return p
}
