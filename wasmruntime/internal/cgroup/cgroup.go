package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/coracle-edge/coracle/wasmruntime/internal/bundle"
)

// DefaultRoot is where cgroups are mounted.
const DefaultRoot = "/sys/fs/cgroup"

// ErrPath is returned for a cgroup path that isn't absolute and clean, or is
// the root.
var ErrPath = errors.New("cgroup path isn't absolute, clean and below the root")

// Group is one cgroup, in as many hierarchies as it needs.
type Group struct {
	root, path string
	unified    bool
}

// Open names the cgroup path below root ("" means DefaultRoot).
func Open(root, path string) (*Group, error) {
	if root == "" {
		root = DefaultRoot
	}
	if !strings.HasPrefix(path, "/") || filepath.Clean(path) != path || path == "/" {
		return nil, fmt.Errorf("%w: %q", ErrPath, path)
	}
	_, err := os.Stat(filepath.Join(root, "cgroup.controllers"))
	return &Group{root: root, path: path, unified: err == nil}, nil
}

// v1 are the hierarchies of version 1 that a guest joins.
var v1 = [...]string{"memory", "cpu", "cpuacct", "pids"}

// dirs are the directories of the group, whether they exist or not.
func (g *Group) dirs() []string {
	if g.unified {
		return []string{filepath.Join(g.root, g.path)}
	}
	var out []string
	for _, c := range v1 {
		if _, err := os.Stat(filepath.Join(g.root, c)); err == nil {
			out = append(out, filepath.Join(g.root, c, g.path))
		}
	}
	if dir := g.dir(cpuset); exists(dir) {
		out = append(out, dir) // of those that are bound to processors only
	}
	return out
}

func (g *Group) dir(controller string) string {
	if g.unified {
		return filepath.Join(g.root, g.path)
	}
	return filepath.Join(g.root, controller, g.path)
}

// Tolerable is true for errors that mean that this system doesn't let us, in
// contrast to a wrong value.
func Tolerable(err error) bool {
	return errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist) || isReadOnly(err)
}

// Create makes the group and sets its limits. Errors are joined; with
// Tolerable ones the guest can run.
func (g *Group) Create(res bundle.Resources) error {
	var errs []error
	if g.unified {
		g.enableControllers()
	}
	made := 0
	for _, dir := range g.dirs() {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			errs = append(errs, err)
			continue
		}
		made++
	}
	if made > 0 {
		errs = append(errs, g.Set(res))
	}
	return errors.Join(errs...)
}

// enableControllers does what it can from the root down to the parent.
func (g *Group) enableControllers() {
	at := g.root
	parts := strings.Split(strings.Trim(g.path, "/"), "/")
	for _, p := range parts {
		for _, c := range []string{"memory", "cpu", "pids", "cpuset"} {
			_ = write(at, "cgroup.subtree_control", "+"+c)
		}
		at = filepath.Join(at, p)
		_ = os.Mkdir(at, 0o755)
	}
}

// Join puts the calling process into the group.
func (g *Group) Join() error {
	var errs []error
	for _, dir := range g.dirs() {
		if err := write(dir, "cgroup.procs", strconv.Itoa(os.Getpid())); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func write(dir, file, value string) error {
	f, err := os.OpenFile(filepath.Join(dir, file), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// Set changes the limits. Zero values are left as they are.
func (g *Group) Set(res bundle.Resources) error {
	var errs []error
	set := func(controller, file string, value int64) {
		if value != 0 {
			errs = append(errs, write(g.dir(controller), file, strconv.FormatInt(value, 10)))
		}
	}
	period := res.CPUPeriod
	if period == 0 {
		period = 100_000
	}
	if g.unified {
		set("", "memory.max", res.MemoryBytes)
		if res.MemoryBytes > 0 {
			_ = write(g.dir(""), "memory.swap.max", strconv.FormatInt(max(0, res.SwapBytes-res.MemoryBytes), 10))
			_ = write(g.dir(""), "memory.oom.group", "1")
		}
		if res.CPUShares > 0 {
			set("", "cpu.weight", cpuWeight(res.CPUShares))
		}
		if res.CPUQuota != 0 {
			quota := "max"
			if res.CPUQuota > 0 {
				quota = strconv.FormatInt(res.CPUQuota, 10)
			}
			errs = append(errs, write(g.dir(""), "cpu.max", fmt.Sprintf("%s %d", quota, period)))
		}
		set("", "pids.max", res.PidsMax)
		if res.CPUSet != "" {
			errs = append(errs, write(g.dir(""), "cpuset.cpus", res.CPUSet))
		}
		if res.MemorySet != "" {
			errs = append(errs, write(g.dir(""), "cpuset.mems", res.MemorySet))
		}
		return errors.Join(errs...)
	}
	if res.MemoryBytes > 0 {
		value := strconv.FormatInt(res.MemoryBytes, 10)
		err := write(g.dir("memory"), "memory.limit_in_bytes", value)
		// Without swap accounting the second file is missing; with it the
		// order of the two depends on which way the limit moves.
		swap := strconv.FormatInt(max(res.SwapBytes, res.MemoryBytes), 10)
		swapErr := write(g.dir("memory"), "memory.memsw.limit_in_bytes", swap)
		if err != nil && swapErr == nil {
			err = write(g.dir("memory"), "memory.limit_in_bytes", value)
		}
		errs = append(errs, err)
	}
	set("cpu", "cpu.shares", res.CPUShares)
	if res.CPUQuota != 0 {
		errs = append(errs, write(g.dir("cpu"), "cpu.cfs_period_us", strconv.FormatInt(period, 10)))
		set("cpu", "cpu.cfs_quota_us", res.CPUQuota)
	}
	set("pids", "pids.max", res.PidsMax)
	errs = append(errs, g.bind(res))
	return errors.Join(errs...)
}

// OOMKills is how often the kernel ended something in the group for want of
// memory.
func (g *Group) OOMKills() int64 {
	if g.unified {
		return field(filepath.Join(g.dir(""), "memory.events"), "oom_kill")
	}
	return field(filepath.Join(g.dir("memory"), "memory.oom_control"), "oom_kill")
}

// Usage is what the group uses. Fields stay zero where a file is missing.
type Usage struct {
	CPUNanos                    uint64
	Memory, WorkingSet, RSS     uint64
	PageFaults, MajorPageFaults uint64
}

// Usage reads the group's files; false if it has no memory controller.
func (g *Group) Usage() (Usage, bool) {
	var u Usage
	if g.unified {
		dir := g.dir("")
		u.CPUNanos = uint64(field(filepath.Join(dir, "cpu.stat"), "usage_usec")) * 1000
		u.Memory = number(filepath.Join(dir, "memory.current"))
		stat := filepath.Join(dir, "memory.stat")
		u.WorkingSet = sub(u.Memory, uint64(field(stat, "inactive_file")))
		u.RSS = uint64(field(stat, "anon"))
		u.PageFaults, u.MajorPageFaults = uint64(field(stat, "pgfault")), uint64(field(stat, "pgmajfault"))
		return u, u.Memory > 0
	}
	u.CPUNanos = number(filepath.Join(g.dir("cpuacct"), "cpuacct.usage"))
	dir := g.dir("memory")
	u.Memory = number(filepath.Join(dir, "memory.usage_in_bytes"))
	stat := filepath.Join(dir, "memory.stat")
	u.WorkingSet = sub(u.Memory, uint64(field(stat, "total_inactive_file")))
	u.RSS = uint64(field(stat, "total_rss"))
	u.PageFaults, u.MajorPageFaults = uint64(field(stat, "total_pgfault")), uint64(field(stat, "total_pgmajfault"))
	return u, u.Memory > 0
}

func sub(a, b uint64) uint64 {
	if b > a {
		return 0
	}
	return a - b
}

func number(file string) uint64 {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	return n
}

// field finds `name value` in a flat keyed file.
func field(file, name string) int64 {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), " ")
		if k == name {
			n, _ := strconv.ParseInt(v, 10, 64)
			return n
		}
	}
	return 0
}

// Remove removes the group; it must be empty.
func (g *Group) Remove() error {
	var errs []error
	for _, dir := range g.dirs() {
		if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) && !Tolerable(err) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// cpuWeight converts as runc does since 1.3.2 (opencontainers/cgroups,
// ConvertCPUSharesToCgroupV2Value), so that containers of both kinds weigh alike: a
// curve through the least, the most, and 1024 shares, which is the weight 100.
func cpuWeight(shares int64) int64 {
	const least, most = 2, 262144
	switch {
	case shares <= least:
		return 1
	case shares >= most:
		return 10000
	}
	l := math.Log2(float64(shares))
	return int64(math.Ceil(math.Pow(10, (l*l+125*l)/612-7.0/34)))
}
