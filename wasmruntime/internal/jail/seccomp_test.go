package jail

import (
	"encoding/binary"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// verdict runs the filter over one system call, in an interpreter. That loads
// words in network order, the kernel in the machine's.
func verdict(t *testing.T, sockets bool, arch, nr uint32, args ...uint32) uint32 {
	t.Helper()
	list := append(append([]uint32{}, common...), native...)
	if sockets {
		list = append(list, outbound...)
	}
	var raw []bpf.RawInstruction
	for _, f := range program(list, sockets) {
		raw = append(raw, bpf.RawInstruction{Op: f.Code, Jt: f.Jt, Jf: f.Jf, K: f.K})
	}
	instructions, all := bpf.Disassemble(raw)
	if !all {
		t.Fatal("the filter has instructions that can't be told")
	}
	vm, err := bpf.NewVM(instructions)
	if err != nil {
		t.Fatal(err)
	}
	data := make([]byte, 64)
	binary.BigEndian.PutUint32(data[dataNr:], nr)
	binary.BigEndian.PutUint32(data[dataArch:], arch)
	for i, a := range args {
		binary.BigEndian.PutUint32(data[dataArg0+8*i:], a)
	}
	out, err := vm.Run(data)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(out)
}

func TestFilter(t *testing.T) {
	const eperm = retErrno | uint32(unix.EPERM)
	for _, c := range []struct {
		name          string
		nr            uint32
		args          []uint32
		without, with uint32 // sockets
	}{
		{"read", unix.SYS_READ, nil, retAllow, retAllow},
		{"openat2", unix.SYS_OPENAT2, nil, retAllow, retAllow},
		{"accept4", unix.SYS_ACCEPT4, nil, retAllow, retAllow},
		{"execveat", unix.SYS_EXECVEAT, nil, eperm, eperm},
		{"ptrace", unix.SYS_PTRACE, nil, eperm, eperm},
		{"mount", unix.SYS_MOUNT, nil, eperm, eperm},
		{"listen", unix.SYS_LISTEN, nil, eperm, eperm},
		{"connect", unix.SYS_CONNECT, nil, eperm, retAllow},
		{"bind", unix.SYS_BIND, nil, eperm, retAllow},
		{"setsockopt", unix.SYS_SETSOCKOPT, nil, eperm, retAllow},
		{"a TCP socket", unix.SYS_SOCKET, []uint32{unix.AF_INET, unix.SOCK_STREAM | unix.SOCK_CLOEXEC}, eperm, retAllow},
		{"a UDP socket", unix.SYS_SOCKET, []uint32{unix.AF_INET6, unix.SOCK_DGRAM | unix.SOCK_NONBLOCK}, eperm, retAllow},
		{"a raw socket", unix.SYS_SOCKET, []uint32{unix.AF_INET, unix.SOCK_RAW}, eperm, eperm},
		{"a Unix socket", unix.SYS_SOCKET, []uint32{unix.AF_UNIX, unix.SOCK_STREAM}, eperm, eperm},
		{"a netlink socket", unix.SYS_SOCKET, []uint32{unix.AF_NETLINK, unix.SOCK_DGRAM}, eperm, eperm},
		{"a packet socket", unix.SYS_SOCKET, []uint32{unix.AF_PACKET, unix.SOCK_DGRAM}, eperm, eperm},
		{"a thread", unix.SYS_CLONE, []uint32{unix.CLONE_THREAD | unix.CLONE_VM}, retAllow, retAllow},
		{"a process", unix.SYS_CLONE, []uint32{uint32(unix.SIGCHLD)}, eperm, eperm},
		{"clone3", unix.SYS_CLONE3, nil, retErrno | uint32(unix.ENOSYS), retErrno | uint32(unix.ENOSYS)},
		{"how much there is to read", unix.SYS_IOCTL, []uint32{0, unix.TIOCINQ}, retAllow, retAllow},
		{"input for a terminal", unix.SYS_IOCTL, []uint32{0, unix.TIOCSTI}, eperm, eperm},
	} {
		if got := verdict(t, false, auditArch, c.nr, c.args...); got != c.without {
			t.Errorf("%s, without sockets: %#x, want %#x", c.name, got, c.without)
		}
		if got := verdict(t, true, auditArch, c.nr, c.args...); got != c.with {
			t.Errorf("%s, with sockets: %#x, want %#x", c.name, got, c.with)
		}
	}
	if got := verdict(t, true, auditArch^1, unix.SYS_READ); got != retKill {
		t.Errorf("another architecture: %#x", got)
	}
}
