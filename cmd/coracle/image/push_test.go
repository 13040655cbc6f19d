package image_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"

	"github.com/coracle-edge/coracle/cmd/coracle/image"
	"github.com/coracle-edge/coracle/cmd/coracle/registry"
)

var module = []byte("\x00asm\x01\x00\x00\x00")

func startRegistry(t *testing.T, addr string) *registry.Registry {
	t.Helper()
	r := &registry.Registry{Dir: t.TempDir()}
	l, err := r.Listen(addr)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error("registry:", err)
		}
	})
	return r
}

func fetch(ctx context.Context, t *testing.T, hostsDir, ref string) []byte {
	t.Helper()
	resolver := docker.NewResolver(docker.ResolverOptions{
		Hosts: config.ConfigureHosts(ctx, config.HostOptions{HostDir: config.HostDirFromRoot(hostsDir)})})
	name, desc, err := resolver.Resolve(ctx, ref)
	if err != nil {
		t.Fatal(err)
	}
	f, err := resolver.Fetcher(ctx, name)
	if err != nil {
		t.Fatal(err)
	}
	rc, err := f.Fetch(ctx, desc)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	b, err := io.ReadAll(rc)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestPushedArtifactComesBackAsPushed(t *testing.T) {
	ctx := t.Context()
	r := startRegistry(t, "127.0.0.1:0")
	a, err := image.New(module, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	ref := registry.Name + "/coracle/empty:v1"
	for range 2 { // the second push finds everything there
		d, err := image.Push(ctx, a, ref, r.HostsDir())
		if err != nil {
			t.Fatal(err)
		}
		if d != a.ManifestDesc.Digest {
			t.Fatalf("digest %s, want %s", d, a.ManifestDesc.Digest)
		}
	}
	if got := fetch(ctx, t, r.HostsDir(), ref); !bytes.Equal(got, a.Manifest) {
		t.Fatalf("manifest came back as %s", got)
	}
}

func TestListenTakesAnotherPortWhenTaken(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	r := startRegistry(t, l.Addr().String())
	a, _ := image.New(module, time.Time{})
	if _, err := image.Push(t.Context(), a, registry.Name+"/coracle/empty:v1", r.HostsDir()); err != nil {
		t.Fatal(err)
	}
}

func TestNewRefusesWhatIsNotWasm(t *testing.T) {
	if _, err := image.New([]byte("#!/bin/sh\n"), time.Time{}); !errors.Is(err, image.ErrNotWasm) {
		t.Fatalf("err = %v", err)
	}
}

func TestPushNamesTheBadReference(t *testing.T) {
	a, _ := image.New(module, time.Time{})
	if _, err := image.Push(t.Context(), a, "Not A Ref", ""); err == nil || !bytes.Contains([]byte(err.Error()), []byte(`"Not A Ref"`)) {
		t.Fatalf("err = %v", err)
	}
}
