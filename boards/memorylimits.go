package boards

import "fmt"

// MemoryLimitsMissing is the condition that the kernel's memory controller is off.
const MemoryLimitsMissing = "MemoryLimitsMissing"

// MemoryLimits is that condition of the machine. Its message says which file of
// the board to edit, and how.
func (m Machine) MemoryLimits(b *Board) Condition {
	m = m.defaults()
	d := doctor{Machine: m, Board: b, tree: tree{m.Root}}
	d.memoryController()
	if len(d.report.Findings) == 0 {
		return Condition{MemoryLimitsMissing, true, "NoCgroups", "no cgroup file system is mounted: boot with systemd, or: sudo mount -t cgroup2 none /sys/fs/cgroup"}
	}
	f := d.report.Findings[0]
	if f.Level == OK {
		return Condition{MemoryLimitsMissing, false, "MemoryControllerOn", ""}
	}
	message := fmt.Sprintf("%s: %s; %s", f.What, f.Why, f.Do)
	if f.Fix != nil && f.Fix.New != f.Fix.Old {
		message += " in " + f.Fix.File
		if f.Fix.Then != "" {
			message += ", then: " + f.Fix.Then
		}
	}
	return Condition{MemoryLimitsMissing, true, "MemoryControllerOff", message}
}
