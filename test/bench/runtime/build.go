package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// built are the programs of this run: guests by their name, and what the same
// sources are for this machine.
type built struct {
	wasm   map[string]string // c, rust, go, http, kernels -> file
	native map[string]string // c, http, kernels -> file
	// interpreter is a runner without the compiler, as on boards that have none.
	interpreter string
}

// errNoTool says that a guest can't be built here; its rows are left out.
var errNoTool = errors.New("can't be built here")

func (b *bench) build(ctx context.Context) error {
	b.built = built{wasm: map[string]string{}, native: map[string]string{}}
	g, http := b.guests, filepath.Join(b.guests, "../../../../examples/http/http.c")
	clang := []string{"clang", "-O2", "-s", "-D_GNU_SOURCE"}
	wasi := func(source string) []string { return slices.Concat(clang, []string{"--target=wasm32-wasi", source}) }
	static := func(sources ...string) []string {
		return slices.Concat(clang, []string{"-static", "-I" + filepath.Join(g, "native")}, sources)
	}
	for _, c := range []struct {
		into      map[string]string
		name, out string
		env       []string
		cmd       []string
	}{
		{b.built.wasm, "c", "hello.wasm", nil, wasi(filepath.Join(g, "hello.c"))},
		{b.built.wasm, "kernels", "kernels.wasm", nil, wasi(filepath.Join(g, "kernels.c"))},
		{b.built.wasm, "http", "http.wasm", nil, wasi(http)},
		{b.built.native, "c", "hello", nil, static(filepath.Join(g, "hello.c"))},
		{b.built.native, "kernels", "kernels", nil, static(filepath.Join(g, "kernels.c"))},
		{b.built.native, "http", "http", nil, static(http, filepath.Join(g, "native/listen.c"))},
		// Debian's, by its path: one of rustup's may have no WASI.
		{b.built.wasm, "rust", "rust.wasm", nil, []string{"/usr/bin/rustc", "--target", "wasm32-wasi", "-O", "-C", "strip=symbols", filepath.Join(g, "hello.rs")}},
		{b.built.wasm, "go", "go.wasm", []string{"GOOS=wasip1", "GOARCH=wasm", "GOFLAGS=-trimpath"}, []string{b.goTool, "build", "-ldflags=-s -w", filepath.Join(g, "hello/main.go")}},
	} {
		out := filepath.Join(b.dir, c.out)
		err := b.tool(ctx, c.env, c.cmd, out)
		switch {
		case errors.Is(err, errNoTool):
			fmt.Fprintf(os.Stderr, "bench-runtime: %s is left out: %v\n", c.out, err)
		case err != nil:
			return err
		default:
			c.into[c.name] = out
		}
	}
	if b.built.wasm["c"] == "" || b.built.native["http"] == "" {
		return errors.New("clang, lld, wasi-libc, libclang-rt-14-dev-wasm32 and libc6-dev are needed")
	}
	b.built.interpreter = filepath.Join(b.dir, "wasmrunner-interpreter")
	return b.tool(ctx, []string{"CGO_ENABLED=0"}, []string{b.goTool, "build", "-tags", "interpreter", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "./cmd/wasmrunner"}, b.built.interpreter)
}

// tool runs a compiler with -o out before the last argument.
func (b *bench) tool(ctx context.Context, env, args []string, out string) error {
	path, err := exec.LookPath(args[0])
	if err != nil {
		return fmt.Errorf("%w: %w", errNoTool, err)
	}
	last := len(args) - 1
	// An option's place is before Go's package, anywhere for the others.
	cmd := exec.CommandContext(ctx, path, slices.Concat(args[1:last], []string{"-o", out}, args[last:])...)
	cmd.Env = append(os.Environ(), env...)
	text, err := cmd.CombinedOutput()
	if err == nil {
		return nil
	}
	if strings.Contains(string(text), "can't find crate for `std`") || strings.Contains(string(text), "target may not be installed") {
		return fmt.Errorf("%w: the package libstd-rust-dev-wasm32 is missing", errNoTool)
	}
	return fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, text)
}
