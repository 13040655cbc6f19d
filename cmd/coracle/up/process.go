package up

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is one program of the cluster. It is started again when it ends by
// itself, after a pause that doubles from minPause to maxPause and starts anew
// once it has run for maxPause.
type process struct {
	name   string
	args   func(context.Context) ([]string, error) // the first is the program; asked for at every start
	layout Layout
	log    *slog.Logger
	grace  time.Duration // between SIGTERM and SIGKILL
	// start starts it elsewhere than here; nil: here.
	start func(*exec.Cmd) error
}

const (
	minPause = 500 * time.Millisecond
	maxPause = 30 * time.Second
)

// run keeps the process running until ctx ends, then stops it.
func (p *process) run(ctx context.Context) error {
	pause := minPause
	for {
		started := time.Now()
		err := p.once(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if time.Since(started) > maxPause {
			pause = minPause
		}
		p.log.Warn("process ended, starting it again", "process", p.name, "err", err, "after", pause, "log", p.layout.Log(p.name))
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		pause = min(2*pause, maxPause)
	}
}

func (p *process) once(ctx context.Context) error {
	args, err := p.args(ctx)
	if err != nil {
		return err
	}
	logFile := p.layout.Log(p.name)
	if err := os.MkdirAll(filepath.Dir(logFile), 0o755); err != nil {
		return err
	}
	out, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = out, out
	// A group of its own: Ctrl-C at the terminal reaches us alone, and we stop
	// them in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = p.grace
	start := p.start
	if start == nil {
		start = (*exec.Cmd).Start
	}
	if err := start(cmd); err != nil {
		return err
	}
	pid := fmt.Sprintf("%d %s\n", cmd.Process.Pid, startTime(cmd.Process.Pid))
	if err := writeFile(p.layout.pidFile(p.name), []byte(pid), 0o644); err != nil {
		return errors.Join(err, cmd.Cancel(), cmd.Wait())
	}
	err = cmd.Wait()
	return errors.Join(err, os.Remove(p.layout.pidFile(p.name)))
}

// startTime is the kernel's start time of pid in clock ticks (proc(5), field 22
// of stat), "" if there is no such process. With the pid it identifies a process.
func startTime(pid int) string {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	// The command's name, field 2, may hold blanks and brackets.
	fields := strings.Fields(string(raw[strings.LastIndexByte(string(raw), ')')+1:]))
	if len(fields) < 20 {
		return ""
	}
	return fields[19]
}

// stopLeftovers ends what a `coracle up` that was killed has left running, so
// that ports and stores are free. It returns the names of what it stopped.
func stopLeftovers(l Layout, grace time.Duration) ([]string, error) {
	files, err := filepath.Glob(l.pidFile("*"))
	if err != nil {
		return nil, err
	}
	var stopped []string
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			return stopped, err
		}
		var pid int
		var since string
		if _, err := fmt.Sscan(string(raw), &pid, &since); err == nil && pid > 1 && startTime(pid) == since {
			if err := stopPID(pid, since, grace); err != nil {
				return stopped, fmt.Errorf("%s, left over as pid %d: %w", file, pid, err)
			}
			stopped = append(stopped, strings.TrimSuffix(filepath.Base(file), ".pid")+" (pid "+strconv.Itoa(pid)+")")
		}
		if err := os.Remove(file); err != nil {
			return stopped, err
		}
	}
	return stopped, nil
}

// stopPID sends SIGTERM, waits up to grace, then SIGKILL.
func stopPID(pid int, since string, grace time.Duration) error {
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	for deadline := time.Now().Add(grace); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if startTime(pid) != since || zombie(pid) {
			return nil
		}
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	return nil
}

func zombie(pid int) bool {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && strings.Contains(string(raw), ") Z ")
}
