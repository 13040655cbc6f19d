package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/coracle-edge/coracle/test/bench/report"
	"github.com/coracle-edge/coracle/test/bench/rig"
)

func main() {
	var b bench
	flag.StringVar(&b.bin, "bin", "bin", "where the programs are")
	flag.StringVar(&b.out, "out", ".coracle/bench/bench-runtime.jsonl", "where the rows go")
	flag.StringVar(&b.goTool, "go", "go", "the Go command, for guests and for the sizes of programs for boards")
	flag.StringVar(&b.guests, "guests", "test/bench/runtime/guests", "the sources of the guests")
	flag.IntVar(&b.starts, "starts", 100, "how many containers are started for the latency, cached")
	flag.IntVar(&b.cold, "cold", 5, "how many are started cold")
	flag.IntVar(&b.many, "many", 100, "the largest number of C containers for memory")
	flag.DurationVar(&b.window, "window", time.Minute, "how long the idle server is watched")
	flag.DurationVar(&b.load, "load", 5*time.Second, "how long the HTTP servers are asked")
	flag.StringVar(&b.kernel, "arm64", "", "an arm64 kernel (kernel.sh fetches Debian's): measure the density of a QEMU guest, and nothing else")
	flag.IntVar(&b.boardContainers, "board-containers", 200, "how many containers that guest runs")
	flag.Parse()
	rig.Enter()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := b.run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench-runtime:", err)
		stop()
		os.Exit(1)
	}
}

type bench struct {
	bin, out, goTool   string
	guests, kernel     string
	boardContainers    int
	starts, cold, many int
	window, load       time.Duration

	report report.Report
	dir    string // of this run, removed at its end
	built  built
	world  *world
}

func (b *bench) run(ctx context.Context) (err error) {
	for _, p := range []*string{&b.bin, &b.out, &b.guests} {
		if *p, err = filepath.Abs(*p); err != nil {
			return err
		}
	}
	// A short path, for sockets have 107 bytes; and guests of other users must
	// reach what is in it.
	if b.dir, err = os.MkdirTemp("", "cor-bench-*"); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	if err := os.Chmod(b.dir, 0o755); err != nil {
		return err
	}
	if err := b.build(ctx); err != nil {
		return err
	}
	if b.kernel != "" {
		if err := b.arm64(ctx); err != nil {
			return err
		}
		return b.finish()
	}
	// Pages of a program that was just built are dirty, and count as private.
	syscall.Sync()
	if b.world, err = open(ctx, b.dir, filepath.Join(b.bin, "wasmrunner")); err != nil {
		return err
	}
	defer func() {
		if closeErr := b.world.close(); err == nil {
			err = closeErr
		}
	}()
	for _, step := range []func(context.Context) error{b.latency, b.memory, b.idle, b.requests, b.compute, b.sizes} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return b.finish()
}

func (b *bench) finish() error {
	if err := b.report.Print(os.Stdout); err != nil {
		return err
	}
	return b.report.Write(b.out)
}
