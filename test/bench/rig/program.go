package rig

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// Program is a process that a bench starts, ends and starts again. It ends with
// the bench.
type Program struct {
	Name string // its path
	Args []string
	Log  string // the file that gets what it says
	// Prepare changes the command before it starts; nil changes nothing.
	Prepare func(*exec.Cmd)

	cmd *exec.Cmd
}

// Start it.
func (p *Program) Start() error {
	log, err := os.OpenFile(p.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(p.Name, p.Args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if p.Prepare != nil {
		p.Prepare(cmd)
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	p.cmd = cmd
	return nil
}

// PID of the process; 0 if it doesn't run.
func (p *Program) PID() int {
	if p.cmd == nil {
		return 0
	}
	return p.cmd.Process.Pid
}

// Kill ends it at once.
func (p *Program) Kill() {
	if p.cmd != nil {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
		p.cmd = nil
	}
}

// Stop asks it to end, and kills it if it hasn't within grace.
func (p *Program) Stop(grace time.Duration) {
	if p.cmd == nil {
		return
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	kill := time.AfterFunc(grace, func() { _ = p.cmd.Process.Kill() })
	_ = p.cmd.Wait()
	kill.Stop()
	p.cmd = nil
}

// Tail is the end of what it said.
func (p *Program) Tail() string {
	raw, _ := os.ReadFile(p.Log)
	return string(raw[max(0, len(raw)-2000):])
}

// StartControlPlane starts a control plane on the data folder that its arguments
// name as dir, and returns when it says that it is ready. The result is the file
// in which it says so.
func StartControlPlane(ctx context.Context, p *Program, dir string) ([]byte, error) {
	info := filepath.Join(dir, "run", "controlplane.json")
	if err := os.Remove(info); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	if err := p.Start(); err != nil {
		return nil, err
	}
	if err := Until(ctx, 2*time.Minute, "the control plane is ready", func() bool { _, err := os.Stat(info); return err == nil }); err != nil {
		return nil, fmt.Errorf("%w\n%s", err, p.Tail())
	}
	return os.ReadFile(info)
}
