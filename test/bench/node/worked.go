package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// beside is a bench of its own, in namespaces of its own, that has a Wasm-only node do
// light work for ten minutes while this one measures other things: nothing of the node
// is used by both, and a pod every five seconds takes a hundredth of a core.
type beside struct {
	cmd  *exec.Cmd // nil: there is none
	said bytes.Buffer
	out  string
}

// workedResult is what it tells.
type workedResult struct{ Just, Idle workedFootprint }

// workedFootprint is of a footprint what has rows.
type workedFootprint struct{ RSS, PSS, Private, Kernel float64 }

func told(f footprint) workedFootprint {
	return workedFootprint{RSS: f.node.RSS, PSS: f.node.PSS, Private: f.node.Private, Kernel: f.kernel}
}

func (w workedFootprint) footprint() (f footprint) {
	f.node.RSS, f.node.PSS, f.node.Private, f.kernel = w.RSS, w.PSS, w.Private, w.Kernel
	return f
}

// startWorked begins it, if the Wasm-only node is measured.
func (b *bench) startWorked(ctx context.Context) (*beside, error) {
	w := &beside{out: filepath.Join(b.dir, "worked.json")}
	if b.only != "" && b.only != "wasm" {
		return w, nil
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	// Its own programs, or pages of the same file would be shared and count for half.
	bin := filepath.Join(b.dir, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		return nil, err
	}
	for _, name := range []string{"edgelet", "wasmrunner", "coracle", "controlplane"} {
		if text, err := exec.CommandContext(ctx, "cp", filepath.Join(b.bin, name), bin).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("cp: %w: %s", err, text)
		}
	}
	syscall.Sync()
	args := []string{"--bin", bin, "--upstream", b.tools, "--source", b.source, "--out", w.out, "--only", "worked"}
	if b.ours.work == glance.work {
		args = append(args, "--light")
	}
	w.cmd = exec.Command(self, args...)
	// Without the mark that says it has namespaces already: it makes its own.
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "CORACLE_BENCH_INSIDE=") {
			w.cmd.Env = append(w.cmd.Env, v)
		}
	}
	w.cmd.Stdout, w.cmd.Stderr = &w.said, &w.said
	w.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	return w, w.cmd.Start()
}

// result waits for its end.
func (w *beside) result() (just, idle footprint, err error) {
	if w.cmd == nil {
		return just, idle, errors.New("no light work was done beside")
	}
	cmd := w.cmd
	w.cmd = nil
	if err := cmd.Wait(); err != nil {
		return just, idle, fmt.Errorf("light work beside: %w\n%s", err, w.said.String())
	}
	raw, err := os.ReadFile(w.out)
	if err != nil {
		return just, idle, err
	}
	var r workedResult
	err = json.Unmarshal(raw, &r)
	return r.Just.footprint(), r.Idle.footprint(), err
}

// kill ends it, if it hasn't ended.
func (w *beside) kill() {
	if w.cmd != nil {
		_ = syscall.Kill(-w.cmd.Process.Pid, syscall.SIGTERM)
		_ = w.cmd.Wait()
	}
}

// worked is what it does.
func (b *bench) worked(ctx context.Context) error {
	s, err := b.startOurs(ctx, false)
	if err != nil {
		return err
	}
	f, err := b.measure(ctx, s, true, b.ours, step{"start", func(ctx context.Context, w *work, f *figures) (err error) {
		f.idle, err = w.footprint(ctx, w.afterStart)
		return err
	}}, step{"light work", b.lightWork})
	if err = errors.Join(err, s.stop()); err != nil {
		return err
	}
	raw, err := json.Marshal(workedResult{Just: told(f.justWorked), Idle: told(f.worked)})
	if err != nil {
		return err
	}
	fmt.Fprintf(b.progress, "after light work: %s\n", raw)
	if err := os.MkdirAll(filepath.Dir(b.out), 0o755); err != nil {
		return err
	}
	return os.WriteFile(b.out, raw, 0o600)
}

// loadAverage of the machine in the last minute, and room for that at the end.
func loadAverage() (load [2]float64) {
	raw, err := os.ReadFile("/proc/loadavg")
	if f := strings.Fields(string(raw)); err == nil && len(f) > 0 {
		load[0], _ = strconv.ParseFloat(f[0], 64)
	}
	return load
}
