package wasmruntime_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coracle-edge/coracle/wasmruntime"
)

// The runner for other boards, under user-mode emulation. That has neither
// seccomp nor landlock nor an exec of one's own file, so --no-exec leaves the
// jail out; what is tested are the engines and the system calls.
func TestOtherArchitectures(t *testing.T) {
	for _, c := range []struct {
		name, qemu string
		env        []string
		compiler   bool
	}{
		{"arm64", "qemu-aarch64-static", []string{"GOARCH=arm64"}, true},
		{"armv7", "qemu-arm-static", []string{"GOARCH=arm", "GOARM=7"}, false},
		{"armv6", "qemu-arm-static -cpu arm1176", []string{"GOARCH=arm", "GOARM=6"}, false},
		{"riscv64", "qemu-riscv64-static", []string{"GOARCH=riscv64"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if testing.Short() && c.name != "arm64" && c.name != "armv6" {
				t.Skip("-short: arm64 and armv6 stand for the others")
			}
			if _, err := exec.LookPath(strings.Fields(c.qemu)[0]); err != nil {
				t.Skipf("no emulator: %v (package qemu-user-static)", err)
			}
			dir := t.TempDir()
			binary, script := filepath.Join(dir, "wasmrunner"), filepath.Join(dir, "run")
			build := exec.Command("go", "build", "-ldflags=-s -w", "-o", binary, "../cmd/wasmrunner")
			build.Env = append(append(os.Environ(), "CGO_ENABLED=0"), c.env...)
			if out, err := build.CombinedOutput(); err != nil {
				t.Fatalf("build: %v\n%s", err, out)
			}
			text := fmt.Sprintf("#!/bin/sh\ncmd=$1; shift\n[ $cmd = info ] || set -- --no-exec \"$@\"\nexec %s %s $cmd \"$@\"\n", c.qemu, binary)
			if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
				t.Fatal(err)
			}
			rt := newRuntime(t, func(o *wasmruntime.Options) {
				o.RunnerPath, o.CompileMemory = script, 4<<30 // the emulator's included
			})
			g := start(t, rt, wasmruntime.Spec{Module: module("hello"), Args: []string{"hello", c.name}, Env: []string{"EXIT=3"}})
			if st := g.end(); st.Code != 3 || !strings.Contains(g.stdout.String(), "arg "+c.name) {
				t.Errorf("hello: %+v %q %q", st, g.stdout.String(), g.stderr.String())
			}
			data, ro := openDir(t), openDir(t)
			write(t, filepath.Join(ro, "x"), "ro")
			motd := filepath.Join(openDir(t), "motd")
			write(t, motd, "motd")
			g = start(t, rt, wasmruntime.Spec{Module: module("files"), Mounts: []wasmruntime.Mount{
				{Host: data, Guest: "/data"}, {Host: ro, Guest: "/ro", ReadOnly: true}, {Host: motd, Guest: "/etc/motd"},
			}})
			if st := g.end(); st.Code != 0 {
				t.Errorf("files: %+v %q %q", st, g.stdout.String(), g.stderr.String())
			}
			if st := start(t, rt, wasmruntime.Spec{Module: module("remainder")}).end(); st.Code != 0 {
				t.Errorf("remainder: %+v", st)
			}
			st := start(t, rt, wasmruntime.Spec{Module: module("overflow")}).end()
			if st.Code != 134 || !strings.Contains(st.Message, "stack overflow") || strings.Contains(st.Message, "2000 frames") == c.compiler {
				t.Errorf("overflow: %+v", st)
			}
			g = start(t, rt, wasmruntime.Spec{Module: module("sleep")})
			g.says("hello")
			if st, err := g.Stop(t.Context(), 5*time.Second); err != nil || st.Code != 143 {
				t.Errorf("stop: %+v, %v", st, err)
			}
		})
	}
}
