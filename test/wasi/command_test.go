package wasi

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

func wat(t *testing.T, text string) string {
	t.Helper()
	if _, err := exec.LookPath("wat2wasm"); err != nil {
		t.Skip("no wat2wasm: package wabt")
	}
	dir := openDir(t, os.Getuid())
	write(t, dir+"/m.wat", text)
	if out, err := exec.Command("wat2wasm", dir+"/m.wat", "-o", dir+"/m.wasm").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return dir + "/m.wasm"
}

// What can't be started says why, names it, and gives the code of nobody.
func TestCommandRefuses(t *testing.T) {
	dir := openDir(t, os.Getuid())
	good := wat(t, `(module (memory (export "memory") 1) (func (export "_start")))`)
	write(t, dir+"/text.wasm", "hello world")
	write(t, dir+"/empty.wasm", "")
	write(t, dir+"/component.wasm", "\x00asm\x0d\x00\x01\x00")
	for _, c := range []struct {
		name string
		args []string
		want []string
	}{
		{"no module", nil, []string{"which module"}},
		{"an unknown flag", []string{"--colour", good}, []string{"--colour"}},
		{"no such file", []string{dir + "/none.wasm"}, []string{dir + "/none.wasm", "no such file"}},
		{"a folder", []string{dir}, []string{dir, "regular file"}},
		{"no module in it", []string{dir + "/text.wasm"}, []string{"text.wasm", "malformed", "68 65 6c 6c"}},
		{"nothing in it", []string{dir + "/empty.wasm"}, []string{"empty.wasm", "malformed"}},
		{"a component", []string{dir + "/component.wasm"}, []string{"component.wasm", "component", "preview 1"}},
		{"an unknown import", []string{wat(t, `(module (import "env" "f" (func)) (memory (export "memory") 1) (func (export "_start")))`)}, []string{"m.wasm", "env.f"}},
		{"no such folder", []string{"--dir", dir + "/none::/x", good}, []string{"--dir", dir + "/none", "no such file", "HOST::GUEST"}},
		{"a folder without a name", []string{"--dir", dir + "::", good}, []string{"--dir", "no name for the guest"}},
		{"a folder of nowhere", []string{"--dir", "::/x", good}, []string{"--dir", "no folder"}},
		{"two names", []string{"--dir", dir + "::/a::/b", good}, []string{"--dir", "more than one"}},
		{"a variable without a name", []string{"--env", "=x", good}, []string{"--env", "no name"}},
		{"a variable that isn't here", []string{"--env", "CORACLE_NO_SUCH", good}, []string{"--env", "CORACLE_NO_SUCH"}},
		{"an address without a port", []string{"--listen", "127.0.0.1", good}, []string{"--listen", "127.0.0.1:8080"}},
		{"a host's name", []string{"--listen", "example.test:80", good}, []string{"--listen", "example.test"}},
		{"a port that can't be", []string{"--listen", "127.0.0.1:70000", good}, []string{"--listen", "70000"}},
		{"a user's name", []string{"--user", "nobody", good}, []string{"--user", "nobody", "UID"}},
		{"no runner", []string{"--runner", dir + "/none", good}, []string{dir + "/none", "--runner"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := guest(t, "", c.args...)
			if r.code != 125 || r.stdout != "" || strings.Count(r.stderr, "\n") != 1 {
				t.Errorf("%+v", r)
			}
			for _, w := range c.want {
				if !strings.Contains(r.stderr, w) {
					t.Errorf("%q isn't in %q", w, r.stderr)
				}
			}
		})
	}
}

// Flags end at the module; its input, output, arguments and code are its own.
func TestCommandHandsOver(t *testing.T) {
	dir := openDir(t, os.Getuid())
	write(t, dir+"/m.c", `
#include <stdio.h>
#include <stdlib.h>
int main(int argc, char **argv) {
    char b[64];
    for (int i = 0; i < argc; i++) printf("[%s]", argv[i]);
    while (fgets(b, sizeof b, stdin)) printf("<%s>", b);
    fprintf(stderr, "%s %s", getenv("A"), getenv("HOME") ? "leaks" : "clean");
    FILE *f = fopen("here/f", "r");
    if (f && fgets(b, sizeof b, f)) printf("%s", b);
    return fopen("here/f", "w") ? 1 : 42;
}`)
	module := clang(t, "m.wasm", dir+"/m.c")
	write(t, dir+"/f", "text")
	cmd := command(t, os.Getuid(), "--env", "A=1", "--env", "A_B", "--dir", dir+"::here:ro", module, "--dir", "-x", "--", "")
	cmd.Env = append(os.Environ(), "A_B=2", "HOME=/root")
	r := finish(t, cmd, "in\n")
	if r.code != 42 || r.stdout != "[m.wasm][--dir][-x][--][]<in\n>text" || r.stderr != "1 clean" {
		t.Errorf("%+v", r)
	}
}

// Who root starts is the owner of the folder that it works in.
func TestCommandAsRoot(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("not root")
	}
	module := clang(t, "touch.wasm", "-xc", touchC(t))
	for _, c := range []struct {
		owner int
		args  []string
		want  int
	}{{0, nil, 0}, {ordinary, nil, ordinary}, {ordinary, []string{"--user", "12345:54321"}, ordinary}} {
		dir := openDir(t, c.owner)
		r := guest(t, "", append(append([]string{"--dir", dir + "::/"}, c.args...), module)...)
		info, err := os.Stat(filepath.Join(dir, "made"))
		if r.code != 0 || err != nil || int(info.Sys().(*syscall.Stat_t).Uid) != c.want {
			t.Errorf("%+v: %+v, %v", c, r, err)
		}
	}
	// Root without capabilities: another's folder stays another's.
	dir := openDir(t, ordinary)
	if r := guest(t, "", "--user", "0:0", "--dir", dir+"::/", module); r.code == 0 {
		t.Errorf("as root in %d's folder: %+v", ordinary, r)
	}
}

// A root whose container took its capabilities starts guests as itself: in its
// own folder, and in another's that is open to all.
func TestCommandAsRootWithoutCapabilities(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("not root")
	}
	module := clang(t, "touch.wasm", "-xc", touchC(t))
	for _, c := range []struct {
		owner int
		mode  os.FileMode
		made  bool
	}{{0, 0o755, true}, {ordinary, 0o777, true}, {ordinary, 0o755, false}} {
		dir := openDir(t, c.owner)
		if err := os.Chmod(dir, c.mode); err != nil {
			t.Fatal(err)
		}
		cmd := command(t, 0, "--dir", dir+"::/", module)
		setpriv, err := exec.LookPath("setpriv")
		if err != nil {
			t.Fatal(err)
		}
		cmd.Path, cmd.Args = setpriv, append([]string{"setpriv", "--bounding-set=-all", "--inh-caps=-all"}, cmd.Args...)
		r := finish(t, cmd, "")
		info, err := os.Stat(filepath.Join(dir, "made"))
		if c.made && (r.code != 0 || err != nil || info.Sys().(*syscall.Stat_t).Uid != 0) || !c.made && (r.code != 1 || err == nil) {
			t.Errorf("%+v: %+v, %v", c, r, err)
		}
	}
}

func touchC(t *testing.T) string {
	dir := openDir(t, os.Getuid())
	write(t, dir+"/touch.c", "#include <stdio.h>\nint main(void) { return !fopen(\"/made\", \"w\"); }\n")
	return dir + "/touch.c"
}

// running starts a module and waits until it says something.
func running(t *testing.T, args ...string) (*exec.Cmd, *bufio.Reader) {
	cmd := command(t, os.Getuid(), args...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	said := bufio.NewReader(out)
	if _, err := said.ReadString('\n'); err != nil {
		t.Fatalf("the guest said nothing: %v", err)
	}
	return cmd, said
}

const sayAndLoop = `(module
  (import "wasi_snapshot_preview1" "fd_write" (func $w (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 16) "running\0a")
  (data (i32.const 0) "\10\00\00\00\08\00\00\00")
  (func (export "_start") (drop (call $w (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))) (loop (br 0))))`

// Signals reach a guest, one in a loop too, and its end is the command's.
func TestCommandHandsSignalsOn(t *testing.T) {
	module := wat(t, sayAndLoop)
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT} {
		cmd, _ := running(t, module)
		began := time.Now()
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != 128+int(sig) {
			t.Errorf("after %v: %v", sig, cmd.ProcessState)
		}
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("after %v it took %v", sig, took)
		}
	}
}

// A command that is killed takes its guest along, and leaves no more than a
// folder of its own.
func TestCommandIsKilled(t *testing.T) {
	cmd, said := running(t, wat(t, sayAndLoop))
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	// The guest holds the other end: it closes with the guest's end.
	ended := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, said)
		ended <- err
	}()
	select {
	case <-ended:
	case <-time.After(30 * time.Second):
		t.Error("the guest runs on")
	}
}

// Who has no cache folder, or one that can't be made, compiles for this run, and
// leaves nothing behind.
func TestCommandWithoutACacheFolder(t *testing.T) {
	module := wat(t, sayAndExit)
	for _, user := range []int{os.Getuid(), ordinary} {
		for _, home := range []string{"", "HOME=/dev/null", "XDG_CACHE_HOME=/proc"} {
			t.Run(fmt.Sprintf("uid %d with %q", user, home), func(t *testing.T) {
				if user != os.Getuid() && os.Getuid() != 0 {
					t.Skip("only root can become somebody else")
				}
				cmd := command(t, user, module)
				cmd.Args = slices.DeleteFunc(cmd.Args, func(a string) bool { return strings.HasPrefix(a, "--cache-dir") || strings.HasPrefix(a, cache) })
				temporary := openDir(t, user)
				cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "TMPDIR=" + temporary}
				if home != "" {
					cmd.Env = append(cmd.Env, home)
				}
				if r := finish(t, cmd, ""); r != (result{0, "hello\n", ""}) {
					t.Errorf("%+v", r)
				}
				if left, err := os.ReadDir(temporary); err != nil || len(left) > 0 {
					t.Errorf("%v is left, %v", left, err)
				}
			})
		}
	}
}

const sayAndExit = `(module
  (import "wasi_snapshot_preview1" "fd_write" (func $w (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 16) "hello\0a")
  (data (i32.const 0) "\10\00\00\00\06\00\00\00")
  (func (export "_start") (drop (call $w (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))`

// Several at once share a cache that is empty: each compiles or waits, none
// takes another's for left over.
func TestCommandsShareACache(t *testing.T) {
	module := wat(t, `(module (memory (export "memory") 1) (func (export "_start")))`)
	shared := openDir(t, os.Getuid())
	t.Cleanup(func() { exec.Command("chmod", "-R", "u+w", shared).Run() })
	results := make(chan string, 8)
	for range cap(results) {
		go func() {
			var out bytes.Buffer
			cmd := exec.Command(filepath.Join(bin, "coracle"), "wasm", "run", "--cache-dir", shared, module)
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := cmd.Run(); err != nil {
				results <- fmt.Sprintf("%v: %s", err, out.String())
				return
			}
			results <- ""
		}()
	}
	for range cap(results) {
		if r := <-results; r != "" {
			t.Error(r)
		}
	}
}

// The example server, from the command line.
func TestCommandServes(t *testing.T) {
	addr := freePort(t)
	example, err := filepath.Abs("../../examples/http/http.wasm")
	if err != nil {
		t.Fatal(err)
	}
	running(t, "--listen", addr, "--env", "POD_NAME=shell", example)
	resp, err := http.Get("http://" + addr + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || !strings.Contains(string(body), "request 1 of shell") {
		t.Errorf("%q, %v", body, err)
	}
}
