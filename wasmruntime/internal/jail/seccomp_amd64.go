package jail

import "golang.org/x/sys/unix"

const auditArch = unix.AUDIT_ARCH_X86_64

var native = []uint32{
	unix.SYS_MMAP, unix.SYS_FSTAT, unix.SYS_NEWFSTATAT, unix.SYS_FTRUNCATE, unix.SYS_FADVISE64,
	unix.SYS_FCNTL, unix.SYS_RENAMEAT, unix.SYS_ARCH_PRCTL,
}
