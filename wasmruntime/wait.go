package wasmruntime

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/coracle-edge/coracle/wasmruntime/internal/bundle"
)

// adoptPidfd keeps the process's descriptor. fd may be -1.
func (p *Process) adoptPidfd(fd int) {
	if fd >= 0 {
		// One that blocks, so that Go's poller doesn't keep a record of it: the
		// runtime's watcher waits for it.
		_ = unix.SetNonblock(fd, false)
		p.pidfd = os.NewFile(uintptr(fd), "pidfd")
	}
}

// watch sees to the end of the process, and works out how it ended. Waiting for it
// takes neither a thread nor a goroutine, unless the kernel can't tell by pidfd.
func (p *Process) watch() {
	if p.pidfd != nil {
		var once sync.Once
		p.mu.Lock() // an end that is told at once finds what it has to remove
		watch, err := p.watcher.Add(int(p.pidfd.Fd()), func() { once.Do(func() { go p.end() }) })
		p.watched = watch
		p.mu.Unlock()
		if err == nil {
			return
		}
		p.log.Debug("the guest's end is found by looking", "id", p.spec.ID, "err", err)
	}
	go func() {
		for !p.state.Gone() {
			time.Sleep(50 * time.Millisecond)
		}
		p.end()
	}()
}

// end is what is done about a process that has ended.
func (p *Process) end() {
	p.mu.Lock()
	p.watched.Remove()
	p.reap()
	p.ended = true
	p.mu.Unlock()
	if p.release != nil {
		p.release()
	}
	p.finish()
}

// reap takes the wait status of a child.
func (p *Process) reap() {
	if !p.child || p.wait != nil {
		return
	}
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(p.state.PID, &ws, 0, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err == nil && pid == p.state.PID {
			p.wait = &ws
		}
		return
	}
}

// finish works out how the guest ended, records it for whoever attaches
// later, and wakes those who wait.
func (p *Process) finish() {
	p.mu.Lock()
	p.ended = true
	p.mu.Unlock()
	p.exit = p.howItEnded()
	if p.pidfd != nil {
		p.pidfd.Close()
	}
	p.mu.Lock()
	close(p.done)
	after := p.after
	p.after = nil
	p.mu.Unlock()
	for _, f := range after {
		f()
	}
}

func (p *Process) howItEnded() ExitStatus {
	var st ExitStatus
	if bundle.ReadJSON(p.spec.Dir, bundle.ExitFile, &st) == nil {
		return st
	}
	st = p.without()
	st.FinishedAt, st.BootID = p.now(), p.state.BootID
	if boot, err := bundle.BootID(); err == nil && boot == p.state.BootID {
		var ts unix.Timespec
		if unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) == nil {
			st.MonotonicNS = ts.Nano()
		}
	}
	if err := bundle.WriteJSON(p.spec.Dir, bundle.ExitFile, st); err != nil {
		p.log.Warn("can't record how the guest ended", "id", p.spec.ID, "err", err)
	}
	return st
}

// without is the exit status of a guest that left no record.
func (p *Process) without() ExitStatus {
	name := p.spec.ModuleName()
	ws, known := p.waitStatus()
	var stop bundle.Stop
	stopped := bundle.ReadJSON(p.spec.Dir, bundle.StopFile, &stop) == nil
	killed := !known || ws.Signaled() && ws.Signal() == syscall.SIGKILL
	askedToKill := stopped && syscall.Signal(stop.Signal) == syscall.SIGKILL
	switch {
	case killed && !askedToKill && p.cgroup != nil && p.cgroup.OOMKills() > 0:
		return ExitStatus{Code: 137, Signal: 9, Reason: ReasonOOMKilled, Message: fmt.Sprintf("module %s used more memory than its limit", name)}
	case known && ws.Signaled():
		return bySignal(ws.Signal())
	case known:
		return ExitStatus{Code: ws.ExitStatus(), Reason: ReasonError,
			Message: fmt.Sprintf("the runner of module %s ended with code %d and left no record; the end of stderr may say why", name, ws.ExitStatus())}
	case stopped:
		return bySignal(syscall.Signal(stop.Signal))
	}
	return ExitStatus{Code: 255, Reason: ReasonUnknown, Message: fmt.Sprintf("module %s ended while nobody watched, and left no record", name)}
}

func bySignal(sig syscall.Signal) ExitStatus {
	return ExitStatus{Code: 128 + int(sig), Signal: int(sig), Reason: ReasonError}
}

// pidfdInfo is the kernel's struct pidfd_info, first version.
type pidfdInfo struct {
	mask, cgroup                                                  uint64
	pid, tgid, ppid, ruid, rgid, euid, egid, suid, sgid, fsu, fsg uint32
	exitCode                                                      int32
}

const (
	pidfdGetInfo  = 0xc040ff0b // _IOWR(0xff, 11, 64 bytes)
	pidfdInfoExit = 1 << 3
)

// waitStatus is what reaping said, or, for a process that another one has to
// reap, what the kernel tells of it: of a zombie in /proc, and by pidfd, since
// Linux 6.15, of one that is reaped.
func (p *Process) waitStatus() (syscall.WaitStatus, bool) {
	if p.wait != nil {
		return *p.wait, true
	}
	if p.pidfd == nil {
		return 0, false
	}
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return 0, false
	}
	// Between the end and the reaping, and for a moment after, it is in flux.
	for range 20 {
		if status, ok := p.state.ZombieStatus(); ok {
			return syscall.WaitStatus(status), true
		}
		info := pidfdInfo{mask: pidfdInfoExit}
		var e unix.Errno
		err := raw.Control(func(fd uintptr) {
			_, _, e = unix.Syscall(unix.SYS_IOCTL, fd, pidfdGetInfo, uintptr(unsafe.Pointer(&info)))
		})
		if err != nil || e != 0 && e != unix.ESRCH {
			return 0, false
		}
		if e == 0 && info.mask&pidfdInfoExit != 0 {
			return syscall.WaitStatus(info.exitCode), true
		}
		time.Sleep(5 * time.Millisecond)
	}
	return 0, false
}
