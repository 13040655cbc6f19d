package boards

import (
	"slices"
	"strings"
)

// Fix is a change to one line of one file.
type Fix struct {
	File string `json:"file"` // absolute
	Line int    `json:"line"` // from 1; 0: a new line at the end, or a new file
	Old  string `json:"old,omitempty"`
	New  string `json:"new"`
	Then string `json:"then,omitempty"` // what to run afterwards
}

// bootFile is a place where a system keeps the kernel's arguments.
type bootFile struct {
	file string
	// line says whether a line carries the arguments.
	line func(line string) bool
	// quoted: the arguments stand in quotes at the end of the line.
	quoted bool
	// key starts the line that is made if there is none; "" if none can be made.
	key  string
	then string
}

func anyArgs(line string) bool { return strings.TrimSpace(line) != "" }

func starting(prefix string) func(string) bool {
	return func(line string) bool { return strings.HasPrefix(strings.TrimSpace(line), prefix) }
}

var reboot = "sudo reboot"

// bootFiles in the order of preference: those that generate others first. Since
// bookworm, Raspberry Pi OS leaves a /boot/cmdline.txt that only says where the
// real one is, so /boot/firmware comes before it.
var bootFiles = []bootFile{
	{file: "boot/firmware/cmdline.txt", line: anyArgs, then: reboot},
	{file: "boot/cmdline.txt", line: anyArgs, then: reboot},
	{file: "boot/armbianEnv.txt", line: starting("extraargs="), key: "extraargs=", then: reboot},
	{file: "boot/dietpiEnv.txt", line: starting("extraargs="), key: "extraargs=", then: reboot},
	{file: "etc/default/u-boot", line: starting("U_BOOT_PARAMETERS="), quoted: true, key: "U_BOOT_PARAMETERS=", then: "sudo u-boot-update && sudo reboot"},
	{file: "boot/extlinux/extlinux.conf", line: starting("append "), then: reboot},
	{file: "etc/default/grub", line: starting("GRUB_CMDLINE_LINUX="), quoted: true, key: "GRUB_CMDLINE_LINUX=", then: "sudo update-grub && sudo reboot"},
	{file: "etc/kernel/cmdline", line: anyArgs, then: "sudo kernel-install add-all && sudo reboot"},
}

// bootArgs returns the change that adds arguments to the kernel's command line
// and removes others; false if it isn't known where this system keeps them. If
// all of it is in the file already, New equals Old: only a reboot is missing.
func (t tree) bootArgs(add, remove []string) (Fix, bool) {
	for _, b := range bootFiles {
		if !t.exists(b.file) {
			continue
		}
		fix := Fix{File: "/" + b.file, Then: b.then}
		n := 0
		t.lines(b.file, func(line string) bool {
			n++
			if b.line(line) {
				fix.Line, fix.Old = n, line
				return false
			}
			return true
		})
		if fix.Line == 0 {
			if b.key == "" {
				continue
			}
			fix.New = b.key + b.quote(strings.Join(add, " "))
			return fix, true
		}
		fix.New = b.edit(fix.Old, add, remove)
		return fix, true
	}
	return Fix{}, false
}

func (b *bootFile) quote(s string) string {
	if b.quoted {
		return `"` + s + `"`
	}
	return s
}

func (b *bootFile) edit(line string, add, remove []string) string {
	head, args := "", line
	if b.key != "" {
		head, args, _ = strings.Cut(line, "=")
		head += "="
	}
	if b.quoted {
		args = strings.Trim(strings.TrimSpace(args), `"'`)
	}
	words := strings.Fields(args)
	changed := false
	words = slices.DeleteFunc(words, func(w string) bool {
		drop := slices.Contains(remove, w)
		changed = changed || drop
		return drop
	})
	for _, a := range add {
		if !slices.Contains(words, a) {
			words = append(words, a)
			changed = true
		}
	}
	if !changed {
		return line
	}
	indent := args[:len(args)-len(strings.TrimLeft(args, " \t"))]
	return head + b.quote(indent+strings.Join(words, " "))
}
