package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/coracle-edge/coracle/test/bench/report"
	"github.com/coracle-edge/coracle/wasmruntime"
)

// kernel is what a program that computes said of itself.
type kernel struct {
	name, result string
	nanos        float64
}

// peers are figures of the field, by kernel.
var peers = map[string]string{"sha256": "wazero 1.12 elsewhere 2.7", "matmul": "wazero 1.12 elsewhere 8, with SIMD 4"}

// compute compares the kernels as guests with the same programs native, and the
// interpreter of boards without a compiler with the compiler.
func (b *bench) compute(ctx context.Context) error {
	out, err := exec.CommandContext(ctx, b.built.native["kernels"], "7").Output()
	if err != nil {
		return err
	}
	native, err := parse(string(out))
	if err != nil {
		return err
	}
	compiled, err := b.guestKernels(ctx, filepath.Join(b.bin, "wasmrunner"), "7")
	if err != nil {
		return err
	}
	interpreted, err := b.guestKernels(ctx, b.built.interpreter, "1")
	if err != nil {
		return err
	}
	if len(native) != len(compiled) || len(native) != len(interpreted) {
		return fmt.Errorf("%d kernels native, %d as guests, %d interpreted", len(native), len(compiled), len(interpreted))
	}
	for i, n := range native {
		for _, g := range []kernel{compiled[i], interpreted[i]} {
			if g.name != n.name || g.result != n.result {
				return fmt.Errorf("kernel %s gives %s native, %s %s as a guest", n.name, n.result, g.name, g.result)
			}
		}
		anchor := fmt.Sprintf("native %.2f ms", n.nanos/1e6)
		if p := peers[n.name]; p != "" {
			anchor += "; " + p
		}
		b.report.Add("computing, "+n.name+": Wasm by native", compiled[i].nanos/n.nanos, "times", anchor)
	}
	for i, c := range compiled {
		b.report.Add("without a compiler, "+c.name+": interpreter by compiler", interpreted[i].nanos/c.nanos, "times", "wazero 1.12 elsewhere 40-60")
	}
	return nil
}

// guestKernels runs the kernels with a runner, without a node around it.
func (b *bench) guestKernels(ctx context.Context, runner, rounds string) ([]kernel, error) {
	dir, err := os.MkdirTemp(b.dir, "kernels-*")
	if err != nil {
		return nil, err
	}
	rt, err := wasmruntime.New(wasmruntime.Options{RunnerPath: runner, CacheDir: filepath.Join(dir, "cache")})
	if err != nil {
		return nil, err
	}
	bundle := filepath.Join(dir, "bundle")
	if err := os.Mkdir(bundle, 0o755); err != nil {
		return nil, err
	}
	p, err := rt.Start(ctx, wasmruntime.Spec{ID: "kernels", Dir: bundle, Module: b.built.wasm["kernels"], Args: []string{"kernels", rounds}})
	if err != nil {
		return nil, err
	}
	defer p.Delete(context.WithoutCancel(ctx))
	var out bytes.Buffer
	if _, err := io.Copy(&out, p.Stdout()); err != nil {
		return nil, err
	}
	st, err := p.Wait(ctx)
	if err != nil {
		return nil, err
	}
	out.Write(st.StdoutRest)
	if st.Code != 0 {
		return nil, fmt.Errorf("the kernels ended with %d: %s", st.Code, st.Message)
	}
	return parse(out.String())
}

func parse(text string) (all []kernel, err error) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) != 3 {
			return nil, fmt.Errorf("a kernel said %q", line)
		}
		nanos, err := strconv.ParseFloat(f[1], 64)
		if err != nil {
			return nil, fmt.Errorf("a kernel said %q: %w", line, err)
		}
		all = append(all, kernel{name: f[0], nanos: nanos, result: f[2]})
	}
	return all, nil
}

// sizes of the runner, here and for boards.
func (b *bench) sizes(ctx context.Context) error {
	st, err := os.Stat(filepath.Join(b.bin, "wasmrunner"))
	if err != nil {
		return err
	}
	add := func(r *report.Report, arch string, size int64) {
		r.Add("wasmrunner: size, "+arch, float64(size)/(1<<20), "MiB", "wasmedge 30 (shared library); wasmtime 35; containerd's shim and runc 22")
	}
	add(&b.report, "this machine", st.Size())
	for _, t := range []struct{ name, arch, arm string }{{"arm64", "arm64", ""}, {"armv6", "arm", "6"}} {
		file := filepath.Join(b.dir, "wasmrunner-"+t.name)
		cmd := []string{b.goTool, "build", "-trimpath", "-tags=grpcnotrace", "-buildvcs=false", "-ldflags=-s -w", "./cmd/wasmrunner"}
		if err := b.tool(ctx, []string{"GOOS=linux", "CGO_ENABLED=0", "GOARCH=" + t.arch, "GOARM=" + t.arm}, cmd, file); err != nil {
			return err
		}
		if st, err = os.Stat(file); err != nil {
			return err
		}
		add(&b.report, t.name, st.Size())
	}
	return nil
}
