package jail

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Path is a directory or file that landlock lets through.
type Path struct {
	FD    int // O_PATH will do
	Dir   bool
	Write bool
	Exec  bool
}

const (
	fsRead = unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR
	// What a guest never makes, devices, sockets and FIFOs, isn't in it.
	fsWrite = unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_TRUNCATE |
		unix.LANDLOCK_ACCESS_FS_REMOVE_DIR | unix.LANDLOCK_ACCESS_FS_REMOVE_FILE |
		unix.LANDLOCK_ACCESS_FS_MAKE_DIR | unix.LANDLOCK_ACCESS_FS_MAKE_REG |
		unix.LANDLOCK_ACCESS_FS_MAKE_SYM | unix.LANDLOCK_ACCESS_FS_REFER
	fsFile = unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_WRITE_FILE |
		unix.LANDLOCK_ACCESS_FS_TRUNCATE | unix.LANDLOCK_ACCESS_FS_EXECUTE
	fsAll1 = unix.LANDLOCK_ACCESS_FS_MAKE_SYM<<1 - 1 // all of the first ABI
)

type rulesetAttr struct{ fs, net, scoped uint64 }

// pathAttr is packed in the kernel: 12 bytes.
type pathAttr struct {
	access uint64
	fd     int32
}

// newRuleset makes a ruleset of what this kernel knows. -1 with an error if
// it has no landlock.
func newRuleset(paths []Path, outbound bool) (int, error) {
	abi, _, e := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if e != 0 {
		return -1, e
	}
	attr := rulesetAttr{fs: fsAll1}
	if abi >= 2 {
		attr.fs |= unix.LANDLOCK_ACCESS_FS_REFER
	}
	if abi >= 3 {
		attr.fs |= unix.LANDLOCK_ACCESS_FS_TRUNCATE
	}
	if abi >= 4 {
		attr.net = unix.LANDLOCK_ACCESS_NET_BIND_TCP
		if !outbound {
			attr.net |= unix.LANDLOCK_ACCESS_NET_CONNECT_TCP
		}
	}
	if abi >= 6 {
		attr.scoped = unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | unix.LANDLOCK_SCOPE_SIGNAL
	}
	size := uintptr(8)
	if abi >= 6 {
		size = 24
	} else if abi >= 4 {
		size = 16
	}
	fd, _, e := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), size, 0)
	if e != 0 {
		return -1, e
	}
	for _, p := range paths {
		access := uint64(fsRead)
		if p.Write {
			access |= fsWrite
		}
		if p.Exec {
			access |= unix.LANDLOCK_ACCESS_FS_EXECUTE
		}
		if !p.Dir {
			access &= fsFile
		}
		rule := pathAttr{access: access & attr.fs, fd: int32(p.FD)}
		if _, _, e := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, fd, unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&rule)), 0, 0, 0); e != 0 {
			unix.Close(int(fd))
			return -1, e
		}
	}
	return int(fd), nil
}

func restrict(ruleset int) error {
	if _, _, e := unix.RawSyscall(unix.SYS_LANDLOCK_RESTRICT_SELF, uintptr(ruleset), 0, 0); e != 0 {
		return e
	}
	return nil
}
