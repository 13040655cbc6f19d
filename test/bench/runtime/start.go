package main

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// latency is from CreateContainer to the first byte in the log.
func (b *bench) latency(ctx context.Context) error {
	// The peer first: its figures stand beside ours.
	peer := map[bool]float64{}
	for _, cold := range []bool{true, false} {
		n := b.starts / 4
		if cold {
			n = b.cold
		}
		took, err := b.runc(ctx, n, cold)
		if err != nil {
			return err
		}
		peer[cold] = percentile(took, 0.5)
		b.report.Add("first byte, runc through containerd, "+called(cold)+", p50", peer[cold], "ms", "-")
		if !cold {
			b.report.Add("first byte, runc through containerd, cached, p99", percentile(took, 0.99), "ms", "-")
		}
	}
	for _, g := range []struct{ name, title string }{{"c", "C"}, {"rust", "Rust"}, {"go", "Go"}} {
		file, ok := b.built.wasm[g.name]
		if !ok {
			continue
		}
		image, err := b.world.importModule(ctx, g.name, file)
		if err != nil {
			return err
		}
		took, err := b.wasm(ctx, image, b.cold, true)
		if err != nil {
			return err
		}
		b.report.Add("first byte, Wasm of "+g.title+", cold, p50", percentile(took, 0.5), "ms", fmt.Sprintf("runc through containerd, cold %.0f", peer[true]))
		if took, err = b.wasm(ctx, image, b.starts, false); err != nil {
			return err
		}
		p50, beside := percentile(took, 0.5), fmt.Sprintf("runc through containerd %.0f", peer[false])
		name := "first byte, Wasm of " + g.title + ", cached, p50"
		if g.name == "go" {
			b.report.Add(name, p50, "ms", beside)
		} else {
			b.report.AddMarked(name, p50, "ms", beside, 15)
			b.report.AddMarked("the same by runc's, Wasm of "+g.title, p50/peer[false], "times", "-", 1./6)
		}
		b.report.Add("first byte, Wasm of "+g.title+", cached, p99", percentile(took, 0.99), "ms", "-")
	}
	return nil
}

func called(cold bool) string {
	if cold {
		return "cold"
	}
	return "cached"
}

func (b *bench) wasm(ctx context.Context, image string, n int, cold bool) ([]time.Duration, error) {
	var all []time.Duration
	for i := range n + 1 {
		if cold {
			if err := b.world.forgetCode(); err != nil {
				return nil, err
			}
		}
		took, err := b.once(ctx, b.world.service, image)
		if err != nil {
			return nil, err
		}
		if i > 0 || cold { // the first cached one may find it cold
			all = append(all, took)
		}
	}
	return all, nil
}

func (b *bench) runc(ctx context.Context, n int, cold bool) (all []time.Duration, err error) {
	var image string
	for i := range n + 1 {
		if cold || i == 0 {
			// Another file in it: other layers, not unpacked yet.
			name := fmt.Sprintf("runc-%s-%d", called(cold), i)
			if image, err = b.world.importProgram(ctx, name, b.built.native["c"], name); err != nil {
				return nil, err
			}
		}
		took, err := b.once(ctx, b.world.direct, image)
		if err != nil {
			return nil, err
		}
		if i > 0 {
			all = append(all, took)
		}
	}
	return all, nil
}

// once is the short life of a pod.
func (b *bench) once(ctx context.Context, on cri, image string) (time.Duration, error) {
	p, err := b.world.sandbox(ctx, on)
	if err != nil {
		return 0, err
	}
	took, err := p.start(ctx, image, "hello\n", nil, "stay")
	if err != nil {
		return 0, err
	}
	return took, p.remove(ctx)
}

// percentile in milliseconds.
func percentile(took []time.Duration, p float64) float64 {
	took = slices.Sorted(slices.Values(took))
	return float64(took[min(len(took)-1, int(p*float64(len(took))))].Microseconds()) / 1000
}
