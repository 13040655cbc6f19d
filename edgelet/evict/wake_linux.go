package evict

import (
	"context"
	"fmt"
	"log/slog"
	"os"

	"golang.org/x/sys/unix"
)

// memoryTrigger asks to be woken when tasks stood still for memory for 0.15 s
// within 2 s (Documentation/accounting/psi.rst; windows of whole multiples of 2 s
// need no capability).
const memoryTrigger = "some 150000 2000000"

// WatchMemory signals wake, once a second at most, when the kernel reports
// pressure on memory. It returns at once and without an error where the kernel
// doesn't: the regular look stays. path is /proc/pressure/memory. Its thread sleeps
// in the kernel until something happens.
func WatchMemory(ctx context.Context, path string, wake chan<- struct{}, log *slog.Logger) error {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		log.Debug("memory is looked at by the clock only", "err", err)
		return nil
	}
	defer f.Close()
	if _, err := f.Write(append([]byte(memoryTrigger), 0)); err != nil {
		log.Debug("memory is looked at by the clock only", "err", fmt.Errorf("pressure of memory: %w", err))
		return nil
	}
	// A pipe ends the sleep with ctx.
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return fmt.Errorf("watching the pressure of memory: %w", err)
	}
	defer unix.Close(pipe[0])
	stop := context.AfterFunc(ctx, func() { unix.Close(pipe[1]) })
	defer func() {
		if stop() {
			unix.Close(pipe[1])
		}
	}()
	for ctx.Err() == nil {
		fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLPRI}, {Fd: int32(pipe[0]), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
			return fmt.Errorf("watching the pressure of memory: %w", err)
		}
		switch {
		case fds[0].Revents&(unix.POLLERR|unix.POLLNVAL) != 0:
			return nil // the cgroup or the file is gone
		case fds[0].Revents&unix.POLLPRI != 0:
			select {
			case wake <- struct{}{}:
			default:
			}
		}
	}
	return nil
}
