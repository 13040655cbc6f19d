package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-edge/coracle/test/bench/rig"
	"github.com/coracle-edge/coracle/test/board"
	"github.com/coracle-edge/coracle/test/lab"
)

const (
	boardPods = 10
	markFree  = 30.0 // MiB that a board has left with boardPods on it
	// boardSettle is until an agent gives back what a spell of work took, and more.
	boardSettle = 75 * time.Second
)

// emulated is a board that is measured, and its pods' kind.
type emulated struct {
	memory int // MiB
	oci    bool
}

// arm64 measures emulated boards: what memory they have left with pods on them.
func (b *bench) arm64(ctx context.Context) error {
	programs := filepath.Join(b.dir, "arm64")
	if err := board.Build(ctx, b.goTool, filepath.Join(b.source, "../.."), programs); err != nil {
		return err
	}
	for _, e := range []emulated{{memory: 128}, {memory: 512, oci: true}} {
		if err := b.emulate(ctx, e, programs); err != nil {
			return fmt.Errorf("board of %d MiB: %w", e.memory, err)
		}
	}
	if err := b.report.Print(os.Stdout); err != nil {
		return err
	}
	return b.report.Write(b.out)
}

func (b *bench) emulate(ctx context.Context, e emulated, programs string) (err error) {
	fmt.Fprintf(b.progress, "board of %d MiB\n", e.memory)
	web, err := board.Busybox(b.parts, "httpd", "-f", "-p", "8080", "-h", "/www")
	if err != nil {
		return err
	}
	module, err := os.ReadFile(filepath.Join(b.dir, "http.wasm"))
	if err != nil {
		return err
	}
	var console io.Writer
	if b.console {
		console = b.progress
	}
	n, err := board.StartNode(ctx, board.NodeConfig{
		Config: board.Config{Parts: b.parts, Memory: e.memory, OCI: e.oci, Console: console},
		Bin:    b.bin, Programs: programs,
		Images: map[string]*lab.Image{"http-oci:1": web, "http-wasm:1": lab.CNCF(module)},
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.Close()) }()
	w := &work{bench: b, subject: &subject{client: n.Client}, wasm: !e.oci}
	kind := "Wasm"
	if e.oci {
		kind = "OCI"
	}
	name := fmt.Sprintf("arm64 board of %d MiB", e.memory)
	before, err := settled(ctx, n)
	if err != nil {
		return err
	}
	for i := range boardPods {
		p := w.pod(fmt.Sprintf("board-%d", i), true)
		p.Spec.Containers[0].Image = strings.Replace(p.Spec.Containers[0].Image, "bench.example", board.ImageHost, 1)
		p.Spec.Containers[0].ImagePullPolicy = corev1.PullIfNotPresent
		if err := w.create(ctx, p); err != nil {
			return err
		}
	}
	if err := n.Await(ctx, 20*time.Minute, fmt.Sprintf("%d pods run", boardPods), func() error { return w.ready(ctx, boardPods) }); err != nil {
		return err
	}
	after, err := settled(ctx, n)
	if err != nil {
		return err
	}
	// They still run, all of them, and none was killed for its memory meanwhile.
	if err := w.ready(ctx, boardPods); err != nil {
		return err
	}
	if node, err := n.Client.CoreV1().Nodes().Get(ctx, board.Name, metav1.GetOptions{}); err != nil {
		return err
	} else {
		b.report.Add(name+": memory that its kernel leaves", float64(node.Status.Capacity.Memory().Value())/(1<<20), "MiB", "-")
	}
	b.report.Add(name+": available without pods", before.available, "MiB", "-")
	b.report.Add(name+": edgelet, RSS", after.rss, "MiB", "-")
	b.report.Add(name+": edgelet, private", after.private, "MiB", "-")
	// A mark is what shouldn't be exceeded: what lacks of what should be left.
	b.report.AddMarked(fmt.Sprintf("%s: of %.0f MiB available with %d %s pods, lacking", name, markFree, boardPods, kind), max(0, markFree-after.available), "MiB",
		fmt.Sprintf("%.1f are left", after.available), 0)
	return nil
}

// left is what a board has, in MiB.
type left struct{ available, rss, private float64 }

// settled is what is left when nothing has happened for a while.
func settled(ctx context.Context, n *board.Node) (l left, err error) {
	if err := rig.Sleep(ctx, boardSettle); err != nil {
		return l, err
	}
	said, err := n.Run(ctx, `awk '/^MemAvailable/ { print $2 }' /proc/meminfo; awk '/^Rss:/ { print $2 } /^Private_Dirty:/ { print $2 }' /proc/$(pidof edgelet)/smaps_rollup`)
	if err != nil {
		return l, err
	}
	f := strings.Fields(said)
	for i, into := range []*float64{&l.available, &l.rss, &l.private} {
		if len(f) != 3 {
			return l, fmt.Errorf("the board said %q of its memory, not three numbers", said)
		}
		kb, err := strconv.ParseFloat(f[i], 64)
		if err != nil {
			return l, err
		}
		*into = kb / 1024
	}
	return l, nil
}
