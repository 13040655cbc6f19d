package images

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coracle-edge/coracle/test/lab"
)

// module is the smallest core module.
var module = []byte("\x00asm\x01\x00\x00\x00")

func open(t *testing.T, opts Options) *Store {
	t.Helper()
	if opts.Dir == "" {
		opts.Dir = t.TempDir()
	}
	s, err := Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// blobs counts the files of the content store.
func blobs(t *testing.T, s *Store) int {
	t.Helper()
	m, err := filepath.Glob(s.path("content", "blobs", "sha256", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return len(m)
}

func TestPullEveryShape(t *testing.T) {
	reg := lab.StartRegistry(t)
	compat := lab.Compat(module, "compat-smart", lab.File{Path: "usr/lib/data.txt", Mode: 0o644, Data: []byte("data")})
	for _, c := range []struct {
		name  string
		image *lab.Image
		shape Shape
		why   string
	}{
		{"cncf", lab.CNCF(module), ShapeArtifact, "config media type"},
		{"wasm-to-oci", lab.WasmToOCI(module), ShapeArtifact, "layer media type"},
		{"solo", lab.Solo(module), ShapeArtifact, "layer media type"},
		{"runwasi", lab.Runwasi(module), ShapeArtifact, "layer media type"},
		{"compat", compat, ShapeCompat, "annotation module.wasm.image/variant=compat-smart"},
		{"magic", lab.Compat(module, ""), ShapeCompat, "a module at entrypoint /probe.wasm"},
		{"index", lab.Index(map[string]*lab.Image{"wasip1/wasm": lab.CNCF(module)}), ShapeArtifact, "config media type"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ref := reg.Push(t, "shapes/"+c.name+":1", c.image)
			var prepared []Module
			s := open(t, Options{HostsDir: reg.HostsDir, Prepare: func(_ context.Context, m Module) error {
				prepared = append(prepared, m)
				return nil
			}})
			res, err := s.Pull(t.Context(), PullRequest{Ref: ref})
			if err != nil {
				t.Fatal(err)
			}
			if res.Kind != KindWasm || res.Image.Shape != c.shape || !strings.HasPrefix(res.Why, c.why) {
				t.Fatalf("kind %s, shape %s, why %q", res.Kind, res.Image.Shape, res.Why)
			}
			got, err := os.ReadFile(res.Image.Module.Path)
			if err != nil || !bytes.Equal(got, module) {
				t.Fatalf("module %q: %x, %v", res.Image.Module.Path, got, err)
			}
			if res.Image.Module.Digest != digest.FromBytes(module) || len(prepared) != 1 || prepared[0].Path != res.Image.Module.Path {
				t.Errorf("module %+v, prepared %+v", res.Image.Module, prepared)
			}
			// By name, by digest, by ID, and after a restart.
			s = open(t, Options{Dir: s.opts.Dir})
			for _, name := range []string{ref, res.Image.ID.String(), res.Image.Digests[0]} {
				if img, err := s.Lookup(name); err != nil || img.ID != res.Image.ID {
					t.Errorf("lookup %s: %v, %v", name, img, err)
				}
			}
			if err := s.Remove(ref); err != nil {
				t.Fatal(err)
			}
			left, _ := filepath.Glob(s.path("*s", "*"))
			if n := blobs(t, s); n > 0 || len(left) > 0 {
				t.Errorf("after removal %d blobs and %v are left", n, left)
			}
		})
	}
}

func TestPullLeavesOCIToContainerd(t *testing.T) {
	reg := lab.StartRegistry(t)
	files := []lab.File{{Path: "bin/true", Mode: 0o755, Data: []byte("\x7fELF")}}
	plain := lab.OCI(ocispec.ImageConfig{Entrypoint: []string{"/bin/true"}}, nil, files)
	liar := lab.OCI(ocispec.ImageConfig{Entrypoint: []string{"/bin/true.wasm"}}, nil, []lab.File{{Path: "bin/true.wasm", Mode: 0o755, Data: []byte("\x7fELF")}})
	both := lab.Index(map[string]*lab.Image{"linux/" + runtime.GOARCH: plain, "wasip1/wasm": lab.CNCF(module)})
	s := open(t, Options{HostsDir: reg.HostsDir})
	for name, img := range map[string]*lab.Image{"plain": plain, "liar": liar, "both": both} {
		ref := reg.Push(t, "oci/"+name+":1", img)
		res, err := s.Pull(t.Context(), PullRequest{Ref: ref})
		if err != nil || res.Kind != KindOCI {
			t.Errorf("%s: %+v, %v", name, res, err)
		}
		if n := blobs(t, s); n != 0 {
			t.Errorf("%s: %d blobs stay here", name, n)
		}
	}
	// The handler wins: the index's Wasm entry, and no Wasm for what isn't.
	if res, err := s.Pull(t.Context(), PullRequest{Ref: lab.RegistryName + "/oci/both:1", Handler: HandlerWasm}); err != nil || res.Kind != KindWasm {
		t.Errorf("handler wasm: %+v, %v", res, err)
	}
	_, err := s.Pull(t.Context(), PullRequest{Ref: lab.RegistryName + "/oci/plain:1", Handler: HandlerWasm})
	if !errors.Is(err, ErrNotWasm) || !strings.Contains(err.Error(), "/bin/true begins with 7f 45 4c 46") {
		t.Errorf("handler wasm with an ordinary image: %v", err)
	}
}

func TestPullSameTagWithNewImage(t *testing.T) {
	reg := lab.StartRegistry(t)
	s := open(t, Options{HostsDir: reg.HostsDir})
	ref := reg.Push(t, "app:latest", lab.CNCF(module))
	one, err := s.Pull(t.Context(), PullRequest{Ref: ref})
	if err != nil {
		t.Fatal(err)
	}
	reg.Push(t, "app:latest", lab.CNCF(append(bytes.Clone(module), 0, 1, 0)))
	two, err := s.Pull(t.Context(), PullRequest{Ref: ref})
	if err != nil {
		t.Fatal(err)
	}
	if one.Image.ID == two.Image.ID {
		t.Fatal("the new image has the old ID")
	}
	if img, err := s.Lookup(ref); err != nil || img.ID != two.Image.ID {
		t.Errorf("the tag leads to %v, %v", img, err)
	}
	if img, err := s.Lookup(one.Image.ID.String()); err != nil || len(img.Refs) != 0 || len(img.Digests) != 1 {
		t.Errorf("the old image is %+v, %v", img, err)
	}
}

func TestPullErrors(t *testing.T) {
	reg := lab.StartRegistry(t)
	reg.Push(t, "full:1", lab.CNCF(append(bytes.Clone(module), bytes.Repeat([]byte{0}, 1000)...)))
	for _, c := range []struct {
		name, ref string
		opts      Options
		want      error
		text      string
	}{
		{"no tag", lab.RegistryName + "/nothing:1", Options{}, ErrNotFound, "nothing:1\": not found: neither " + lab.RegistryName + " nor a mirror"},
		{"bad name", "x/UPPER:1", Options{}, ErrInvalidReference, "x/UPPER:1"},
		{"no registry", "127.0.0.1:1/x:1", Options{}, ErrRegistry, "connection refused"},
		{"no space", lab.RegistryName + "/full:1", Options{MinFree: 1 << 60}, ErrNoSpace, "remove images"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.opts.HostsDir = reg.HostsDir
			s := open(t, c.opts)
			_, err := s.Pull(t.Context(), PullRequest{Ref: c.ref})
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("got %v, want %v and %q", err, c.want, c.text)
			}
		})
	}
}

// proxy serves a registry through h, which may spoil it.
func proxy(t *testing.T, reg *lab.Registry, h func(w http.ResponseWriter, r *http.Request, next http.Handler)) (hosts string) {
	t.Helper()
	srv := httptest.NewServer(forward(t, reg, h))
	t.Cleanup(srv.Close)
	dir := filepath.Join(t.TempDir(), lab.RegistryName)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	toml := "server = \"" + srv.URL + "\"\n[host.\"" + srv.URL + "\"]\n  capabilities = [\"pull\", \"resolve\"]\n"
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(toml), 0o644); err != nil {
		t.Fatal(err)
	}
	return filepath.Dir(dir)
}

func TestConcurrentPullsAreJoined(t *testing.T) {
	reg := lab.StartRegistry(t)
	ref := reg.Push(t, "joined:1", lab.CNCF(module))
	var heads atomic.Int32
	release := make(chan struct{})
	hosts := proxy(t, reg, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method == http.MethodHead {
			heads.Add(1)
			<-release
		}
		next.ServeHTTP(w, r)
	})
	s := open(t, Options{HostsDir: hosts})
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			if _, err := s.Pull(t.Context(), PullRequest{Ref: ref}); err != nil {
				t.Error(err)
			}
		})
	}
	// One that loses patience doesn't end the others' pull.
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := s.Pull(ctx, PullRequest{Ref: ref}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("impatient: %v", err)
	}
	close(release)
	wg.Wait()
	if n := heads.Load(); n != 1 {
		t.Errorf("the registry was asked %d times", n)
	}
}

func TestPullResumesAndVerifies(t *testing.T) {
	reg := lab.StartRegistry(t)
	big := append(bytes.Clone(module), bytes.Repeat([]byte("resume me "), 100_000)...)
	img := lab.CNCF(big)
	ref := reg.Push(t, "big:1", img)
	layer := img.Blobs[0].Desc.Digest.String()

	t.Run("a transfer that breaks goes on where it ended", func(t *testing.T) {
		var ranges []string
		hosts := proxy(t, reg, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, layer) {
				ranges = append(ranges, r.Header.Get("Range"))
				if len(ranges) == 1 {
					w = &cutWriter{ResponseWriter: w, left: 400_000}
				}
			}
			next.ServeHTTP(w, r)
		})
		s := open(t, Options{HostsDir: hosts})
		res, err := s.Pull(t.Context(), PullRequest{Ref: ref})
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := os.ReadFile(res.Image.Module.Path); !bytes.Equal(got, big) {
			t.Error("the module isn't what was pushed")
		}
		if len(ranges) < 2 || !strings.HasPrefix(ranges[1], "bytes=") || strings.HasPrefix(ranges[1], "bytes=0-") {
			t.Errorf("ranges asked for: %q", ranges)
		}
	})
	t.Run("other bytes than the digest says are refused", func(t *testing.T) {
		hosts := proxy(t, reg, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, layer) {
				w = &spoilWriter{ResponseWriter: w}
			}
			next.ServeHTTP(w, r)
		})
		s := open(t, Options{HostsDir: hosts})
		_, err := s.Pull(t.Context(), PullRequest{Ref: ref})
		if !errors.Is(err, ErrInvalidImage) {
			t.Errorf("got %v", err)
		}
		if _, err := s.Lookup(ref); !errors.Is(err, ErrNotFound) {
			t.Errorf("lookup: %v", err)
		}
	})
	t.Run("a transfer that stalls is given up", func(t *testing.T) {
		hosts := proxy(t, reg, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, layer) {
				<-r.Context().Done()
				return
			}
			next.ServeHTTP(w, r)
		})
		s := open(t, Options{HostsDir: hosts, Stall: time.Second})
		_, err := s.Pull(t.Context(), PullRequest{Ref: ref})
		if !errors.Is(err, ErrRegistry) || !strings.Contains(err.Error(), "no byte") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("what an interrupted pull left is removed when it is old", func(t *testing.T) {
		tries := 0
		hosts := proxy(t, reg, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, layer) {
				if tries++; tries > 1 {
					http.Error(w, "", http.StatusInternalServerError)
					return
				}
				w = &cutWriter{ResponseWriter: w, left: 1000}
			}
			next.ServeHTTP(w, r)
		})
		s := open(t, Options{HostsDir: hosts})
		if _, err := s.Pull(t.Context(), PullRequest{Ref: ref}); err == nil {
			t.Fatal("no error")
		}
		dir := s.opts.Dir
		if n := blobs(t, s); n == 0 {
			t.Error("nothing is kept for the next try")
		}
		s = open(t, Options{Dir: dir, KeepPartial: -1})
		ingests, _ := filepath.Glob(s.path("content", "ingest", "*"))
		if n := blobs(t, s); n != 0 || len(ingests) != 0 {
			t.Errorf("%d blobs and %v are left", n, ingests)
		}
	})
}

func TestPullWithCredentials(t *testing.T) {
	reg := lab.StartRegistry(t)
	ref := reg.Push(t, "private:1", lab.CNCF(module))
	hosts := proxy(t, reg, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if u, p, ok := r.BasicAuth(); !ok || u != "me" || p != "s3cret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="lab"`)
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED"}]}`, http.StatusUnauthorized)
			return
		}
		r.Header.Del("Authorization")
		next.ServeHTTP(w, r)
	})
	for name, c := range map[string]struct {
		creds *Credentials
		ok    bool
	}{
		"none":             {nil, false},
		"wrong":            {&Credentials{Username: "me", Password: "x"}, false},
		"right":            {&Credentials{Username: "me", Password: "s3cret"}, true},
		"as auth":          {&Credentials{Auth: "bWU6czNjcmV0"}, true},
		"another registry": {&Credentials{Username: "me", Password: "s3cret", ServerAddress: "quay.io"}, false},
	} {
		s := open(t, Options{HostsDir: hosts})
		_, err := s.Pull(t.Context(), PullRequest{Ref: ref, Credentials: c.creds})
		if c.ok && err != nil || !c.ok && !errors.Is(err, ErrUnauthorized) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
