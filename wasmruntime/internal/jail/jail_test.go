package jail

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What is walled in is a process for good, so each test runs this binary again.
func TestMain(m *testing.M) {
	switch os.Getenv("JAIL_TEST") {
	case "":
		os.Exit(m.Run())
	case "seccomp":
		inSeccomp()
	case "landlock":
		inLandlock(os.Getenv("JAIL_DIR"))
	}
	os.Exit(0)
}

func again(t *testing.T, what string, env ...string) string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(append(os.Environ(), "JAIL_TEST="+what), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}

// attempts are system calls that a guest's process has no use for, and attackers do.
var attempts = []struct {
	name string
	nr   uintptr
	args [3]uintptr
}{
	{"socket", unix.SYS_SOCKET, [3]uintptr{unix.AF_INET, unix.SOCK_STREAM}},
	{"connect", unix.SYS_CONNECT, [3]uintptr{0}},
	{"bind", unix.SYS_BIND, [3]uintptr{0}},
	{"execve", unix.SYS_EXECVE, [3]uintptr{}},
	{"execveat", unix.SYS_EXECVEAT, [3]uintptr{}},
	{"fork", unix.SYS_CLONE, [3]uintptr{uintptr(unix.SIGCHLD)}},
	{"namespaces by clone", unix.SYS_CLONE, [3]uintptr{unix.CLONE_NEWUSER}},
	{"unshare", unix.SYS_UNSHARE, [3]uintptr{unix.CLONE_NEWUSER}},
	{"setns", unix.SYS_SETNS, [3]uintptr{0, unix.CLONE_NEWNET}},
	{"ptrace", unix.SYS_PTRACE, [3]uintptr{unix.PTRACE_TRACEME}},
	{"process_vm_readv", unix.SYS_PROCESS_VM_READV, [3]uintptr{1}},
	{"kill", unix.SYS_KILL, [3]uintptr{1, 0}},
	{"mount", unix.SYS_MOUNT, [3]uintptr{}},
	{"chroot", unix.SYS_CHROOT, [3]uintptr{}},
	{"pivot_root", unix.SYS_PIVOT_ROOT, [3]uintptr{}},
	{"open_by_handle_at", unix.SYS_OPEN_BY_HANDLE_AT, [3]uintptr{}},
	{"name_to_handle_at", unix.SYS_NAME_TO_HANDLE_AT, [3]uintptr{}},
	{"bpf", unix.SYS_BPF, [3]uintptr{}},
	{"perf_event_open", unix.SYS_PERF_EVENT_OPEN, [3]uintptr{}},
	{"userfaultfd", unix.SYS_USERFAULTFD, [3]uintptr{}},
	{"io_uring_setup", unix.SYS_IO_URING_SETUP, [3]uintptr{1}},
	{"keyctl", unix.SYS_KEYCTL, [3]uintptr{}},
	{"add_key", unix.SYS_ADD_KEY, [3]uintptr{}},
	{"init_module", unix.SYS_INIT_MODULE, [3]uintptr{}},
	{"reboot", unix.SYS_REBOOT, [3]uintptr{}},
	{"setuid", unix.SYS_SETUID, [3]uintptr{0}},
	{"chmod", unix.SYS_FCHMODAT, [3]uintptr{}},
	{"chown", unix.SYS_FCHOWNAT, [3]uintptr{}},
	{"mknod", unix.SYS_MKNODAT, [3]uintptr{}},
	{"memfd_create", unix.SYS_MEMFD_CREATE, [3]uintptr{}},
	{"prctl", unix.SYS_PRCTL, [3]uintptr{unix.PR_GET_DUMPABLE}},
	{"seccomp", unix.SYS_SECCOMP, [3]uintptr{}},
	{"terminal input", unix.SYS_IOCTL, [3]uintptr{0, unix.TIOCSTI}},
	{"clock_settime", unix.SYS_CLOCK_SETTIME, [3]uintptr{}},
}

func inSeccomp() {
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		fmt.Println("no_new_privs:", err)
		return
	}
	if err := Seccomp(false); err != nil {
		fmt.Println("unavailable:", err)
		return
	}
	for _, a := range attempts {
		_, _, e := unix.RawSyscall(a.nr, a.args[0], a.args[1], a.args[2])
		fmt.Printf("%s: %v\n", a.name, e == unix.EPERM)
	}
	// And what a guest needs goes on: memory, a file, threads, random numbers, time.
	var ts unix.Timespec
	var b [8]byte
	_, errRandom := unix.Getrandom(b[:], 0)
	fd, errOpen := unix.Openat(unix.AT_FDCWD, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	_, errMap := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	ended := make(chan struct{})
	go func() {
		runtime.LockOSThread() // a thread of its own
		close(ended)
	}()
	<-ended
	n := 0
	_, _, errIoctl := unix.RawSyscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCINQ, uintptr(unsafe.Pointer(&n)))
	fmt.Println("works:", errors.Join(errRandom, errOpen, errMap, unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)) == nil && errIoctl != unix.EPERM)
}

func TestSeccompRefusesWhatGuestsHaveNoUseFor(t *testing.T) {
	out := again(t, "seccomp")
	if strings.Contains(out, "unavailable") {
		t.Skip(out)
	}
	for _, a := range attempts {
		if !strings.Contains(out, a.name+": true\n") {
			t.Errorf("%s isn't refused", a.name)
		}
	}
	if !strings.Contains(out, "works: true") {
		t.Errorf("what guests need doesn't work:\n%s", out)
	}
}

func inLandlock(dir string) {
	runtime.LockOSThread()
	open := func(path string, flags int) int {
		fd, err := unix.Open(path, flags, 0)
		if err != nil {
			fmt.Println("open:", err)
		}
		return fd
	}
	paths := []Path{
		{FD: open(filepath.Join(dir, "rw"), unix.O_PATH), Dir: true, Write: true},
		{FD: open(filepath.Join(dir, "ro"), unix.O_PATH), Dir: true},
	}
	walls, err := Enter(Config{Chroot: -1, Files: 64, FileBytes: 1 << 16, Paths: paths})
	fmt.Println("walls:", walls, err)
	try := func(what, path string, flags int) {
		fd, err := unix.Open(filepath.Join(dir, path), flags, 0o644)
		if err == nil {
			unix.Close(fd)
		}
		fmt.Printf("%s: %v\n", what, err)
	}
	try("write in rw", "rw/x", unix.O_CREAT|unix.O_WRONLY)
	try("read in ro", "ro/x", unix.O_RDONLY)
	try("write in ro", "ro/x", unix.O_WRONLY)
	try("make in ro", "ro/y", unix.O_CREAT|unix.O_WRONLY)
	try("read beside", "beside", unix.O_RDONLY)
	try("read by a link", "rw/link", unix.O_RDONLY)
	try("read above", "rw/../beside", unix.O_RDONLY)
	fmt.Println("rename out of ro:", unix.Rename(filepath.Join(dir, "ro/x"), filepath.Join(dir, "rw/z")))
	fmt.Println("fifo in rw:", unix.Mkfifo(filepath.Join(dir, "rw/fifo"), 0o600))
	var fds []int
	for {
		fd, err := unix.Dup(1)
		if err != nil {
			fmt.Fprintln(os.Stderr, "descriptors:", err, len(fds) < 64)
			break
		}
		fds = append(fds, fd)
	}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &caps[0]); err == nil {
		fmt.Fprintln(os.Stderr, "capabilities:", caps[0].Effective|caps[1].Effective|caps[0].Permitted|caps[1].Permitted)
	}
}

func TestLandlockIsAWallOfItsOwn(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"rw", "ro"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o777); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"ro/x", "beside"} {
		if err := os.WriteFile(filepath.Join(dir, f), []byte("x"), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("../beside", filepath.Join(dir, "rw/link")); err != nil {
		t.Fatal(err)
	}
	out := again(t, "landlock", "JAIL_DIR="+dir)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if i := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, "walls:") }); i < 0 || strings.Contains(lines[i], "no landlock") {
		t.Skipf("no landlock in this kernel: %s", out)
	}
	denied := unix.EACCES.Error()
	for what, want := range map[string]string{
		"write in rw": "<nil>", "read in ro": "<nil>", "write in ro": denied, "make in ro": denied,
		"read beside": denied, "read by a link": denied, "read above": denied, "fifo in rw": denied,
		"descriptors": unix.EMFILE.Error() + " true", "capabilities": "0",
	} {
		if !slices.Contains(lines, what+": "+want) {
			t.Errorf("%s isn't %q", what, want)
		}
	}
	if slices.Contains(lines, "rename out of ro: <nil>") {
		t.Error("a file was moved out of a folder that is read-only")
	}
	if t.Failed() {
		t.Log(out)
	}
}
