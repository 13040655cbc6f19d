// Package proc reads of a process what the benchmarks measure of it.
package proc

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Memory is what smaps_rollup says of a process, in MiB. Private is what the
// kernel can't take back: clean pages of the executable are not in it, whether
// or not another process maps them too.
type Memory struct{ RSS, PSS, Private, Anonymous float64 }

// MemoryOf a process, now.
func MemoryOf(pid int) (Memory, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return Memory{}, err
	}
	var m Memory
	for line := range strings.Lines(string(raw)) {
		f := strings.Fields(line)
		if len(f) != 3 || f[2] != "kB" {
			continue
		}
		kb, err := strconv.ParseFloat(f[1], 64)
		if err != nil {
			return m, err
		}
		switch f[0] {
		case "Rss:":
			m.RSS += kb / 1024
		case "Pss:":
			m.PSS += kb / 1024
		case "Private_Dirty:":
			m.Private += kb / 1024
		case "Anonymous:":
			m.Anonymous += kb / 1024
		}
	}
	return m, nil
}

// Written is how many bytes a process caused to be sent to storage, less what
// it truncated before it was (proc(5), io).
func Written(pid int) (float64, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid))
	if err != nil {
		return 0, err
	}
	var n float64
	for line := range strings.Lines(string(raw)) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), ": ")
		x, err := strconv.ParseFloat(v, 64)
		if err != nil {
			return 0, err
		}
		switch k {
		case "write_bytes":
			n += x
		case "cancelled_write_bytes":
			n -= x
		}
	}
	return n, nil
}

// Wire is the payload bytes that the kernel counts on a process's established
// TCP connections, TLS included, TCP and IP headers not; Segments is how many
// carried them, acknowledgements included.
type Wire struct{ Sent, Received, Segments float64 }

// WireOf a process, now.
func WireOf(pid int) (Wire, error) {
	out, err := exec.Command("ss", "-Htinpe", "state", "established").Output()
	if err != nil {
		return Wire{}, fmt.Errorf("ss (package iproute2): %w", err)
	}
	var w Wire
	mine := false
	needle := fmt.Sprintf("pid=%d,", pid)
	s := bufio.NewScanner(bytes.NewReader(out))
	for s.Scan() {
		line := s.Text()
		if !strings.HasPrefix(line, "\t") && !strings.HasPrefix(line, " ") {
			mine = strings.Contains(line, needle)
		}
		if !mine {
			continue
		}
		for _, f := range strings.Fields(line) {
			k, v, ok := strings.Cut(f, ":")
			if !ok {
				continue
			}
			n, err := strconv.ParseFloat(v, 64)
			if err != nil {
				continue
			}
			switch k {
			case "bytes_sent":
				w.Sent += n
			case "bytes_received":
				w.Received += n
			case "segs_out", "segs_in":
				w.Segments += n
			}
		}
	}
	return w, s.Err()
}

// perSecond is USER_HZ, on all architectures that Go runs on.
const perSecond = 100

// CPU is the processor time that a process used, user and system (proc(5), stat).
func CPU(pid int) (time.Duration, error) {
	f, err := stat(pid)
	if err != nil {
		return 0, err
	}
	var ticks int64
	for _, field := range f[11:13] {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / perSecond, nil
}

// Ran is the processor time that a process's threads used, in nanoseconds: an idle
// one's is below CPU's hundredths of a second (schedstat; see sched-stats.rst).
func Ran(pid int) (time.Duration, error) {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil {
		return 0, err
	}
	if len(threads) == 0 {
		return 0, fmt.Errorf("no process %d, or no schedstat in this kernel", pid)
	}
	var sum time.Duration
	for _, t := range threads {
		raw, err := os.ReadFile(t)
		if err != nil {
			return 0, err
		}
		first, _, _ := strings.Cut(string(raw), " ")
		n, err := strconv.ParseInt(first, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", t, err)
		}
		sum += time.Duration(n)
	}
	return sum, nil
}

// Peak is the largest RSS that a process had since it began, or since ResetPeak,
// in MiB (proc(5), status, VmHWM).
func Peak(pid int) (float64, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(raw)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kb, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			return kb / 1024, err
		}
	}
	return 0, fmt.Errorf("/proc/%d/status has no VmHWM", pid)
}

// ResetPeak has Peak begin anew (proc(5), clear_refs).
func ResetPeak(pid int) error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0)
}

// stat is the fields of /proc/PID/stat after the command's name, which may have
// spaces in it: the third is the first.
func stat(pid int) ([]string, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, err
	}
	f := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
	if len(f) < 20 {
		return nil, fmt.Errorf("/proc/%d/stat has %d fields after the name", pid, len(f))
	}
	return f, nil
}

// StartOf is when a process began, to a hundredth of a second (proc(5), stat).
func StartOf(pid int) (time.Time, error) {
	f, err := stat(pid)
	if err != nil {
		return time.Time{}, err
	}
	ticks, err := strconv.ParseInt(f[19], 10, 64)
	if err != nil {
		return time.Time{}, err
	}
	var now, boot unix.Timespec
	if err := errors.Join(unix.ClockGettime(unix.CLOCK_REALTIME, &now), unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot)); err != nil {
		return time.Time{}, err
	}
	return time.Unix(0, now.Nano()-boot.Nano()+ticks*int64(time.Second)/perSecond), nil
}

// PidsOf lists the processes that run the program exe.
func PidsOf(exe string) ([]int, error) {
	links, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, l := range links {
		target, err := os.Readlink(l)
		if err != nil || target != exe {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(l)))
		if err != nil {
			return nil, err
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

// PidsWith lists the processes of a pod of containerd's: its shim, which has the
// sandbox's id among its arguments, and what the shim started.
func PidsWith(sandbox string) ([]int, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	parents, mine := map[int]int{}, map[int]bool{}
	for _, d := range dirs {
		pid, err := strconv.Atoi(filepath.Base(d))
		if err != nil {
			return nil, err
		}
		f, err := stat(pid)
		if err != nil {
			continue // it ended
		}
		if parents[pid], err = strconv.Atoi(f[1]); err != nil {
			return nil, err
		}
		line, err := os.ReadFile(filepath.Join(d, "cmdline"))
		if err == nil && bytes.Contains(line, []byte(sandbox)) && bytes.Contains(line, []byte("containerd-shim")) {
			mine[pid] = true
		}
	}
	for grew := true; grew; {
		grew = false
		for pid, parent := range parents {
			if mine[parent] && !mine[pid] {
				mine[pid], grew = true, true
			}
		}
	}
	return slices.Sorted(maps.Keys(mine)), nil
}
