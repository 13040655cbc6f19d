package boards

import (
	"bytes"
	"errors"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"
)

var update = flag.Bool("update", false, "write the golden files anew")

var now = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func machine(t testing.TB, board, goarch string) Machine {
	return Machine{Root: load(t, board), DataDir: "/var/lib/coracle", GOARCH: goarch, Now: func() time.Time { return now }}
}

// goarch of each board's system.
var goarch = map[string]string{
	"pi-zero": "arm", "pi-3b-plus": "arm64", "pi-4b": "arm64", "pi-5": "arm64", "visionfive-2": "riscv64", "nuc": "amd64", "pc": "amd64",
}

func TestDetect(t *testing.T) {
	for _, c := range []struct {
		board, slug, soc, cpu, kernel, variant string
		cores                                  int
		is64                                   bool
		rtc                                    string
		storage, device                        string
	}{
		{"pi-zero", "raspberry-pi-zero-w", "bcm2835", "ARM1176", "armv6l", "v6", 1, false, "", SD, "mmcblk0"},
		{"pi-3b-plus", "raspberry-pi-3-model-b-plus", "bcm2837", "Cortex-A53", "aarch64", "v8", 4, true, "", SD, "mmcblk0"},
		{"pi-4b", "raspberry-pi-4-model-b", "bcm2711", "Cortex-A72", "aarch64", "v8", 4, true, "", SD, "mmcblk0"},
		{"pi-5", "raspberry-pi-5-model-b", "bcm2712", "Cortex-A76", "aarch64", "v8", 4, true, "rpi-rtc", NVMe, "nvme0n1"},
		{"visionfive-2", "starfive-visionfive-2", "jh7110", "sifive,u74-mc", "riscv64", "", 4, true, "starfive-rtc", EMMC, "mmcblk0"},
		{"pc", "generic-amd64", "", "AMD EPYC", "x86_64", "", 2, true, "", Virtual, "vda"},
		{"nuc", "intel-client-systems-nuc8i5beh", "", "Intel(R) Core(TM) i5-8259U CPU @ 2.30GHz", "x86_64", "", 8, true, "rtc_cmos", NVMe, "nvme0n1"},
	} {
		t.Run(c.board, func(t *testing.T) {
			b := machine(t, c.board, goarch[c.board]).Detect()
			eq(t, "slug", b.Slug(), c.slug)
			eq(t, "soc", b.SoC, c.soc)
			eq(t, "cpu", b.CPU.Name, c.cpu)
			eq(t, "kernel", b.CPU.Kernel, c.kernel)
			eq(t, "variant", b.CPU.Variant, c.variant)
			eq(t, "cores", b.CPU.Cores, c.cores)
			eq(t, "64 bit", b.CPU.Is64, c.is64)
			eq(t, "rtc", b.RTC, c.rtc)
			eq(t, "storage", b.Storage.Kind, c.storage)
			eq(t, "device", b.Storage.Device, c.device)
		})
	}
}

func eq[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

// TestGolden compares labels, conditions and the doctor's whole text with files
// beside the trees. go test ./boards -run Golden -update writes them.
func TestGolden(t *testing.T) {
	for _, name := range boardNames(t) {
		t.Run(name, func(t *testing.T) {
			m := machine(t, name, goarch[name])
			b := m.Detect()
			var got bytes.Buffer
			if err := m.Doctor().WriteText(&got); err != nil {
				t.Fatal(err)
			}
			got.WriteString("\nlabels:\n")
			labels := b.Labels()
			keys := make([]string, 0, len(labels))
			for k := range labels {
				keys = append(keys, k)
			}
			slices.Sort(keys)
			for _, k := range keys {
				got.WriteString("  " + k + "=" + labels[k] + "\n")
			}
			got.WriteString("\nconditions:\n")
			r := m.Read(&b)
			for _, c := range r.Conditions() {
				got.WriteString("  " + c.Type + "=" + yes(c.Status) + " " + c.Reason + " " + c.Message + "\n")
			}
			file := filepath.Join("testdata", name+".golden")
			if *update {
				if err := os.WriteFile(file, got.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if got.String() != string(want) {
				t.Errorf("got:\n%s\nwant:\n%s", got.String(), want)
			}
		})
	}
}

func TestLabelsAreValid(t *testing.T) {
	for _, name := range boardNames(t) {
		b := machine(t, name, goarch[name]).Detect()
		for k, v := range b.Labels() {
			if v == "" || len(v) > 63 || labelValue(v) != strings.NewReplacer("_", "-", ".", "-").Replace(v) {
				t.Errorf("%s: label %s=%q", name, k, v)
			}
		}
	}
	long := Board{Model: strings.Repeat("Ünlikely ", 30), GOARCH: "arm64"}
	if s := long.Slug(); len(s) > 63 || strings.HasSuffix(s, "-") {
		t.Errorf("slug %q", s)
	}
	if s := (&Board{GOARCH: "arm"}).Slug(); s != "generic-arm" {
		t.Errorf("slug of nothing: %q", s)
	}
}

// The exact line of the exact file, for the systems that people have.
func TestMemoryController(t *testing.T) {
	const gone = "29 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n1 0 8:1 / / rw - ext4 /dev/sda1 rw\n"
	base := func(files ...string) fstest.MapFS {
		root := fstest.MapFS{
			"proc/self/mountinfo":              {Data: []byte(gone)},
			"sys/fs/cgroup/cgroup.controllers": {Data: []byte("cpu pids\n")},
		}
		for i := 0; i < len(files); i += 2 {
			root[files[i]] = &fstest.MapFile{Data: []byte(files[i+1])}
		}
		return root
	}
	const pi = "proc/device-tree/compatible"
	const model4 = "raspberrypi,4-model-b\x00brcm,bcm2711\x00"
	for _, c := range []struct {
		name string
		root fstest.MapFS
		do   string
		fix  Fix
	}{
		{"bookworm", load(t, "pi-4b"), "add to the kernel's arguments: cgroup_enable=memory cgroup_memory=1", Fix{
			File: "/boot/firmware/cmdline.txt", Line: 1,
			Old: "console=serial0,115200 console=tty1 root=PARTUUID=4e639091-02 rootfstype=ext4 fsck.repair=yes rootwait",
			New: "console=serial0,115200 console=tty1 root=PARTUUID=4e639091-02 rootfstype=ext4 fsck.repair=yes rootwait cgroup_enable=memory cgroup_memory=1", Then: reboot}},
		{"bullseye", load(t, "pi-zero"), "add to the kernel's arguments: cgroup_enable=memory cgroup_memory=1", Fix{
			File: "/boot/cmdline.txt", Line: 1,
			Old: "console=serial0,115200 console=tty1 root=PARTUUID=4e639091-02 rootfstype=ext4 fsck.repair=yes rootwait",
			New: "console=serial0,115200 console=tty1 root=PARTUUID=4e639091-02 rootfstype=ext4 fsck.repair=yes rootwait cgroup_enable=memory cgroup_memory=1", Then: reboot}},
		{"half done", base(pi, model4, "boot/firmware/cmdline.txt", "\nroot=/dev/sda2 cgroup_memory=1\n"), "add to the kernel's arguments: cgroup_enable=memory cgroup_memory=1",
			Fix{File: "/boot/firmware/cmdline.txt", Line: 2, Old: "root=/dev/sda2 cgroup_memory=1", New: "root=/dev/sda2 cgroup_memory=1 cgroup_enable=memory", Then: reboot}},
		{"not rebooted yet", base(pi, model4, "boot/firmware/cmdline.txt", "root=/dev/sda2 cgroup_memory=1 cgroup_enable=memory\n"),
			"the kernel's arguments are right, but it was started before: reboot",
			Fix{File: "/boot/firmware/cmdline.txt", Line: 1, Old: "root=/dev/sda2 cgroup_memory=1 cgroup_enable=memory", New: "root=/dev/sda2 cgroup_memory=1 cgroup_enable=memory", Then: reboot}},
		{"armbian", base("boot/armbianEnv.txt", "verbosity=1\nbootlogo=false\nrootdev=UUID=1\n"), "add to the kernel's arguments: cgroup_enable=memory",
			Fix{File: "/boot/armbianEnv.txt", New: "extraargs=cgroup_enable=memory", Then: reboot}},
		{"armbian with arguments", base("boot/armbianEnv.txt", "verbosity=1\nextraargs=net.ifnames=0\n"), "add to the kernel's arguments: cgroup_enable=memory",
			Fix{File: "/boot/armbianEnv.txt", Line: 2, Old: "extraargs=net.ifnames=0", New: "extraargs=net.ifnames=0 cgroup_enable=memory", Then: reboot}},
		{"grub, switched off", base("proc/cmdline", "root=/dev/sda1 cgroup_disable=memory\n", "etc/default/grub", "GRUB_TIMEOUT=0\nGRUB_CMDLINE_LINUX=\"cgroup_disable=memory quiet\"\n"),
			"remove from the kernel's arguments: cgroup_disable=memory",
			Fix{File: "/etc/default/grub", Line: 2, Old: `GRUB_CMDLINE_LINUX="cgroup_disable=memory quiet"`, New: `GRUB_CMDLINE_LINUX="quiet"`, Then: "sudo update-grub && sudo reboot"}},
		{"grub, nothing there", base("etc/default/grub", "GRUB_CMDLINE_LINUX=\"\"\n"), "add to the kernel's arguments: cgroup_enable=memory",
			Fix{File: "/etc/default/grub", Line: 1, Old: `GRUB_CMDLINE_LINUX=""`, New: `GRUB_CMDLINE_LINUX="cgroup_enable=memory"`, Then: "sudo update-grub && sudo reboot"}},
		{"extlinux", base("boot/extlinux/extlinux.conf", "label l0\n\tlinux /vmlinuz\n\tappend  root=/dev/mmcblk0p4 rw\n"), "add to the kernel's arguments: cgroup_enable=memory",
			Fix{File: "/boot/extlinux/extlinux.conf", Line: 3, Old: "\tappend  root=/dev/mmcblk0p4 rw", New: "\tappend root=/dev/mmcblk0p4 rw cgroup_enable=memory", Then: reboot}},
		{"nobody knows", base(), "add to the kernel's arguments: cgroup_enable=memory", Fix{}},
		{"kernel without", base("proc/sys/kernel/osrelease", "1\n", "boot/config-1", "CONFIG_VETH=y\n"), "use a kernel with CONFIG_MEMCG", Fix{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, _ := Doctor(c.root, "/var/lib/coracle").Get("cgroup-memory")
			if f.Level != Fail || f.Do != c.do {
				t.Errorf("got %+v", f)
			}
			var fix Fix
			if f.Fix != nil {
				fix = *f.Fix
			}
			if fix != c.fix {
				t.Errorf("fix\ngot  %+v\nwant %+v", fix, c.fix)
			}
		})
	}
	if f, _ := Doctor(load(t, "pi-5"), "/").Get("cgroup-memory"); f.Level != OK {
		t.Errorf("a Pi that was set right: %+v", f)
	}
}

func TestConditions(t *testing.T) {
	for _, c := range []struct {
		name string
		r    Readings
		want string // types that are True
	}{
		{"all well", Readings{Time: now, Power: true, Zones: []Zone{{"cpu", 50000, 80000}}, Wear: Wear{Used: 10}}, ""},
		{"nothing known", Readings{Time: now, Wear: Wear{Used: -1}}, ""},
		{"low voltage", Readings{Time: now, Power: true, Throttled: 0x50005}, "UnderVoltage ThermalThrottled"},
		{"was low", Readings{Time: now, Power: true, Throttled: 0x50000}, ""},
		{"soft limit", Readings{Time: now, Power: true, Throttled: 0x80008}, "ThermalThrottled"},
		{"passive trip", Readings{Time: now, Zones: []Zone{{"a", 70000, 0}, {"cpu", 85000, 85000}}, Wear: Wear{Used: -1}}, "ThermalThrottled"},
		{"1970", Readings{Time: time.Unix(100, 0), Wear: Wear{Used: -1}}, "ClockUnset"},
		{"before the floor", Readings{Time: now, Floor: now.Add(time.Hour), Wear: Wear{Used: -1}}, "ClockUnset"},
		{"worn", Readings{Time: now, Wear: Wear{Used: 90, Reserve: "normal"}}, "StorageWearHigh"},
		{"no spares", Readings{Time: now, Wear: Wear{Used: -1, Reserve: "urgent"}}, "StorageWearHigh"},
	} {
		var got []string
		for _, cond := range c.r.Conditions() {
			if cond.Status {
				got = append(got, cond.Type)
			}
			if cond.Reason == "" || cond.Status && cond.Message == "" {
				t.Errorf("%s: %+v has no reason or message", c.name, cond)
			}
		}
		want := strings.Fields(c.want)
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", c.name, got, want)
		}
	}
	known := Readings{Time: now, Wear: Wear{Used: -1}}
	if n := len(known.Conditions()); n != 1 {
		t.Errorf("a board that can't tell reports %d conditions, want the clock's only", n)
	}
}

func TestThrottlingFromHwmon(t *testing.T) {
	root := fstest.MapFS{
		"sys/class/hwmon/hwmon0/name":            {Data: []byte("cpu_thermal\n")},
		"sys/class/hwmon/hwmon0/in0_lcrit_alarm": {Data: []byte("1\n")},
		"sys/class/hwmon/hwmon1/name":            {Data: []byte("rpi_volt\n")},
		"sys/class/hwmon/hwmon1/in0_lcrit_alarm": {Data: []byte("0\n")},
	}
	if bits, known := (tree{root}).throttled(); !known || bits != 0 {
		t.Errorf("%x, %v", bits, known)
	}
	root["sys/class/hwmon/hwmon1/in0_lcrit_alarm"].Data = []byte("1\n")
	if bits, known := (tree{root}).throttled(); !known || bits != UnderVoltageNow {
		t.Errorf("%x, %v", bits, known)
	}
}

func TestStorageBehindThePath(t *testing.T) {
	m := machine(t, "nuc", "amd64")
	m.DataDir = "/mnt/my disk/coracle"
	s := m.Detect().Storage
	if s.Kind != USB || s.Device != "sda" || s.FileSystem != "btrfs" || s.Mount != "/mnt/my disk" {
		t.Errorf("btrfs on USB: %+v", s)
	}
	mounts := func(s string) fstest.MapFS {
		return fstest.MapFS{"proc/self/mountinfo": {Data: []byte(s)}}
	}
	for _, c := range []struct {
		name, mounts, data, kind string
		level                    Level
	}{
		{"tmpfs", "1 0 0:1 / / rw - tmpfs tmpfs rw\n", "/var/lib", Volatile, Fail},
		{"overlay in memory", "1 0 0:1 / / rw - overlay overlayroot rw,lowerdir=/ro,upperdir=/media/rw/overlay,workdir=/media/rw/w\n2 1 0:2 / /media/rw rw - tmpfs tmpfs rw\n", "/var/lib", Volatile, Fail},
		{"overlay of nothing known", "1 0 0:1 / / rw - overlay overlay rw,upperdir=/somewhere\n", "/var/lib", Unknown, OK},
		{"read-only", "1 0 179:2 / / ro - ext4 /dev/root ro\n", "/var/lib", Unknown, Fail},
		{"nfs", "1 0 0:1 / / rw - nfs4 server:/ rw\n", "/var/lib", Network, Warn},
		{"later mount on top", "1 0 0:1 / /data rw - nfs4 server:/ rw\n2 0 0:2 / /data rw - tmpfs x rw\n", "/data/x", Volatile, Fail},
		{"no prefix of a name", "1 0 0:1 / / rw - tmpfs x rw\n2 0 0:2 / /var/li rw - nfs4 x rw\n", "/var/lib", Volatile, Fail},
	} {
		m := Machine{Root: mounts(c.mounts), DataDir: c.data}
		if k := m.Detect().Storage.Kind; k != c.kind {
			t.Errorf("%s: %s, want %s", c.name, k, c.kind)
		}
		if f, _ := m.Doctor().Get("storage"); f.Level != c.level {
			t.Errorf("%s: %+v", c.name, f)
		}
	}
}

func TestSpace(t *testing.T) {
	m := machine(t, "pi-4b", "arm64")
	for _, c := range []struct {
		free, total uint64
		err         error
		want        Level
	}{
		{8e9, 32e9, nil, OK}, {1e9, 32e9, nil, Warn}, {400 << 20, 1 << 30, nil, Warn}, {10 << 20, 32e9, nil, Fail}, {0, 0, errors.New("EIO"), ""},
	} {
		m.Space = func(string) (uint64, uint64, error) { return c.free, c.total, c.err }
		if f, _ := m.Doctor().Get("space"); f.Level != c.want {
			t.Errorf("%d of %d: %+v", c.free, c.total, f)
		}
	}
}

// On an empty tree nothing is invented.
func TestNothingToRead(t *testing.T) {
	m := Machine{Root: fstest.MapFS{}, GOARCH: "arm64", Now: func() time.Time { return now }}
	r := m.Doctor()
	for _, f := range r.Findings {
		if f.Level == Fail && f.Name != "cgroups" {
			t.Errorf("%+v", f)
		}
	}
	b := m.Detect()
	if b.Model != "" || b.Storage.Kind != Unknown || b.Cgroup.Layout != CgroupNone {
		t.Errorf("%+v", b)
	}
}

func TestThisMachine(t *testing.T) {
	m := This(t.TempDir())
	b := m.Detect()
	if b.CPU.Cores == 0 || b.Memory == 0 || b.Kernel.Release == "" {
		t.Errorf("this machine has no processor, memory or kernel: %+v", b)
	}
	r := m.Doctor()
	if _, ok := r.Get("space"); !ok {
		t.Error("space unknown")
	}
	// A recording of it is the same board.
	var recorded bytes.Buffer
	if err := m.Record(&recorded); err != nil {
		t.Fatal(err)
	}
	again := m
	again.Root = parseTree(recorded.String())
	// The serial number is left out, on purpose.
	known, copied := b.Labels(), again.Detect()
	delete(known, LabelPrefix+"serial")
	labels := copied.Labels()
	delete(labels, LabelPrefix+"serial")
	if !maps.Equal(known, labels) {
		t.Errorf("recorded: %v\nthis machine: %v", labels, known)
	}
}

func TestFeaturesSwitchedOff(t *testing.T) {
	nuc := load(t, "nuc")
	f, _ := Doctor(nuc, "/").Get(UserNamespaces)
	if f.What != string(Off) || f.Fix == nil || f.Fix.New != "kernel.apparmor_restrict_unprivileged_userns = 0" {
		t.Errorf("Ubuntu's restriction: %+v %+v", f, f.Fix)
	}
	nuc["proc/sys/kernel/unprivileged_userns_clone"].Data = []byte("0\n")
	if f, _ = Doctor(nuc, "/").Get(UserNamespaces); f.Fix == nil || f.Fix.New != "kernel.unprivileged_userns_clone = 1" {
		t.Errorf("Debian's switch: %+v %+v", f, f.Fix)
	}
	nuc["sys/kernel/security/lsm"].Data = []byte("capability,apparmor")
	f, _ = Doctor(nuc, "/").Get(Landlock)
	if f.What != string(Off) || f.Fix == nil || f.Fix.New != `GRUB_CMDLINE_LINUX="lsm=landlock,capability,apparmor"` {
		t.Errorf("landlock: %+v %+v", f, f.Fix)
	}
	vf := load(t, "visionfive-2")
	if f, _ := Doctor(vf, "/").Get(Veth); f.Level != Fail || !strings.Contains(f.Do, "CONFIG_VETH=m or =y") {
		t.Errorf("veth: %+v", f)
	}
}

func TestUbuntuOnPiNeedsExtraModules(t *testing.T) {
	root := load(t, "pi-4b")
	root["etc/os-release"].Data = []byte("ID=ubuntu\n")
	root["lib/modules/6.6.51+rpt-rpi-v8/modules.dep"].Data = nil
	if f, _ := Doctor(root, "/").Get(Veth); f.Do != "sudo apt install linux-modules-extra-raspi" {
		t.Errorf("%+v", f)
	}
}

func FuzzParsers(f *testing.F) {
	for _, name := range []string{"pi-zero", "pc", "nuc", "visionfive-2"} {
		root := load(f, name)
		f.Add(string(root["proc/self/mountinfo"].Data), string(root["proc/cpuinfo"].Data), "50005", "0x09 0x03", "lsm=a b")
	}
	f.Add(`1 2 0:1 / \04 rw - overlay x upperdir=\`, "isa : rv", "throttled=0x", "0x", `GRUB_CMDLINE_LINUX="`)
	f.Fuzz(func(t *testing.T, mountinfo, cpuinfo, throttled, life, args string) {
		root := fstest.MapFS{
			"proc/self/mountinfo": {Data: []byte(mountinfo)},
			"proc/cpuinfo":        {Data: []byte(cpuinfo)},
			"proc/cmdline":        {Data: []byte(args)},
			"etc/default/grub":    {Data: []byte(args)},
			"sys/devices/platform/soc/soc:firmware/get_throttled": {Data: []byte(throttled)},
		}
		m := Machine{Root: root, DataDir: "/var/lib", GOARCH: "arm"}
		b := m.Detect()
		for k, v := range b.Labels() {
			if len(v) > 63 {
				t.Errorf("label %s=%q", k, v)
			}
		}
		if p := parseLife(life); p != -1 && (p < 10 || p > 110) {
			t.Errorf("life %d of %q", p, life)
		}
		_ = m.Doctor().WriteText(&bytes.Buffer{})
	})
}
