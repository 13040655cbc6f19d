package up

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// Detach starts `coracle up` again, with args and --supervise, in a session of
// its own, and returns once its cluster is ready.
func Detach(ctx context.Context, o Options, args []string) (State, error) {
	l := Layout{Root: o.DataDir}
	logFile := l.Log("up")
	if err := os.MkdirAll(filepath.Dir(logFile), 0o755); err != nil {
		return State{}, err
	}
	out, err := os.OpenFile(logFile, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return State{}, err
	}
	defer out.Close()
	// The lock says it before any process is started.
	lock, err := takeLock(l)
	if err != nil {
		return State{}, err
	}
	_ = lock.Close()
	if err := os.Remove(l.state()); err != nil && !os.IsNotExist(err) {
		return State{}, err
	}
	cmd := exec.Command(filepath.Join(o.BinDir, "coracle"), append([]string{"up", "--supervise"}, args...)...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return State{}, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		if s, err := l.ReadState(); err == nil && s.PID == cmd.Process.Pid {
			return s, nil
		}
		select {
		case <-ctx.Done():
			return State{}, context.Cause(ctx)
		case err := <-ended:
			return State{}, fmt.Errorf("the cluster did not start: %v\n%s", err, tail(logFile, 30))
		case <-time.After(20 * time.Millisecond):
		}
	}
}
