package boards

import (
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"
)

// Kinds of storage.
const (
	SD       = "sd"      // SD card
	EMMC     = "emmc"    // soldered flash
	NVMe     = "nvme"    //
	SSD      = "ssd"     // SATA or unknown without moving parts
	HDD      = "hdd"     //
	USB      = "usb"     // stick or disk on USB
	Virtual  = "virtual" // a hypervisor's
	Loop     = "loop"    // a file on another file system
	Flash    = "flash"   // raw flash: UBI, JFFS2
	Volatile = "memory"  // lost with the power
	Network  = "network" //
	Unknown  = "unknown" //
)

// Storage is what lies behind the data folder.
type Storage struct {
	Kind       string
	Device     string // whole disk: "mmcblk0"; "" if there is none
	Model      string
	FileSystem string // "ext4"
	Mount      string // where it is mounted
	ReadOnly   bool
	Bytes      uint64 // of the disk
	dir        string // in the root, of the disk
}

// String names the storage in messages: "mmcblk0 (ext4 mounted on /)".
func (s Storage) String() string {
	if s.Mount == "" {
		return "unknown storage"
	}
	return fmt.Sprintf("%s (%s mounted on %s)", firstOf(s.Device, s.Kind), firstOf(s.FileSystem, "?"), s.Mount)
}

// storage finds the disk behind an absolute path by the mount table.
func (t tree) storage(data string) Storage {
	m, ok := t.mount(data)
	if !ok {
		return Storage{Kind: Unknown}
	}
	s := Storage{Kind: Unknown, FileSystem: m.fs, Mount: m.point, ReadOnly: m.readOnly}
	switch {
	case m.fs == "tmpfs" || m.fs == "ramfs":
		s.Kind = Volatile
		return s
	case m.fs == "nfs" || m.fs == "nfs4" || m.fs == "cifs" || m.fs == "9p" || m.fs == "ceph":
		s.Kind = Network
		return s
	case m.fs == "ubifs" || m.fs == "jffs2":
		s.Kind = Flash
		return s
	case m.fs == "overlay":
		// What is written lands in the upper folder. "overlayroot" of Ubuntu and
		// Raspberry Pi OS has it in memory.
		if upper, ok := t.mount(m.upper); ok && m.upper != "" && upper.fs != "overlay" {
			below := t.storage(m.upper)
			below.FileSystem = "overlay on " + upper.fs
			below.Mount = m.point
			return below
		}
		return s
	}
	if s.dir = t.disk(m); s.dir == "" {
		return s
	}
	s.Device = path.Base(s.dir)
	s.Kind = t.diskKind(s.dir)
	s.Model = firstOf(t.text(s.dir+"/device/model"), t.text(s.dir+"/device/name"))
	if sectors, ok := t.number(s.dir + "/size"); ok && sectors > 0 {
		s.Bytes = uint64(sectors) * 512 // always of 512 bytes in sysfs
	}
	return s
}

// mount is a line of the mount table, proc_pid_mountinfo(5).
type mount struct {
	device, point, fs, source string
	upper                     string // of overlay
	readOnly                  bool
}

// mount returns the mount that a path is on: the longest mount point that is a
// prefix of it, the last one of the table if several are.
func (t tree) mount(data string) (best mount, found bool) {
	data = path.Clean(data)
	t.lines("proc/self/mountinfo", func(line string) bool {
		m, ok := parseMount(line)
		if ok && within(data, m.point) && (!found || len(m.point) >= len(best.point)) {
			best, found = m, true
		}
		return true
	})
	return best, found
}

func within(p, dir string) bool {
	return dir == "/" || p == dir || strings.HasPrefix(p, dir+"/")
}

// parseMount reads "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue".
func parseMount(line string) (m mount, ok bool) {
	before, after, ok := strings.Cut(line, " - ")
	f, g := strings.Fields(before), strings.Fields(after)
	if !ok || len(f) < 6 || len(g) < 2 {
		return m, false
	}
	m = mount{device: f[2], point: unescape(f[4]), fs: g[0], source: unescape(g[1])}
	options := strings.Split(f[5], ",")
	if len(g) > 2 {
		options = append(options, strings.Split(g[2], ",")...)
	}
	for _, o := range options {
		if o == "ro" {
			m.readOnly = true
		}
		if upper, ok := strings.CutPrefix(o, "upperdir="); ok {
			m.upper = unescape(upper)
		}
	}
	return m, true
}

// unescape undoes the octal escapes (\040 is a space) of the mount table.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// disk returns the folder in sysfs of the whole disk that m is on, "" if it is
// on none.
func (t tree) disk(m mount) string {
	dir := t.follow("sys/dev/block/" + m.device)
	if dir == "" && strings.HasPrefix(m.source, "/dev/") {
		// btrfs and others have a device number of their own.
		dir = t.follow("sys/class/block/" + path.Base(m.source))
	}
	// Encrypted and logical volumes lie on others.
	for range 4 {
		below := t.names(dir + "/slaves")
		if len(below) == 0 {
			break
		}
		next := t.follow(dir + "/slaves/" + below[0])
		if next == "" {
			break
		}
		dir = next
	}
	if dir != "" && t.exists(dir+"/partition") {
		dir = path.Dir(dir)
	}
	return dir
}

// follow resolves a symbolic link of sysfs to the folder that it stands for.
func (t tree) follow(link string) string {
	target, err := fs.ReadLink(t.FS, link)
	if err != nil {
		return ""
	}
	dir := path.Join(path.Dir(link), target)
	if !fs.ValidPath(dir) || !t.exists(dir) {
		return ""
	}
	return dir
}

func (t tree) diskKind(dir string) string {
	name := path.Base(dir)
	has := func(prefix string) bool { return strings.HasPrefix(name, prefix) }
	switch {
	case has("mmcblk"):
		if t.text(dir+"/device/type") == "MMC" {
			return EMMC
		}
		return SD
	case has("nvme"):
		return NVMe
	case has("zram"), has("ram"):
		return Volatile
	case has("loop"):
		return Loop
	case has("vd"), has("xvd"):
		return Virtual
	case has("mtdblock"):
		return Flash
	case has("nbd"), has("rbd"):
		return Network
	case strings.Contains(dir, "/usb"):
		return USB
	}
	switch t.text(dir + "/queue/rotational") {
	case "1":
		return HDD
	case "0":
		return SSD
	}
	return Unknown
}

// Wear is how used up flash is, as it says itself.
type Wear struct {
	// Used is the upper bound of the share of the device's life that is over, in
	// percent: JEDEC JESD84-B51 gives steps of ten. 110 is "exceeded". -1 unknown.
	Used int
	// Reserve is the state of the spare blocks: "normal", "warning" (80 % used),
	// "urgent" (90 %); "" unknown.
	Reserve string
}

// High says that the device should be replaced soon.
func (w Wear) High() bool {
	return w.Used > 80 || w.Reserve == "warning" || w.Reserve == "urgent"
}

// Known says whether the device says anything of its wear.
func (w Wear) Known() bool { return w.Used >= 0 || w.Reserve != "" }

func (t tree) wear(dir string) Wear {
	w := Wear{Used: -1}
	if dir == "" {
		return w
	}
	w.Used = parseLife(t.text(dir + "/device/life_time"))
	if n, ok := t.number(dir + "/device/pre_eol_info"); ok {
		w.Reserve = map[int64]string{1: "normal", 2: "warning", 3: "urgent"}[n]
	}
	return w
}

// parseLife reads life_time, "0x02 0x01": the steps of the two kinds of cells.
func parseLife(s string) int {
	worst := 0
	for _, f := range strings.Fields(s) {
		if n, err := strconv.ParseInt(f, 0, 16); err == nil && n >= 1 && n <= 11 {
			worst = max(worst, int(n))
		}
	}
	if worst == 0 {
		return -1
	}
	return worst * 10
}
