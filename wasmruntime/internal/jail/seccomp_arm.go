package jail

import "golang.org/x/sys/unix"

const auditArch = unix.AUDIT_ARCH_ARM

var native = []uint32{
	unix.SYS_MMAP2, unix.SYS_FSTAT64, unix.SYS_FSTATAT64, unix.SYS_FTRUNCATE64, unix.SYS_ARM_FADVISE64_64,
	unix.SYS_FCNTL64, unix.SYS_FCNTL, unix.SYS__LLSEEK, unix.SYS_RENAMEAT,
	unix.SYS_FUTEX_TIME64, unix.SYS_CLOCK_GETTIME64, unix.SYS_PPOLL_TIME64, unix.SYS_UTIMENSAT_TIME64,
	unix.SYS_ACCEPT, unix.SYS_RECV, unix.SYS_SEND,
	0xf0002, 0xf0005, // cacheflush, set_tls
}
