package wasi

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// bin is where the programs are, built for this run of the tests; cache holds
// the compiled modules of all of them, one for each user.
var bin, cache string

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "wasi")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() {
		exec.Command("chmod", "-R", "u+w", dir).Run() // entries of the cache are read-only
		os.RemoveAll(dir)
	}()
	bin, cache = filepath.Join(dir, "bin"), filepath.Join(dir, "cache")
	build := exec.Command("go", "build", "-ldflags=-s -w", "-o", bin+"/", "../../cmd/coracle", "../../cmd/wasmrunner")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
		return 1
	}
	if err := os.Chmod(dir, 0o755); err != nil { // for ordinary users
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// limit is how long any guest of these tests may take on a machine under load.
const limit = 2 * time.Minute

// ordinary is a user that isn't root.
const ordinary = 12345

// command is `coracle wasm run` with a cache folder. As root and with a uid it
// runs as that user.
func command(t testing.TB, uid int, args ...string) *exec.Cmd {
	t.Helper()
	argv := append([]string{filepath.Join(bin, "coracle"), "wasm", "run", "--cache-dir", fmt.Sprintf("%s-%d", cache, uid)}, args...)
	if uid != os.Getuid() {
		made := fmt.Sprintf("%s-%d", cache, uid)
		if err := os.MkdirAll(made, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(made, uid, uid); err != nil {
			t.Fatal(err)
		}
		argv = append([]string{"setpriv", "--reuid", fmt.Sprint(uid), "--regid", fmt.Sprint(uid), "--clear-groups"}, argv...)
	}
	cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
	cmd.WaitDelay = 5 * time.Second
	timer := time.AfterFunc(limit, func() {
		if cmd.Process != nil {
			cmd.Process.Kill()
		}
	})
	t.Cleanup(func() { timer.Stop() })
	return cmd
}

type result struct {
	code           int
	stdout, stderr string
}

// guest runs a module to its end.
func guest(t testing.TB, stdin string, args ...string) result {
	t.Helper()
	return finish(t, command(t, os.Getuid(), args...), stdin)
}

func finish(t testing.TB, cmd *exec.Cmd, stdin string) result {
	t.Helper()
	var out, err bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &err
	e := cmd.Run()
	if cmd.ProcessState == nil {
		t.Fatalf("%v: %v", cmd.Args, e)
	}
	return result{cmd.ProcessState.ExitCode(), out.String(), err.String()}
}

// clang builds a module; without the tools the test is skipped.
func clang(t testing.TB, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath("clang"); err != nil {
		t.Skip("no clang: packages clang, lld, wasi-libc and libclang-rt-14-dev-wasm32")
	}
	module := filepath.Join(openDir(t, os.Getuid()), name)
	out, err := exec.Command("clang", append([]string{"--target=wasm32-wasi", "-O1", "-Wall", "-Wno-uninitialized", "-Werror", "-o", module}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("clang: %v\n%s", err, out)
	}
	return module
}

// openDir is a temporary folder that belongs to the user and that all can see.
func openDir(t testing.TB, uid int) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "wasi")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err == nil && uid != os.Getuid() {
		err = os.Chown(dir, uid, uid)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func write(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}
