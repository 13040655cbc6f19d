package jail

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// The filter is made by hand, a list of comparisons: a library with every
// architecture's table of names would be initialised in each guest.

// common are the system calls of the Go runtime and of the WASI layer that
// all architectures have by one name. To derive them: run the tests with
// Spec under `strace -f -c`, and read what x/sys/unix makes of each call.
var common = []uint32{
	// The runtime.
	unix.SYS_FUTEX, unix.SYS_NANOSLEEP, unix.SYS_CLOCK_GETTIME, unix.SYS_CLOCK_NANOSLEEP,
	unix.SYS_MUNMAP, unix.SYS_MPROTECT, unix.SYS_MREMAP, unix.SYS_MADVISE, unix.SYS_MINCORE,
	unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN, unix.SYS_SIGALTSTACK,
	unix.SYS_GETTID, unix.SYS_GETPID, unix.SYS_TGKILL, unix.SYS_EXIT, unix.SYS_EXIT_GROUP,
	unix.SYS_RESTART_SYSCALL, unix.SYS_SCHED_YIELD, unix.SYS_SCHED_GETAFFINITY, unix.SYS_BRK,
	unix.SYS_EPOLL_CREATE1, unix.SYS_EPOLL_CTL, unix.SYS_EPOLL_PWAIT, unix.SYS_EVENTFD2,
	unix.SYS_RSEQ, unix.SYS_SET_ROBUST_LIST, unix.SYS_GETRANDOM, unix.SYS_PRLIMIT64, unix.SYS_UNAME,
	// Files.
	unix.SYS_READ, unix.SYS_WRITE, unix.SYS_READV, unix.SYS_WRITEV,
	unix.SYS_PREAD64, unix.SYS_PWRITE64, unix.SYS_PREADV, unix.SYS_PWRITEV, unix.SYS_PWRITEV2,
	unix.SYS_OPENAT, unix.SYS_OPENAT2, unix.SYS_CLOSE, unix.SYS_GETDENTS64, unix.SYS_LSEEK,
	unix.SYS_FSYNC, unix.SYS_FDATASYNC, unix.SYS_FALLOCATE,
	unix.SYS_MKDIRAT, unix.SYS_UNLINKAT, unix.SYS_LINKAT, unix.SYS_SYMLINKAT, unix.SYS_READLINKAT,
	unix.SYS_RENAMEAT2, unix.SYS_UTIMENSAT, unix.SYS_PPOLL,
	// Sockets that were handed in.
	unix.SYS_ACCEPT4, unix.SYS_RECVMSG, unix.SYS_SENDMSG, unix.SYS_SHUTDOWN,
	unix.SYS_RECVFROM, unix.SYS_SENDTO, unix.SYS_GETSOCKOPT,
}

// Offsets in struct seccomp_data, of a little-endian machine.
const (
	dataNr   = 0
	dataArch = 4
	dataArg0 = 16
	dataArg1 = 24
)

const (
	retKill  = 0x80000000
	retAllow = 0x7fff0000
	retErrno = 0x00050000
)

func stmt(code uint16, k uint32) unix.SockFilter { return unix.SockFilter{Code: code, K: k} }

func jump(code uint16, k uint32, jt, jf uint8) unix.SockFilter {
	return unix.SockFilter{Code: code, Jt: jt, Jf: jf, K: k}
}

// outbound are the system calls of a guest that may connect, besides socket.
var outbound = []uint32{
	unix.SYS_CONNECT, unix.SYS_BIND, unix.SYS_GETSOCKNAME, unix.SYS_GETPEERNAME, unix.SYS_SETSOCKOPT,
}

// program lets the list through, one ioctl, clone for threads only, with
// sockets those of IP for streams and datagrams, and answers all else with
// EPERM. Another architecture's calls kill.
func program(list []uint32, sockets bool) []unix.SockFilter {
	const (
		load  = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		ret   = unix.BPF_RET | unix.BPF_K
	)
	p := []unix.SockFilter{
		stmt(load, dataArch),
		jump(equal, auditArch, 1, 0),
		stmt(ret, retKill),
		stmt(load, dataNr),
	}
	for _, nr := range list {
		p = append(p, jump(equal, nr, 0, 1), stmt(ret, retAllow))
	}
	if sockets {
		p = append(p,
			jump(equal, unix.SYS_SOCKET, 0, 9),
			stmt(load, dataArg0),
			jump(equal, unix.AF_INET, 1, 0),
			jump(equal, unix.AF_INET6, 0, 4),
			stmt(load, dataArg1),
			stmt(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, 0xf), // without SOCK_CLOEXEC and the like
			jump(equal, unix.SOCK_STREAM, 2, 0),
			jump(equal, unix.SOCK_DGRAM, 1, 0),
			stmt(ret, retErrno|uint32(unix.EPERM)),
			stmt(ret, retAllow),
		)
	}
	return append(p,
		// How much there is to read; not what else terminals let one do.
		jump(equal, unix.SYS_IOCTL, 0, 4),
		stmt(load, dataArg1),
		jump(equal, unix.TIOCINQ, 0, 1),
		stmt(ret, retAllow),
		stmt(ret, retErrno|uint32(unix.EPERM)),
		// The runtime would rather have clone than fail on clone3.
		jump(equal, unix.SYS_CLONE3, 0, 1), stmt(ret, retErrno|uint32(unix.ENOSYS)),
		jump(equal, unix.SYS_CLONE, 0, 3),
		stmt(load, dataArg0),
		jump(unix.BPF_JMP|unix.BPF_JSET|unix.BPF_K, unix.CLONE_THREAD, 0, 1),
		stmt(ret, retAllow),
		stmt(ret, retErrno|uint32(unix.EPERM)),
	)
}

// Seccomp installs the filter on all threads. no_new_privs must be set.
// sockets lets the guest make some of its own, to connect to others.
func Seccomp(sockets bool) error {
	list := make([]uint32, 0, len(common)+len(native)+len(outbound))
	list = append(append(list, common...), native...)
	if sockets {
		list = append(list, outbound...)
	}
	p := program(list, sockets)
	prog := unix.SockFprog{Len: uint16(len(p)), Filter: &p[0]}
	_, _, e := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	if e != 0 {
		return e
	}
	return nil
}
