package wasmruntime_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coracle-edge/coracle/wasmruntime"
)

func TestArgumentsEnvironmentOutputAndExitCode(t *testing.T) {
	rt := newRuntime(t, nil)
	g := start(t, rt, wasmruntime.Spec{Module: module("hello"), Args: []string{"hello", "a b"}, Env: []string{"K=V", "EXIT=42"}})
	st := g.end()
	if st.Code != 42 || st.Reason != wasmruntime.ReasonError || st.Signal != 0 {
		t.Errorf("exit status %+v, want code 42", st)
	}
	if want := "arg hello\narg a b\nenv K=V\nenv EXIT=42\n"; g.stdout.String() != want {
		t.Errorf("stdout %q, want %q", g.stdout.String(), want)
	}
	if g.stderr.String() != "to stderr\n" {
		t.Errorf("stderr %q", g.stderr.String())
	}
	t.Logf("walls: %q", g.Walls())
}

func TestHowGuestsEnd(t *testing.T) {
	rt := newRuntime(t, nil)
	for _, c := range []struct {
		module  string
		code    int
		reason  string
		message []string
	}{
		{"hello", 0, wasmruntime.ReasonCompleted, nil},
		{"exit3", 3, wasmruntime.ReasonError, nil},
		{"trap", 134, wasmruntime.ReasonError, []string{"module trap.wasm", "unreachable", ".deep()", ".main()"}},
		{"divide", 134, wasmruntime.ReasonError, []string{"module divide.wasm", "integer divide by zero"}},
		{"overflow", 134, wasmruntime.ReasonError, []string{"module overflow.wasm", "stack overflow"}},
		{"table-grow", 0, wasmruntime.ReasonCompleted, nil},
		{"remainder", 0, wasmruntime.ReasonCompleted, nil},
	} {
		t.Run(c.module, func(t *testing.T) {
			st := start(t, rt, wasmruntime.Spec{Module: module(c.module)}).end()
			if st.Code != c.code || st.Reason != c.reason {
				t.Errorf("exit status %+v, want code %d, reason %s", st, c.code, c.reason)
			}
			for _, m := range c.message {
				if !strings.Contains(st.Message, m) {
					t.Errorf("message %q doesn't have %q", st.Message, m)
				}
			}
			if st.FinishedAt.IsZero() || st.MonotonicNS == 0 {
				t.Errorf("no time in %+v", st)
			}
		})
	}
}

func TestRefusedModules(t *testing.T) {
	rt := newRuntime(t, func(o *wasmruntime.Options) { o.Limits = wasmruntime.DefaultLimits(512 << 20) })
	component := filepath.Join(t.TempDir(), "component.wasm")
	os.WriteFile(component, []byte("\x00asm\x0d\x00\x01\x00rest"), 0o644)
	text := filepath.Join(t.TempDir(), "text.wasm")
	os.WriteFile(text, []byte("#!/bin/sh\necho no module\n"), 0o644)
	for _, c := range []struct {
		path  string
		want  error
		names []string
	}{
		{module("unknown-import"), wasmruntime.ErrUnknownImport, []string{"unknown-import.wasm", "env.launch_missiles"}},
		{module("unknown-import"), wasmruntime.ErrUnsupportedModule, nil},
		{module("wasi-unstable"), wasmruntime.ErrUnknownImport, []string{"wasi_unstable.proc_exit", "preview 0"}},
		{module("wrong-signature"), wasmruntime.ErrUnknownImport, []string{"fd_close", "(i64)->(i32)", "(i32)->(i32)"}},
		{module("no-start"), wasmruntime.ErrUnsupportedModule, []string{"_start"}},
		{module("big-memory"), wasmruntime.ErrModuleTooLarge, []string{"60000 pages", "memory section", "the limit is"}},
		{module("invalid"), wasmruntime.ErrCompile, []string{"invalid.wasm", "cannot use i64"}},
		{component, wasmruntime.ErrUnsupportedModule, []string{"component"}},
		{text, wasmruntime.ErrMalformedModule, []string{"text.wasm", "doesn't start with"}},
	} {
		_, err := rt.Start(t.Context(), wasmruntime.Spec{Dir: t.TempDir(), Module: c.path})
		if !errors.Is(err, c.want) {
			t.Errorf("%s: error %v, want %v", filepath.Base(c.path), err, c.want)
			continue
		}
		for _, n := range c.names {
			if !strings.Contains(err.Error(), n) {
				t.Errorf("%s: error %q doesn't name %q", filepath.Base(c.path), err, n)
			}
		}
	}
}

// Stopping must work whatever the guest does: SIGTERM ends it, and a guest
// that asked for a chance to end by itself is killed after the grace.
func TestStop(t *testing.T) {
	rt := newRuntime(t, nil)
	for _, c := range []struct {
		name, module string
		spec         wasmruntime.Spec
		grace        time.Duration
		code         int
		least, most  time.Duration
	}{
		{"loop", "loop", wasmruntime.Spec{}, 5 * time.Second, 143, 0, 100 * time.Millisecond},
		{"recursion", "recursion", wasmruntime.Spec{}, 5 * time.Second, 143, 0, 100 * time.Millisecond},
		{"sleep", "sleep", wasmruntime.Spec{}, 5 * time.Second, 143, 0, 100 * time.Millisecond},
		{"blocked read", "stdin", wasmruntime.Spec{Stdin: true}, 5 * time.Second, 143, 0, 100 * time.Millisecond},
		{"no grace", "loop", wasmruntime.Spec{}, 0, 137, 0, 100 * time.Millisecond},
		{"loop that could notice", "loop", wasmruntime.Spec{NotifyTerm: true}, 300 * time.Millisecond, 137, 300 * time.Millisecond, 400 * time.Millisecond},
		{"recursion that could notice", "recursion", wasmruntime.Spec{NotifyTerm: true}, 300 * time.Millisecond, 137, 300 * time.Millisecond, 400 * time.Millisecond},
		{"one that notices", "term", wasmruntime.Spec{NotifyTerm: true}, 5 * time.Second, 7, 0, 100 * time.Millisecond},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.spec.Module = module(c.module)
			g := start(t, rt, c.spec)
			if c.module == "term" {
				g.says("waiting")
			}
			time.Sleep(30 * time.Millisecond)
			began := time.Now()
			st, err := g.Stop(t.Context(), c.grace)
			took := time.Since(began)
			if err != nil || st.Code != c.code {
				t.Errorf("stop: %+v, %v; want code %d", st, err, c.code)
			}
			if took < c.least || took > c.most {
				t.Errorf("stop took %v, want %v to %v", took, c.least, c.most)
			}
			if err := g.Signal(syscall.SIGTERM); !errors.Is(err, wasmruntime.ErrExited) {
				t.Errorf("signal after the end: %v, want ErrExited", err)
			}
		})
	}
}

func TestStdin(t *testing.T) {
	g := start(t, newRuntime(t, nil), wasmruntime.Spec{Module: module("stdin"), Stdin: true})
	in, err := os.OpenFile(g.StdinPath(), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	in.WriteString("one line\n")
	g.says("one line\n")
}

func TestMemoryLimit(t *testing.T) {
	rt := newRuntime(t, nil)
	g := start(t, rt, wasmruntime.Spec{Module: module("grow"), MemoryBytes: 20 << 20})
	if st := g.end(); st.Code != 0 || g.stdout.String() != "18 MiB\n" && g.stdout.String() != "19 MiB\n" {
		t.Errorf("%+v, %q; want memory.grow to fail at 20 MiB", st, g.stdout.String())
	}
	_, err := rt.Start(t.Context(), wasmruntime.Spec{Dir: t.TempDir(), Module: module("sleep"), MemoryBytes: 65536})
	if !errors.Is(err, wasmruntime.ErrStart) || !strings.Contains(err.Error(), "sleep.wasm") || !strings.Contains(err.Error(), "the limit is 65536") {
		t.Errorf("a module that needs more than its limit: %v", err)
	}
}

// A guest outlives its starter; whoever comes next finds it by its bundle.
func TestAttach(t *testing.T) {
	rt := newRuntime(t, nil)
	spec := wasmruntime.Spec{Dir: t.TempDir(), ID: "a", Module: module("sleep")}
	g := start(t, rt, spec)
	g.says("hello")
	if _, err := rt.Start(t.Context(), spec); !errors.Is(err, wasmruntime.ErrExists) {
		t.Errorf("a second start: %v, want ErrExists", err)
	}
	other, err := newRuntime(t, nil).Attach(spec.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if other.PID() != g.PID() || other.Spec().ID != "a" {
		t.Errorf("attached to %d (%+v), not to %d", other.PID(), other.Spec(), g.PID())
	}
	if _, err := other.Stats(); err != nil {
		t.Errorf("stats: %v", err)
	}
	st, err := other.Stop(t.Context(), time.Second)
	if err != nil || st.Code != 143 {
		t.Errorf("stop by another: %+v, %v", st, err)
	}
	// And who comes after the end hears the same.
	third, err := rt.Attach(spec.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if again, ok := third.ExitStatus(); !ok || again.Code != 143 {
		t.Errorf("attached after the end: %+v, %v", again, ok)
	}
	if _, err := rt.Attach(t.TempDir()); !errors.Is(err, wasmruntime.ErrNotStarted) {
		t.Errorf("attach to an empty directory: %v", err)
	}
}

// Without an exit record, and without being the parent, the death of a guest
// is told by the kernel, where it is new enough, or Unknown.
func TestKilledByAStranger(t *testing.T) {
	rt := newRuntime(t, nil)
	g := start(t, rt, wasmruntime.Spec{Module: module("sleep")})
	g.says("hello")
	syscall.Kill(g.PID(), syscall.SIGKILL)
	if st := g.end(); st.Code != 137 || st.Signal != 9 || st.Reason != wasmruntime.ReasonError {
		t.Errorf("killed child: %+v", st)
	}
}

// A process that has the guest's number by chance isn't the guest.
func TestAttachTellsReusedNumbers(t *testing.T) {
	rt := newRuntime(t, nil)
	dir := t.TempDir()
	g := start(t, rt, wasmruntime.Spec{Dir: dir, Module: module("sleep")})
	b, err := os.ReadFile(filepath.Join(dir, "state.json"))
	if err != nil {
		t.Fatal(err)
	}
	other := t.TempDir()
	spec, _ := os.ReadFile(filepath.Join(dir, "spec.json"))
	os.WriteFile(filepath.Join(other, "spec.json"), spec, 0o600)
	os.WriteFile(filepath.Join(other, "state.json"), []byte(strings.Replace(string(b), `"startTime":`, `"startTime":1`, 1)), 0o600)
	p, err := rt.Attach(other)
	if err != nil {
		t.Fatal(err)
	}
	if st, ok := p.ExitStatus(); !ok || st.Reason != wasmruntime.ReasonUnknown || st.Code != 255 {
		t.Errorf("attached to a stranger: %+v, %v", st, ok)
	}
	if _, ended := g.ExitStatus(); ended {
		t.Error("the guest was disturbed")
	}
}

func TestTornCacheIsCompiledAgain(t *testing.T) {
	var cacheDir string
	rt := newRuntime(t, func(o *wasmruntime.Options) { cacheDir = o.CacheDir })
	if err := rt.Compile(t.Context(), module("hello"), ""); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(cacheDir)
	if err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("cache directory: %v, %v; want mode 0700", st.Mode(), err)
	}
	files, _ := filepath.Glob(filepath.Join(cacheDir, "*", "*"))
	code, _ := filepath.Glob(filepath.Join(cacheDir, "*", "wazero-*", "*"))
	for _, f := range append(files, code...) {
		if st, err := os.Stat(f); err != nil || st.IsDir() {
			continue
		}
		for _, damage := range []func(string) error{
			func(f string) error { os.Chmod(f, 0o600); return os.Truncate(f, 10) },
			func(f string) error { os.Chmod(filepath.Dir(f), 0o700); return os.Remove(f) },
			func(f string) error {
				b, err := os.ReadFile(f)
				if err != nil {
					return err
				}
				b[len(b)/2] ^= 1
				os.Chmod(f, 0o600)
				return os.WriteFile(f, b, 0o600)
			},
		} {
			if err := damage(f); err != nil {
				t.Fatal(err)
			}
			g := start(t, rt, wasmruntime.Spec{Module: module("hello")})
			if st := g.end(); st.Code != 0 || !strings.Contains(g.stdout.String(), "arg hello.wasm") {
				t.Errorf("after damage to %s: %+v", f, st)
			}
		}
	}
	if len(code) != 1 {
		t.Errorf("code files %v, want one", code)
	}
}

func TestForget(t *testing.T) {
	var cacheDir string
	rt := newRuntime(t, func(o *wasmruntime.Options) { cacheDir = o.CacheDir })
	if err := rt.Compile(t.Context(), module("exit3"), ""); err != nil {
		t.Fatal(err)
	}
	entries, _ := os.ReadDir(cacheDir)
	if len(entries) != 1 {
		t.Fatalf("entries %v", entries)
	}
	if err := rt.Forget("sha256:" + entries[0].Name()[:64]); err != nil {
		t.Fatal(err)
	}
	if entries, _ = os.ReadDir(cacheDir); len(entries) != 0 {
		t.Errorf("left after Forget: %v", entries)
	}
}

func TestWrongDigestIsRefused(t *testing.T) {
	err := newRuntime(t, nil).Compile(t.Context(), module("exit3"), "sha256:"+strings.Repeat("0", 64))
	if !errors.Is(err, wasmruntime.ErrMalformedModule) || !strings.Contains(err.Error(), "has digest") {
		t.Errorf("error %v", err)
	}
}

func TestStartIsCancelled(t *testing.T) {
	rt := newRuntime(t, nil)
	if err := rt.Compile(t.Context(), module("sleep"), ""); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := rt.Start(ctx, wasmruntime.Spec{Dir: t.TempDir(), Module: module("sleep")}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want Canceled", err)
	}
}
