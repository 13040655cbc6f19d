package stats

import (
	"bufio"
	"bytes"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Machine is what the whole machine uses, out of /proc.
type Machine struct {
	CPUNanos    uint64
	MemoryTotal uint64
	// Usage is all that isn't free, WorkingSet that without inactive file pages, as
	// cAdvisor counts the root cgroup of v2; RSS is anonymous memory.
	Usage, WorkingSet, RSS      uint64
	SwapTotal, SwapFree         uint64
	PageFaults, MajorPageFaults uint64
	Tasks, MaxTasks             uint64
	Boot                        time.Time
	CPUPressure                 *Pressure
	MemoryPressure, IOPressure  *Pressure
}

// Available is what eviction's signal memory.available counts: the capacity
// without the working set.
func (m *Machine) Available() uint64 {
	if m.WorkingSet > m.MemoryTotal {
		return 0
	}
	return m.MemoryTotal - m.WorkingSet
}

// ReadMachine reads it; proc is "/proc".
func ReadMachine(proc string) Machine {
	m := ReadMemory(proc)
	read := func(name string) []byte { return readBounded(filepath.Join(proc, name), 1<<20) }
	m.CPUNanos, m.Boot = parseStat(read("stat"))
	vm := parsePairs(read("vmstat"))
	m.PageFaults, m.MajorPageFaults = vm["pgfault"], vm["pgmajfault"]
	m.Tasks, m.MaxTasks = ReadTasks(proc)
	m.CPUPressure = ParsePressure(read("pressure/cpu"))
	m.MemoryPressure = ParsePressure(read("pressure/memory"))
	m.IOPressure = ParsePressure(read("pressure/io"))
	return m
}

// ReadMemory reads only what is known of memory.
func ReadMemory(proc string) Machine {
	mem := parseMeminfo(readBounded(filepath.Join(proc, "meminfo"), 64<<10))
	m := Machine{MemoryTotal: mem["MemTotal"], RSS: mem["AnonPages"], SwapTotal: mem["SwapTotal"], SwapFree: mem["SwapFree"]}
	if free := mem["MemFree"]; free <= m.MemoryTotal {
		m.Usage = m.MemoryTotal - free
	}
	m.WorkingSet = *workingSet(&m.Usage, ptr(mem["Inactive(file)"]))
	return m
}

// ReadTasks returns how many tasks there are and how many there may be: the
// smaller of pid_max and threads-max, as a kubelet reads them.
func ReadTasks(proc string) (now, most uint64) {
	number := func(name string) uint64 {
		n := parseNumber(strings.TrimSpace(string(readBounded(filepath.Join(proc, name), 64))))
		if n == nil {
			return 0
		}
		return *n
	}
	most = number("sys/kernel/pid_max")
	if threads := number("sys/kernel/threads-max"); threads > 0 && (most == 0 || threads < most) {
		most = threads
	}
	// The fourth field of loadavg is RUNNING/TOTAL tasks.
	if f := strings.Fields(string(readBounded(filepath.Join(proc, "loadavg"), 256))); len(f) > 3 {
		_, total, _ := strings.Cut(f[3], "/")
		if n := parseNumber(total); n != nil {
			now = *n
		}
	}
	return now, most
}

// parseMeminfo reads lines such as "MemFree:  1024 kB", into bytes.
func parseMeminfo(raw []byte) map[string]uint64 {
	out := map[string]uint64{}
	s := bufio.NewScanner(bytes.NewReader(raw))
	for s.Scan() {
		name, rest, ok := strings.Cut(s.Text(), ":")
		f := strings.Fields(rest)
		if !ok || len(f) == 0 {
			continue
		}
		if n := parseNumber(f[0]); n != nil && *n < 1<<52 {
			out[name] = *n << 10
		}
	}
	return out
}

// parseStat reads the time that CPUs weren't idle, and when the machine booted.
func parseStat(raw []byte) (busy uint64, boot time.Time) {
	const tick = 10_000_000
	for line := range bytes.Lines(raw) {
		f := strings.Fields(string(line))
		switch {
		case len(f) > 8 && f[0] == "cpu":
			// user nice system idle iowait irq softirq steal; guest is in user.
			for _, i := range []int{1, 2, 3, 6, 7, 8} {
				if n := parseNumber(f[i]); n != nil && *n < 1<<40 {
					busy += *n * tick
				}
			}
		case len(f) == 2 && f[0] == "btime":
			if n, err := strconv.ParseInt(f[1], 10, 64); err == nil {
				boot = time.Unix(n, 0)
			}
		}
	}
	return busy, boot
}

// Interface is what the kernel counts of one network interface.
type Interface struct {
	Name                                    string
	RxBytes, RxPackets, RxErrors, RxDropped uint64
	TxBytes, TxPackets, TxErrors, TxDropped uint64
}

// parseNetDev reads the format of /proc/net/dev, proc(5), without lo.
func parseNetDev(raw []byte) []Interface {
	var out []Interface
	for line := range bytes.Lines(raw) {
		// The name may have colons of its own (aliases): the last one before the numbers counts.
		text := string(line)
		i := strings.LastIndexByte(text, ':')
		if i < 0 {
			continue
		}
		name, f := strings.TrimSpace(text[:i]), strings.Fields(text[i+1:])
		if len(f) < 12 || name == "lo" || name == "" {
			continue
		}
		num := func(i int) uint64 { n, _ := strconv.ParseUint(f[i], 10, 64); return n }
		out = append(out, Interface{name, num(0), num(1), num(2), num(3), num(8), num(9), num(10), num(11)})
	}
	return out
}
