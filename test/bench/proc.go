package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// memory is what smaps_rollup says of a process, in MiB. private is what the
// kernel can't take back: clean pages of the executable are not in it, whether
// or not another process maps them too.
type memory struct{ rss, pss, private, anonymous float64 }

func memoryOf(pid int) (memory, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return memory{}, err
	}
	var m memory
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
			m.rss += kb / 1024
		case "Pss:":
			m.pss += kb / 1024
		case "Private_Dirty:":
			m.private += kb / 1024
		case "Anonymous:":
			m.anonymous += kb / 1024
		}
	}
	return m, nil
}

// written is how many bytes a process caused to be sent to storage, less what
// it truncated before it was (proc(5), io).
func written(pid int) (float64, error) {
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

// wire is the payload bytes that the kernel counts on a process's established
// TCP connections, TLS included, TCP and IP headers not; segs is how many
// segments carried them, acknowledgements included.
type wire struct{ sent, received, segments float64 }

func wireOf(pid int) (wire, error) {
	out, err := exec.Command("ss", "-Htinpe", "state", "established").Output()
	if err != nil {
		return wire{}, fmt.Errorf("ss (package iproute2): %w", err)
	}
	var w wire
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
				w.sent += n
			case "bytes_received":
				w.received += n
			case "segs_out", "segs_in":
				w.segments += n
			}
		}
	}
	return w, s.Err()
}

// startOf is when a process began, to a hundredth of a second (proc(5), stat).
func startOf(pid int) (time.Time, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return time.Time{}, err
	}
	f := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
	ticks, err := strconv.ParseInt(f[19], 10, 64)
	if err != nil {
		return time.Time{}, err
	}
	var now, boot unix.Timespec
	if err := errors.Join(unix.ClockGettime(unix.CLOCK_REALTIME, &now), unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot)); err != nil {
		return time.Time{}, err
	}
	const perSecond = 100 // USER_HZ, on all architectures that Go runs on
	return time.Unix(0, now.Nano()-boot.Nano()+ticks*int64(time.Second)/perSecond), nil
}

// pidsOf lists the processes that run the program exe.
func pidsOf(exe string) ([]int, error) {
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
