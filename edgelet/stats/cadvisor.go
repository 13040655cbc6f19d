package stats

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/coracle-edge/coracle/edgelet/metrics"
)

// maxCounted bounds the processes of a container whose descriptors are counted.
const maxCounted = 64

// row is one line of labels in cAdvisor's table: a cgroup.
type row struct {
	labels  []string
	usage   *CgroupUsage
	pod     *PodSample
	one     *ContainerSample // nil for pods and the node's own
	started float64
}

// cadvisor has the rows of a page.
type cadvisor struct {
	p     *metrics.Page
	s     *Sample
	rows  []row
	disks map[[2]uint64]string // device names
}

// CAdvisor writes the page /metrics/cadvisor: cAdvisor's names, labels and units.
func (c *Collector) CAdvisor(ctx context.Context, p *metrics.Page) error {
	s, err := c.Sample(ctx)
	if err != nil {
		return err
	}
	files, err := c.Files(ctx)
	if err != nil {
		return err
	}
	t := &cadvisor{p: p, s: s, rows: rowsOf(s), disks: blockDevices(c.Proc)}
	t.cpu()
	t.memory()
	t.pressure()
	t.network()
	t.blocks()
	t.folders(files)
	t.processes(c.Proc)
	t.spec()
	c.machine(p, s)
	p.Gauge("container_scrape_error", "1 if there was an error while getting container metrics, 0 otherwise")
	p.Sample("container_scrape_error", 0)
	return nil
}

func rowsOf(s *Sample) []row {
	labels := func(container, id, image, name, namespace, pod string) []string {
		return []string{"container", container, "id", id, "image", image, "name", name, "namespace", namespace, "pod", pod}
	}
	m := &s.Node
	root := &CgroupUsage{CPUNanos: &m.CPUNanos, Memory: &m.Usage, WorkingSet: &m.WorkingSet, RSS: &m.RSS, PageFaults: &m.PageFaults,
		MajorPageFaults: &m.MajorPageFaults, MemoryLimit: &m.MemoryTotal, PIDs: &m.Tasks, PIDsLimit: &m.MaxTasks,
		CPUPressure: m.CPUPressure, MemoryPressure: m.MemoryPressure, IOPressure: m.IOPressure}
	out := []row{{labels: labels("", "/", "", "", "", ""), usage: root, started: float64(m.Boot.Unix())}}
	for i := range s.System {
		out = append(out, row{labels: labels("", s.System[i].Cgroup, "", "", "", ""), usage: s.System[i].Usage, started: float64(m.Boot.Unix())})
	}
	for i := range s.Pods {
		p := &s.Pods[i]
		id := p.Cgroup
		if id == "" {
			id = "/pod" + p.UID
		}
		if p.Usage != nil {
			r := row{labels: labels("", id, "", "", p.Namespace, p.Name), usage: p.Usage, pod: p}
			if p.Status.StartTime != nil {
				r.started = float64(p.Status.StartTime.Unix())
			}
			out = append(out, r)
		}
		for j := range p.Containers {
			c := &p.Containers[j]
			at := c.Cgroup
			if at == "" {
				at = id + "/" + c.ID
			}
			if c.Usage != nil {
				out = append(out, row{labels: labels(c.Name, at, c.Image, c.ID, p.Namespace, p.Name), usage: c.Usage, pod: p, one: c,
					started: float64(c.Started.Unix())})
			}
		}
	}
	return out
}

// each writes a family whose value is a number of each row, divided by by.
func (t *cadvisor) each(counter bool, name, help string, by float64, of func(*row) *uint64, more ...string) {
	begun := false
	for i := range t.rows {
		n := of(&t.rows[i])
		if n == nil {
			continue
		}
		if !begun {
			t.begin(counter, name, help)
			begun = true
		}
		t.p.Sample(name, float64(*n)/by, with(t.rows[i].labels, more...)...)
	}
}

func (t *cadvisor) begin(counter bool, name, help string) {
	if counter {
		t.p.Counter(name, help)
	} else {
		t.p.Gauge(name, help)
	}
}

// with adds labels, sorted by name as cAdvisor's are.
func with(labels []string, more ...string) []string {
	if len(more) == 0 {
		return labels
	}
	out := slices.Concat(labels, more)
	for i := 2; i < len(out); i += 2 {
		for j := i; j > 0 && out[j] < out[j-2]; j -= 2 {
			out[j], out[j-2] = out[j-2], out[j]
			out[j+1], out[j-1] = out[j-1], out[j+1]
		}
	}
	return out
}

const nano = 1e9

func (t *cadvisor) cpu() {
	t.each(true, "container_cpu_usage_seconds_total", "Cumulative cpu time consumed in seconds.", nano, func(r *row) *uint64 { return r.usage.CPUNanos }, "cpu", "total")
	t.each(true, "container_cpu_user_seconds_total", "Cumulative user cpu time consumed in seconds.", nano, func(r *row) *uint64 { return r.usage.UserNanos })
	t.each(true, "container_cpu_system_seconds_total", "Cumulative system cpu time consumed in seconds.", nano, func(r *row) *uint64 { return r.usage.SystemNanos })
	limited := func(n func(*CgroupUsage) *uint64) func(*row) *uint64 {
		return func(r *row) *uint64 {
			if r.usage.Quota == nil {
				return nil
			}
			return n(r.usage)
		}
	}
	t.each(true, "container_cpu_cfs_periods_total", "Number of elapsed enforcement period intervals.", 1, limited(func(u *CgroupUsage) *uint64 { return u.Periods }))
	t.each(true, "container_cpu_cfs_throttled_periods_total", "Number of throttled period intervals.", 1, limited(func(u *CgroupUsage) *uint64 { return u.Throttled }))
	t.each(true, "container_cpu_cfs_throttled_seconds_total", "Total time duration the container has been throttled.", nano, limited(func(u *CgroupUsage) *uint64 { return u.ThrottledNanos }))
}

func (t *cadvisor) memory() {
	t.each(false, "container_memory_usage_bytes", "Current memory usage in bytes, including all memory regardless of when it was accessed", 1, func(r *row) *uint64 { return r.usage.Memory })
	t.each(false, "container_memory_working_set_bytes", "Current working set in bytes.", 1, func(r *row) *uint64 { return r.usage.WorkingSet })
	t.each(false, "container_memory_rss", "Size of RSS in bytes.", 1, func(r *row) *uint64 { return r.usage.RSS })
	t.each(false, "container_memory_cache", "Number of bytes of page cache memory.", 1, func(r *row) *uint64 { return r.usage.Cache })
	t.each(false, "container_memory_mapped_file", "Size of memory mapped files in bytes.", 1, func(r *row) *uint64 { return r.usage.Mapped })
	t.each(false, "container_memory_swap", "Container swap usage in bytes.", 1, func(r *row) *uint64 { return r.usage.Swap })
	t.each(false, "container_memory_max_usage_bytes", "Maximum memory usage recorded in bytes", 1, func(r *row) *uint64 { return r.usage.MaxMemory })
	t.each(true, "container_memory_failcnt", "Number of memory usage hits limits", 1, func(r *row) *uint64 { return r.usage.FailedCharges })
	name := "container_memory_failures_total"
	t.p.Counter(name, "Cumulative count of memory allocation failures.")
	for i := range t.rows {
		u := t.rows[i].usage
		for _, x := range []struct {
			kind, scope string
			n           *uint64
		}{{"pgfault", "container", u.OwnPageFaults}, {"pgmajfault", "container", u.OwnMajorPageFaults}, {"pgfault", "hierarchy", u.PageFaults}, {"pgmajfault", "hierarchy", u.MajorPageFaults}} {
			n := x.n
			if n == nil && x.scope == "container" && t.rows[i].one != nil { // v2 counts only with those below, of which a container has none
				n = map[string]*uint64{"pgfault": u.PageFaults, "pgmajfault": u.MajorPageFaults}[x.kind]
			}
			if n != nil {
				t.p.Sample(name, float64(*n), with(t.rows[i].labels, "failure_type", x.kind, "scope", x.scope)...)
			}
		}
	}
	t.each(true, "container_oom_events_total", "Count of out of memory events observed for the container", 1, func(r *row) *uint64 { return r.usage.OOMKills })
}

func (t *cadvisor) pressure() {
	for _, x := range []struct {
		name, help string
		of         func(*CgroupUsage) *Pressure
		full       bool
	}{
		{"container_pressure_cpu_waiting_seconds_total", "Total time duration tasks in the container have waited due to CPU congestion.", func(u *CgroupUsage) *Pressure { return u.CPUPressure }, false},
		{"container_pressure_cpu_stalled_seconds_total", "Total time duration no tasks in the container could make progress due to CPU congestion.", func(u *CgroupUsage) *Pressure { return u.CPUPressure }, true},
		{"container_pressure_memory_waiting_seconds_total", "Total time duration tasks in the container have waited due to memory congestion.", func(u *CgroupUsage) *Pressure { return u.MemoryPressure }, false},
		{"container_pressure_memory_stalled_seconds_total", "Total time duration no tasks in the container could make progress due to memory congestion.", func(u *CgroupUsage) *Pressure { return u.MemoryPressure }, true},
		{"container_pressure_io_waiting_seconds_total", "Total time duration tasks in the container have waited due to IO congestion.", func(u *CgroupUsage) *Pressure { return u.IOPressure }, false},
		{"container_pressure_io_stalled_seconds_total", "Total time duration no tasks in the container could make progress due to IO congestion.", func(u *CgroupUsage) *Pressure { return u.IOPressure }, true},
	} {
		t.each(true, x.name, x.help, 1e6, func(r *row) *uint64 {
			p := x.of(r.usage)
			if p == nil {
				return nil
			}
			if x.full {
				return &p.Full.Total
			}
			return &p.Some.Total
		})
	}
}

func (t *cadvisor) network() {
	for _, x := range []struct {
		name, help string
		of         func(*Interface) uint64
	}{
		{"receive_bytes", "bytes received", func(n *Interface) uint64 { return n.RxBytes }},
		{"receive_errors", "errors encountered while receiving", func(n *Interface) uint64 { return n.RxErrors }},
		{"receive_packets_dropped", "packets dropped while receiving", func(n *Interface) uint64 { return n.RxDropped }},
		{"receive_packets", "packets received", func(n *Interface) uint64 { return n.RxPackets }},
		{"transmit_bytes", "bytes transmitted", func(n *Interface) uint64 { return n.TxBytes }},
		{"transmit_errors", "errors encountered while transmitting", func(n *Interface) uint64 { return n.TxErrors }},
		{"transmit_packets_dropped", "packets dropped while transmitting", func(n *Interface) uint64 { return n.TxDropped }},
		{"transmit_packets", "packets transmitted", func(n *Interface) uint64 { return n.TxPackets }},
	} {
		name := "container_network_" + x.name + "_total"
		t.p.Counter(name, "Cumulative count of "+x.help)
		for i := range t.rows {
			r := &t.rows[i]
			if r.one != nil {
				continue
			}
			all := t.s.Interfaces // the node's
			if r.pod != nil {
				all = r.pod.Interfaces
			} else if i > 0 {
				continue
			}
			for j := range all {
				t.p.Sample(name, float64(x.of(&all[j])), with(r.labels, "interface", all[j].Name)...)
			}
		}
	}
}

func (t *cadvisor) blocks() {
	for _, x := range []struct {
		name, help string
		of         func(*DiskUsage) uint64
	}{
		{"container_fs_reads_bytes_total", "Cumulative count of bytes read", func(d *DiskUsage) uint64 { return d.ReadBytes }},
		{"container_fs_reads_total", "Cumulative count of reads completed", func(d *DiskUsage) uint64 { return d.ReadOps }},
		{"container_fs_writes_bytes_total", "Cumulative count of bytes written", func(d *DiskUsage) uint64 { return d.WriteBytes }},
		{"container_fs_writes_total", "Cumulative count of writes completed", func(d *DiskUsage) uint64 { return d.WriteOps }},
	} {
		t.p.Counter(x.name, x.help)
		for i := range t.rows {
			for j := range t.rows[i].usage.Disks {
				d := &t.rows[i].usage.Disks[j]
				t.p.Sample(x.name, float64(x.of(d)), with(t.rows[i].labels, "device", t.disks[[2]uint64{d.Major, d.Minor}])...)
			}
		}
	}
}

// folders are the sizes of writable layers and of the node's file system.
func (t *cadvisor) folders(f *Files) {
	root := t.rows[0].labels
	for _, x := range []struct {
		name, help string
		of         func(*Space) uint64
		tree       func(*TreeUsage) uint64
	}{
		{"container_fs_usage_bytes", "Number of bytes that are consumed by the container on this filesystem.", func(s *Space) uint64 { return s.Used }, func(u *TreeUsage) uint64 { return u.Bytes }},
		{"container_fs_limit_bytes", "Number of bytes that can be consumed by the container on this filesystem.", func(s *Space) uint64 { return s.Capacity }, nil},
		{"container_fs_inodes_free", "Number of available Inodes", func(s *Space) uint64 { return s.InodesFree }, nil},
		{"container_fs_inodes_total", "Number of Inodes", func(s *Space) uint64 { return s.Inodes }, nil},
	} {
		t.p.Gauge(x.name, x.help)
		t.p.Sample(x.name, float64(x.of(&f.Node)), with(root, "device", t.deviceOf(&f.Node))...)
		if f.Separate() {
			t.p.Sample(x.name, float64(x.of(f.Image)), with(root, "device", t.deviceOf(f.Image))...)
		}
		for i := range t.rows {
			r := &t.rows[i]
			if r.one == nil || f.Container == nil {
				continue
			}
			layer := f.Pods[r.pod.UID].Containers[r.one.Name].Rootfs
			switch {
			case layer == nil:
			case x.tree != nil:
				t.p.Sample(x.name, float64(x.tree(layer)), with(r.labels, "device", t.deviceOf(f.Container))...)
			default:
				t.p.Sample(x.name, float64(x.of(f.Container)), with(r.labels, "device", t.deviceOf(f.Container))...)
			}
		}
	}
}

func (t *cadvisor) deviceOf(s *Space) string {
	return t.disks[[2]uint64{s.Device >> 8 & 0xfff, s.Device&0xff | s.Device>>12&0xfff00}]
}

func (t *cadvisor) processes(proc string) {
	t.each(false, "container_processes", "Number of processes running inside the container.", 1, func(r *row) *uint64 {
		if r.one == nil || r.one.PIDs == nil {
			return nil
		}
		return ptr(uint64(len(r.one.PIDs)))
	})
	t.each(false, "container_threads", "Number of threads running inside the container", 1, func(r *row) *uint64 { return r.usage.PIDs })
	t.each(false, "container_threads_max", "Maximum number of threads allowed inside the container, infinity if value is zero", 1, func(r *row) *uint64 {
		if r.usage.PIDs == nil {
			return nil
		}
		if r.usage.PIDsLimit == nil {
			return ptr[uint64](0)
		}
		return r.usage.PIDsLimit
	})
	type open struct{ fds, sockets uint64 }
	counted := map[string]open{}
	count := func(r *row) (open, bool) {
		if r.one == nil || len(r.one.PIDs) == 0 {
			return open{}, false
		}
		if o, ok := counted[r.one.ID]; ok {
			return o, true
		}
		var o open
		for _, pid := range r.one.PIDs[:min(len(r.one.PIDs), maxCounted)] {
			dir := filepath.Join(proc, fmt.Sprint(pid), "fd")
			entries, _ := os.ReadDir(dir)
			o.fds += uint64(len(entries))
			for _, e := range entries {
				if to, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil && strings.HasPrefix(to, "socket:") {
					o.sockets++
				}
			}
		}
		counted[r.one.ID] = o
		return o, true
	}
	number := func(of func(open) uint64) func(*row) *uint64 {
		return func(r *row) *uint64 {
			if o, ok := count(r); ok {
				return ptr(of(o))
			}
			return nil
		}
	}
	t.each(false, "container_file_descriptors", "Number of open file descriptors for the container.", 1, number(func(o open) uint64 { return o.fds }))
	t.each(false, "container_sockets", "Number of open sockets for the container.", 1, number(func(o open) uint64 { return o.sockets }))
	t.each(false, "container_last_seen", "Last time a container was seen by the exporter", 1, func(*row) *uint64 { return ptr(uint64(max(t.s.At.Unix(), 0))) })
	t.p.Gauge("container_start_time_seconds", "Start time of the container since unix epoch in seconds.")
	for i := range t.rows {
		t.p.Sample("container_start_time_seconds", t.rows[i].started, t.rows[i].labels...)
	}
}

func (t *cadvisor) spec() {
	t.each(false, "container_spec_cpu_period", "CPU period of the container.", 1, func(r *row) *uint64 { return unsigned(r.usage.Period) })
	t.each(false, "container_spec_cpu_quota", "CPU quota of the container.", 1, func(r *row) *uint64 { return unsigned(r.usage.Quota) })
	t.each(false, "container_spec_cpu_shares", "CPU share of the container.", 1, func(r *row) *uint64 { return r.usage.Shares })
	t.each(false, "container_spec_memory_limit_bytes", "Memory limit for the container.", 1, func(r *row) *uint64 {
		if r.usage.MemoryLimit == nil {
			return ptr[uint64](0)
		}
		return r.usage.MemoryLimit
	})
	t.each(false, "container_spec_memory_swap_limit_bytes", "Memory swap limit for the container.", 1, func(r *row) *uint64 { return r.usage.SwapLimit })
}

func unsigned(n *int64) *uint64 {
	if n == nil || *n < 0 {
		return nil
	}
	return ptr(uint64(*n))
}

func (c *Collector) machine(p *metrics.Page, s *Sample) {
	p.Gauge("machine_memory_bytes", "Amount of memory installed on the machine.")
	p.Sample("machine_memory_bytes", float64(s.Node.MemoryTotal))
	p.Gauge("machine_swap_bytes", "Amount of swap memory available on the machine.")
	p.Sample("machine_swap_bytes", float64(s.Node.SwapTotal))
	cores := 0
	for line := range strings.Lines(string(readBounded(filepath.Join(c.Proc, "stat"), 1<<20))) {
		if rest, ok := strings.CutPrefix(line, "cpu"); ok && rest[0] != ' ' {
			cores++
		}
	}
	p.Gauge("machine_cpu_cores", "Number of logical CPU cores.")
	p.Sample("machine_cpu_cores", float64(cores))
	p.Gauge("machine_scrape_error", "1 if there was an error while getting machine metrics, 0 otherwise.")
	p.Sample("machine_scrape_error", 0)
}

// blockDevices are the names of block devices by number, out of /proc/partitions.
func blockDevices(proc string) map[[2]uint64]string {
	out := map[[2]uint64]string{}
	for line := range strings.Lines(string(readBounded(filepath.Join(proc, "partitions"), 64<<10))) {
		f := strings.Fields(line)
		if len(f) != 4 {
			continue
		}
		if major, minor := parseNumber(f[0]), parseNumber(f[1]); major != nil && minor != nil {
			out[[2]uint64{*major, *minor}] = "/dev/" + f[3]
		}
	}
	return out
}
