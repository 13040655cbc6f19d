package boards

import (
	"io/fs"
	"os"
	"regexp"
	"runtime"
	"strings"
	"time"
)

// Machine is where to look. Only Root is needed.
type Machine struct {
	Root    fs.FS  // stands for "/"
	DataDir string // absolute; the storage behind it is looked at; default /var/lib
	GOARCH  string // of the agent; default that of this program
	Now     func() time.Time
	// Floor is a time that is surely over: the persisted time floor of the node,
	// or zero. A clock before it, or before this program was written, is unset.
	Floor time.Time
	// Space returns the free and total bytes of the file system at a path; nil
	// leaves space unchecked.
	Space func(path string) (free, total uint64, err error)
	// Inodes returns the free and total number of inodes there; both are 0 where a
	// file system makes them as it goes (btrfs, vfat). Nil leaves them unchecked.
	Inodes func(path string) (free, total uint64, err error)
}

// This is the machine that runs the program.
func This(dataDir string) Machine {
	return Machine{Root: os.DirFS("/"), DataDir: dataDir, Space: space, Inodes: inodes}
}

// Board is what a machine is. It doesn't change while the machine runs, except
// by an administrator's hand.
type Board struct {
	Model      string   // as the maker writes it: "Raspberry Pi 4 Model B Rev 1.4"
	Compatible []string // device tree, the most specific first
	SoC        string   // "bcm2711"; "" if unknown
	Serial     string   // "" if unknown
	GOARCH     string   // of the agent
	CPU        CPU
	Memory     uint64 // bytes that the kernel has, without what the firmware keeps
	RTC        string // the clock that survives power cuts; "" if there is none
	Storage    Storage
	Cgroup     Cgroup
	Kernel     Kernel
	OS         OS
}

// OS is the distribution, as in os-release(5).
type OS struct{ ID, Version, Name string }

// Detect reads what the machine is.
func (m Machine) Detect() Board {
	m = m.defaults()
	t := tree{m.Root}
	b := Board{GOARCH: m.GOARCH, CPU: t.cpu(), Memory: t.memory(), RTC: t.rtc(), OS: t.os()}
	t.identity(&b)
	b.Storage = t.storage(m.DataDir)
	b.Cgroup = t.cgroup()
	b.Kernel = t.kernel()
	return b
}

// Detect reads what the machine with this root is.
func Detect(root fs.FS) Board { return Machine{Root: root}.Detect() }

// DataStorage is what lies behind the data folder, without looking at anything else.
func (m Machine) DataStorage() Storage {
	m = m.defaults()
	return tree{m.Root}.storage(m.DataDir)
}

// RaspberryPi says whether the board is one.
func (b *Board) RaspberryPi() bool {
	return len(b.Compatible) > 0 && strings.HasPrefix(b.Compatible[0], "raspberrypi,")
}

func (m Machine) defaults() Machine {
	if m.GOARCH == "" {
		m.GOARCH = runtime.GOARCH
	}
	if m.Now == nil {
		m.Now = time.Now
	}
	if m.DataDir == "" {
		m.DataDir = "/var/lib"
	}
	return m
}

func (t tree) identity(b *Board) {
	const dt = "proc/device-tree"
	const dmi = "sys/class/dmi/id"
	b.Compatible = t.list(dt + "/compatible")
	if n := len(b.Compatible); n > 0 {
		_, b.SoC, _ = strings.Cut(b.Compatible[n-1], ",")
	}
	b.Model = firstOf(t.text(dt+"/model"), t.product(dmi), t.cpuinfo("Model"))
	b.Serial = firstOf(t.text(dt+"/serial-number"), t.cpuinfo("Serial"), t.text(dmi+"/product_serial"))
	if b.Serial == "Default string" || b.Serial == "To be filled by O.E.M." {
		b.Serial = ""
	}
}

// product names a PC by its DMI tables.
func (t tree) product(dmi string) string {
	name, vendor := t.text(dmi+"/product_name"), t.text(dmi+"/sys_vendor")
	if name == "" || name == "Default string" || name == "To Be Filled By O.E.M." {
		// Boards sold without a case have only a board name.
		name, vendor = t.text(dmi+"/board_name"), t.text(dmi+"/board_vendor")
	}
	if strings.HasPrefix(strings.ToLower(name), strings.ToLower(vendor)) {
		return name
	}
	return strings.TrimSpace(vendor + " " + name)
}

func (t tree) memory() (bytes uint64) {
	t.lines("proc/meminfo", func(line string) bool {
		rest, ok := strings.CutPrefix(line, "MemTotal:")
		if ok {
			bytes = kib(rest)
		}
		return !ok
	})
	return bytes
}

func kib(s string) uint64 {
	var n uint64
	for _, c := range strings.TrimSpace(s) {
		if c < '0' || c > '9' || n > 1<<50 {
			break
		}
		n = n*10 + uint64(c-'0')
	}
	return n << 10
}

func (t tree) rtc() string {
	for _, dir := range t.glob("sys/class/rtc/rtc*") {
		name := firstOf(t.text(dir+"/name"), "rtc")
		name, _, _ = strings.Cut(name, " ")
		return name
	}
	return ""
}

func (t tree) os() (o OS) {
	for _, file := range []string{"etc/os-release", "usr/lib/os-release"} {
		found := t.lines(file, func(line string) bool {
			key, value, _ := strings.Cut(line, "=")
			value = strings.Trim(value, `"'`)
			switch key {
			case "ID":
				o.ID = value
			case "VERSION_ID":
				o.Version = value
			case "PRETTY_NAME":
				o.Name = value
			}
			return true
		})
		if found {
			break
		}
	}
	return o
}

// revision is what makers append to a model's name.
var revision = regexp.MustCompile(`(?i)\s+(rev(ision)?\.?\s*\S+|v\d+(\.\d+)*[a-z]?)$`)

// Slug is the model as a label value: "raspberry-pi-4-model-b".
func (b *Board) Slug() string {
	if s := labelValue(strings.ToLower(revision.ReplaceAllString(b.Model, ""))); s != "" {
		return s
	}
	return "generic-" + b.GOARCH
}
