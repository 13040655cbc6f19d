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
	b := bench{progress: os.Stderr, log: logger(), ours: short, peers: shortPeers}
	var light, long bool
	flag.StringVar(&b.bin, "bin", "bin", "where the programs are")
	flag.StringVar(&b.tools, "upstream", "bin/tools/upstream", "where upstream's are (make upstream builds them)")
	flag.StringVar(&b.containerd, "containerd", "", "the containerd of both nodes; default: the one in PATH")
	flag.StringVar(&b.source, "source", "examples/http", "the sources of what the pods run")
	flag.StringVar(&b.out, "out", ".coracle/bench/bench-node.jsonl", "where the rows go")
	flag.StringVar(&b.only, "only", "", "one of "+subjectNames+"; empty: all")
	flag.StringVar(&b.parts, "arm64", "", "a folder that test/board/fetch.sh filled: measure emulated boards, and nothing else")
	flag.StringVar(&b.goTool, "go", "go", "the Go command, for programs of those boards")
	flag.BoolVar(&b.console, "console", false, "show what emulated boards say")
	flag.BoolVar(&long, "long", false, "an hour and a half: minutes of watching, and as much of it for peers as for ours")
	flag.BoolVar(&light, "light", false, "a run of some minutes, whose figures are good for nothing but to see that they come")
	flag.Parse()
	switch {
	case light:
		b.ours, b.peers = glance, glance
	case long:
		b.ours, b.peers = thorough, thorough
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

// subjectNames are what may be measured alone.
const subjectNames = "upstream, wasm, worked, oci"

// pace is how long each thing is looked at, and how often.
type pace struct {
	counts         []int // of pods, for memory
	starts, probed int
	// window in which processor and disk are watched.
	window time.Duration
	// work is how long pods come and go before the node is called idle again; none
	// for a node whose work is done beside it.
	work time.Duration
	// settle is how long processes are left alone before their memory is read,
	// afterStart the same after what the agent gives memory back for a minute later.
	settle, afterStart time.Duration
	// together: the pods that are counted are those with probes, too.
	together bool
}

// Paces. The short one takes eighteen minutes with all nodes.
var (
	short      = pace{counts: []int{10, 50, 100}, starts: 100, probed: 50, window: 45 * time.Second, work: 10 * time.Minute, settle: 15 * time.Second, afterStart: 75 * time.Second}
	shortPeers = pace{counts: []int{10, 50}, starts: 25, probed: 50, window: 30 * time.Second, settle: 10 * time.Second, afterStart: 30 * time.Second, together: true}
	thorough   = pace{counts: []int{10, 50, 100}, starts: 100, probed: 50, window: 5 * time.Minute, work: 10 * time.Minute, settle: 15 * time.Second, afterStart: 75 * time.Second}
	glance     = pace{counts: []int{3, 10}, starts: 10, probed: 5, window: 15 * time.Second, work: 15 * time.Second, settle: 5 * time.Second, afterStart: 10 * time.Second}
)

type bench struct {
	bin, tools, containerd string
	source, out, only      string
	parts, goTool          string // of emulated boards
	console                bool   // of those, too
	ours, peers            pace
	progress               io.Writer
	log                    *slog.Logger

	report                        report.Report
	dir                           string // of this run, removed at its end
	cgroup                        cgroup
	moduleArchive, programArchive []byte
}

func (b *bench) run(ctx context.Context) (err error) {
	for _, p := range []*string{&b.bin, &b.tools, &b.source, &b.out} {
		if *p, err = filepath.Abs(*p); err != nil {
			return err
		}
	}
	if b.parts != "" {
		if b.parts, err = filepath.Abs(b.parts); err != nil {
			return err
		}
	} else if err := reference.Check(b.tools); err != nil && (b.only == "" || b.only == "upstream") {
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
	if b.parts != "" {
		return b.arm64(ctx)
	}
	// Pages of a program that was just built are dirty, and count as private.
	syscall.Sync()
	if b.only == "worked" {
		return b.worked(ctx)
	}
	r := results{load: loadAverage()}
	// What was measured before a failure is told, too.
	err = b.subjects(ctx, &r)
	r.load[1] = loadAverage()[0]
	b.rows(r)
	return errors.Join(err, b.report.Print(os.Stdout), b.report.Write(b.out))
}

// subjects measures all nodes, one after another.
func (b *bench) subjects(ctx context.Context, r *results) error {
	worked, err := b.startWorked(ctx)
	if err != nil {
		return err
	}
	defer worked.kill()
	for _, of := range []struct {
		name  string
		into  **figures
		wasm  bool
		at    pace
		start func(context.Context) (*subject, error)
	}{
		{"wasm", &r.wasm, true, b.ours, func(ctx context.Context) (*subject, error) { return b.startOurs(ctx, false) }},
		{"oci", &r.oci, false, b.peers, func(ctx context.Context) (*subject, error) { return b.startOurs(ctx, true) }},
		{"upstream", &r.upstream, false, b.peers, b.startUpstream},
	} {
		if b.only != "" && b.only != of.name {
			continue
		}
		if of.wasm {
			of.at.work = 0 // it is done by a node beside
		}
		s, err := of.start(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", of.name, err)
		}
		f, err := b.measure(ctx, s, of.wasm, of.at)
		if err = errors.Join(err, s.stop()); err != nil {
			return err
		}
		*of.into = f
	}
	if r.wasm == nil {
		return nil
	}
	fmt.Fprintf(b.progress, "%s waiting for the end of light work beside\n", time.Now().Format(time.TimeOnly))
	r.wasm.justWorked, r.wasm.worked, err = worked.result()
	return err
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
