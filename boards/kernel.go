package boards

import (
	"bufio"
	"compress/gzip"
	"io"
	"path"
	"slices"
	"strings"
)

// Presence is whether the kernel has a feature.
type Presence string

const (
	Present  Presence = "present"
	Loadable Presence = "loadable" // a module that is on disk
	Off      Presence = "off"      // there, and switched off
	Missing  Presence = "missing"
	Unsure   Presence = "unknown" // nothing tells
)

// Usable says that nothing needs to be done.
func (p Presence) Usable() bool { return p == Present || p == Loadable || p == Unsure }

// Features of the kernel that are looked for.
const (
	UserNamespaces = "user-namespaces"
	Overlayfs      = "overlayfs"
	Seccomp        = "seccomp"
	Landlock       = "landlock"
	Veth           = "veth"
	Bridge         = "bridge"
	Nftables       = "nftables"
	Nat            = "nat"
)

// Kernel is the running kernel.
type Kernel struct {
	Release  string // "6.6.51+rpt-rpi-v8"
	Cmdline  string
	Features map[string]Presence
	options  map[string]string // of its configuration, those looked for; nil if there is none to read
}

// feature is how to find one: by a probe that knows for sure, else as a module
// that is loaded, built in or on disk, else by the kernel's configuration.
type feature struct {
	name   string
	option string // CONFIG_...
	module string // "" if it can't be one
	probe  func(t tree, k *Kernel) Presence
}

var features = []feature{
	{UserNamespaces, "CONFIG_USER_NS", "", probeUserNamespaces},
	{Overlayfs, "CONFIG_OVERLAY_FS", "overlay", probeFileSystem("overlay")},
	{Seccomp, "CONFIG_SECCOMP_FILTER", "", probeSeccomp},
	{Landlock, "CONFIG_SECURITY_LANDLOCK", "", probeLandlock},
	{Veth, "CONFIG_VETH", "veth", nil},
	{Bridge, "CONFIG_BRIDGE", "bridge", nil},
	{Nftables, "CONFIG_NF_TABLES", "nf_tables", nil},
	{Nat, "CONFIG_NF_NAT", "nf_nat", nil},
}

// memoryOption is the configuration that the cgroup memory controller needs.
const memoryOption = "CONFIG_MEMCG"

func (t tree) kernel() Kernel {
	k := Kernel{
		Release:  t.text("proc/sys/kernel/osrelease"),
		Cmdline:  t.text("proc/cmdline"),
		Features: make(map[string]Presence, len(features)),
	}
	k.options = t.config(k.Release)
	modules := t.modules(k.Release)
	for _, f := range features {
		k.Features[f.name] = t.presence(f, &k, modules)
	}
	return k
}

func (t tree) presence(f feature, k *Kernel, modules map[string]Presence) Presence {
	if f.probe != nil {
		if p := f.probe(t, k); p != Unsure {
			return p
		}
	}
	if f.module != "" {
		if t.exists("sys/module/" + f.module) {
			return Present
		}
		if p, ok := modules[f.module]; ok {
			return p
		}
	}
	switch value, known := k.options[f.option]; {
	case k.options == nil:
		return Unsure
	case !known:
		return Missing
	case value == "y":
		return Present
	case f.module != "" && modules != nil:
		// Configured as a module, but not installed, as in a trimmed image.
		return Missing
	}
	return Loadable
}

// config returns the options of the running kernel, those that are looked for;
// nil if it can't be read.
func (t tree) config(release string) map[string]string {
	wanted := map[string]bool{memoryOption: true}
	for _, f := range features {
		wanted[f.option] = true
	}
	for _, name := range []string{"proc/config.gz", "boot/config-" + release, "lib/modules/" + release + "/config", "usr/lib/modules/" + release + "/config"} {
		file, err := t.Open(name)
		if err != nil {
			continue
		}
		var r io.Reader = file
		if path.Ext(name) == ".gz" {
			if r, err = gzip.NewReader(file); err != nil {
				file.Close()
				continue
			}
		}
		options := parseConfig(r, wanted)
		file.Close()
		if options != nil {
			return options
		}
	}
	return nil
}

// parseConfig reads "CONFIG_VETH=m" lines; nil if there are none at all.
func parseConfig(r io.Reader, wanted map[string]bool) map[string]string {
	options, any := map[string]string{}, false
	s := bufio.NewScanner(io.LimitReader(r, 8<<20))
	for s.Scan() {
		key, value, ok := strings.Cut(s.Text(), "=")
		if !ok || !strings.HasPrefix(key, "CONFIG_") {
			continue
		}
		any = true
		if wanted[key] && (value == "y" || value == "m") {
			options[key] = value
		}
	}
	if !any {
		return nil
	}
	return options
}

// modules says of the modules looked for whether they are built in or on disk;
// nil if the kernel's modules aren't installed.
func (t tree) modules(release string) map[string]Presence {
	wanted := map[string]bool{}
	for _, f := range features {
		wanted[f.module] = true
	}
	var found map[string]Presence
	read := func(file string, p Presence) {
		t.lines("lib/modules/"+release+"/"+file, func(line string) bool {
			name, _, _ := strings.Cut(line, ":")
			name, _, _ = strings.Cut(path.Base(name), ".ko")
			name = strings.ReplaceAll(name, "-", "_")
			if wanted[name] {
				found[name] = p
			}
			return true
		})
	}
	if !t.exists("lib/modules/" + release + "/modules.dep") {
		return nil
	}
	found = map[string]Presence{}
	read("modules.dep", Loadable)
	read("modules.builtin", Present)
	return found
}

// probeUserNamespaces: the kernel may have them and a distribution switch them
// off for ordinary users, each by a switch of its own.
func probeUserNamespaces(t tree, _ *Kernel) Presence {
	if !t.exists("proc/self/ns") {
		return Unsure
	}
	if !t.exists("proc/self/ns/user") {
		return Missing
	}
	if n, ok := t.number("proc/sys/user/max_user_namespaces"); ok && n == 0 {
		return Off
	}
	if n, ok := t.number("proc/sys/kernel/unprivileged_userns_clone"); ok && n == 0 {
		return Off
	}
	if n, ok := t.number("proc/sys/kernel/apparmor_restrict_unprivileged_userns"); ok && n == 1 {
		return Off
	}
	return Present
}

func probeFileSystem(name string) func(tree, *Kernel) Presence {
	return func(t tree, _ *Kernel) Presence {
		found := Unsure // a module that isn't loaded isn't listed
		t.lines("proc/filesystems", func(line string) bool {
			if f := strings.Fields(line); len(f) > 0 && f[len(f)-1] == name {
				found = Present
			}
			return found != Present
		})
		return found
	}
}

func probeSeccomp(t tree, _ *Kernel) Presence {
	if strings.Contains(t.text("proc/sys/kernel/seccomp/actions_avail"), "errno") {
		return Present
	}
	return Unsure
}

// probeLandlock: it may be built in and not among the active security modules.
func probeLandlock(t tree, k *Kernel) Presence {
	lsm := t.text("sys/kernel/security/lsm")
	switch {
	case lsm == "":
		return Unsure
	case slices.Contains(strings.Split(lsm, ","), "landlock"):
		return Present
	case k.options["CONFIG_SECURITY_LANDLOCK"] == "y":
		return Off
	}
	return Missing
}
