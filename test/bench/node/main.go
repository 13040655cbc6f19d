package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/containerd/log"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coracle-edge/coracle/test/bench/reference"
	"github.com/coracle-edge/coracle/test/bench/report"
	"github.com/coracle-edge/coracle/test/bench/rig"
	"github.com/coracle-edge/coracle/test/lab"
)

func main() {
	b := bench{progress: os.Stderr, counts: []int{10, 50, 100}, log: logger()}
	var light bool
	flag.StringVar(&b.bin, "bin", "bin", "where the programs are")
	flag.StringVar(&b.tools, "upstream", "bin/tools/upstream", "where upstream's are (make upstream builds them)")
	flag.StringVar(&b.containerd, "containerd", "", "the containerd of both nodes; default: the one in PATH")
	flag.StringVar(&b.source, "source", "examples/http", "the sources of what the pods run")
	flag.StringVar(&b.out, "out", ".coracle/bench/bench-node.jsonl", "where the rows go")
	flag.IntVar(&b.starts, "starts", 100, "how many pods are started for the latency")
	flag.IntVar(&b.probed, "probed", 50, "how many pods have probes")
	flag.DurationVar(&b.window, "window", 5*time.Minute, "how long processor and disk are watched")
	flag.DurationVar(&b.work, "work", 10*time.Minute, "how long light work is done before the node is called idle again")
	flag.DurationVar(&b.settle, "settle", 15*time.Second, "how long processes are left alone before their memory is read")
	flag.DurationVar(&b.afterStart, "after-start", 65*time.Second, "how long a node is left alone after its start")
	flag.StringVar(&b.only, "only", "", "one of upstream, wasm, oci; empty: all")
	flag.BoolVar(&light, "light", false, "a run of some minutes, whose figures are good for nothing but to see that they come")
	flag.Parse()
	if light {
		b.counts, b.starts, b.probed = []int{3, 10}, 10, 5
		b.window, b.work, b.settle, b.afterStart = 15*time.Second, 15*time.Second, 5*time.Second, 10*time.Second
	}
	rig.Enter()
	_ = log.SetLevel("error") // the registry client warns of media types that it doesn't know
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := b.run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench-node:", err)
		stop()
		os.Exit(1)
	}
}

type bench struct {
	bin, tools, containerd string
	source, out, only      string
	counts                 []int
	starts, probed         int
	window, work           time.Duration
	settle, afterStart     time.Duration
	progress               io.Writer
	log                    *slog.Logger

	report                        report.Report
	dir                           string // of this run, removed at its end
	cgroup                        cgroup
	moduleArchive, programArchive []byte
	bare                          []time.Duration // of nothing but the calls of CRI
}

func (b *bench) run(ctx context.Context) (err error) {
	for _, p := range []*string{&b.bin, &b.tools, &b.source, &b.out} {
		if *p, err = filepath.Abs(*p); err != nil {
			return err
		}
	}
	if err := reference.Check(b.tools); err != nil {
		return fmt.Errorf("%w (make upstream)", err)
	}
	// A short path, for sockets have 107 bytes; and guests of other users must
	// reach what is in it.
	if b.dir, err = os.MkdirTemp("", "cor-node-*"); err != nil {
		return err
	}
	if err := os.Chmod(b.dir, 0o755); err != nil {
		return err
	}
	b.cgroup = cgroup("/coracle-bench-" + filepath.Base(b.dir))
	defer func() {
		err = errors.Join(err, b.cgroup.remove(), lab.UnmountBelow(b.dir), os.RemoveAll(b.dir))
	}()
	if err := b.build(ctx); err != nil {
		return err
	}
	// Pages of a program that was just built are dirty, and count as private.
	syscall.Sync()
	var r results
	for _, of := range []struct {
		name  string
		into  **figures
		wasm  bool
		start func(context.Context) (*subject, error)
	}{
		{"upstream", &r.upstream, false, b.startUpstream},
		{"wasm", &r.wasm, true, func(ctx context.Context) (*subject, error) { return b.startOurs(ctx, false) }},
		{"oci", &r.oci, false, func(ctx context.Context) (*subject, error) { return b.startOurs(ctx, true) }},
	} {
		if b.only != "" && b.only != of.name {
			continue
		}
		s, err := of.start(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", of.name, err)
		}
		*of.into, err = b.measure(ctx, s, of.wasm)
		if err = errors.Join(err, s.stop()); err != nil {
			return err
		}
	}
	r.bare = b.bare
	b.rows(r)
	if err := b.report.Print(os.Stdout); err != nil {
		return err
	}
	return b.report.Write(b.out)
}

// build the server of examples/http, for this machine and as a module.
func (b *bench) build(ctx context.Context) error {
	guests := filepath.Join(b.source, "../../test/bench/runtime/guests/native")
	flags := []string{"-O2", "-s", "-D_GNU_SOURCE"}
	program, module := filepath.Join(b.dir, "http"), filepath.Join(b.dir, "http.wasm")
	for _, args := range [][]string{
		{"-static", "-I" + guests, "-o", program, filepath.Join(b.source, "http.c"), filepath.Join(guests, "listen.c")},
		{"--target=wasm32-wasi", "-o", module, filepath.Join(b.source, "http.c")},
	} {
		if text, err := exec.CommandContext(ctx, "clang", slices.Concat(flags, args)...).CombinedOutput(); err != nil {
			return fmt.Errorf("clang (packages clang, lld, wasi-libc, libclang-rt-14-dev-wasm32 and libc6-dev): %w\n%s", err, text)
		}
	}
	raw, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	b.programArchive = lab.Archive(lab.OCI(ocispec.ImageConfig{Entrypoint: []string{"/http"}}, nil, []lab.File{{Path: "http", Mode: 0o755, Data: raw}}), "")
	if raw, err = os.ReadFile(module); err != nil {
		return err
	}
	b.moduleArchive = lab.Archive(lab.CNCF(raw), "")
	return nil
}
