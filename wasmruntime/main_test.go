package wasmruntime_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/coracle-edge/coracle/wasmruntime"
)

// runnerPath is a wasmrunner built for this run of the tests, or the one that
// WASMRUNNER names (for runs as a user without a Go tool).
var runnerPath string

func TestMain(m *testing.M) {
	if runnerPath = os.Getenv("WASMRUNNER"); runnerPath != "" {
		os.Exit(m.Run())
	}
	dir, err := os.MkdirTemp("", "wasmrunner")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	runnerPath = filepath.Join(dir, "wasmrunner")
	build := exec.Command("go", "build", "-ldflags=-s -w", "-o", runnerPath, "../cmd/wasmrunner")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build wasmrunner: %v\n%s", err, out)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

func newRuntime(t testing.TB, change func(*wasmruntime.Options)) *wasmruntime.Runtime {
	t.Helper()
	opts := wasmruntime.Options{RunnerPath: runnerPath, CacheDir: filepath.Join(t.TempDir(), "cache")}
	if change != nil {
		change(&opts)
	}
	rt, err := wasmruntime.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // entries are read-only; TempDir's own removal stumbles over that
		exec.Command("chmod", "-R", "u+w", opts.CacheDir).Run()
	})
	return rt
}

func module(name string) string {
	path, err := filepath.Abs(filepath.Join("testdata", name+".wasm"))
	if err != nil {
		panic(err)
	}
	return path
}

// guest is a process whose output is collected.
type guest struct {
	*wasmruntime.Process
	t              testing.TB
	stdout, stderr lockedBuffer
	readers        sync.WaitGroup
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// collect follows the output of p until its end.
func collect(t testing.TB, p *wasmruntime.Process) *guest {
	g := &guest{Process: p, t: t}
	for from, to := range map[io.Reader]io.Writer{p.Stdout(): &g.stdout, p.Stderr(): &g.stderr} {
		g.readers.Go(func() { io.Copy(to, from) })
	}
	t.Cleanup(func() {
		if err := p.Delete(context.Background()); err != nil {
			t.Errorf("delete: %v", err)
		}
		g.readers.Wait()
	})
	return g
}

func start(t testing.TB, rt *wasmruntime.Runtime, spec wasmruntime.Spec) *guest {
	t.Helper()
	if spec.Dir == "" {
		spec.Dir = t.TempDir()
	}
	if spec.ID == "" {
		spec.ID = t.Name()
	}
	p, err := rt.Start(t.Context(), spec)
	if err != nil {
		t.Fatalf("start %s: %v", spec.Module, err)
	}
	return collect(t, p)
}

// end waits for the guest's end and for all its output.
func (g *guest) end() wasmruntime.ExitStatus {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	st, err := g.Wait(ctx)
	if err != nil {
		g.t.Fatalf("wait for %s: %v", g.Spec().ID, err)
	}
	g.readers.Wait()
	g.stdout.Write(st.StdoutRest)
	g.stderr.Write(st.StderrRest)
	return st
}

// says waits until the guest has printed text.
func (g *guest) says(text string) {
	g.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for time.Now().Before(deadline) {
		if bytes.Contains([]byte(g.stdout.String()), []byte(text)) {
			return
		}
		time.Sleep(2 * time.Millisecond)
	}
	g.t.Fatalf("%s never said %q but:\n%s\n%s", g.Spec().ID, text, g.stdout.String(), g.stderr.String())
}
