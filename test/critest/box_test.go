package critest

import (
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/coracle-edge/coracle/test/lab"
	"github.com/coracle-edge/coracle/wasmruntime"
)

// TestBox: the command lines that critest's specs use, in the module that stands for
// busybox.
func TestBox(t *testing.T) {
	module := filepath.Join(t.TempDir(), "box.wasm")
	if err := os.WriteFile(module, lab.Wasm(t, filepath.Join(lab.Root(t), "test/critest/box/box.c")), 0o644); err != nil {
		t.Fatal(err)
	}
	rt, err := wasmruntime.New(wasmruntime.Options{RunnerPath: lab.Program(t, "wasmrunner"), CacheDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	volume := t.TempDir()
	if err := os.WriteFile(filepath.Join(volume, "file"), []byte("a line\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{filepath.Dir(module), volume} { // the guest is nobody in particular
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	sh := func(line string) []string { return []string{"sh", "-c", line} }
	for _, c := range []struct {
		name           string
		args           []string
		stdin          string
		stdout, stderr string
		code           int
	}{
		{name: "echo", args: []string{"echo", "-n", "hello"}, stdout: "hello"},
		{name: "by a path", args: []string{"/bin/echo", "hello", "World"}, stdout: "hello World\n"},
		{name: "a list", args: sh("echo hello World; sleep 0"), stdout: "hello World\n"},
		{name: "a substitution", args: sh("echo $(echo -n a):$(echo 'b c')"), stdout: "a:b c\n"},
		{name: "and", args: sh("touch /v/no && [ -f /v/no ] && echo 'Found'"), stderr: "touch: /v/no: Read-only file system\n", code: 1},
		{name: "found", args: sh("[ -f /v/file ] && echo 'Found'"), stdout: "Found\n"},
		{name: "or", args: sh("false || true")},
		{name: "a pipe", args: sh(`touch /v/no 2>&1 | grep -q "Read-only file system"`)},
		{name: "a pipe that has nothing", args: sh(`cat /v/file | grep other`), code: 1},
		{name: "a loop", args: sh("while [ -f /v/none ]; do echo again; done"), code: 0},
		{name: "a command that isn't there", args: sh("brctl addbr x"), stderr: "sh: brctl: not found\n", code: 127},
		{name: "a folder", args: []string{"ls", "-A", "/v"}, stdout: "file\n"},
		{name: "a file", args: []string{"ls", "/v/file"}, stdout: "/v/file\n"},
		{name: "no file", args: []string{"cat", "/v/none"}, stderr: "cat: /v/none: No such file or directory\n", code: 1},
		{name: "the host's name", args: []string{"hostname"}, stdout: "board\n"},
		{name: "a script from stdin", args: []string{"/bin/sh"}, stdin: "echo -n hello\necho $HOSTNAME\n", stdout: "helloboard\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, err := rt.Start(t.Context(), wasmruntime.Spec{
				Dir: t.TempDir(), Module: module, Args: c.args, Env: []string{"HOSTNAME=board"}, Stdin: c.stdin != "", StdinOnce: c.stdin != "",
				Mounts: []wasmruntime.Mount{{Host: volume, Guest: "/v", ReadOnly: true}},
			})
			if err != nil {
				t.Fatal(err)
			}
			if c.stdin != "" {
				in, err := os.OpenFile(p.StdinPath(), os.O_WRONLY, 0)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := io.WriteString(in, c.stdin); err != nil {
					t.Error(err)
				}
				in.Close()
				if err := p.CloseStdin(); err != nil {
					t.Error(err)
				}
			}
			out, outErr := io.ReadAll(p.Stdout())
			errs, errsErr := io.ReadAll(p.Stderr())
			exit, err := p.Wait(t.Context())
			if err != nil || outErr != nil || errsErr != nil {
				t.Fatal(err, outErr, errsErr)
			}
			out, errs = append(out, exit.StdoutRest...), append(errs, exit.StderrRest...)
			if string(out) != c.stdout || string(errs) != c.stderr || exit.Code != c.code {
				t.Errorf("%q: stdout %q, stderr %q, code %d (%s)", c.args, out, errs, exit.Code, exit.Message)
			}
			if err := p.Delete(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}
