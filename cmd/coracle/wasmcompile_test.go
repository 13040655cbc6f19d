package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// wasmTool runs one of the commands that make code for other machines.
func wasmTool(t *testing.T, args ...string) (string, error) {
	t.Helper()
	for _, cmd := range wasmCompileCommands() {
		if cmd.Name() != args[0] {
			continue
		}
		var out bytes.Buffer
		cmd.SetOut(&out)
		cmd.SetErr(&out)
		cmd.SilenceUsage, cmd.SilenceErrors = true, true
		cmd.SetArgs(args[1:])
		err := cmd.ExecuteContext(t.Context())
		return out.String(), err
	}
	t.Fatalf("no command %s", args[0])
	return "", nil
}

func TestKeysAreNeverReplaced(t *testing.T) {
	name := filepath.Join(t.TempDir(), "builder")
	if _, err := wasmTool(t, "keygen", name); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(name + ".key.pem")
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("private key: %v, %v", st, err)
	}
	before, err := os.ReadFile(name + ".key.pem")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := wasmTool(t, "keygen", name); !os.IsExist(err) {
		t.Errorf("a second time: %v", err)
	}
	if after, _ := os.ReadFile(name + ".key.pem"); !bytes.Equal(before, after) {
		t.Error("the key was replaced")
	}
}

func TestCompileSaysWhatIsMissing(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "builder")
	if _, err := wasmTool(t, "keygen", name); err != nil {
		t.Fatal(err)
	}
	key := name + ".key.pem"
	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{"app.wasm"}, "coracle wasm keygen"},
		{[]string{"--key", key, "app.wasm", "-o", "app.bin"}, "end in .coracle-wasm"},
		{[]string{"--key", key, "--arch", "arm", "app.wasm"}, "amd64 and arm64 only"},
		{[]string{"--key", key, "--arch", "arm64", "app.wasm"}, "make boards"},
		{[]string{"--key", name + ".pem", "--runner", "/bin/true", "app.wasm"}, `no PEM block "PRIVATE KEY"`},
		{[]string{"--key", key, "--runner", filepath.Join(dir, "none"), "app.wasm"}, "wasm runner"},
	} {
		if _, err := wasmTool(t, append([]string{"compile"}, c.args...)...); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%v: %v, want %q", c.args, err, c.says)
		}
	}
}
