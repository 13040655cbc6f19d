package wasm

import (
	"fmt"
	"os"
	"sort"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Names, labels and units are those of containerd and of cAdvisor before it, so
// that a kubelet's /metrics/cadvisor is one table for pods of both kinds. What a
// guest has no counterpart of (a writable layer, block devices, huge pages) is
// left out, as the CRI wants it.
var (
	baseLabels    = []string{"pod", "namespace", "container", "id", "image"}
	networkLabels = append(baseLabels[:len(baseLabels):len(baseLabels)], "interface")
	failureLabels = append(baseLabels[:len(baseLabels):len(baseLabels)], "failure_type", "scope")
)

type metric struct {
	name, help string
	labels     []string
	kind       runtimeapi.MetricType
}

const (
	counter = runtimeapi.MetricType_COUNTER
	gauge   = runtimeapi.MetricType_GAUGE
)

var (
	cpuSeconds     = metric{"container_cpu_usage_seconds_total", "Cumulative cpu time consumed in seconds.", baseLabels, counter}
	memoryUsage    = metric{"container_memory_usage_bytes", "Current memory usage in bytes, including all memory regardless of when it was accessed", baseLabels, gauge}
	memoryWorking  = metric{"container_memory_working_set_bytes", "Current working set in bytes.", baseLabels, gauge}
	memoryRSS      = metric{"container_memory_rss", "Size of RSS in bytes.", baseLabels, gauge}
	memoryFailures = metric{"container_memory_failures_total", "Cumulative count of memory allocation failures.", failureLabels, counter}
	oomEvents      = metric{"container_oom_events_total", "Count of out of memory events observed for the container", baseLabels, counter}
	processes      = metric{"container_processes", "Number of processes running inside the container.", baseLabels, gauge}
	threads        = metric{"container_threads", "Number of threads running inside the container.", baseLabels, gauge}
	descriptors    = metric{"container_file_descriptors", "Number of open file descriptors for the container.", baseLabels, gauge}
	lastSeen       = metric{"container_last_seen", "Last time a container was seen by the exporter", baseLabels, gauge}
	startTime      = metric{"container_start_time_seconds", "Start time of the container since unix epoch in seconds.", baseLabels, gauge}
	cpuPeriod      = metric{"container_spec_cpu_period", "CPU period of the container.", baseLabels, gauge}
	cpuShares      = metric{"container_spec_cpu_shares", "CPU share of the container.", baseLabels, gauge}
	memoryLimit    = metric{"container_spec_memory_limit_bytes", "Memory limit for the container.", baseLabels, gauge}
	swapLimit      = metric{"container_spec_memory_swap_limit_bytes", "Memory swap limit for the container.", baseLabels, gauge}

	rxBytes   = metric{"container_network_receive_bytes_total", "Cumulative count of bytes received", networkLabels, counter}
	rxPackets = metric{"container_network_receive_packets_total", "Cumulative count of packets received", networkLabels, counter}
	rxDropped = metric{"container_network_receive_packets_dropped_total", "Cumulative count of packets dropped while receiving", networkLabels, counter}
	rxErrors  = metric{"container_network_receive_errors_total", "Cumulative count of errors encountered while receiving", networkLabels, counter}
	txBytes   = metric{"container_network_transmit_bytes_total", "Cumulative count of bytes transmitted", networkLabels, counter}
	txPackets = metric{"container_network_transmit_packets_total", "Cumulative count of packets transmitted", networkLabels, counter}
	txDropped = metric{"container_network_transmit_packets_dropped_total", "Cumulative count of packets dropped while transmitting", networkLabels, counter}
	txErrors  = metric{"container_network_transmit_errors_total", "Cumulative count of errors encountered while transmitting", networkLabels, counter}
)

// MetricDescriptors of what PodSandboxMetrics and ContainerMetrics have.
func MetricDescriptors() []*runtimeapi.MetricDescriptor {
	var out []*runtimeapi.MetricDescriptor
	for _, m := range []metric{
		cpuSeconds, memoryUsage, memoryWorking, memoryRSS, memoryFailures, oomEvents, processes, threads, descriptors, lastSeen, startTime,
		cpuPeriod, cpuShares, memoryLimit, swapLimit,
		rxBytes, rxPackets, rxDropped, rxErrors, txBytes, txPackets, txDropped, txErrors,
	} {
		out = append(out, &runtimeapi.MetricDescriptor{Name: m.name, Help: m.help, LabelKeys: m.labels})
	}
	return out
}

func (m metric) is(v uint64, labels ...string) *runtimeapi.Metric {
	return &runtimeapi.Metric{Name: m.name, MetricType: m.kind, LabelValues: labels, Value: u64(v)} // Timestamp 0: gathered live
}

// ListPodSandboxMetrics of the ready sandboxes.
func (m *Manager) ListPodSandboxMetrics() []*runtimeapi.PodSandboxMetrics {
	var out []*runtimeapi.PodSandboxMetrics
	m.mu.Lock()
	all := make([]*sandbox, 0, len(m.sandboxes))
	for _, s := range m.sandboxes {
		all = append(all, s)
	}
	m.mu.Unlock()
	sort.Slice(all, func(i, j int) bool { return all[i].id < all[j].id })
	for _, s := range all {
		rec := s.record()
		if !rec.Ready {
			continue
		}
		md := s.shown.metadata
		pm := &runtimeapi.PodSandboxMetrics{PodSandboxId: s.id, ContainerMetrics: m.ContainerMetricsOf(s.id, md)}
		if rec.Network == netCNI {
			pm.Metrics = networkMetrics(rec.NetNS, md.GetName(), md.GetNamespace(), "", s.id, "")
		}
		out = append(out, pm)
	}
	return out
}

func networkMetrics(netns string, labels ...string) []*runtimeapi.Metric {
	all, err := readNetDev(netns)
	if err != nil {
		return nil
	}
	var out []*runtimeapi.Metric
	for _, c := range all {
		l := append(labels[:len(labels):len(labels)], c.name)
		out = append(out,
			rxBytes.is(c.rxBytes, l...), rxPackets.is(c.rxPackets, l...), rxDropped.is(c.rxDrop, l...), rxErrors.is(c.rxErrors, l...),
			txBytes.is(c.txBytes, l...), txPackets.is(c.txPackets, l...), txDropped.is(c.txDrop, l...), txErrors.is(c.txErrors, l...))
	}
	return out
}

// ContainerMetricsOf the running Wasm containers of any sandbox; md is the
// sandbox's.
func (m *Manager) ContainerMetricsOf(sandboxID string, md *runtimeapi.PodSandboxMetadata) []*runtimeapi.ContainerMetrics {
	all := m.containersOf(sandboxID)
	sort.Slice(all, func(i, j int) bool { return all[i].id < all[j].id })
	var out []*runtimeapi.ContainerMetrics
	for _, c := range all {
		if cm := m.containerMetrics(c, md); cm != nil {
			out = append(out, cm)
		}
	}
	return out
}

func (m *Manager) containerMetrics(c *container, md *runtimeapi.PodSandboxMetadata) *runtimeapi.ContainerMetrics {
	c.mu.Lock()
	proc, running, rec := c.proc, c.stateLocked() == runtimeapi.ContainerState_CONTAINER_RUNNING, c.rec
	c.mu.Unlock()
	if !running {
		return nil
	}
	st, err := proc.Stats()
	if err != nil {
		return nil
	}
	l := []string{md.GetName(), md.GetNamespace(), c.shown.metadata.GetName(), c.id, rec.ImageRef}
	failures := func(kind string) []string { return append(l[:len(l):len(l)], kind, "container") }
	res := rec.Spec.Resources
	out := []*runtimeapi.Metric{
		cpuSeconds.is(st.CPUNanos/uint64(time.Second), l...), // whole seconds: the CRI has integers only
		memoryUsage.is(st.MemoryBytes, l...), memoryWorking.is(st.WorkingSetBytes, l...), memoryRSS.is(st.RSSBytes, l...),
		memoryFailures.is(st.PageFaults, failures("pgfault")...), memoryFailures.is(st.MajorPageFaults, failures("pgmajfault")...),
		oomEvents.is(st.OOMKills, l...), processes.is(1, l...),
		lastSeen.is(uint64(m.opts.Now().Unix()), l...), startTime.is(uint64(max(proc.StartedAt().Unix(), 0)), l...),
	}
	for _, dir := range []struct {
		metric metric
		name   string
	}{{threads, "task"}, {descriptors, "fd"}} {
		if entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/%s", proc.PID(), dir.name)); err == nil {
			out = append(out, dir.metric.is(uint64(len(entries)), l...))
		}
	}
	for _, spec := range []struct {
		metric metric
		v      int64
	}{{cpuPeriod, res.CPUPeriod}, {cpuShares, res.CPUShares}, {memoryLimit, res.MemoryBytes}, {swapLimit, res.SwapBytes}} {
		if spec.v > 0 {
			out = append(out, spec.metric.is(uint64(spec.v), l...))
		}
	}
	return &runtimeapi.ContainerMetrics{ContainerId: c.id, Metrics: out}
}
