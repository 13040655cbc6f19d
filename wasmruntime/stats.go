package wasmruntime

import (
	"os"
	"strconv"
	"strings"
	"time"
)

// Stats is what a guest uses now.
type Stats struct {
	Time time.Time
	// CPUNanos since the start.
	CPUNanos uint64
	// MemoryBytes is what the cgroup is charged with (or RSS without a
	// cgroup), WorkingSetBytes the same without inactive file pages.
	MemoryBytes, WorkingSetBytes uint64
	// RSSBytes is anonymous memory.
	RSSBytes                    uint64
	PageFaults, MajorPageFaults uint64
	// OOMKills is how often the kernel ended something in the cgroup.
	OOMKills uint64
}

// Stats reads the guest's cgroup, or /proc without one. ErrExited if it ended.
func (p *Process) Stats() (Stats, error) {
	select {
	case <-p.done:
		return Stats{}, ErrExited
	default:
	}
	st := Stats{Time: p.now()}
	if p.cgroup != nil {
		if u, ok := p.cgroup.Usage(); ok {
			st.CPUNanos, st.MemoryBytes, st.WorkingSetBytes, st.RSSBytes = u.CPUNanos, u.Memory, u.WorkingSet, u.RSS
			st.PageFaults, st.MajorPageFaults = u.PageFaults, u.MajorPageFaults
			st.OOMKills = uint64(max(p.cgroup.OOMKills(), 0))
			return st, nil
		}
	}
	return st, p.procStats(&st)
}

// procStats reads /proc/PID/stat and statm.
func (p *Process) procStats(st *Stats) error {
	dir := "/proc/" + strconv.Itoa(p.state.PID)
	b, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return ErrExited
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(f) < 22 {
		return ErrExited
	}
	num := func(i int) uint64 { n, _ := strconv.ParseUint(f[i], 10, 64); return n }
	// Fields 10, 12, 14, 15 of proc(5); the kernel's USER_HZ is 100.
	st.PageFaults, st.MajorPageFaults = num(7), num(9)
	st.CPUNanos = (num(11) + num(12)) * 10_000_000
	b, err = os.ReadFile(dir + "/statm")
	if err != nil {
		return ErrExited
	}
	m := strings.Fields(string(b))
	if len(m) < 3 {
		return ErrExited
	}
	page := uint64(os.Getpagesize())
	resident, _ := strconv.ParseUint(m[1], 10, 64)
	shared, _ := strconv.ParseUint(m[2], 10, 64)
	// The kernel counts each by itself: for a moment more is shared than there is.
	st.MemoryBytes, st.RSSBytes = resident*page, (resident-min(shared, resident))*page
	st.WorkingSetBytes = st.MemoryBytes
	return nil
}
