//go:build slow

package critest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// openTemp is a folder for temporary files in which every new folder becomes
// readable for all. critest makes volumes of folders that are root's alone, which a
// native container can read as root; a guest is root only if its pod says so, and
// critest's don't. The kubelet's own volumes are open in the same way.
func openTemp(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "cor-tmp-*")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_CREATE|unix.IN_ONLYDIR); err != nil {
		t.Fatal(err)
	}
	events, done := os.NewFile(uintptr(fd), "inotify"), make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 64<<10)
		for {
			n, err := events.Read(buf)
			if err != nil {
				return // closed
			}
			for _, name := range created(buf[:n]) {
				if err := os.Chmod(filepath.Join(dir, name), 0o755); err != nil && !errors.Is(err, os.ErrNotExist) {
					t.Error(err)
				}
			}
		}
	}()
	t.Cleanup(func() {
		events.Close()
		<-done
		os.RemoveAll(dir)
	})
	return dir
}

// created are the names of the folders in inotify's events: struct inotify_event
// is wd, mask, cookie, len and the name.
func created(events []byte) (names []string) {
	for len(events) >= unix.SizeofInotifyEvent {
		mask, size := binary.NativeEndian.Uint32(events[4:]), binary.NativeEndian.Uint32(events[12:])
		end := min(unix.SizeofInotifyEvent+int(size), len(events))
		name, _, _ := bytes.Cut(events[unix.SizeofInotifyEvent:end], []byte{0})
		if mask&unix.IN_ISDIR != 0 {
			names = append(names, string(name))
		}
		events = events[end:]
	}
	return names
}
