package boards

import (
	"slices"
	"sort"
	"strings"
)

// Layouts of the cgroup hierarchy.
const (
	CgroupV1     = "v1"
	CgroupHybrid = "hybrid" // v1 controllers, and an empty v2 hierarchy beside
	CgroupV2     = "v2"
	CgroupNone   = "none"
)

// Cgroup is the cgroup hierarchy that is mounted.
type Cgroup struct {
	Layout      string
	Mount       string   // of v2, or of the folder with the v1 hierarchies
	Controllers []string // that can be used, sorted
}

// Has says whether a controller can be used.
func (c *Cgroup) Has(controller string) bool { return slices.Contains(c.Controllers, controller) }

func (t tree) cgroup() Cgroup {
	c := Cgroup{Layout: CgroupNone}
	v2 := ""
	t.lines("proc/self/mountinfo", func(line string) bool {
		m, ok := parseMount(line)
		if !ok {
			return true
		}
		switch m.fs {
		case "cgroup2":
			if v2 == "" {
				v2 = m.point
			}
		case "cgroup":
			c.Layout = CgroupV1
			c.Mount = m.point[:strings.LastIndex(m.point, "/")]
			_, options, _ := strings.Cut(line, " - ")
			if f := strings.Fields(options); len(f) > 2 {
				c.Controllers = append(c.Controllers, controllers(f[2])...)
			}
		}
		return true
	})
	switch {
	case c.Layout == CgroupV1 && v2 != "":
		c.Layout = CgroupHybrid
	case v2 != "":
		c.Layout, c.Mount = CgroupV2, v2
		c.Controllers = strings.Fields(t.text(strings.TrimPrefix(v2, "/") + "/cgroup.controllers"))
	}
	sort.Strings(c.Controllers)
	return c
}

// controllers picks them out of the options of a v1 mount: "rw,cpu,cpuacct".
func controllers(options string) (found []string) {
	known := []string{"blkio", "cpu", "cpuacct", "cpuset", "devices", "freezer", "hugetlb", "memory", "net_cls", "net_prio", "perf_event", "pids", "rdma"}
	for o := range strings.SplitSeq(options, ",") {
		if slices.Contains(known, o) {
			found = append(found, o)
		}
	}
	return found
}
