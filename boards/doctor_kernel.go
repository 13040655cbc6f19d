package boards

import (
	"fmt"
	"slices"
	"strings"
)

func (d *doctor) cgroups() {
	c := &d.Cgroup
	var missing []string
	for _, name := range []string{"cpu", "pids"} {
		if !c.Has(name) {
			missing = append(missing, name)
		}
	}
	switch {
	case c.Layout == CgroupNone:
		d.add(Finding{Name: "cgroups", Level: Fail, What: "no cgroup file system is mounted",
			Why: "pods can't be limited, counted or stopped as a whole",
			Do:  "boot with systemd, or: sudo mount -t cgroup2 none /sys/fs/cgroup"})
	case len(missing) > 0:
		d.add(Finding{Name: "cgroups", Level: Warn, What: fmt.Sprintf("%s, without %s", c.Layout, strings.Join(missing, " and ")),
			Why: "that limit of pods is not enforced", Do: "use a kernel with " + cgroupOptions(missing)})
	default:
		d.ok("cgroups", "%s: %s", c.Layout, strings.Join(c.Controllers, " "))
	}
}

func cgroupOptions(names []string) string {
	options := map[string]string{"cpu": "CONFIG_CGROUP_SCHED", "pids": "CONFIG_CGROUP_PIDS"}
	var out []string
	for _, n := range names {
		out = append(out, options[n])
	}
	return strings.Join(out, " and ")
}

// memoryController finds the trap that every newcomer with a Raspberry Pi steps
// into: its firmware passes cgroup_disable=memory.
func (d *doctor) memoryController() {
	if d.Cgroup.Layout == CgroupNone {
		return
	}
	if d.Cgroup.Has("memory") {
		d.ok("cgroup-memory", "the memory controller is on")
		return
	}
	f := Finding{Name: "cgroup-memory", Level: Fail, What: "the memory controller is off",
		Why: "memory limits of pods are not enforced, so one pod can take the whole board down"}
	var add, remove []string
	switch {
	case d.Kernel.options != nil && d.Kernel.options[memoryOption] == "":
		f.Do = "use a kernel with " + memoryOption
		d.add(f)
		return
	case d.RaspberryPi():
		add = []string{"cgroup_enable=memory", "cgroup_memory=1"}
	case slices.Contains(strings.Fields(d.Kernel.Cmdline), "cgroup_disable=memory"):
		remove = []string{"cgroup_disable=memory"}
	default:
		add = []string{"cgroup_enable=memory"}
	}
	f.Do = "add to the kernel's arguments: " + strings.Join(add, " ")
	if len(remove) > 0 {
		f.Do = "remove from the kernel's arguments: " + strings.Join(remove, " ")
	}
	if fix, ok := d.tree.bootArgs(add, remove); ok {
		f.Fix = &fix
		if fix.New == fix.Old {
			f.Do = "the kernel's arguments are right, but it was started before: reboot"
		}
	}
	d.add(f)
}

// kernelNeed is what a feature of the kernel is for.
type kernelNeed struct {
	feature string
	missing Level
	why     string
}

var kernelNeeds = []kernelNeed{
	{Overlayfs, Warn, "containerd copies every image instead of stacking its layers: more space, slower starts"},
	{Veth, Fail, "pods get no network of their own; only pods with hostNetwork run"},
	{Bridge, Warn, "pods on this node can't be joined by the bridge CNI plugin"},
	{Nftables, Warn, "Services aren't reachable by their addresses from this node"},
	{Nat, Warn, "pods can't reach the outside through this node's address"},
	{Seccomp, Warn, "system calls of containers and of the Wasm runner aren't filtered"},
	{Landlock, OK, "the Wasm runner is confined by chroot and seccomp, without this further fence"},
	{UserNamespaces, OK, "only root can run pods here, and pods with hostUsers: false can't run"},
}

func (d *doctor) kernelFeature(n kernelNeed) {
	f := features[slices.IndexFunc(features, func(f feature) bool { return f.name == n.feature })]
	p := d.Kernel.Features[n.feature]
	if p == Unsure {
		d.ok(n.feature, "unknown: neither the kernel's configuration nor its modules can be read")
		return
	}
	if p.Usable() {
		d.ok(n.feature, "%s", p)
		return
	}
	finding := Finding{Name: n.feature, Level: n.missing, What: string(p), Why: n.why}
	if p == Off {
		finding.Do, finding.Fix = d.switchOn(n.feature)
	} else if n.missing != OK {
		finding.Do = d.getKernel(f)
	}
	d.add(finding)
}

// switchOn is for what the kernel has and the system switched off.
func (d *doctor) switchOn(name string) (do string, fix *Fix) {
	const file = "/etc/sysctl.d/90-coracle.conf"
	sysctl := func(setting string) (string, *Fix) {
		return "switch them on: sudo sysctl -w " + strings.ReplaceAll(setting, " ", "") + ", and to keep it:", &Fix{File: file, New: setting, Then: "sudo sysctl --system"}
	}
	if name == Landlock {
		lsm := d.tree.text("sys/kernel/security/lsm")
		if bf, ok := d.tree.bootArgs([]string{"lsm=landlock," + lsm}, nil); ok {
			fix = &bf
		}
		return "add to the kernel's arguments: lsm=landlock," + lsm, fix
	}
	for _, s := range []struct {
		file, setting string
		off           int64
	}{
		{"proc/sys/user/max_user_namespaces", "user.max_user_namespaces = 10000", 0},
		{"proc/sys/kernel/unprivileged_userns_clone", "kernel.unprivileged_userns_clone = 1", 0},
		{"proc/sys/kernel/apparmor_restrict_unprivileged_userns", "kernel.apparmor_restrict_unprivileged_userns = 0", 1},
	} {
		if n, ok := d.tree.number(s.file); ok && n == s.off {
			return sysctl(s.setting)
		}
	}
	return "switch it on in the system's settings", nil
}

// getKernel is for what the kernel lacks.
func (d *doctor) getKernel(f feature) string {
	if d.OS.ID == "ubuntu" && d.RaspberryPi() && f.module != "" {
		return "sudo apt install linux-modules-extra-raspi"
	}
	kind := "=y"
	if f.module != "" {
		kind = "=m or =y"
	}
	return fmt.Sprintf("use your distribution's own kernel, or build one with %s%s", f.option, kind)
}
