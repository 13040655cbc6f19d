package stats

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// ErrNoCgroup is returned when no hierarchy has a cgroup of that name.
var ErrNoCgroup = errors.New("no such cgroup")

// maxCgroupFile bounds what is read of one file of a cgroup.
const maxCgroupFile = 64 << 10

// Cgroups reads the hierarchies of control groups below one folder.
type Cgroups struct {
	root string
	v2   bool
}

// OpenCgroups looks which kind of hierarchy is mounted at root, which is
// /sys/fs/cgroup on any machine: v2 has the file cgroup.controllers there, v1 a
// folder for each controller.
func OpenCgroups(root string) *Cgroups {
	_, err := os.Stat(filepath.Join(root, "cgroup.controllers"))
	return &Cgroups{root: root, v2: err == nil}
}

// V2 says whether it is the unified hierarchy.
func (c *Cgroups) V2() bool { return c.v2 }

// Path is a file or folder of a cgroup in the hierarchy of a controller.
func (c *Cgroups) Path(controller, cgroup string, file ...string) string {
	parts := []string{c.root}
	if !c.v2 {
		parts = append(parts, controller)
	}
	// Cleaned from the root, so that no name leads out.
	parts = append(parts, filepath.Clean("/"+cgroup))
	return filepath.Join(append(parts, file...)...)
}

// Exists says whether any hierarchy has the cgroup.
func (c *Cgroups) Exists(cgroup string) bool {
	for _, controller := range []string{"memory", "cpu", "pids"} {
		if info, err := os.Stat(c.Path(controller, cgroup)); err == nil && info.IsDir() {
			return true
		}
		if c.v2 {
			break
		}
	}
	return false
}

// Children are the names of the cgroups right below.
func (c *Cgroups) Children(cgroup string) []string {
	seen := map[string]bool{}
	var out []string
	for _, controller := range []string{"memory", "cpu", "pids"} {
		entries, _ := os.ReadDir(c.Path(controller, cgroup))
		for _, e := range entries {
			if e.IsDir() && !seen[e.Name()] {
				seen[e.Name()] = true
				out = append(out, e.Name())
			}
		}
		if c.v2 {
			break
		}
	}
	return out
}

// Pressure is pressure stall information of one resource.
type Pressure struct{ Some, Full Stall }

// Stall is how long tasks stood still: shares of the last 10, 60 and 300 s in
// percent, and all together in microseconds.
type Stall struct {
	Avg10, Avg60, Avg300 float64
	Total                uint64
}

// CgroupUsage is what the kernel counts of a cgroup and all below it. What it
// doesn't say is nil.
type CgroupUsage struct {
	CPUNanos, UserNanos, SystemNanos *uint64
	// Periods of the quota, and in how many and for how long it was throttled.
	Periods, Throttled, ThrottledNanos *uint64
	Shares                             *uint64 // as v1 counts: 1024 is one CPU's weight
	Quota, Period                      *int64  // microseconds; Quota nil without a limit

	Memory, WorkingSet, RSS, Cache, Mapped  *uint64
	Swap, MaxMemory, FailedCharges          *uint64
	PageFaults, MajorPageFaults             *uint64 // of the cgroup and all below
	OwnPageFaults, OwnMajorPageFaults       *uint64 // of its own processes; v1 only
	OOMKills                                *uint64
	MemoryLimit, SwapLimit                  *uint64 // nil without a limit
	PIDs, PIDsLimit                         *uint64
	Disks                                   []DiskUsage
	CPUPressure, MemoryPressure, IOPressure *Pressure
}

// DiskUsage is what was read and written of one device.
type DiskUsage struct {
	Major, Minor                             uint64
	ReadBytes, WriteBytes, ReadOps, WriteOps uint64
}

// Read reads a cgroup such as "/kubepods/besteffort/podUID". It is
// [ErrNoCgroup] if there is none.
func (c *Cgroups) Read(cgroup string) (*CgroupUsage, error) {
	if !c.Exists(cgroup) {
		return nil, fmt.Errorf("%w: %s", ErrNoCgroup, cgroup)
	}
	if c.v2 {
		return c.readV2(cgroup), nil
	}
	return c.readV1(cgroup), nil
}

// MemoryUsage reads only what eviction watches: bytes charged, and those without
// inactive file pages.
func (c *Cgroups) MemoryUsage(cgroup string) (usage, workingSet uint64, ok bool) {
	u := &CgroupUsage{}
	if c.v2 {
		u.Memory = c.number("memory", cgroup, "memory.current")
		c.memoryStatV2(cgroup, u)
	} else {
		u.Memory = c.number("memory", cgroup, "memory.usage_in_bytes")
		c.memoryStatV1(cgroup, u)
	}
	if u.Memory == nil || u.WorkingSet == nil {
		return 0, 0, false
	}
	return *u.Memory, *u.WorkingSet, true
}

// MemoryLimit in bytes, nil without one.
func (c *Cgroups) MemoryLimit(cgroup string) *uint64 {
	if c.v2 {
		return c.number("memory", cgroup, "memory.max")
	}
	return limit(c.number("memory", cgroup, "memory.limit_in_bytes"))
}

func (c *Cgroups) readV1(cgroup string) *CgroupUsage {
	u := &CgroupUsage{}
	u.CPUNanos = c.number("cpuacct", cgroup, "cpuacct.usage")
	if stat := c.pairs("cpuacct", cgroup, "cpuacct.stat"); stat != nil {
		const tick = 10_000_000 // USER_HZ is 100 in all ABIs
		u.UserNanos, u.SystemNanos = scaled(stat, "user", tick), scaled(stat, "system", tick)
	}
	stat := c.pairs("cpu", cgroup, "cpu.stat")
	u.Periods, u.Throttled, u.ThrottledNanos = value(stat, "nr_periods"), value(stat, "nr_throttled"), value(stat, "throttled_time")
	u.Shares = c.number("cpu", cgroup, "cpu.shares")
	u.Period = signed(c.number("cpu", cgroup, "cpu.cfs_period_us"))
	u.Quota = signed(c.number("cpu", cgroup, "cpu.cfs_quota_us")) // -1 is no number here: no limit

	u.Memory = c.number("memory", cgroup, "memory.usage_in_bytes")
	u.MaxMemory = c.number("memory", cgroup, "memory.max_usage_in_bytes")
	u.FailedCharges = c.number("memory", cgroup, "memory.failcnt")
	c.memoryStatV1(cgroup, u)
	u.MemoryLimit = limit(c.number("memory", cgroup, "memory.limit_in_bytes"))
	if both := limit(c.number("memory", cgroup, "memory.memsw.limit_in_bytes")); both != nil && u.MemoryLimit != nil && *both >= *u.MemoryLimit {
		u.SwapLimit = ptr(*both - *u.MemoryLimit)
	}
	u.OOMKills = value(c.pairs("memory", cgroup, "memory.oom_control"), "oom_kill")
	u.PIDs, u.PIDsLimit = c.number("pids", cgroup, "pids.current"), c.number("pids", cgroup, "pids.max")
	u.Disks = c.disksV1(cgroup)
	return u
}

func (c *Cgroups) memoryStatV1(cgroup string, u *CgroupUsage) {
	stat := c.pairs("memory", cgroup, "memory.stat")
	u.RSS, u.Cache, u.Mapped, u.Swap = value(stat, "total_rss"), value(stat, "total_cache"), value(stat, "total_mapped_file"), value(stat, "total_swap")
	u.PageFaults, u.MajorPageFaults = value(stat, "total_pgfault"), value(stat, "total_pgmajfault")
	u.OwnPageFaults, u.OwnMajorPageFaults = value(stat, "pgfault"), value(stat, "pgmajfault")
	u.WorkingSet = workingSet(u.Memory, value(stat, "total_inactive_file"))
}

func (c *Cgroups) readV2(cgroup string) *CgroupUsage {
	u := &CgroupUsage{}
	cpu := c.pairs("cpu", cgroup, "cpu.stat")
	u.CPUNanos, u.UserNanos, u.SystemNanos = scaled(cpu, "usage_usec", 1000), scaled(cpu, "user_usec", 1000), scaled(cpu, "system_usec", 1000)
	u.Periods, u.Throttled, u.ThrottledNanos = value(cpu, "nr_periods"), value(cpu, "nr_throttled"), scaled(cpu, "throttled_usec", 1000)
	if w := c.number("cpu", cgroup, "cpu.weight"); w != nil && *w >= 1 && *w <= 10000 {
		u.Shares = ptr(2 + ((*w-1)*262142)/9999) // as runc and kubelets convert
	}
	if f := strings.Fields(string(c.read("cpu", cgroup, "cpu.max"))); len(f) == 2 {
		u.Quota, u.Period = signed(parseNumber(f[0])), signed(parseNumber(f[1]))
	}
	u.Memory = c.number("memory", cgroup, "memory.current")
	u.MaxMemory = c.number("memory", cgroup, "memory.peak")
	c.memoryStatV2(cgroup, u)
	u.Swap = c.number("memory", cgroup, "memory.swap.current")
	u.MemoryLimit, u.SwapLimit = c.number("memory", cgroup, "memory.max"), c.number("memory", cgroup, "memory.swap.max")
	events := c.pairs("memory", cgroup, "memory.events")
	u.OOMKills, u.FailedCharges = value(events, "oom_kill"), value(events, "max")
	u.PIDs, u.PIDsLimit = c.number("pids", cgroup, "pids.current"), c.number("pids", cgroup, "pids.max")
	u.Disks = parseIOStat(c.read("io", cgroup, "io.stat"))
	u.CPUPressure = ParsePressure(c.read("cpu", cgroup, "cpu.pressure"))
	u.MemoryPressure = ParsePressure(c.read("memory", cgroup, "memory.pressure"))
	u.IOPressure = ParsePressure(c.read("io", cgroup, "io.pressure"))
	return u
}

func (c *Cgroups) memoryStatV2(cgroup string, u *CgroupUsage) {
	stat := c.pairs("memory", cgroup, "memory.stat")
	u.RSS, u.Cache, u.Mapped = value(stat, "anon"), value(stat, "file"), value(stat, "file_mapped")
	u.PageFaults, u.MajorPageFaults = value(stat, "pgfault"), value(stat, "pgmajfault")
	u.WorkingSet = workingSet(u.Memory, value(stat, "inactive_file"))
}

// workingSet is what can't be had back at once, as cAdvisor computes it.
func workingSet(usage, inactiveFile *uint64) *uint64 {
	switch {
	case usage == nil:
		return nil
	case inactiveFile == nil:
		return ptr(*usage)
	case *inactiveFile > *usage:
		return ptr[uint64](0)
	}
	return ptr(*usage - *inactiveFile)
}

// PIDs are the processes of a cgroup itself, not of those below it.
func (c *Cgroups) PIDs(cgroup string) []int {
	raw := c.read("pids", cgroup, "cgroup.procs")
	if raw == nil {
		raw = c.read("memory", cgroup, "cgroup.procs")
	}
	var out []int
	for line := range bytes.Lines(raw) {
		if n, err := strconv.Atoi(string(bytes.TrimSpace(line))); err == nil && n > 0 {
			out = append(out, n)
		}
	}
	return out
}

// disksV1 reads what the throttling layer counts, which sees every request.
func (c *Cgroups) disksV1(cgroup string) []DiskUsage {
	bytesOf := c.read("blkio", cgroup, "blkio.throttle.io_service_bytes_recursive")
	ops := c.read("blkio", cgroup, "blkio.throttle.io_serviced_recursive")
	return parseBlkio(bytesOf, ops)
}

// parseBlkio reads lines such as "8:0 Read 4096".
func parseBlkio(bytesOf, ops []byte) []DiskUsage {
	var out []DiskUsage
	at := func(name string) *DiskUsage {
		major, minor, ok := device(name)
		if !ok {
			return nil
		}
		for i := range out {
			if out[i].Major == major && out[i].Minor == minor {
				return &out[i]
			}
		}
		out = append(out, DiskUsage{Major: major, Minor: minor})
		return &out[len(out)-1]
	}
	for i, raw := range [][]byte{bytesOf, ops} {
		for line := range bytes.Lines(raw) {
			f := strings.Fields(string(line))
			if len(f) != 3 || f[1] != "Read" && f[1] != "Write" {
				continue
			}
			n, d := parseNumber(f[2]), at(f[0])
			if n == nil || d == nil {
				continue
			}
			switch {
			case i == 0 && f[1] == "Read":
				d.ReadBytes = *n
			case i == 0:
				d.WriteBytes = *n
			case f[1] == "Read":
				d.ReadOps = *n
			default:
				d.WriteOps = *n
			}
		}
	}
	return out
}

// parseIOStat reads io.stat: "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0".
func parseIOStat(raw []byte) []DiskUsage {
	var out []DiskUsage
	for line := range bytes.Lines(raw) {
		f := strings.Fields(string(line))
		if len(f) < 2 {
			continue
		}
		major, minor, ok := device(f[0])
		if !ok {
			continue
		}
		d := DiskUsage{Major: major, Minor: minor}
		for _, kv := range f[1:] {
			k, v, _ := strings.Cut(kv, "=")
			n := parseNumber(v)
			if n == nil {
				continue
			}
			switch k {
			case "rbytes":
				d.ReadBytes = *n
			case "wbytes":
				d.WriteBytes = *n
			case "rios":
				d.ReadOps = *n
			case "wios":
				d.WriteOps = *n
			}
		}
		out = append(out, d)
	}
	return out
}

func device(name string) (major, minor uint64, ok bool) {
	a, b, found := strings.Cut(name, ":")
	x, y := parseNumber(a), parseNumber(b)
	if !found || x == nil || y == nil {
		return 0, 0, false
	}
	return *x, *y, true
}

// ParsePressure reads the kernel's form (Documentation/accounting/psi.rst):
// "some avg10=0.00 avg60=0.00 avg300=0.00 total=0". It is nil if it isn't that.
func ParsePressure(raw []byte) *Pressure {
	p, any := &Pressure{}, false
	for line := range bytes.Lines(raw) {
		f := strings.Fields(string(line))
		if len(f) < 5 {
			continue
		}
		s := &p.Some
		switch f[0] {
		case "some":
		case "full":
			s = &p.Full
		default:
			continue
		}
		for _, kv := range f[1:] {
			k, v, _ := strings.Cut(kv, "=")
			if k == "total" {
				if n := parseNumber(v); n != nil {
					s.Total, any = *n, true
				}
				continue
			}
			share, err := strconv.ParseFloat(v, 64)
			if err != nil || math.IsNaN(share) || share < 0 || share > 100 {
				continue
			}
			switch k {
			case "avg10":
				s.Avg10 = share
			case "avg60":
				s.Avg60 = share
			case "avg300":
				s.Avg300 = share
			}
		}
	}
	if !any {
		return nil
	}
	return p
}

func (c *Cgroups) read(controller, cgroup, file string) []byte {
	return readBounded(c.Path(controller, cgroup, file), maxCgroupFile)
}

func (c *Cgroups) number(controller, cgroup, file string) *uint64 {
	return parseNumber(strings.TrimSpace(string(c.read(controller, cgroup, file))))
}

func (c *Cgroups) pairs(controller, cgroup, file string) map[string]uint64 {
	return parsePairs(c.read(controller, cgroup, file))
}

// parsePairs reads lines of a name and a number.
func parsePairs(raw []byte) map[string]uint64 {
	if raw == nil {
		return nil
	}
	out := map[string]uint64{}
	s := bufio.NewScanner(bytes.NewReader(raw))
	for s.Scan() {
		name, rest, ok := strings.Cut(s.Text(), " ")
		if n := parseNumber(strings.TrimSpace(rest)); ok && n != nil {
			out[name] = *n
		}
	}
	return out
}

func value(m map[string]uint64, name string) *uint64 { return scaled(m, name, 1) }

func scaled(m map[string]uint64, name string, by uint64) *uint64 {
	n, ok := m[name]
	if !ok || n > math.MaxUint64/by {
		return nil
	}
	return ptr(n * by)
}

// parseNumber is nil for "max", -1 and all else that is no plain number.
func parseNumber(text string) *uint64 {
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return nil
	}
	return &n
}

func signed(n *uint64) *int64 {
	if n == nil || *n > math.MaxInt64 {
		return nil
	}
	return ptr(int64(*n))
}

// limit is nil for v1's way to say "none": the largest multiple of a page.
func limit(n *uint64) *uint64 {
	if n == nil || *n > 1<<62 {
		return nil
	}
	return n
}

// readBounded is nil if the file can't be read.
func readBounded(path string, max int64) []byte {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	b := make([]byte, 0, 512)
	for int64(len(b)) < max {
		if len(b) == cap(b) {
			b = append(b, 0)[:len(b)]
		}
		n, err := f.Read(b[len(b):min(int64(cap(b)), max)])
		b = b[:len(b)+n]
		if err != nil || n == 0 {
			var pathErr *fs.PathError
			if errors.As(err, &pathErr) {
				return nil // such as ENODEV of a cgroup that just went
			}
			return b
		}
	}
	return b
}

func ptr[T any](v T) *T { return &v }
