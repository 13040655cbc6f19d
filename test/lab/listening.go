package lab

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Listening lists what a process listens on that another machine could reach, or a
// pod: the lines of /proc/PID/net of its sockets of TCP that listen, and of all of
// UDP and raw ones. It returns an error if it doesn't see the unix socket that every
// agent has, for it wouldn't see a port then either.
func Listening(pid int) ([]string, error) {
	own := map[string]bool{}
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		return nil, err
	}
	for _, fd := range fds {
		if target, err := os.Readlink(fd); err == nil && strings.HasPrefix(target, "socket:[") {
			own[strings.Trim(strings.TrimPrefix(target, "socket:"), "[]")] = true
		}
	}
	var out []string
	unixSockets := 0
	for _, family := range []string{"tcp", "tcp6", "udp", "udp6", "raw", "raw6", "unix"} {
		f, err := os.Open(fmt.Sprintf("/proc/%d/net/%s", pid, family))
		if err != nil {
			continue // a kernel without it
		}
		lines := bufio.NewScanner(f)
		for lines.Scan() {
			fields := strings.Fields(lines.Text())
			switch {
			case family == "unix" && len(fields) > 6 && own[fields[6]]:
				unixSockets++
			case family != "unix" && len(fields) > 9 && own[fields[9]] && (fields[3] == "0A" || !strings.HasPrefix(family, "tcp")):
				out = append(out, family+" "+strings.TrimSpace(lines.Text()))
			}
		}
		_ = f.Close()
	}
	if unixSockets == 0 {
		return out, errors.New("the process' own unix socket isn't seen")
	}
	return out, nil
}
