package main

import (
	"fmt"
)

// results of a run; nil is what wasn't measured.
type results struct {
	upstream, wasm, oci *figures
	load                [2]float64 // of the machine, at the begin and at the end
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
	b.report.Add("load average of this machine as this began", r.load[0], "", fmt.Sprintf("%.1f as it ended", r.load[1]))
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
		at := b.peers
		if wasm {
			at = b.ours
		}
		add := func(what string, of func(*figures) float64, unit, format string, mark float64) {
			anchor := "-"
			if ours && r.upstream != nil && of(r.upstream) != 0 { // 0: it wasn't measured
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
		if f.worked.node.RSS > 0 {
			soon, after := fmt.Sprintf(", %s after %s of light work", at.settle, at.work), fmt.Sprintf(", idle after %s of light work", at.work)
			add("RSS"+soon, func(f *figures) float64 { return f.justWorked.node.RSS }, "MiB", "%.0f", 0)
			add("private"+soon, func(f *figures) float64 { return f.justWorked.node.Private }, "MiB", "%.0f", 0)
			add("RSS"+after, func(f *figures) float64 { return f.worked.node.RSS }, "MiB", "%.0f", only(markRSS, wasm))
			add("private"+after, func(f *figures) float64 { return f.worked.node.Private }, "MiB", "%.0f", only(markPrivate, wasm))
			add("PSS"+after, func(f *figures) float64 { return f.worked.node.PSS }, "MiB", "%.0f", 0)
			add("kernel memory"+after, func(f *figures) float64 { return f.worked.kernel }, "MiB", "%.1f", 0)
		}
		for _, count := range at.counts {
			with := fmt.Sprintf(", %d pods", count)
			add("PSS and kernel memory"+with, func(f *figures) float64 { return f.with[count].node.PSS + f.with[count].kernel }, "MiB", "%.0f", 0)
			add("the same with the pods' own"+with, func(f *figures) float64 {
				p := f.with[count]
				return p.node.PSS + p.kernel + p.pods.PSS + p.podKernel
			}, "MiB", "%.0f", 0)
			add("private, besides the pods' own"+with, func(f *figures) float64 { return f.with[count].node.Private }, "MiB", "%.0f", 0)
		}
		if most := at.counts[len(at.counts)-1]; f.most.node.Private > 0 {
			// As after light work: what starting took goes a minute later.
			add(fmt.Sprintf("private, besides the pods' own, %d pods, idle", most), func(f *figures) float64 { return f.most.node.Private }, "MiB", "%.0f", only(markPodsPrivate, wasm && most == 100))
			add(fmt.Sprintf("RSS, besides the pods' own, %d pods, idle", most), func(f *figures) float64 { return f.most.node.RSS }, "MiB", "%.0f", 0)
		}
		add("processor, idle", func(f *figures) float64 { return f.idleCPU.all }, "% of a core", "%.2f", markIdleCPU)
		if !wasm {
			add("processor, idle, of that the runtime", func(f *figures) float64 { return f.idleCPU.runtime }, "% of a core", "%.2f", 0)
		}
		add(fmt.Sprintf("processor, %d pods with two HTTP probes each every 10 s", at.probed), func(f *figures) float64 { return f.probedCPU.all }, "% of a core", "%.2f", 0)
		add("pod, create to Running, p50", func(f *figures) float64 { return f.p50 }, "ms", "%.0f, without a scheduler", only(markWasmP50, wasm))
		add("pod, create to Running, p99", func(f *figures) float64 { return f.p99 }, "ms", "%.0f", only(markWasmP99, wasm))
		add("written to disk, idle", func(f *figures) float64 { return f.idleWritten / 1e3 }, "KB/h", "%.0f", 0)
		add("written to disk, by a pod's life", func(f *figures) float64 { return f.podWritten / 1e3 }, "KB", "%.0f", 0)
		if f.idleSyncs >= 0 {
			add("syncs, idle", func(f *figures) float64 { return f.idleSyncs }, "per hour", "%.0f", 0)
			add("syncs, by a pod's life", func(f *figures) float64 { return f.podSyncs }, "", "%.1f", 0)
		}
	}
	if r.oci != nil && r.oci.bare > 0 {
		b.report.Add("bare CRI calls that start the same pod, p50, in turns with ours", r.oci.bare, "ms", "-")
		b.report.AddMarked("ours, with containerd: create to Running by bare CRI calls, p50", r.oci.p50/r.oci.bare, "times", "-", markOverBare)
	}
}
