package wasmruntime_test

import (
	"context"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coracle-edge/coracle/wasmruntime"
)

// pss is the proportional memory of a process in KiB, and its private part.
func pss(t testing.TB, pid int) (total, private int) {
	t.Helper()
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/smaps_rollup")
	if err != nil {
		t.Skipf("no smaps_rollup: %v", err)
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 3 {
			continue
		}
		n, _ := strconv.Atoi(f[1])
		switch f[0] {
		case "Pss:":
			total = n
		case "Private_Dirty:":
			private = n
		}
	}
	return total, private
}

// Twenty guests of the small kind, their runners included.
func TestMemoryPerGuest(t *testing.T) {
	rt := newRuntime(t, nil)
	var guests []*guest
	for range 20 {
		g := start(t, rt, wasmruntime.Spec{Module: module("sleep")})
		g.says("hello")
		guests = append(guests, g)
	}
	sum, dirty := 0, 0
	for _, g := range guests {
		p, d := pss(t, g.PID())
		sum, dirty = sum+p, dirty+d
	}
	each := sum / len(guests)
	t.Logf("20 guests: %d KiB PSS each, %d KiB of it private and dirty", each, dirty/len(guests))
	if each > 2048 {
		t.Errorf("%d KiB PSS per guest, the mark is 2048", each)
	}
}

// From the call of Start to the guest's first byte of output, the code cached.
func BenchmarkStartToFirstByte(b *testing.B) {
	for _, name := range []string{"sleep", "hello"} {
		b.Run(name, func(b *testing.B) {
			rt := newRuntime(b, nil)
			if err := rt.Compile(b.Context(), module(name), ""); err != nil {
				b.Fatal(err)
			}
			var took []time.Duration
			for b.Loop() {
				dir := b.TempDir()
				began := time.Now()
				p, err := rt.Start(b.Context(), wasmruntime.Spec{Dir: dir, Module: module(name)})
				if err != nil {
					b.Fatal(err)
				}
				// It may be that a slow reader finds all in the exit record.
				if _, err := p.Stdout().Read(make([]byte, 1)); err != nil && err != io.EOF {
					b.Fatal(err)
				}
				took = append(took, time.Since(began))
				if err := p.Delete(context.Background()); err != nil {
					b.Fatal(err)
				}
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
		})
	}
}
