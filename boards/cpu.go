package boards

import (
	"regexp"
	"slices"
	"strings"
)

// CPU is the processor.
type CPU struct {
	Name     string   // "Cortex-A72", or as the processor names itself
	Kernel   string   // what `uname -m` says: aarch64, armv7l, armv6l, riscv64, x86_64
	Variant  string   // of arm: "v6", "v7", "v8"; else ""
	Cores    int      // that are online
	Features []string // as /proc/cpuinfo lists them (isa extensions on RISC-V)
	// Is64 says that the processor could run a 64-bit system, whatever runs on it.
	Is64 bool
}

// Has says whether the processor lists a feature.
func (c *CPU) Has(feature string) bool { return slices.Contains(c.Features, feature) }

// armParts are the processors found on boards, by implementer and part number
// (Arm's Main ID registers; the kernel's cputype.h).
var armParts = map[string]string{
	"0x41 0xb76": "ARM1176", "0x41 0xc05": "Cortex-A5", "0x41 0xc07": "Cortex-A7", "0x41 0xc08": "Cortex-A8",
	"0x41 0xc09": "Cortex-A9", "0x41 0xc0d": "Cortex-A17", "0x41 0xc0e": "Cortex-A17", "0x41 0xc0f": "Cortex-A15",
	"0x41 0xd03": "Cortex-A53", "0x41 0xd04": "Cortex-A35", "0x41 0xd05": "Cortex-A55", "0x41 0xd07": "Cortex-A57",
	"0x41 0xd08": "Cortex-A72", "0x41 0xd09": "Cortex-A73", "0x41 0xd0a": "Cortex-A75", "0x41 0xd0b": "Cortex-A76",
	"0x41 0xd0c": "Neoverse-N1", "0x41 0xd0d": "Cortex-A77", "0x41 0xd41": "Cortex-A78", "0x41 0xd42": "Cortex-A78AE",
	"0x41 0xd46": "Cortex-A510", "0x41 0xd47": "Cortex-A710", "0x4e 0x004": "Carmel",
}

var armModel = regexp.MustCompile(`\((v\d+)l?\)`)

func (t tree) cpu() CPU {
	var c CPU
	info := map[string]string{} // the last processor's: on big.LITTLE a large one
	t.lines("proc/cpuinfo", func(line string) bool {
		key, value, ok := strings.Cut(line, ":")
		key, value = strings.TrimSpace(key), strings.TrimSpace(value)
		if !ok {
			return true
		}
		if key == "processor" {
			c.Cores++
		}
		info[key] = value
		return true
	})
	part := info["CPU implementer"] + " " + info["CPU part"]
	c.Name = firstOf(armParts[part], info["model name"], info["uarch"])
	c.Kernel = firstOf(t.text("proc/sys/kernel/arch"), kernelArch(info))
	switch {
	case info["isa"] != "":
		c.Features = riscvFeatures(info["isa"])
		c.Is64 = strings.HasPrefix(info["isa"], "rv64")
	case info["CPU implementer"] != "":
		c.Features = strings.Fields(info["Features"])
		c.Variant = armVariant(c.Kernel, info)
		// 0xdXX are ARMv8 designs, except the 32-bit Cortex-A32.
		c.Is64 = c.Kernel == "aarch64" || strings.HasPrefix(info["CPU part"], "0xd") && info["CPU part"] != "0xd01"
	default:
		c.Features = strings.Fields(info["flags"])
		c.Is64 = c.Has("lm") // "long mode"
	}
	return c
}

// armVariant needs care: an ARM1176 (ARMv6) says "CPU architecture: 7", because
// it has the memory model's registers of the next one. Its name tells the truth.
func armVariant(kernel string, info map[string]string) string {
	if kernel == "aarch64" {
		return "v8"
	}
	if rest, ok := strings.CutPrefix(kernel, "armv"); ok && len(rest) > 0 {
		return "v" + rest[:1]
	}
	if m := armModel.FindStringSubmatch(info["model name"]); m != nil {
		return m[1]
	}
	switch info["CPU architecture"] {
	case "6", "6TEJ":
		return "v6"
	case "7":
		return "v7"
	case "8", "AArch64":
		return "v8"
	}
	return ""
}

// kernelArch infers what `uname -m` says, for kernels before 6.1, which don't
// have it in a file.
func kernelArch(info map[string]string) string {
	switch {
	case strings.HasPrefix(info["isa"], "rv64"):
		return "riscv64"
	case strings.HasPrefix(info["isa"], "rv32"):
		return "riscv32"
	case info["flags"] != "":
		return "x86_64"
	case slices.Contains(strings.Fields(info["Features"]), "asimd"):
		return "aarch64" // 32-bit kernels call it neon
	}
	if m := armModel.FindStringSubmatch(info["model name"]); m != nil {
		return "arm" + m[1] + "l"
	}
	return ""
}

// riscvFeatures splits "rv64imafdc_zba_zbb" into i m a f d c zba zbb.
func riscvFeatures(isa string) []string {
	if len(isa) < 4 {
		return nil
	}
	base, long, _ := strings.Cut(isa[4:], "_")
	features := strings.Split(base, "")
	if long != "" {
		features = append(features, strings.Split(long, "_")...)
	}
	return features
}

// cpuinfo returns one field of /proc/cpuinfo, "" if it isn't there.
func (t tree) cpuinfo(field string) (value string) {
	t.lines("proc/cpuinfo", func(line string) bool {
		key, v, _ := strings.Cut(line, ":")
		if strings.TrimSpace(key) == field {
			value = strings.TrimSpace(v)
		}
		return value == ""
	})
	return value
}
