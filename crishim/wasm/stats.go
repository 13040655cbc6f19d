package wasm

import (
	"errors"
	"fmt"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/wasmruntime"
)

// cpuSample is what a rate is computed against.
type cpuSample struct {
	at    time.Time
	nanos uint64
	rate  uint64
}

// ContainerStats of one running container; ErrState if it isn't running.
func (m *Manager) ContainerStats(id string) (*runtimeapi.ContainerStats, error) {
	c, err := m.container(id)
	if err != nil {
		return nil, err
	}
	return m.containerStats(c)
}

func (m *Manager) containerStats(c *container) (*runtimeapi.ContainerStats, error) {
	c.mu.Lock()
	proc, running := c.proc, c.stateLocked() == runtimeapi.ContainerState_CONTAINER_RUNNING
	c.mu.Unlock()
	if !running {
		return nil, fmt.Errorf("container %q: %w: it isn't running", c.id, ErrState)
	}
	st, err := proc.Stats()
	if err != nil {
		if errors.Is(err, wasmruntime.ErrExited) {
			return nil, fmt.Errorf("container %q: %w: it has ended", c.id, ErrState)
		}
		return nil, fmt.Errorf("container %q: stats: %w", c.id, err)
	}
	at := st.Time.UnixNano()
	c.mu.Lock()
	if d := st.Time.Sub(c.cpu.at); !c.cpu.at.IsZero() && d > 100*time.Millisecond && st.CPUNanos >= c.cpu.nanos {
		c.cpu.rate = uint64(float64(st.CPUNanos-c.cpu.nanos) / d.Seconds())
		c.cpu.at, c.cpu.nanos = st.Time, st.CPUNanos
	} else if c.cpu.at.IsZero() {
		c.cpu.at, c.cpu.nanos = st.Time, st.CPUNanos
	}
	rate, limit := c.cpu.rate, uint64(c.rec.Spec.Resources.MemoryBytes)
	c.mu.Unlock()
	mem := &runtimeapi.MemoryUsage{
		Timestamp: at, WorkingSetBytes: u64(st.WorkingSetBytes), UsageBytes: u64(st.MemoryBytes), RssBytes: u64(st.RSSBytes),
		PageFaults: u64(st.PageFaults), MajorPageFaults: u64(st.MajorPageFaults),
	}
	if limit > st.WorkingSetBytes {
		mem.AvailableBytes = u64(limit - st.WorkingSetBytes)
	}
	return &runtimeapi.ContainerStats{
		Attributes: &runtimeapi.ContainerAttributes{Id: c.id, Metadata: c.shown.metadata, Labels: c.shown.labels, Annotations: c.shown.annotations},
		Cpu:        &runtimeapi.CpuUsage{Timestamp: at, UsageCoreNanoSeconds: u64(st.CPUNanos), UsageNanoCores: u64(rate)},
		Memory:     mem,
		// A guest has no layer of its own to write to.
		WritableLayer: &runtimeapi.FilesystemUsage{
			Timestamp: at, FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: m.opts.Dir}, UsedBytes: u64(0), InodesUsed: u64(0),
		},
	}, nil
}

// ListContainerStats of the running containers that a filter admits.
func (m *Manager) ListContainerStats(f *runtimeapi.ContainerStatsFilter) []*runtimeapi.ContainerStats {
	var out []*runtimeapi.ContainerStats
	for _, c := range m.ListContainers(&runtimeapi.ContainerFilter{
		Id: f.GetId(), PodSandboxId: f.GetPodSandboxId(), LabelSelector: f.GetLabelSelector(),
		State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING},
	}) {
		if st, err := m.ContainerStats(c.GetId()); err == nil {
			out = append(out, st)
		}
	}
	return out
}

// PodSandboxStats sums up a sandbox's containers.
func (m *Manager) PodSandboxStats(id string) (*runtimeapi.PodSandboxStats, error) {
	s, err := m.sandbox(id)
	if err != nil {
		return nil, err
	}
	now := m.opts.Now().UnixNano()
	var cpu, rate, ws, usage, rss, faults, major, procs uint64
	lin := &runtimeapi.LinuxPodSandboxStats{}
	for _, c := range m.containersOf(s.id) {
		st, err := m.containerStats(c)
		if err != nil {
			continue
		}
		lin.Containers = append(lin.Containers, st)
		cpu += st.Cpu.UsageCoreNanoSeconds.GetValue()
		rate += st.Cpu.UsageNanoCores.GetValue()
		ws += st.Memory.WorkingSetBytes.GetValue()
		usage += st.Memory.UsageBytes.GetValue()
		rss += st.Memory.RssBytes.GetValue()
		faults += st.Memory.PageFaults.GetValue()
		major += st.Memory.MajorPageFaults.GetValue()
		procs++
	}
	if rec := s.record(); rec.Network == netCNI && rec.Ready {
		lin.Network = networkUsage(rec.NetNS, now)
	}
	lin.Cpu = &runtimeapi.CpuUsage{Timestamp: now, UsageCoreNanoSeconds: u64(cpu), UsageNanoCores: u64(rate)}
	lin.Memory = &runtimeapi.MemoryUsage{
		Timestamp: now, WorkingSetBytes: u64(ws), UsageBytes: u64(usage), RssBytes: u64(rss), PageFaults: u64(faults), MajorPageFaults: u64(major),
	}
	lin.Process = &runtimeapi.ProcessUsage{Timestamp: now, ProcessCount: u64(procs)}
	return &runtimeapi.PodSandboxStats{
		Attributes: &runtimeapi.PodSandboxAttributes{Id: s.id, Metadata: s.shown.metadata, Labels: s.shown.labels, Annotations: s.shown.annotations},
		Linux:      lin,
	}, nil
}

// ListPodSandboxStats of the ready sandboxes that a filter admits.
func (m *Manager) ListPodSandboxStats(f *runtimeapi.PodSandboxStatsFilter) []*runtimeapi.PodSandboxStats {
	var out []*runtimeapi.PodSandboxStats
	for _, s := range m.ListPodSandbox(&runtimeapi.PodSandboxFilter{
		Id: f.GetId(), LabelSelector: f.GetLabelSelector(),
		State: &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY},
	}) {
		if st, err := m.PodSandboxStats(s.GetId()); err == nil {
			out = append(out, st)
		}
	}
	return out
}

func u64(v uint64) *runtimeapi.UInt64Value { return &runtimeapi.UInt64Value{Value: v} }
