package stats

import (
	"context"
	"encoding/json"
	"io"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// WriteSummary writes the kubelet's Summary (k8s.io/kubelet/pkg/apis/stats/v1alpha1),
// pod by pod: it never holds more than one. files is nil for CPU and memory only.
func WriteSummary(w io.Writer, node string, s *Sample, files *Files) error {
	out := json.NewEncoder(w)
	parts := []any{raw(`{"node":`), nodeStats(node, s, files), raw(`,"pods":[`)}
	for _, part := range parts {
		if err := write(w, out, part); err != nil {
			return err
		}
	}
	for i := range s.Pods {
		if i > 0 {
			if err := write(w, out, raw(",")); err != nil {
				return err
			}
		}
		if err := write(w, out, podStats(&s.Pods[i], s, files)); err != nil {
			return err
		}
	}
	return write(w, out, raw("]}"))
}

type raw string

func write(w io.Writer, out *json.Encoder, part any) error {
	if text, ok := part.(raw); ok {
		_, err := io.WriteString(w, string(text))
		return err
	}
	return out.Encode(part)
}

func nodeStats(name string, s *Sample, files *Files) *statsapi.NodeStats {
	at := metav1.NewTime(s.At)
	m := &s.Node
	n := &statsapi.NodeStats{
		NodeName: name, StartTime: metav1.NewTime(m.Boot),
		CPU: &statsapi.CPUStats{Time: at, UsageCoreNanoSeconds: ptr(m.CPUNanos), UsageNanoCores: s.NodeRate, PSI: psi(m.CPUPressure)},
		Memory: &statsapi.MemoryStats{Time: at, AvailableBytes: ptr(m.Available()), UsageBytes: ptr(m.Usage), WorkingSetBytes: ptr(m.WorkingSet),
			RSSBytes: ptr(m.RSS), PageFaults: ptr(m.PageFaults), MajorPageFaults: ptr(m.MajorPageFaults), PSI: psi(m.MemoryPressure)},
		Swap: &statsapi.SwapStats{Time: at, SwapAvailableBytes: ptr(m.SwapFree), SwapUsageBytes: ptr(m.SwapTotal - min(m.SwapFree, m.SwapTotal))},
	}
	for _, sys := range s.System {
		n.SystemContainers = append(n.SystemContainers, statsapi.ContainerStats{Name: sys.Name, StartTime: metav1.NewTime(m.Boot),
			CPU: cpuStats(at, sys.Usage, sys.Rate), Memory: memoryStats(at, sys.Usage, m.MemoryTotal), Swap: swapStats(at, sys.Usage)})
	}
	if files == nil {
		return n
	}
	if p := psi(m.IOPressure); p != nil {
		n.IO = &statsapi.IOStats{Time: at, PSI: p}
	}
	n.Network = networkStats(at, s.Interfaces)
	fsAt := metav1.NewTime(files.At)
	n.Fs = spaceStats(fsAt, &files.Node)
	n.Runtime = &statsapi.RuntimeStats{ImageFs: spaceStats(fsAt, files.Image), ContainerFs: spaceStats(fsAt, files.Container)}
	n.Rlimit = &statsapi.RlimitStats{Time: at, MaxPID: ptr(int64(m.MaxTasks)), NumOfRunningProcesses: ptr(int64(m.Tasks))}
	return n
}

func podStats(p *PodSample, s *Sample, files *Files) *statsapi.PodStats {
	at := metav1.NewTime(s.At)
	out := &statsapi.PodStats{
		PodRef: statsapi.PodReference{Name: p.Name, Namespace: p.Namespace, UID: p.UID}, Containers: []statsapi.ContainerStats{},
		CPU: cpuStats(at, p.Usage, p.Rate), Memory: memoryStats(at, p.Usage, 0), Swap: swapStats(at, p.Usage),
	}
	if p.Status.StartTime != nil {
		out.StartTime = *p.Status.StartTime
	}
	var taken PodFiles
	if files != nil {
		taken = files.Pods[p.UID]
	}
	processes := uint64(0)
	for i := range p.Containers {
		c := &p.Containers[i]
		processes += uint64(len(c.PIDs))
		one := statsapi.ContainerStats{Name: c.Name, StartTime: metav1.NewTime(c.Started),
			CPU: cpuStats(at, c.Usage, c.Rate), Memory: memoryStats(at, c.Usage, 0), Swap: swapStats(at, c.Usage)}
		if files != nil {
			one.IO = ioStats(at, c.Usage)
			if f, ok := taken.Containers[c.Name]; ok {
				one.Logs = treeStats(files, &f.Logs, &files.Node)
				if fs := files.Container; fs != nil {
					one.Rootfs = treeStats(files, f.Rootfs, fs)
				}
			}
		}
		out.Containers = append(out.Containers, one)
	}
	if files == nil {
		return out
	}
	out.IO = ioStats(at, p.Usage)
	out.Network = networkStats(at, p.Interfaces)
	out.ProcessStats = &statsapi.ProcessStats{ProcessCount: &processes}
	for _, v := range taken.Volumes {
		one := statsapi.VolumeStats{Name: v.Name, FsStats: *spaceStats(metav1.NewTime(files.At), &v.Space)}
		if v.Claim != "" {
			one.PVCRef = &statsapi.PVCReference{Name: v.Claim, Namespace: p.Namespace}
		}
		out.VolumeStats = append(out.VolumeStats, one)
	}
	out.EphemeralStorage = treeStats(files, &taken.Ephemeral, &files.Node)
	return out
}

func cpuStats(at metav1.Time, u *CgroupUsage, rate *uint64) *statsapi.CPUStats {
	if u == nil {
		return nil
	}
	return &statsapi.CPUStats{Time: at, UsageCoreNanoSeconds: u.CPUNanos, UsageNanoCores: rate, PSI: psi(u.CPUPressure)}
}

// memoryStats says what is available of a limit; capacity is the limit of what has none.
func memoryStats(at metav1.Time, u *CgroupUsage, capacity uint64) *statsapi.MemoryStats {
	if u == nil {
		return nil
	}
	out := &statsapi.MemoryStats{Time: at, UsageBytes: u.Memory, WorkingSetBytes: u.WorkingSet, RSSBytes: u.RSS,
		PageFaults: u.PageFaults, MajorPageFaults: u.MajorPageFaults, PSI: psi(u.MemoryPressure)}
	limit := capacity
	if u.MemoryLimit != nil && (limit == 0 || *u.MemoryLimit < limit) {
		limit = *u.MemoryLimit
	}
	if limit > 0 && u.WorkingSet != nil {
		out.AvailableBytes = ptr(limit - min(limit, *u.WorkingSet))
	}
	return out
}

func swapStats(at metav1.Time, u *CgroupUsage) *statsapi.SwapStats {
	if u == nil || u.Swap == nil {
		return nil
	}
	out := &statsapi.SwapStats{Time: at, SwapUsageBytes: u.Swap}
	if u.SwapLimit != nil {
		out.SwapAvailableBytes = ptr(*u.SwapLimit - min(*u.SwapLimit, *u.Swap))
	}
	return out
}

func ioStats(at metav1.Time, u *CgroupUsage) *statsapi.IOStats {
	if u == nil || u.IOPressure == nil {
		return nil
	}
	return &statsapi.IOStats{Time: at, PSI: psi(u.IOPressure)}
}

func psi(p *Pressure) *statsapi.PSIStats {
	if p == nil {
		return nil
	}
	data := func(s Stall) statsapi.PSIData {
		// The API counts nanoseconds, as cAdvisor does; the kernel microseconds.
		return statsapi.PSIData{Total: s.Total * uint64(time.Microsecond), Avg10: s.Avg10, Avg60: s.Avg60, Avg300: s.Avg300}
	}
	return &statsapi.PSIStats{Some: data(p.Some), Full: data(p.Full)}
}

// networkStats puts the pod's first interface first: eth0, else whichever is.
func networkStats(at metav1.Time, all []Interface) *statsapi.NetworkStats {
	if len(all) == 0 {
		return nil
	}
	out, first := &statsapi.NetworkStats{Time: at}, 0
	for i := range all {
		if all[i].Name == "eth0" {
			first = i
		}
	}
	for i := range all {
		n := &all[i]
		one := statsapi.InterfaceStats{Name: n.Name, RxBytes: &n.RxBytes, RxErrors: &n.RxErrors, TxBytes: &n.TxBytes, TxErrors: &n.TxErrors}
		if i == first {
			out.InterfaceStats = one
		}
		out.Interfaces = append(out.Interfaces, one)
	}
	return out
}

func spaceStats(at metav1.Time, s *Space) *statsapi.FsStats {
	if s == nil {
		return nil
	}
	return &statsapi.FsStats{Time: at, AvailableBytes: &s.Available, CapacityBytes: &s.Capacity, UsedBytes: &s.Used,
		InodesFree: &s.InodesFree, Inodes: &s.Inodes, InodesUsed: &s.InodesUse}
}

// treeStats is what a folder uses of a file system.
func treeStats(f *Files, used *TreeUsage, of *Space) *statsapi.FsStats {
	if used == nil {
		return nil
	}
	return &statsapi.FsStats{Time: metav1.NewTime(f.At), AvailableBytes: &of.Available, CapacityBytes: &of.Capacity, UsedBytes: &used.Bytes,
		InodesFree: &of.InodesFree, Inodes: &of.Inodes, InodesUsed: &used.Inodes}
}

// Summary measures and writes; cpuAndMemory leaves out the rest and the disks.
func (c *Collector) Summary(ctx context.Context, w io.Writer, cpuAndMemory bool) error {
	s, err := c.Sample(ctx)
	if err != nil {
		return err
	}
	var files *Files
	if !cpuAndMemory {
		if files, err = c.Files(ctx); err != nil {
			return err
		}
	}
	return WriteSummary(w, c.NodeName, s, files)
}
