package jail

import "golang.org/x/sys/unix"

const auditArch = unix.AUDIT_ARCH_RISCV64

var native = []uint32{
	unix.SYS_MMAP, unix.SYS_FSTAT, unix.SYS_FSTATAT, unix.SYS_FTRUNCATE, unix.SYS_FADVISE64,
	unix.SYS_FCNTL, unix.SYS_RISCV_FLUSH_ICACHE, unix.SYS_RISCV_HWPROBE,
}
