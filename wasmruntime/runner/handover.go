package runner

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// handoverFD is where the second stage finds its orders.
const handoverFD = 4

// put stores v in a memfd that the second stage reads.
func put(v any) (int, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return -1, err
	}
	fd, err := unix.MemfdCreate("handover", unix.MFD_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("memfd_create: %w", err)
	}
	if _, err := unix.Write(fd, b); err != nil {
		return -1, err
	}
	_, err = unix.Seek(fd, 0, unix.SEEK_SET)
	return fd, err
}

// take reads what put stored.
func take(v any) error {
	var st unix.Stat_t
	if err := unix.Fstat(handoverFD, &st); err != nil {
		return fmt.Errorf("no handover; this command is for wasmrunner itself: %w", err)
	}
	b := make([]byte, st.Size)
	for n := 0; n < len(b); {
		k, err := unix.Read(handoverFD, b[n:])
		if err != nil || k == 0 {
			return fmt.Errorf("read handover: %w", errors.Join(err, io.ErrUnexpectedEOF))
		}
		n += k
	}
	unix.Close(handoverFD)
	return json.Unmarshal(b, v)
}

// inherit takes close-on-exec from a descriptor.
func inherit(fds ...int) {
	for _, fd := range fds {
		if fd >= 0 {
			unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0)
		}
	}
}

// above gives a duplicate of fd whose number is over those with a meaning.
func above(fd int) (int, error) {
	return unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 16)
}

// self is this program's own file, for exec after a chroot.
func self() (int, error) {
	return unix.Open("/proc/self/exe", unix.O_PATH|unix.O_CLOEXEC, 0)
}

// execSelf replaces this process by its second stage. It returns only with
// an error.
func execSelf(exe, handover int, stage, id string, env []string) error {
	exe, err := above(exe)
	if err != nil {
		return err
	}
	if err := unix.Dup3(handover, handoverFD, 0); err != nil {
		return err
	}
	argv := cStrings([]string{"wasmrunner", stage, id})
	envv := cStrings(env)
	empty := []byte{0}
	_, _, e := unix.RawSyscall6(unix.SYS_EXECVEAT, uintptr(exe), uintptr(unsafe.Pointer(&empty[0])),
		uintptr(unsafe.Pointer(&argv[0])), uintptr(unsafe.Pointer(&envv[0])), unix.AT_EMPTY_PATH, 0)
	runtime.KeepAlive(argv)
	runtime.KeepAlive(envv)
	return fmt.Errorf("execute %s again (it must be static, and executable for all users): %w", os.Args[0], e)
}

func cStrings(list []string) []*byte {
	out := make([]*byte, 0, len(list)+1)
	for _, s := range list {
		b := append([]byte(s), 0)
		out = append(out, &b[0])
	}
	return append(out, nil)
}

// tuning is the environment of the second stage: what was measured to be
// least for a guest that mostly sleeps.
func tuning(procs int, memoryLimit int64) []string {
	env := []string{"GOMAXPROCS=" + strconv.Itoa(procs), "GOGC=50", "GOTRACEBACK=none"}
	if memoryLimit > 0 {
		env = append(env, "GOMEMLIMIT="+strconv.FormatInt(memoryLimit, 10))
	}
	return env
}
