package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// tuneMemory trades a little CPU for a small heap; the environment overrides it.
func tuneMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(25)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(32 << 20)
	}
}

// giveBackAfter is how long after work began, the agent's start or an order, what
// that took is given back.
const giveBackAfter = time.Minute

// settle gives back what starting and what each spell of work took: of the heap,
// and of the program's own pages those that are used no more. A node with nothing
// to do doesn't wake for it.
func (a *agent) settle(ctx context.Context, orders <-chan struct{}) error {
	for after := 5 * time.Second; ; after = giveBackAfter {
		t := time.NewTimer(after)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-t.C:
		}
		if after == giveBackAfter {
			// What came until now is what is given back.
			select {
			case <-orders:
			default:
			}
		}
		debug.FreeOSMemory()
		if err := unmapProgram(); err != nil {
			return fmt.Errorf("giving back the program's pages: %w", err)
		}
		if after != giveBackAfter {
			continue // the start isn't over yet
		}
		select {
		case <-ctx.Done():
			return nil
		case <-orders:
		}
	}
}

// unmapProgram takes the pages of the program's code and constants out of this
// process. They stay in the page cache, where the kernel may now drop them without
// asking anybody (a page that a process has mapped it keeps for longer, see mm/vmscan.c);
// what is used again comes back by a minor fault, or from the file.
//
// Three fifths of what an agent has mapped after its start is never used again:
// init functions, descriptors, the tables of functions that ran once.
func unmapProgram() error {
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return err
	}
	defer f.Close()
	segments, err := readOnlySegments(f, self)
	if err != nil {
		return err
	}
	for _, s := range segments {
		// The raw call, because there is no slice of Go's to give to Madvise.
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, s.start, s.end-s.start, unix.MADV_DONTNEED); errno != 0 {
			return fmt.Errorf("madvise %x-%x: %w", s.start, s.end, errno)
		}
	}
	return nil
}

type segment struct{ start, end uintptr }

// readOnlySegments are those of maps (proc(5)) that are of the file and can't have
// been written to, so that what they hold is what the file holds.
func readOnlySegments(maps io.Reader, file string) ([]segment, error) {
	var out []segment
	lines := bufio.NewScanner(maps)
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) < 6 || strings.Join(f[5:], " ") != file || (f[1] != "r-xp" && f[1] != "r--p") {
			continue
		}
		var s segment
		if _, err := fmt.Sscanf(f[0], "%x-%x", &s.start, &s.end); err != nil || s.end <= s.start {
			return nil, fmt.Errorf("the range %q of %s: %v", f[0], file, err)
		}
		out = append(out, s)
	}
	return out, lines.Err()
}
