package lab

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
)

// RegistryName is the host by which images of a Registry are called.
const RegistryName = "localhost:5443"

// Registry is CNCF distribution over TLS on loopback, in a process of its own.
type Registry struct {
	Addr     string
	Dir      string
	HostsDir string

	cmd   *exec.Cmd
	stdin *os.File
}

// StartRegistry runs a registry until the test ends.
func StartRegistry(t testing.TB) *Registry {
	t.Helper()
	r := &Registry{Dir: t.TempDir()}
	r.HostsDir = filepath.Join(r.Dir, "hosts.d")
	program := buildPath(t, "registryd", "./test/lab/registryd")
	in, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.stdin = w
	r.cmd = exec.Command(program, r.Dir)
	r.cmd.Stdin, r.cmd.Stderr = in, os.Stderr
	out, err := r.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	in.Close()
	t.Cleanup(r.Stop)
	line, err := bufio.NewReader(out).ReadString('\n')
	addr, ok := strings.CutPrefix(strings.TrimSpace(line), "ready ")
	if err != nil || !ok {
		t.Fatalf("registryd said %q: %v", line, err)
	}
	r.Addr = addr
	return r
}

// ServeAll makes it the mirror of all registries in HostsDir: an image that was
// pushed as NAME:TAG is pulled as ANY.HOST/NAME:TAG too.
func (r *Registry) ServeAll(t testing.TB) {
	t.Helper()
	own, err := os.ReadFile(filepath.Join(r.HostsDir, RegistryName, "hosts.toml"))
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(r.HostsDir, "_default")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), own, 0o644); err != nil {
		t.Fatal(err)
	}
}

// Stop ends the registry.
func (r *Registry) Stop() {
	if r.stdin != nil {
		r.stdin.Close()
		r.stdin = nil
		_ = r.cmd.Wait()
	}
}

// Push uploads an image under NAME:TAG and returns the full reference.
func (r *Registry) Push(t testing.TB, name string, img *Image) string {
	t.Helper()
	ref := RegistryName + "/" + name
	if err := r.push(ref, img); err != nil {
		t.Fatalf("push %s: %v", ref, err)
	}
	return ref
}

func (r *Registry) push(ref string, img *Image) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	quiet := logrus.New()
	quiet.SetOutput(io.Discard)
	ctx = log.WithLogger(ctx, logrus.NewEntry(quiet))
	resolver := docker.NewResolver(docker.ResolverOptions{Hosts: config.ConfigureHosts(ctx, config.HostOptions{HostDir: config.HostDirFromRoot(r.HostsDir)})})
	for i, b := range img.Blobs {
		to := ref
		if i < len(img.Blobs)-1 && isManifest(b.Desc.MediaType) {
			to = ref[:strings.LastIndex(ref, ":")] + "@" + b.Desc.Digest.String() // a manifest of an index
		}
		pusher, err := resolver.Pusher(ctx, to)
		if err != nil {
			return err
		}
		w, err := pusher.Push(ctx, b.Desc)
		if errdefs.IsAlreadyExists(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("%s: %w", b.Desc.MediaType, err)
		}
		err = content.Copy(ctx, w, bytes.NewReader(b.Data), b.Desc.Size, b.Desc.Digest)
		w.Close()
		if err != nil && !errdefs.IsAlreadyExists(err) {
			return fmt.Errorf("%s: %w", b.Desc.MediaType, err)
		}
	}
	return nil
}
