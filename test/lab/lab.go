package lab

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
)

// insideEnv marks a test process that Main has started.
const insideEnv = "CORACLE_LAB_INSIDE"

// Main runs the tests of a package, as root in a network and a mount namespace
// of their own, so that bridges, rules and mounts stay off the host. Call it
// from TestMain: os.Exit(lab.Main(m)).
func Main(m *testing.M) int {
	if os.Geteuid() != 0 || os.Getenv(insideEnv) != "" {
		return m.Run()
	}
	script := `mount --make-rshared / && mkdir -p /run/netns && mount -t tmpfs tmpfs /run/netns && ip link set lo up && exec "$0" "$@"`
	args := append([]string{"--net", "--mount", "--propagation", "private", "sh", "-c", script}, os.Args...)
	if exec.Command("unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", "mount --make-rshared / && ip link set lo up").Run() != nil {
		fmt.Fprintln(os.Stderr, "lab: no namespaces here, tests that need a network of their own will be skipped")
		return m.Run()
	}
	cmd := exec.Command("unshare", args...)
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		if exit, ok := err.(*exec.ExitError); ok {
			return exit.ExitCode()
		}
		fmt.Fprintln(os.Stderr, "lab:", err)
		return 1
	}
	return 0
}

// NeedNamespaces skips a test that must not touch the host's network.
func NeedNamespaces(t testing.TB) {
	t.Helper()
	if os.Getenv(insideEnv) == "" {
		t.Skip("needs root and namespaces of its own (lab.Main), which this machine or user doesn't have")
	}
}

// Need skips a test when a program isn't installed.
func Need(t testing.TB, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("needs %s: %v", p, err)
		}
	}
}

// Root is the folder of this repository.
func Root(t testing.TB) string {
	t.Helper()
	_, file, _, _ := runtime.Caller(0)
	if filepath.IsAbs(file) {
		if _, err := os.Stat(file); err == nil {
			return filepath.Join(filepath.Dir(file), "..", "..")
		}
	}
	// Built with -trimpath: look upwards for go.mod.
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
	}
	t.Fatal("no go.mod above the working directory")
	return ""
}

var programs struct {
	sync.Mutex
	dir string
	err map[string]error
}

// Program builds ./cmd/NAME once per test process and returns its path.
func Program(t testing.TB, name string) string {
	t.Helper()
	return buildPath(t, name, "./cmd/"+name)
}

func buildPath(t testing.TB, name, pkg string) string {
	t.Helper()
	return buildIn(t, name, ".", pkg)
}

// buildIn builds a program of the module in a folder of the repository.
func buildIn(t testing.TB, name, module string, args ...string) string {
	t.Helper()
	programs.Lock()
	defer programs.Unlock()
	if programs.dir == "" {
		dir, err := os.MkdirTemp("", "coracle-lab-*")
		if err != nil {
			t.Fatal(err)
		}
		// Guests of other users must reach the runner.
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		programs.dir, programs.err = dir, map[string]error{}
	}
	if dir := os.Getenv("CORACLE_LAB_BIN"); dir != "" { // built before, for users who can't
		return filepath.Join(dir, name)
	}
	path := filepath.Join(programs.dir, name)
	if _, done := programs.err[name]; !done {
		cmd := exec.Command("go", append([]string{"build", "-o", path}, args...)...)
		cmd.Dir = filepath.Join(Root(t), module)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if os.Getenv("GOFLAGS") == "" {
			cmd.Env = append(cmd.Env, "GOFLAGS=-trimpath -tags=grpcnotrace -buildvcs=false")
		}
		out, err := cmd.CombinedOutput()
		if err != nil {
			err = fmt.Errorf("go build %s: %w\n%s", name, err, out)
		}
		programs.err[name] = err
	}
	if err := programs.err[name]; err != nil {
		t.Fatal(err)
	}
	return path
}

// Cleanup removes what Program built. TestMain calls it at the end.
func Cleanup() {
	programs.Lock()
	defer programs.Unlock()
	if programs.dir != "" {
		os.RemoveAll(programs.dir)
	}
}

// Wasm compiles a C program for WASI and returns the module. Tests that need
// clang and wasi-libc are skipped without them.
func Wasm(t testing.TB, source string) []byte {
	t.Helper()
	Need(t, "clang", "wasm-ld")
	if _, err := os.Stat("/usr/lib/wasm32-wasi"); err != nil {
		t.Skip("needs wasi-libc: ", err)
	}
	out := filepath.Join(t.TempDir(), "module.wasm")
	cmd := exec.Command("clang", "--target=wasm32-wasi", "-O1", "-s", "-o", out, source)
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("clang %s: %v\n%s", source, err, msg)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Probe is the guest of probe/probe.c.
func Probe(t testing.TB) []byte {
	t.Helper()
	return Wasm(t, filepath.Join(Root(t), "test", "lab", "probe", "probe.c"))
}

// Wat assembles a module from text.
func Wat(t testing.TB, text string) []byte {
	t.Helper()
	Need(t, "wat2wasm")
	out := filepath.Join(t.TempDir(), "module.wasm")
	cmd := exec.Command("wat2wasm", "-o", out, "-")
	cmd.Stdin = strings.NewReader(text)
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("wat2wasm: %v\n%s", err, msg)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
