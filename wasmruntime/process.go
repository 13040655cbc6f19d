package wasmruntime

import (
	"context"
	"errors"
	"path/filepath"
	"syscall"
	"time"

	"github.com/coracle-edge/coracle/wasmruntime/internal/bundle"
)

var errTODO = errors.New("wasmruntime: not there yet")

// Process is a guest, running or ended. It is safe for concurrent use.
type Process struct {
	dir   string
	state bundle.State
	done  chan struct{}
	exit  ExitStatus
}

// PID of the runner; the same process is runner and guest.
func (p *Process) PID() int { return p.state.PID }

// Dir is the bundle directory.
func (p *Process) Dir() string { return p.dir }

// StartedAt is when the runner began, by the wall clock of that moment.
func (p *Process) StartedAt() time.Time { return p.state.StartedAt }

// StdoutPath, StderrPath and StdinPath are FIFOs that the guest's own process
// holds open for reading and writing. Open stdout and stderr with O_RDONLY;
// there is no end of file, so read until Done and then until EAGAIN with
// O_NONBLOCK: what was written remains readable as long as a reader had it
// open before the guest ended.
func (p *Process) StdoutPath() string { return filepath.Join(p.dir, bundle.StdoutFifo) }
func (p *Process) StderrPath() string { return filepath.Join(p.dir, bundle.StderrFifo) }
func (p *Process) StdinPath() string  { return filepath.Join(p.dir, bundle.StdinFifo) }

// Done is closed when the guest has ended and ExitStatus is known.
func (p *Process) Done() <-chan struct{} { return p.done }

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
func (p *Process) Signal(sig syscall.Signal) error { return errTODO }

// Stop sends SIGTERM, waits for grace, sends SIGKILL and waits for the end.
// With grace <= 0 it sends SIGKILL at once. It returns the exit status, also
// of a guest that had ended already.
func (p *Process) Stop(ctx context.Context, grace time.Duration) (ExitStatus, error) {
	return ExitStatus{}, errTODO
}

// Stats is what a guest uses now.
type Stats struct {
	Time time.Time
	// CPUNanos since the start.
	CPUNanos uint64
	// MemoryBytes is what the cgroup is charged with (or RSS without a
	// cgroup), WorkingSetBytes the same without inactive file pages.
	MemoryBytes, WorkingSetBytes uint64
	RSSBytes                     uint64
	PageFaults, MajorPageFaults  uint64
	Threads                      int
}

// Stats reads the guest's cgroup, or /proc without one. ErrExited if it ended.
func (p *Process) Stats() (Stats, error) { return Stats{}, errTODO }

// Update changes the cgroup limits of a running guest.
func (p *Process) Update(res Resources) error { return errTODO }

// Delete kills the guest if it runs, and removes its cgroup and everything
// that Start put into the bundle directory. The directory itself stays.
func (p *Process) Delete(ctx context.Context) error { return errTODO }
