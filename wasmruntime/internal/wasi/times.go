package wasi

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// setTimes is futimens(3): utimensat with a null path.
func setTimes(fd int, ts [2]unix.Timespec) error {
	_, _, e := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(&ts[0])), 0, 0, 0)
	if e != 0 {
		return e
	}
	return nil
}
