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
)

// What may be lost.
const (
	loseMosquitto    = "mosquitto"
	loseControlPlane = "controlplane"
	loseNetwork      = "network"
)

func main() {
	var b bench
	var herdDir string
	flag.StringVar(&b.bin, "bin", "bin", "where the programs are")
	flag.StringVar(&b.out, "out", ".coracle/bench/bench-fleet.jsonl", "where the rows go")
	flag.StringVar(&b.lose, "broker", loseMosquitto, "what is lost: mosquitto, controlplane or network; see the package's documentation")
	flag.IntVar(&b.nodes, "nodes", 1000, "how many nodes; 0 for the deaths only")
	flag.IntVar(&b.pods, "pods", 3, "how many pods each has")
	flag.IntVar(&b.changes, "changes", 100, "how many pods are created, and as many deleted, while the broker is lost")
	flag.DurationVar(&b.outage, "outage", 10*time.Minute, "how long it is lost")
	flag.DurationVar(&b.within, "within", 5*time.Minute, "how long is waited for the nodes to be in step")
	flag.IntVar(&b.deaths, "deaths", 10, "how many boards die, each twice; 0 for none")
	flag.StringVar(&b.keep, "keep", "", "folder to work in, which stays; a temporary one if unset")
	flag.StringVar(&herdDir, "herd", "", "be the process of the nodes, in this folder (the bench starts it)")
	flag.Parse()
	if err := raiseFileLimit(); err != nil {
		fmt.Fprintln(os.Stderr, "bench-fleet:", err)
		os.Exit(1)
	}
	if herdDir != "" {
		// What ends the bench reaches its children too; they end when it does.
		signal.Ignore(os.Interrupt)
		if err := serveHerd(herdDir); err != nil {
			fmt.Fprintln(os.Stderr, "bench-fleet, nodes:", err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := b.run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench-fleet:", err)
		os.Exit(1)
	}
}

type bench struct {
	bin, out, lose, keep string
	nodes, pods          int
	changes, deaths      int
	outage, within       time.Duration

	report report.Report
	plane  *plane
	herd   *herd
	want   map[string][]string // UIDs of pods by node
	names  []string
}

func (b *bench) run(ctx context.Context) (err error) {
	switch b.lose {
	case loseMosquitto, loseControlPlane, loseNetwork:
	default:
		return fmt.Errorf("-broker %q: want %s, %s or %s", b.lose, loseMosquitto, loseControlPlane, loseNetwork)
	}
	if b.bin, err = filepath.Abs(b.bin); err != nil {
		return err
	}
	dir := b.keep
	if dir == "" {
		if dir, err = os.MkdirTemp("", "coracle-fleet"); err != nil {
			return err
		}
		defer os.RemoveAll(dir)
	}
	if b.nodes > 0 {
		if err := b.on(ctx, dir, b.lose, b.fleet); err != nil {
			return err
		}
	}
	if b.deaths > 0 {
		// With the embedded broker, which most have.
		if err := b.on(ctx, filepath.Join(dir, "deaths"), loseNetwork, b.die); err != nil {
			return fmt.Errorf("deaths: %w", err)
		}
	}
	if err := b.report.Print(os.Stdout); err != nil {
		return err
	}
	return b.report.Write(b.out)
}

// on runs do on a control plane of its own.
func (b *bench) on(ctx context.Context, dir, lose string, do func(context.Context, string) error) (err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if b.plane, err = b.startPlane(ctx, dir, lose); err != nil {
		return err
	}
	defer b.plane.stop()
	return do(ctx, dir)
}

// raiseFileLimit takes what the machine gives: a node needs a socket and a file.
func raiseFileLimit() error {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return err
	}
	l.Cur = l.Max
	return syscall.Setrlimit(syscall.RLIMIT_NOFILE, &l)
}

func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%s  %s\n", time.Now().Format("15:04:05"), fmt.Sprintf(format, args...))
}
