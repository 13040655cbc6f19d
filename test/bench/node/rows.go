package main

import (
	"fmt"
	"time"
)

// results of a run; nil is what wasn't measured.
type results struct {
	upstream, wasm, oci *figures
	bare                []time.Duration
}

// Marks of what a node of ours may take.
const (
	markPrivate     = 8.0  // MiB, Wasm only, idle after light work
	markRSS         = 24.0 // MiB, the same
	markPodsPrivate = 14.0 // MiB, with 100 Wasm pods, besides their runners
	markIdleCPU     = 0.2  // per cent of a core
	markWasmP50     = 60.0 // ms, create to Running
	markWasmP99     = 200.0
	markOverBare    = 1.1 // times of bare CRI calls
)

// rows puts each figure of ours beside upstream's of the same run.
func (b *bench) rows(r results) {
	beside := func(format string, of func(*figures) float64) string {
		if r.upstream == nil {
			return "-"
		}
		return "kubelet, kube-proxy and containerd " + fmt.Sprintf(format, of(r.upstream))
	}
	for _, n := range []struct {
		name string
		f    *figures
	}{{"upstream", r.upstream}, {"ours, Wasm only", r.wasm}, {"ours, with containerd", r.oci}} {
		if n.f == nil {
			continue
		}
		f, ours, wasm := n.f, n.f != r.upstream, n.f == r.wasm
		add := func(what string, of func(*figures) float64, unit, format string, mark float64) {
			anchor := "-"
			if ours {
				anchor = beside(format, of)
			}
			if ours && mark > 0 {
				b.report.AddMarked(n.name+": "+what, of(f), unit, anchor, mark)
				return
			}
			b.report.Add(n.name+": "+what, of(f), unit, anchor)
		}
		only := func(mark float64, when bool) float64 {
			if when {
				return mark
			}
			return 0
		}
		add("RSS, idle", func(f *figures) float64 { return f.idle.node.RSS }, "MiB", "%.0f", 0)
		add("PSS, idle", func(f *figures) float64 { return f.idle.node.PSS }, "MiB", "%.0f", 0)
		add("kernel memory, idle", func(f *figures) float64 { return f.idle.kernel }, "MiB", "%.1f", 0)
		after := fmt.Sprintf(", idle after %s of light work", b.work)
		add("RSS"+after, func(f *figures) float64 { return f.worked.node.RSS }, "MiB", "%.0f", only(markRSS, wasm))
		add("private"+after, func(f *figures) float64 { return f.worked.node.Private }, "MiB", "%.0f", only(markPrivate, wasm))
		add("PSS"+after, func(f *figures) float64 { return f.worked.node.PSS }, "MiB", "%.0f", 0)
		add("kernel memory"+after, func(f *figures) float64 { return f.worked.kernel }, "MiB", "%.1f", 0)
		for _, count := range b.counts {
			with := fmt.Sprintf(", %d pods", count)
			add("PSS and kernel memory"+with, func(f *figures) float64 { return f.with[count].node.PSS + f.with[count].kernel }, "MiB", "%.0f", 0)
			add("the same with the pods' own"+with, func(f *figures) float64 {
				p := f.with[count]
				return p.node.PSS + p.kernel + p.pods.PSS + p.podKernel
			}, "MiB", "%.0f", 0)
			add("private, besides the pods' own"+with, func(f *figures) float64 { return f.with[count].node.Private }, "MiB", "%.0f", only(markPodsPrivate, wasm && count == 100))
		}
		add("processor, idle", func(f *figures) float64 { return f.idleCPU }, "% of a core", "%.2f", markIdleCPU)
		add(fmt.Sprintf("processor, %d pods with two HTTP probes each every 10 s", b.probed), func(f *figures) float64 { return f.probedCPU }, "% of a core", "%.2f", 0)
		add("pod, create to Running, p50", func(f *figures) float64 { return f.p50 }, "ms", "%.0f, without a scheduler", only(markWasmP50, wasm))
		add("pod, create to Running, p99", func(f *figures) float64 { return f.p99 }, "ms", "%.0f", only(markWasmP99, wasm))
		add("written to disk, idle", func(f *figures) float64 { return f.idleWritten / 1e3 }, "KB/h", "%.0f", 0)
		add("written to disk, by a pod's life", func(f *figures) float64 { return f.podWritten / 1e3 }, "KB", "%.0f", 0)
		if f.idleSyncs >= 0 {
			add("syncs, idle", func(f *figures) float64 { return f.idleSyncs }, "per hour", "%.0f", 0)
			add("syncs, by a pod's life", func(f *figures) float64 { return f.podSyncs }, "", "%.1f", 0)
		}
	}
	if r.oci != nil && len(r.bare) > 0 {
		bare := percentile(r.bare, 0.5)
		b.report.Add("bare CRI calls that start the same pod, p50", bare, "ms", "-")
		b.report.AddMarked("ours, with containerd: create to Running by bare CRI calls, p50", r.oci.p50/bare, "times", "-", markOverBare)
	}
}
