package boards

import (
	"fmt"
	"io/fs"
	"strings"
	"time"
)

// Doctor looks at the machine with this root and says what is wrong for a node
// that keeps its data in dataDir.
func Doctor(root fs.FS, dataDir string) Report {
	return Machine{Root: root, DataDir: dataDir}.Doctor()
}

// Doctor says what is wrong with the machine, and what to do about it.
func (m Machine) Doctor() Report {
	m = m.defaults()
	b := m.Detect()
	d := doctor{Machine: m, Board: &b, Readings: m.Read(&b), tree: tree{m.Root}}
	d.board()
	d.cpu()
	d.memory()
	d.clock()
	d.power()
	d.heat()
	d.storage()
	d.wear()
	d.space()
	d.cgroups()
	d.memoryController()
	for _, n := range kernelNeeds {
		d.kernelFeature(n)
	}
	return d.report
}

type doctor struct {
	Machine
	*Board
	Readings
	tree   tree
	report Report
}

func (d *doctor) add(f Finding) { d.report.Findings = append(d.report.Findings, f) }

func (d *doctor) ok(name, format string, args ...any) {
	d.add(Finding{Name: name, Level: OK, What: fmt.Sprintf(format, args...)})
}

func (d *doctor) board() {
	what := firstOf(d.Model, "unknown board")
	if d.SoC != "" {
		what += ", " + d.SoC
	}
	if d.OS.Name != "" {
		what += ", " + d.OS.Name
	}
	if d.Kernel.Release != "" {
		what += ", Linux " + d.Kernel.Release
	}
	d.ok("board", "%s", what)
}

func (d *doctor) cpu() {
	what := fmt.Sprintf("%d × %s, agent for %s", d.CPU.Cores, firstOf(d.CPU.Name, "processor"), d.Board.GOARCH)
	if d.CPU.Variant != "" {
		what += ", arm" + d.CPU.Variant
	}
	if d.WasmCompiled() {
		d.ok("cpu", "%s", what)
		return
	}
	f := Finding{Name: "cpu", Level: Warn, What: what,
		Why: "Wasm modules are interpreted here, 40 to 60 times slower than compiled: there are compilers for amd64 and arm64 only"}
	if d.Board.GOARCH == "arm" && d.CPU.Is64 {
		f.Do = "install a 64-bit system, this processor can run one"
	}
	d.add(f)
}

func (d *doctor) memory() {
	mib := d.Memory >> 20
	if mib == 0 {
		return
	}
	if mib >= 200 {
		d.ok("memory", "%d MiB", mib)
		return
	}
	d.add(Finding{Name: "memory", Level: Warn, What: fmt.Sprintf("%d MiB", mib),
		Why: "the agent takes 26 MiB and each small Wasm pod 2, but containerd alone about 45",
		Do:  "run Wasm pods only, without containerd"})
}

func (d *doctor) clock() {
	now := d.Time.UTC().Format(time.DateTime) + " UTC"
	switch {
	case d.ClockUnset():
		d.add(Finding{Name: "clock", Level: Warn, What: now + ", which can't be right",
			Why: "certificates of other parts look invalid until the time is set; pods start all the same",
			Do:  "let the board reach a time server (timedatectl set-ntp true), or set it: sudo date -s '2026-01-31 12:00'"})
	case d.Board.RTC == "":
		d.add(Finding{Name: "clock", Level: OK, What: now + ", no clock that survives a power cut (the last known time is kept instead)"})
	default:
		d.ok("clock", "%s, kept by %s", now, d.Board.RTC)
	}
}

func (d *doctor) power() {
	switch {
	case !d.Power:
		return // the board can't tell
	case d.Throttled.Is(UnderVoltageNow):
		d.add(Finding{Name: "power", Level: Fail, What: "below 4.63 V now",
			Why: "the processor is slowed down, SD cards get corrupted and USB devices drop out",
			Do:  "use the supply made for this board and a short, thick cable; plug USB disks into a powered hub"})
	case d.Throttled.Is(UnderVoltageBefore):
		d.add(Finding{Name: "power", Level: Warn, What: "good now, below 4.63 V at least once since the board started",
			Why: "the supply is at its limit when the board works hard",
			Do:  "use the supply made for this board and a short, thick cable"})
	default:
		d.ok("power", "good")
	}
}

func (d *doctor) heat() {
	z, known := d.Hottest()
	if !known && !d.Power {
		return
	}
	what := "no thermal sensor"
	if known {
		what = fmt.Sprintf("%s at %s", z.Name, degrees(z.Temp))
	}
	why, slowed := d.Slowed()
	switch {
	case slowed:
		d.add(Finding{Name: "temperature", Level: Warn, What: what + ": " + why, Why: "everything runs slower than it could",
			Do: "give the board a heat sink or a fan, or a case with more air"})
	case d.Throttled.Is(ThrottledBefore | SoftLimitBefore):
		d.add(Finding{Name: "temperature", Level: Warn, What: what + ", too hot at least once since the board started", Why: "the board is slowed down when it works hard",
			Do: "give it a heat sink or a fan"})
	default:
		d.ok("temperature", "%s", what)
	}
}

func (d *doctor) storage() {
	s := &d.Storage
	what := fmt.Sprintf("%s on %s", d.DataDir, d.describeStorage())
	switch {
	case s.ReadOnly:
		d.add(Finding{Name: "storage", Level: Fail, What: what + ", read-only",
			Why: "the node can't keep what it should run",
			Do:  "sudo mount -o remount,rw " + s.Mount + "; if the kernel made it read-only after an error (dmesg), check it with fsck and replace the card"})
	case s.Kind == Volatile:
		d.add(Finding{Name: "storage", Level: Fail, What: what + ", which is gone after a reboot",
			Why: "the node would come back without its identity and its pods",
			Do:  "give --data-dir a folder on a disk; on Raspberry Pi OS switch the overlay file system off: sudo raspi-config nonint disable_overlayfs"})
	case s.Kind == Network:
		d.add(Finding{Name: "storage", Level: Warn, What: what,
			Why: "pods can't start when the network is away", Do: "give --data-dir a folder on a disk of the board"})
	case s.Kind == Loop:
		d.add(Finding{Name: "storage", Level: Warn, What: what, Why: "a file system in a file survives power cuts less well than one on a disk",
			Do: "give --data-dir a folder on a disk"})
	default:
		d.ok("storage", "%s", what)
	}
}

func (d *doctor) describeStorage() string {
	s := &d.Storage
	name := map[string]string{SD: "an SD card", EMMC: "eMMC flash", NVMe: "an NVMe disk", SSD: "an SSD", HDD: "a hard disk", USB: "a USB disk",
		Virtual: "a virtual disk", Loop: "a file system in a file", Flash: "raw flash", Volatile: "memory", Network: "the network"}[s.Kind]
	parts := []string{firstOf(name, "unknown storage")}
	if s.Device != "" {
		parts = append(parts, s.Device)
	}
	if s.Model != "" {
		parts = append(parts, s.Model)
	}
	if s.Bytes > 0 {
		parts = append(parts, fmt.Sprintf("%.1f GB", float64(s.Bytes)/1e9))
	}
	if s.FileSystem != "" {
		parts = append(parts, s.FileSystem)
	}
	return strings.Join(parts, ", ")
}

func (d *doctor) wear() {
	c := d.wearCondition()
	switch {
	case !d.Wear.Known():
		return
	case c.Status:
		d.add(Finding{Name: "wear", Level: Warn, What: c.Message, Why: "flash that is used up becomes read-only or loses data",
			Do: "plan to replace the device"})
	default:
		d.ok("wear", "%s", firstOf(c.Message, "spare blocks "+d.Wear.Reserve))
	}
}

func (d *doctor) space() {
	if d.Space == nil {
		return
	}
	free, total, err := d.Space(firstExisting(d.tree, d.DataDir))
	if err != nil || total == 0 {
		return
	}
	what := fmt.Sprintf("%.1f of %.1f GB free", float64(free)/1e9, float64(total)/1e9)
	f := Finding{Name: "space", What: what, Why: "images and the node's state need room; without any the node keeps what runs and takes nothing new",
		Do: "delete what isn't needed, or give --data-dir a larger disk"}
	switch {
	case free < 64<<20:
		f.Level = Fail
	case free < 512<<20 || free < total/20:
		f.Level = Warn
	default:
		d.ok("space", "%s", what)
		return
	}
	d.add(f)
}

// firstExisting is the path or the nearest folder above that exists.
func firstExisting(t tree, p string) string {
	for p != "/" && !t.exists(strings.Trim(p, "/")) {
		p = p[:max(1, strings.LastIndex(p, "/"))]
	}
	return p
}
