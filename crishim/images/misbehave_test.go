package images

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"golang.org/x/sys/unix"

	"github.com/coracle-edge/coracle/test/lab"
)

// left counts what is in the store's folders beside its index.
func left(t *testing.T, s *Store) (out []string) {
	t.Helper()
	for _, pattern := range []string{"content/blobs/sha256/*", "content/ingest/*", "modules/*", "rootfs/*", "tmp/*"} {
		m, err := filepath.Glob(s.path(pattern))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, m...)
	}
	return out
}

// bigModule is a module with enough bytes to break the transfer of.
func bigModule(mark string) []byte {
	return append(bytes.Clone(module), bytes.Repeat([]byte(mark+" 0123456789"), 30_000)...)
}

// TestPullFromARegistryThatMisbehaves: what is asked for ends in an error that
// says what is wrong, or in the image in spite of it; nothing stays behind.
func TestPullFromARegistryThatMisbehaves(t *testing.T) {
	reg := lab.StartRegistry(t)
	big := bigModule("misbehaves")
	img := lab.CNCF(big)
	ref := reg.Push(t, "misbehaves:1", img)
	layer := img.Blobs[0].Desc.Digest.String()
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			t.Error("the registry's credentials were sent to another host")
		}
		_, _ = w.Write(big)
	}))
	t.Cleanup(other.Close)
	isLayer := func(r *http.Request) bool { return r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, layer) }
	isManifest := func(r *http.Request) bool { return strings.Contains(r.URL.Path, "/manifests/") }
	answer := func(code int, headers ...string) func(http.ResponseWriter, *http.Request, int) bool {
		return func(w http.ResponseWriter, _ *http.Request, _ int) bool {
			for i := 0; i < len(headers); i += 2 {
				w.Header().Set(headers[i], headers[i+1])
			}
			w.WriteHeader(code)
			return true
		}
	}
	first := func(n int, f func(http.ResponseWriter, *http.Request, int) bool) func(http.ResponseWriter, *http.Request, int) bool {
		return func(w http.ResponseWriter, r *http.Request, i int) bool { return i < n && f(w, r, i) }
	}
	stall := func(w http.ResponseWriter, r *http.Request, _ int) bool {
		<-r.Context().Done()
		return true
	}
	for _, c := range []struct {
		name string
		on   func(*http.Request) bool
		// do answers the i-th request that on says, or leaves it to the registry.
		do    func(w http.ResponseWriter, r *http.Request, i int) bool
		opts  Options
		want  error
		text  string
		asked int // at most so often, for what on says; hosts.toml names the registry twice
		keeps bool
	}{
		{name: "401", on: isManifest, do: answer(401), want: ErrUnauthorized, text: "imagePullSecrets", asked: 2},
		{name: "403 on a blob", on: isLayer, do: answer(403), want: ErrUnauthorized, text: "imagePullSecrets", asked: 2},
		{name: "404", on: isManifest, do: answer(404), want: ErrNotFound, text: ref, asked: 2},
		{name: "404 on a blob", on: isLayer, do: answer(404), want: ErrNotFound, text: layer, asked: 2},
		{name: "429 with a time, then it goes", on: isManifest, do: first(1, answer(429, "Retry-After", "1"))},
		{name: "429 on a blob without a time, then it goes", on: isLayer, do: first(2, answer(429))},
		{name: "503 with a date, then it goes", on: isLayer, do: first(1, answer(503, "Retry-After", time.Now().UTC().Format(http.TimeFormat)))},
		{name: "429 for an hour", on: isManifest, do: answer(429, "Retry-After", "3600"), want: ErrRegistry, text: "asked again in 1h0m0s", asked: 2},
		{name: "429 for an hour on a blob", on: isLayer, do: answer(429, "Retry-After", "3600"), want: ErrRegistry, text: "asked again in 1h0m0s", asked: 2, keeps: true},
		{name: "500 once", on: isLayer, do: first(1, answer(500))},
		{name: "500", on: isLayer, do: answer(500), want: ErrRegistry, text: "500", asked: 9, keeps: true},
		{name: "other bytes", on: isLayer, do: func(w http.ResponseWriter, r *http.Request, _ int) bool {
			_, _ = w.Write(bytes.Repeat([]byte{1}, len(big)))
			return true
		}, want: ErrInvalidImage, text: "other bytes", asked: 1},
		{name: "more bytes, without end", on: isLayer, do: func(w http.ResponseWriter, r *http.Request, _ int) bool {
			for r.Context().Err() == nil {
				if _, err := w.Write(big[:1000]); err != nil {
					break
				}
			}
			return true
		}, want: ErrInvalidImage, text: "more than the", asked: 1},
		{name: "too few bytes", on: isLayer, do: func(w http.ResponseWriter, r *http.Request, _ int) bool {
			w.Header().Set("Content-Length", "1000")
			_, _ = w.Write(big[:1000])
			return true
		}, want: ErrRegistry, text: "unexpected EOF", keeps: true},
		{name: "always cut off", on: isLayer, do: func(w http.ResponseWriter, r *http.Request, _ int) bool {
			w.Header().Set("Content-Length", strconv.Itoa(len(big)))
			w.WriteHeader(http.StatusOK)
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}, want: ErrRegistry, text: ref, keeps: true},
		{name: "the manifest is none", on: func(r *http.Request) bool { return isManifest(r) && r.Method == http.MethodGet }, do: func(w http.ResponseWriter, _ *http.Request, _ int) bool {
			_, _ = w.Write(bytes.Repeat([]byte("x"), int(img.Desc().Size)))
			return true
		}, want: ErrInvalidImage, text: ref},
		{name: "the manifest is huge", on: isManifest, do: func(w http.ResponseWriter, _ *http.Request, _ int) bool {
			w.Header().Set("Content-Type", img.Desc().MediaType)
			w.Header().Set("Docker-Content-Digest", img.Desc().Digest.String())
			w.Header().Set("Content-Length", "4300000")
			return true
		}, want: ErrInvalidImage, text: "4300000 bytes"},
		{name: "a redirection to another host", on: isLayer, do: func(w http.ResponseWriter, r *http.Request, _ int) bool {
			http.Redirect(w, r, other.URL, http.StatusTemporaryRedirect)
			return true
		}},
		{name: "it takes no ranges", on: isLayer, do: func(w http.ResponseWriter, r *http.Request, i int) bool {
			if i == 0 {
				w = &cutWriter{ResponseWriter: w, left: 100_000}
			}
			w.Header().Set("Content-Length", strconv.Itoa(len(big)))
			_, _ = w.Write(big)
			return true
		}},
		{name: "slow, but it moves", on: isLayer, opts: Options{Stall: 2 * time.Second}, do: func(w http.ResponseWriter, r *http.Request, _ int) bool {
			w.Header().Set("Content-Length", strconv.Itoa(len(big)))
			for piece := range slices.Chunk(big, len(big)/10+1) {
				_, _ = w.Write(piece)
				_ = http.NewResponseController(w).Flush()
				time.Sleep(250 * time.Millisecond)
			}
			return true
		}},
		{name: "it stalls", on: isManifest, do: stall, opts: Options{Stall: time.Second}, want: ErrRegistry, text: "no byte of an answer"},
		{name: "a blob stalls", on: isLayer, do: stall, opts: Options{Stall: time.Second}, want: ErrRegistry, text: "no byte of " + layer, keeps: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var asked atomic.Int32
			hosts := proxy(t, reg, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if c.on(r) && c.do(w, r, int(asked.Add(1))-1) {
					return
				}
				next.ServeHTTP(w, r)
			})
			c.opts.HostsDir = hosts
			s := open(t, c.opts)
			res, err := s.Pull(t.Context(), PullRequest{Ref: ref})
			if n := int(asked.Load()); n == 0 || c.asked > 0 && n > c.asked {
				t.Errorf("the registry was asked %d times, at most %d are due", n, c.asked)
			}
			if c.want == nil {
				if err != nil {
					t.Fatal(err)
				}
				if got, _ := os.ReadFile(res.Image.Module.Path); !bytes.Equal(got, big) {
					t.Error("the module isn't what was pushed")
				}
				return
			}
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) || !strings.Contains(err.Error(), "misbehaves:1") {
				t.Errorf("got %v; want %v with %q", err, c.want, c.text)
			}
			if _, err := s.Lookup(ref); !errors.Is(err, ErrNotFound) {
				t.Errorf("lookup: %v", err)
			}
			if l := left(t, s); len(l) > 0 && !c.keeps {
				t.Errorf("left: %v", l)
			}
			s = open(t, Options{Dir: s.opts.Dir, KeepPartial: -1})
			if l := left(t, s); len(l) > 0 {
				t.Errorf("left after a start that keeps nothing: %v", l)
			}
		})
	}
}

// TestPullGoesOnAfterACutAtAnyByte, in the same process and in the next one:
// what came is never asked for again.
func TestPullGoesOnAfterACutAtAnyByte(t *testing.T) {
	reg := lab.StartRegistry(t)
	big := bigModule("cut")
	img := lab.CNCF(big)
	ref := reg.Push(t, "cut:1", img)
	layer := img.Blobs[0].Desc.Digest.String()
	for _, cut := range []int{1, 2, 4095, 4096, 65_537, len(big) / 2, len(big) - 1} {
		for _, restart := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d restart %v", cut, restart), func(t *testing.T) {
				t.Parallel()
				var mu sync.Mutex
				var ranges []string
				var s *Store
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				hosts := proxy(t, reg, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
					if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, layer) {
						mu.Lock()
						ranges = append(ranges, r.Header.Get("Range"))
						n := len(ranges)
						mu.Unlock()
						if n == 1 {
							w.Header().Set("Content-Length", strconv.Itoa(len(big)))
							_, _ = w.Write(big[:cut])
							_ = http.NewResponseController(w).Flush()
							if restart {
								// Until it has it all; then its caller dies.
								for p := s.Pulls(); len(p) == 1 && p[0].Done < int64(cut); p = s.Pulls() {
									time.Sleep(time.Millisecond)
								}
								cancel()
							}
							panic(http.ErrAbortHandler)
						}
					}
					next.ServeHTTP(w, r)
				})
				s = open(t, Options{HostsDir: hosts})
				res, err := s.Pull(ctx, PullRequest{Ref: ref})
				if restart {
					if !errors.Is(err, context.Canceled) {
						t.Fatalf("cancelled: %v", err)
					}
					s = open(t, Options{HostsDir: hosts, Dir: s.opts.Dir})
					res, err = s.Pull(t.Context(), PullRequest{Ref: ref})
				}
				if err != nil {
					t.Fatal(err)
				}
				if got, _ := os.ReadFile(res.Image.Module.Path); !bytes.Equal(got, big) {
					t.Error("the module isn't what was pushed")
				}
				if want := fmt.Sprintf("bytes=%d-", cut); len(ranges) != 2 || ranges[1] != want {
					t.Errorf("ranges asked for: %q, want %q", ranges, want)
				}
			})
		}
	}
}

func TestPullDistrustsWhatAPowerCutLeft(t *testing.T) {
	reg := lab.StartRegistry(t)
	big := bigModule("torn")
	img := lab.CNCF(big)
	ref := reg.Push(t, "torn:1", img)
	s := open(t, Options{HostsDir: reg.HostsDir})
	// Its size was written, its bytes weren't.
	layer := img.Blobs[0].Desc
	w, err := s.content.Writer(t.Context(), func(o *content.WriterOpts) error {
		o.Ref, o.Desc = "unknown-"+layer.Digest.String(), layer
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	w.Close()
	res, err := s.Pull(t.Context(), PullRequest{Ref: ref})
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(res.Image.Module.Path); !bytes.Equal(got, big) {
		t.Error("the module isn't what was pushed")
	}
}

func TestParallelPullsAreLimited(t *testing.T) {
	reg := lab.StartRegistry(t)
	var now, most atomic.Int32
	three := make(chan struct{}) // are under way at once
	var once sync.Once
	hosts := proxy(t, reg, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		n := now.Add(1)
		defer now.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		if n >= 3 {
			once.Do(func() { close(three) })
		}
		select {
		case <-three:
		case <-time.After(20 * time.Second):
		}
		next.ServeHTTP(w, r)
	})
	s := open(t, Options{HostsDir: hosts, MaxParallel: 3})
	var wg sync.WaitGroup
	for i := range 8 {
		ref := reg.Push(t, fmt.Sprintf("parallel%d:1", i), lab.CNCF(bigModule(fmt.Sprint(i))))
		wg.Go(func() {
			if _, err := s.Pull(t.Context(), PullRequest{Ref: ref}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := most.Load(); n != 3 {
		t.Errorf("%d requests at a time, want 3", n)
	}
}

func TestPullSaysHowFarItIs(t *testing.T) {
	reg := lab.StartRegistry(t)
	big := bigModule("far")
	img := lab.CNCF(big)
	ref := reg.Push(t, "far:1", img)
	half, seen := make(chan struct{}), make(chan struct{})
	hosts := proxy(t, reg, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, img.Blobs[0].Desc.Digest.String()) {
			w.Header().Set("Content-Length", strconv.Itoa(len(big)))
			_, _ = w.Write(big[:1000])
			_ = http.NewResponseController(w).Flush()
			close(half)
			<-seen
			_, _ = w.Write(big[1000:])
			return
		}
		next.ServeHTTP(w, r)
	})
	s := open(t, Options{HostsDir: hosts})
	ended := make(chan error)
	go func() {
		_, err := s.Pull(t.Context(), PullRequest{Ref: ref})
		ended <- err
	}()
	<-half
	deadline := time.Now().Add(10 * time.Second)
	for {
		p := s.Pulls()
		if len(p) == 1 && p[0].Ref == ref && p[0].Done == 1000 && p[0].Total == int64(len(big)) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%+v", p)
		}
		time.Sleep(time.Millisecond)
	}
	close(seen)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if p := s.Pulls(); len(p) != 0 {
		t.Errorf("%+v", p)
	}
}

// Pulls that share blobs don't take them from each other, whatever becomes of
// each: wasm-to-oci's configuration is {} in all images of the world.
func TestPullsShareBlobs(t *testing.T) {
	reg := lab.StartRegistry(t)
	files := []lab.File{{Path: "lib/shared", Mode: 0o644, Data: bytes.Repeat([]byte("s"), 100_000)}}
	var refs []string
	for i := range 4 {
		refs = append(refs, reg.Push(t, fmt.Sprintf("share/a%d:1", i), lab.WasmToOCI(bigModule(fmt.Sprint("a", i%2)))))
		refs = append(refs, reg.Push(t, fmt.Sprintf("share/c%d:1", i), lab.Compat(bigModule("c"), []string{"compat", ""}[i%2], files...)))
		// Not Wasm after all, with the same layer.
		liar := lab.Compat([]byte("\x7fELF"), "", files...)
		refs = append(refs, reg.Push(t, fmt.Sprintf("share/l%d:1", i), liar))
	}
	s := open(t, Options{HostsDir: reg.HostsDir, MaxParallel: 8})
	for range 3 {
		var wg sync.WaitGroup
		for i, ref := range refs {
			wg.Go(func() {
				ctx := t.Context()
				if i%5 == 4 {
					short, cancel := context.WithTimeout(ctx, time.Duration(i)*time.Millisecond)
					defer cancel()
					_, _ = s.Pull(short, PullRequest{Ref: ref})
				}
				res, err := s.Pull(ctx, PullRequest{Ref: ref})
				if err != nil {
					t.Errorf("%s: %v", ref, err)
					return
				}
				if res.Kind == KindWasm {
					if _, err := os.Stat(res.Image.Module.Path); err != nil {
						t.Errorf("%s: %v", ref, err)
					}
				}
			})
		}
		wg.Wait()
		for _, img := range s.List() {
			if err := s.Remove(img.ID.String()); err != nil {
				t.Error(err)
			}
		}
		s.Collect()
	}
	s = open(t, Options{Dir: s.opts.Dir, KeepPartial: -1})
	if l := left(t, s); len(l) > 0 {
		t.Errorf("left: %v", l)
	}
}

// A pull that fails deletes what it fetched, but for what another one under way
// has come to rely on.
func TestFailedPullLeavesOthersTheirBlobs(t *testing.T) {
	reg := lab.StartRegistry(t)
	bad, good := lab.WasmToOCI(bigModule("bad")), lab.WasmToOCI(bigModule("good"))
	badRef, goodRef := reg.Push(t, "share/bad:1", bad), reg.Push(t, "share/good:1", good)
	begun, goOn := make(chan struct{}), make(chan struct{})
	hosts := proxy(t, reg, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		switch {
		case r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, good.Blobs[0].Desc.Digest.String()):
			close(begun)
			<-goOn
		case r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, bad.Blobs[0].Desc.Digest.String()):
			w = &spoilWriter{ResponseWriter: w}
		}
		next.ServeHTTP(w, r)
	})
	s := open(t, Options{HostsDir: hosts})
	var res Result
	ended := make(chan error)
	go func() {
		var err error
		res, err = s.Pull(t.Context(), PullRequest{Ref: goodRef})
		ended <- err
	}()
	<-begun
	if _, err := s.Pull(t.Context(), PullRequest{Ref: badRef}); !errors.Is(err, ErrInvalidImage) {
		t.Errorf("bad: %v", err)
	}
	close(goOn)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	for _, d := range res.Image.Blobs {
		if _, err := s.content.Info(t.Context(), d); err != nil {
			t.Error(err)
		}
	}
	if n := blobs(t, s); n != len(res.Image.Blobs) {
		t.Errorf("%d blobs, the image has %d", n, len(res.Image.Blobs))
	}
}

func TestPartialIsNotKeptForEver(t *testing.T) {
	reg := lab.StartRegistry(t)
	img := lab.CNCF(bigModule("partial"))
	ref := reg.Push(t, "partial:1", img)
	hosts := proxy(t, reg, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, img.Blobs[0].Desc.Digest.String()) {
			w = &cutWriter{ResponseWriter: w, left: 1000}
			r.Header.Del("Range")
		}
		next.ServeHTTP(w, r)
	})
	s := open(t, Options{HostsDir: hosts, KeepPartial: 500 * time.Millisecond})
	defer s.Close()
	if _, err := s.Pull(t.Context(), PullRequest{Ref: ref}); !errors.Is(err, ErrRegistry) {
		t.Fatalf("got %v", err)
	}
	// And what a kill left without the files that the content store wants.
	if err := os.MkdirAll(s.path("content", "ingest", "torn"), 0o755); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); len(left(t, s)) > 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("left: %v", left(t, s))
		}
	}
}

// smallDisk is a file system of its own.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount a small file system")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Skip("can't mount a tmpfs: ", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

func TestPullsCountEachOthersSpace(t *testing.T) {
	reg := lab.StartRegistry(t)
	dir := smallDisk(t, "4m")
	one, two := lab.CNCF(bytes.Repeat(bigModule("one"), 6)), lab.CNCF(bytes.Repeat(bigModule("two"), 6)) // 2.7 MB each
	refs := []string{reg.Push(t, "space/one:1", one), reg.Push(t, "space/two:1", two)}
	begun, goOn := make(chan struct{}), make(chan struct{})
	hosts := proxy(t, reg, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, one.Blobs[0].Desc.Digest.String()) {
			close(begun)
			<-goOn
		}
		if strings.HasSuffix(r.URL.Path, two.Blobs[0].Desc.Digest.String()) {
			t.Error("the second was begun without room for it")
		}
		next.ServeHTTP(w, r)
	})
	s := open(t, Options{Dir: dir, HostsDir: hosts, MinFree: 1})
	ended := make(chan error)
	go func() {
		_, err := s.Pull(t.Context(), PullRequest{Ref: refs[0]})
		ended <- err
	}()
	<-begun
	_, err := s.Pull(t.Context(), PullRequest{Ref: refs[1]})
	if want := fmt.Sprintf("needs %d bytes", two.Blobs[0].Desc.Size); !errors.Is(err, ErrNoSpace) || !strings.Contains(err.Error(), refs[1]) ||
		!strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "pulls under way need") {
		t.Errorf("got %v", err)
	}
	close(goOn)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
}

func TestDiskFillsUpDuringAPull(t *testing.T) {
	reg := lab.StartRegistry(t)
	dir := smallDisk(t, "4m")
	img := lab.CNCF(bytes.Repeat(bigModule("fill"), 6))
	ref := reg.Push(t, "fill:1", img)
	hosts := proxy(t, reg, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, img.Blobs[0].Desc.Digest.String()) {
			if err := os.WriteFile(filepath.Join(dir, "ballast"), make([]byte, 2<<20), 0o600); err != nil {
				t.Error(err)
			}
		}
		next.ServeHTTP(w, r)
	})
	s := open(t, Options{Dir: dir, HostsDir: hosts, MinFree: 1})
	_, err := s.Pull(t.Context(), PullRequest{Ref: ref})
	if !errors.Is(err, ErrNoSpace) || !strings.Contains(err.Error(), ref) {
		t.Errorf("got %v", err)
	}
	if l := left(t, s); len(l) > 0 {
		t.Errorf("left on a full disk: %v", l)
	}
}
