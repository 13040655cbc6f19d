package wasmruntime_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/coracle-edge/coracle/wasmruntime"
)

// keyPair makes a key to sign with, and a folder that trusts it.
func keyPair(t *testing.T) (private, trusted string) {
	t.Helper()
	priv, pub, err := wasmruntime.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	private, trusted = filepath.Join(t.TempDir(), "key.pem"), t.TempDir()
	if err := os.Chmod(trusted, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, private, string(priv))
	write(t, filepath.Join(trusted, "builder.pem"), string(pub))
	return private, trusted
}

// cannotCompile is a runner whose compiler says so: what runs by it was compiled
// elsewhere.
func cannotCompile(t *testing.T, command string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "runner")
	text := "#!/bin/sh\nif [ \"$1\" = compile ]; then echo 'compiled here' >&2; exit 9; fi\n" + command + "\n"
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

type logged struct {
	sync.Mutex
	bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.Lock()
	defer l.Unlock()
	return l.Buffer.Write(p)
}

func (l *logged) text() string {
	l.Lock()
	defer l.Unlock()
	return l.String()
}

// What a trusted key has signed is run without a compiler; anything else is compiled
// here, and the log says why.
func TestPrecompiledModules(t *testing.T) {
	key, trusted := keyPair(t)
	_, others := keyPair(t)
	artifact := filepath.Join(t.TempDir(), "hello"+wasmruntime.ArtifactSuffix)
	engine, err := wasmruntime.Precompile{RunnerPath: runnerPath, Module: "testdata/hello.wasm", Key: key, Out: artifact}.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Log(engine)
	good, err := os.ReadFile(artifact)
	if err != nil {
		t.Fatal(err)
	}
	last := bytes.LastIndexByte(good[:min(len(good), 8192)], '\n') // of the header, before the code
	for name, c := range map[string]struct {
		artifact []byte
		keys     string
		module   string
		refused  string // in the log; "" for one that is taken
	}{
		"signed by a trusted key":         {good, trusted, "hello", ""},
		"signed by another key":           {good, others, "hello", "signed by no key that is trusted here"},
		"no keys":                         {good, filepath.Join(t.TempDir(), "none"), "hello", "signed by no key that is trusted here (0 keys"},
		"one byte of code changed":        {changed(good, len(good)-100), trusted, "hello", "corrupt"},
		"one byte of the header changed":  {bytes.Replace(good, []byte(`"memoryPages":2`), []byte(`"memoryPages":3`), 1), trusted, "hello", "signed by no key"},
		"for another processor":           {bytes.Replace(good, []byte(`"arch":"`), []byte(`"arch":"x`), 1), trusted, "hello", "it is for"},
		"torn":                            {good[:len(good)/2], trusted, "hello", "ends"},
		"torn in the header":              {good[:last/2], trusted, "hello", "not a compiled wasm module"},
		"of another module":               {good, trusted, "exit3", "compiled here"},
		"keys that everybody could write": {good, writable(t, trusted), "hello", "others than its owner may write it"},
	} {
		t.Run(name, func(t *testing.T) {
			if bytes.Equal(c.artifact, good) != (name == "signed by a trusted key" || !strings.Contains(name, "byte") && !strings.Contains(name, "torn") && !strings.Contains(name, "processor")) {
				t.Fatal("the artifact isn't what the case says")
			}
			dir := t.TempDir()
			write(t, filepath.Join(dir, "a"+wasmruntime.ArtifactSuffix), string(c.artifact))
			var log logged
			rt := newRuntime(t, func(o *wasmruntime.Options) {
				o.RunnerPath = cannotCompile(t, "exec "+runnerPath+` "$@"`)
				o.ArtifactDir, o.TrustedKeys = dir, c.keys
				o.Logger = slog.New(slog.NewTextHandler(&log, nil))
			})
			err := rt.Compile(t.Context(), module(c.module), "")
			if c.refused != "" {
				if err == nil || !strings.Contains(err.Error(), "compiled here") {
					t.Errorf("error %v, want the compiler's", err)
				}
				if text := log.text() + fmt.Sprint(err); !strings.Contains(text, c.refused) {
					t.Errorf("no %q in the log:\n%s", c.refused, text)
				}
				return
			}
			if err != nil {
				t.Fatalf("%v\n%s", err, log.text())
			}
			if !strings.Contains(log.text(), "signedBy=builder.pem") {
				t.Errorf("the log doesn't say who signed:\n%s", log.text())
			}
			g := start(t, rt, wasmruntime.Spec{Module: module(c.module), Args: []string{"hello", "artifact"}, Env: []string{"EXIT=3"}})
			if st := g.end(); st.Code != 3 || !strings.Contains(g.stdout.String(), "arg artifact") {
				t.Errorf("%+v %q", st, g.stdout.String())
			}
		})
	}
}

func changed(b []byte, at int) []byte {
	b = bytes.Clone(b)
	b[at] ^= 1
	return b
}

// writable is a copy of a folder of keys that others may write.
func writable(t *testing.T, dir string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "keys")
	if msg, err := exec.Command("cp", "-r", dir, out).CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, msg)
	}
	if err := os.Chmod(out, 0o777); err != nil {
		t.Fatal(err)
	}
	return out
}

// A build machine makes code for boards of another architecture, which run it.
func TestPrecompiledForArm64(t *testing.T) {
	const qemu = "qemu-aarch64-static"
	if _, err := exec.LookPath(qemu); err != nil {
		t.Skipf("no emulator: %v (package qemu-user-static)", err)
	}
	dir := t.TempDir()
	binary := filepath.Join(dir, "wasmrunner")
	build := exec.Command("go", "build", "-ldflags=-s -w", "-o", binary, "../cmd/wasmrunner")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH=arm64")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	key, trusted := keyPair(t)
	if _, err := (wasmruntime.Precompile{
		RunnerPath: binary, Emulator: []string{qemu, "-cpu", "cortex-a53"}, Module: module("remainder"), Key: key, Out: filepath.Join(dir, "r"+wasmruntime.ArtifactSuffix),
	}).Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	for cpu, takes := range map[string]bool{"cortex-a53": true, "max": false} { // max has atomics
		var log logged
		rt := newRuntime(t, func(o *wasmruntime.Options) {
			o.RunnerPath = cannotCompile(t, fmt.Sprintf("cmd=$1; shift\n[ $cmd = info ] || set -- --no-exec \"$@\"\nexec %s -cpu %s %s $cmd \"$@\"", qemu, cpu, binary))
			o.ArtifactDir, o.TrustedKeys = dir, trusted
			o.Logger = slog.New(slog.NewTextHandler(&log, nil))
		})
		err := rt.Compile(t.Context(), module("remainder"), "")
		if (err == nil) != takes {
			t.Errorf("on %s: %v\n%s", cpu, err, log.text())
		}
		if !takes {
			if !strings.Contains(log.text(), "it is for wazero") {
				t.Errorf("on %s the log doesn't say why:\n%s", cpu, log.text())
			}
			continue
		}
		if st := start(t, rt, wasmruntime.Spec{Module: module("remainder")}).end(); st.Code != 0 {
			t.Errorf("on %s: %+v", cpu, st)
		}
	}
}
