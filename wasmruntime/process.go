package wasmruntime

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-edge/coracle/internal/fdwatch"
	"github.com/coracle-edge/coracle/wasmruntime/internal/bundle"
	"github.com/coracle-edge/coracle/wasmruntime/internal/cgroup"
)

// Process is a guest, running or ended. It is safe for concurrent use.
type Process struct {
	spec   Spec
	log    *slog.Logger
	now    func() time.Time
	cgroup *cgroup.Group // nil without one
	state  bundle.State
	walls  []string
	child  bool // of this process: it has to be reaped here

	stdout, stderr *os.File // nil with InheritStdio, and for one that ended

	pidfd   *os.File // nil where the kernel has none
	watcher *fdwatch.Watcher
	watched fdwatch.Watch // of pidfd

	// mu guards the sending of signals against the process's end, after
	// which its number may be another's.
	mu    sync.Mutex
	ended bool
	wait  *syscall.WaitStatus // what reaping said, if it was ours to reap
	after []func()            // to be called when exit is known

	release func() // gives the cache's entry free, once it has ended; may be nil

	done chan struct{}
	exit ExitStatus

	userNamespaces *atomic.Bool // the runtime's
}

func newProcess(r *Runtime, spec Spec) *Process {
	p := &Process{spec: spec, log: r.log, userNamespaces: &r.userNamespaces, watcher: &r.watcher, now: r.opts.Now, done: make(chan struct{})}
	if spec.Cgroup != "" {
		g, err := cgroup.Open(r.opts.CgroupRoot, spec.Cgroup)
		if err != nil {
			r.log.Warn("the guest stays in the runtime's cgroup", "id", spec.ID, "err", err)
		}
		p.cgroup = g
	}
	return p
}

// PID of the runner; the same process is runner and guest.
func (p *Process) PID() int { return p.state.PID }

// Dir is the bundle directory.
func (p *Process) Dir() string { return p.spec.Dir }

// Spec is what it was started with.
func (p *Process) Spec() Spec { return p.spec }

// StartedAt is when the runner began, by the wall clock of that moment.
func (p *Process) StartedAt() time.Time { return p.state.StartedAt }

// Walls are the parts of the jail that stand around the guest, and with "no "
// in front those that this system doesn't allow. Known to the starter only.
func (p *Process) Walls() []string { return p.walls }

// Stdout and Stderr are the reading ends of the guest's output, opened before
// it ran, so that nothing of a short life is lost. They give end of file
// after the guest's end; what they hadn't given by then, because the reader
// was slow, is in ExitStatus.StdoutRest and StderrRest. They are nil with Spec.InheritStdio, and after
// Attach to a guest that had ended. The caller closes them.
func (p *Process) Stdout() *os.File { return p.stdout }
func (p *Process) Stderr() *os.File { return p.stderr }

// StdoutPath, StderrPath and StdinPath are the FIFOs. The guest's own process
// holds each open for reading and writing.
func (p *Process) StdoutPath() string { return filepath.Join(p.spec.Dir, bundle.StdoutFifo) }
func (p *Process) StderrPath() string { return filepath.Join(p.spec.Dir, bundle.StderrFifo) }
func (p *Process) StdinPath() string  { return filepath.Join(p.spec.Dir, bundle.StdinFifo) }

// openOutput opens the reading ends, which are served by the poller.
func (p *Process) openOutput() (err error) {
	if p.stdout, err = os.OpenFile(p.StdoutPath(), os.O_RDONLY|unix.O_NONBLOCK, 0); err != nil {
		return err
	}
	p.stderr, err = os.OpenFile(p.StderrPath(), os.O_RDONLY|unix.O_NONBLOCK, 0)
	return err
}

func (p *Process) closeFiles() {
	for _, f := range []*os.File{p.stdout, p.stderr, p.pidfd} {
		if f != nil {
			f.Close()
		}
	}
}

// Done is closed when the guest has ended and ExitStatus is known.
func (p *Process) Done() <-chan struct{} { return p.done }

// OnEnd has f called once, by a goroutine of its own, when the guest has ended and
// ExitStatus is known: until then that takes no goroutine. The calls of one guest are
// one after the other.
func (p *Process) OnEnd(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.done:
		go f()
	default:
		p.after = append(p.after, f)
	}
}

// Wait blocks until the guest has ended.
func (p *Process) Wait(ctx context.Context) (ExitStatus, error) {
	select {
	case <-p.done:
		return p.exit, nil
	case <-ctx.Done():
		return ExitStatus{}, ctx.Err()
	}
}

// ExitStatus is how the guest ended; false while it runs.
func (p *Process) ExitStatus() (ExitStatus, bool) {
	select {
	case <-p.done:
		return p.exit, true
	default:
		return ExitStatus{}, false
	}
}

// Signal sends a signal to the guest's process. SIGTERM ends it unless
// Spec.NotifyTerm was set. ErrExited if it has ended.
func (p *Process) Signal(sig syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return ErrExited
	}
	// Whoever looks later, without an exit record, learns why it ended.
	if sig == unix.SIGKILL || sig == unix.SIGTERM || sig == unix.SIGINT || sig == unix.SIGQUIT || sig == unix.SIGHUP {
		stop := bundle.Stop{Signal: int(sig), At: p.now()}
		if err := bundle.WriteJSON(p.spec.Dir, bundle.StopFile, stop); err != nil {
			p.log.Warn("can't note why the guest ends", "id", p.spec.ID, "err", err)
		}
	}
	return p.send(sig)
}

// CloseStdin lets the guest read the end of its stdin, once nobody else has the
// FIFO open for writing. Spec.StdinOnce must have been set. ErrExited if it has
// ended.
func (p *Process) CloseStdin() error {
	if !p.spec.Stdin || !p.spec.StdinOnce {
		return fmt.Errorf("guest %s was started without a stdin that can be closed", p.spec.ID)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return ErrExited
	}
	return p.send(bundle.SignalCloseStdin)
}

// send signals the process; p.mu is held or nobody else has the process.
func (p *Process) send(sig syscall.Signal) error {
	var err error
	if p.pidfd != nil {
		raw, rawErr := p.pidfd.SyscallConn()
		if rawErr != nil {
			return rawErr
		}
		if ctlErr := raw.Control(func(fd uintptr) { err = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); ctlErr != nil {
			return ctlErr
		}
	} else if !p.child && p.state.Gone() {
		err = unix.ESRCH
	} else {
		err = unix.Kill(p.state.PID, sig)
	}
	if errors.Is(err, unix.ESRCH) {
		return ErrExited
	}
	return err
}

func (p *Process) kill() { _ = p.send(unix.SIGKILL) }

// Stop sends SIGTERM, waits for grace, sends SIGKILL and waits for the end.
// With grace <= 0 it sends SIGKILL at once. It returns the exit status, also
// of a guest that had ended already. If ctx ends first the guest may still
// run.
func (p *Process) Stop(ctx context.Context, grace time.Duration) (ExitStatus, error) {
	if grace > 0 {
		if err := p.Signal(unix.SIGTERM); err != nil && !errors.Is(err, ErrExited) {
			return ExitStatus{}, fmt.Errorf("stop %s: %w", p.spec.ID, err)
		}
		timer := time.NewTimer(grace)
		defer timer.Stop()
		select {
		case <-p.done:
			return p.exit, nil
		case <-ctx.Done():
			return ExitStatus{}, ctx.Err()
		case <-timer.C:
		}
	}
	if err := p.Signal(unix.SIGKILL); err != nil && !errors.Is(err, ErrExited) {
		return ExitStatus{}, fmt.Errorf("kill %s: %w", p.spec.ID, err)
	}
	return p.Wait(ctx)
}

// Update changes the limits of a running guest, its linear memory's too. Zero values are left
// as they are.
func (p *Process) Update(res Resources) error {
	if p.cgroup == nil {
		return fmt.Errorf("guest %s has no cgroup", p.spec.ID)
	}
	if err := p.cgroup.Set(res); err != nil {
		return fmt.Errorf("guest %s: %w", p.spec.ID, err)
	}
	if p.spec.MemoryBytes != 0 || res.MemoryBytes == 0 {
		return nil // it has a limit of its own, or nothing is said of it
	}
	err := bundle.WriteLimit(p.spec.Dir, res.MemoryBytes, false)
	if errors.Is(err, os.ErrNotExist) && res.MemoryBytes > p.spec.Resources.MemoryBytes && p.spec.Resources.MemoryBytes > 0 {
		return fmt.Errorf("guest %s: its memory can't grow beyond %d bytes, it was started by an earlier version: start it again", p.spec.ID, p.spec.Resources.MemoryBytes)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("guest %s: %w", p.spec.ID, err)
	}
	return nil
}

// Delete kills the guest if it runs, and removes its cgroup and everything
// that Start put into the bundle directory. The directory itself stays.
func (p *Process) Delete(ctx context.Context) error {
	if _, err := p.Stop(ctx, 0); err != nil {
		return err
	}
	p.closeFiles()
	return errors.Join(p.removeFiles(), p.removeCgroup())
}

func (p *Process) removeFiles() error {
	var errs []error
	for _, name := range []string{
		// The state goes last but one: without it nobody attaches.
		bundle.ExitFile, bundle.StopFile, bundle.StdinFifo, bundle.StdoutFifo, bundle.StderrFifo,
		bundle.StateFile, bundle.SpecFile, bundle.LimitFile,
	} {
		if err := os.Remove(filepath.Join(p.spec.Dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (p *Process) removeCgroup() error {
	if p.cgroup == nil {
		return nil
	}
	var err error
	// A process that is reaped may still be leaving its cgroup.
	for range 50 {
		if err = p.cgroup.Remove(); err == nil {
			return nil
		}
		time.Sleep(2 * time.Millisecond)
	}
	return fmt.Errorf("guest %s: remove cgroup: %w", p.spec.ID, err)
}
