package wasmruntime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-edge/coracle/wasmruntime/internal/bundle"
	"github.com/coracle-edge/coracle/wasmruntime/internal/cache"
	"github.com/coracle-edge/coracle/wasmruntime/internal/cgroup"
)

// Start runs a guest and returns when its first instruction is about to run.
// It compiles the module if the cache doesn't have it, or has it torn. The
// guest lives on when this process dies.
//
// Errors are those of Compile, ErrStart or ErrExists; the guest doesn't run
// after an error, and the bundle can be started again.
func (r *Runtime) Start(ctx context.Context, spec Spec) (p *Process, err error) {
	if !filepath.IsAbs(spec.Dir) {
		return nil, fmt.Errorf("%w: bundle directory %q isn't absolute", ErrStart, spec.Dir)
	}
	if _, err := os.Lstat(filepath.Join(spec.Dir, bundle.StateFile)); err == nil {
		return nil, fmt.Errorf("%w: %s", ErrExists, spec.Dir)
	}
	if spec.Digest == "" {
		var err error
		if spec.Digest, err = cache.DigestFile(spec.Module); err != nil {
			return nil, fmt.Errorf("wasm module: %w", err)
		}
	}
	// From here on, so that the entry isn't removed before the guest has it.
	release := r.use(spec.Digest)
	defer func() {
		if err != nil {
			release()
		}
	}()
	entry, err := r.entry(ctx, spec.Module, spec.Digest, "")
	if err != nil {
		return nil, err
	}
	p, err = r.start(ctx, spec, entry, release)
	if errors.Is(err, errTorn) {
		r.log.Warn("compiled wasm module is torn; compiling again", "module", spec.ModuleName(), "entry", entry, "err", err)
		if entry, err = r.entry(ctx, spec.Module, spec.Digest, entry); err != nil {
			return nil, err
		}
		p, err = r.start(ctx, spec, entry, release)
	}
	if errors.Is(err, errTorn) {
		err = fmt.Errorf("%w: %w", ErrStart, err)
	}
	return p, err
}

func (r *Runtime) start(ctx context.Context, spec Spec, entry string, release func()) (p *Process, err error) {
	p = newProcess(r, spec)
	defer func() {
		if err != nil {
			p.closeFiles()
			p.removeFiles()
			p.removeCgroup()
			p = nil
		}
	}()
	if err := p.prepare(); err != nil {
		return p, fmt.Errorf("%w: %w", ErrStart, err)
	}
	pr, pw, err := os.Pipe()
	if err != nil {
		return p, fmt.Errorf("%w: %w", ErrStart, err)
	}
	defer pr.Close()
	err = p.spawn(r.opts.RunnerPath, pw,
		"run", "--spec", filepath.Join(spec.Dir, bundle.SpecFile), "--entry", entry,
		"--status-fd", "3", "--cgroup-root", r.opts.CgroupRoot)
	pw.Close()
	if err != nil {
		return p, fmt.Errorf("%w: %w", ErrStart, err)
	}
	pr.SetReadDeadline(time.Now().Add(r.opts.StartTimeout))
	stop := context.AfterFunc(ctx, func() { pr.SetReadDeadline(time.Now()) })
	status, err := readStatus(pr)
	stop()
	if err == nil && status.Kind == "" {
		if err = bundle.ReadJSON(spec.Dir, bundle.StateFile, &p.state); err == nil {
			p.walls = status.Walls
			p.release = release
			p.watch()
			return p, nil
		}
	}
	p.kill()
	p.reap()
	switch {
	case status.Kind != "":
		return p, fmt.Errorf("%s: %w", spec.ModuleName(), failure(status))
	case ctx.Err() != nil:
		return p, ctx.Err()
	default:
		return p, fmt.Errorf("%w: module %s: %w", ErrStart, spec.ModuleName(), err)
	}
}

// prepare makes what the runner expects in the bundle, and the cgroup.
func (p *Process) prepare() error {
	spec := &p.spec
	for _, stale := range []string{bundle.ExitFile, bundle.StopFile} {
		os.Remove(filepath.Join(spec.Dir, stale))
	}
	if !spec.InheritStdio {
		names := []string{bundle.StdoutFifo, bundle.StderrFifo}
		if spec.Stdin {
			names = append(names, bundle.StdinFifo)
		}
		for _, name := range names {
			if err := unix.Mkfifo(filepath.Join(spec.Dir, name), 0o600); err != nil && !errors.Is(err, unix.EEXIST) {
				return fmt.Errorf("make FIFO %s: %w", filepath.Join(spec.Dir, name), err)
			}
		}
		if err := p.openOutput(); err != nil {
			return err
		}
	}
	if p.cgroup != nil {
		if err := p.cgroup.Create(spec.Resources); err != nil {
			if !cgroup.Tolerable(err) {
				return fmt.Errorf("cgroup %s: %w", spec.Cgroup, err)
			}
			p.log.Warn("the guest's cgroup isn't complete", "id", spec.ID, "cgroup", spec.Cgroup, "err", err)
		}
	}
	if err := bundle.WriteLimit(spec.Dir, spec.MemoryLimit(), true); err != nil {
		return err
	}
	return bundle.WriteJSON(spec.Dir, bundle.SpecFile, spec)
}

// spawn starts the runner in a session of its own.
func (p *Process) spawn(path string, status *os.File, args ...string) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	files := []*os.File{null, null, null, status}
	if p.spec.InheritStdio {
		files = []*os.File{os.Stdin, os.Stdout, os.Stderr, status}
	}
	pidfd := -1
	attr := &os.ProcAttr{
		Dir: "/", Env: []string{"GOMAXPROCS=1", "GOTRACEBACK=none"}, Files: files,
		Sys: &syscall.SysProcAttr{Setsid: !p.spec.InheritStdio, PidFD: &pidfd},
	}
	plain := *attr.Sys
	if p.userNamespaces.Load() {
		inUserNamespace(attr.Sys)
	}
	proc, err := os.StartProcess(path, append([]string{path}, args...), attr)
	if err != nil && attr.Sys.Cloneflags != 0 && noUserNamespace(err) {
		p.userNamespaces.Store(false)
		p.log.Info("guests have no user namespace of their own: the kernel refuses it to ordinary users", "err", err)
		attr.Sys = &plain
		proc, err = os.StartProcess(path, append([]string{path}, args...), attr)
	}
	if err != nil {
		return err
	}
	p.state.PID, p.child = proc.Pid, true
	// Waiting is done by pidfd: os.Process.Wait would hold a thread per guest.
	p.adoptPidfd(pidfd)
	return proc.Release()
}

// Attach takes over the guest of a bundle directory after a restart of the
// caller. The guest may have ended meanwhile: then the Process is done, and
// its ExitStatus says what can still be known. ErrNotStarted if the bundle
// never had a process.
func (r *Runtime) Attach(dir string) (*Process, error) {
	var spec Spec
	if err := bundle.ReadJSON(dir, bundle.SpecFile, &spec); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotStarted, err)
	}
	spec.Dir = dir
	p := newProcess(r, spec)
	if err := bundle.ReadJSON(dir, bundle.StateFile, &p.state); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotStarted, err)
	}
	boot, err := bundle.BootID()
	if err != nil {
		return nil, err
	}
	alive := p.state.BootID == boot
	if alive {
		pidfd, err := unix.PidfdOpen(p.state.PID, 0)
		if err != nil {
			pidfd = -1
		}
		// The pidfd names whatever has the number now; the start time,
		// read after it, says whether that is our guest.
		if alive = !p.state.Gone(); alive {
			p.adoptPidfd(pidfd)
		} else if pidfd >= 0 {
			unix.Close(pidfd)
		}
	}
	if !alive {
		p.finish()
		return p, nil
	}
	if !spec.InheritStdio {
		if err := p.openOutput(); err != nil {
			p.log.Warn("the guest's output can't be opened", "id", spec.ID, "err", err)
		}
	}
	if spec.Digest != "" {
		p.release = r.use(spec.Digest)
	}
	p.watch()
	return p, nil
}
