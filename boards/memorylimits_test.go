package boards

import (
	"strings"
	"testing"
)

// Who reads the node's condition is told which file to edit.
func TestMemoryLimitsAreMissing(t *testing.T) {
	for name, want := range map[string]string{"pi-4b": "/boot/firmware/cmdline.txt", "pi-zero": "/boot/cmdline.txt"} {
		m := Machine{Root: load(t, name), DataDir: "/var/lib/coracle"}
		b := m.Detect()
		c := m.MemoryLimits(&b)
		if !c.Status || c.Reason != "MemoryControllerOff" || !strings.Contains(c.Message, "cgroup_enable=memory") ||
			!strings.Contains(c.Message, " in "+want+", then: sudo reboot") {
			t.Errorf("%s: %+v", name, c)
		}
	}
	m := Machine{Root: load(t, "nuc"), DataDir: "/var/lib/coracle"}
	b := m.Detect()
	if c := m.MemoryLimits(&b); c.Status || c.Reason != "MemoryControllerOn" || c.Message != "" {
		t.Errorf("all is well: %+v", c)
	}
	b.Cgroup = Cgroup{Layout: CgroupNone}
	if c := m.MemoryLimits(&b); !c.Status || c.Reason != "NoCgroups" {
		t.Errorf("no cgroups: %+v", c)
	}
}
