package wasm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/crishim/images"
	"github.com/coracle-edge/coracle/wasmruntime"
)

// Exec runs a command in a running container: a module of the container's image in
// a process of its own, with the container's environment, volumes, user, network
// and, its cgroup being below the container's, limits. It returns the exit code.
//
// Which module a command means is as in any image: a path, or a name that is looked
// for in PATH. An image that is one module and nothing else has only that one, by
// the name that the container itself was started with. Other commands are
// ErrNotFound: a probe must not start a second server because nothing else is there.
//
// It ends with ctx, with the container, and with this process at its next start.
// Stdin's reader is not waited for, and when ctx has ended neither are the writers:
// the caller closes them when Exec has returned.
func (m *Manager) Exec(ctx context.Context, id string, cmd []string, s Streams) (int, error) {
	c, err := m.running(id, "exec")
	if err != nil {
		return 0, err
	}
	fail := func(err error) (int, error) { return 0, fmt.Errorf("container %q: exec %q: %w", c.id, cmd, err) }
	spec, err := m.execSpec(c, cmd, s.Stdin != nil)
	if err != nil {
		return fail(err)
	}
	if !c.beginExec() {
		return fail(fmt.Errorf("%w: it has ended", ErrState))
	}
	defer c.execs.Done()
	// Called so, it is ended and deleted by the next start of this process.
	dir := m.containerDir(tmpPrefix + "exec-" + path.Base(spec.Cgroup))
	spec.Dir = filepath.Join(dir, bundleDir)
	if err := os.MkdirAll(spec.Dir, 0o700); err != nil {
		return fail(err)
	}
	defer func() {
		if err := os.RemoveAll(dir); err != nil {
			m.log.Warn("left-over folder can't be removed", "dir", dir, "err", err)
		}
	}()
	if !m.cgroups {
		spec.Cgroup = ""
	}
	proc, err := m.opts.Runtime.Start(ctx, spec)
	if err != nil {
		return fail(err)
	}
	defer func() {
		if err := proc.Delete(context.WithoutCancel(ctx)); err != nil {
			m.log.Warn("left-over of an exec", "container", c.id, "err", err)
		}
	}()
	output := execOutput(proc, s)
	if s.Stdin != nil {
		if err := m.execInput(ctx, c, proc, s.Stdin); err != nil {
			return fail(err)
		}
	}
	select {
	case <-proc.Done():
	case <-ctx.Done():
		err = ctx.Err()
	case <-c.ended:
		err = fmt.Errorf("%w: the container has ended", ErrState)
	case <-m.closing:
		err = fmt.Errorf("%w: the runtime is shutting down", ErrState)
	}
	exit, stopErr := proc.Stop(context.WithoutCancel(ctx), 0)
	if err = errors.Join(err, stopErr); err != nil {
		return fail(err)
	}
	select {
	case err = <-output:
	case <-ctx.Done():
		err = ctx.Err()
	case <-m.closing:
		err = fmt.Errorf("%w: the runtime is shutting down", ErrState)
	}
	if err != nil {
		return fail(err)
	}
	return exit.Code, nil
}

// Executable says whether a command can be executed in a container now.
func (m *Manager) Executable(id string, cmd []string) error {
	c, err := m.running(id, "exec")
	if err != nil {
		return err
	}
	if _, err := m.execSpec(c, cmd, false); err != nil {
		return fmt.Errorf("container %q: exec %q: %w", c.id, cmd, err)
	}
	return nil
}

// ExecSync is Exec with the output in memory, at most maxExecOutput of each; what
// is more is thrown away. timeout zero is none.
func (m *Manager) ExecSync(ctx context.Context, id string, cmd []string, timeout time.Duration) (stdout, stderr []byte, code int, err error) {
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	var out, errOut headBuffer
	code, err = m.Exec(ctx, id, cmd, Streams{Stdout: &out, Stderr: &errOut})
	return out.take(), errOut.take(), code, err
}

// maxExecOutput of a stream fits twice into a message of gRPC.
const maxExecOutput = 7 << 20

// headBuffer keeps the head of what is written to it.
type headBuffer struct {
	mu  sync.Mutex // a writer that nobody waited for may still be writing
	buf bytes.Buffer
}

func (b *headBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.buf.Write(p[:min(len(p), maxExecOutput-b.buf.Len())])
	return len(p), nil
}

func (b *headBuffer) take() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return bytes.Clone(b.buf.Bytes())
}

// beginExec says that there is one more; the container's removal waits for it.
func (c *container) beginExec() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stateLocked() != runtimeapi.ContainerState_CONTAINER_RUNNING || c.removed {
		return false
	}
	c.execs.Add(1)
	return true
}

// execSpec is the container's with another program.
func (m *Manager) execSpec(c *container, cmd []string, stdin bool) (wasmruntime.Spec, error) {
	if len(cmd) == 0 || cmd[0] == "" {
		return wasmruntime.Spec{}, fmt.Errorf("%w: no command", ErrInvalid)
	}
	rec := c.record()
	img, err := m.opts.Image(rec.ImageID)
	if err != nil {
		return wasmruntime.Spec{}, err
	}
	spec := rec.Spec
	file, ok := findProgram(img, spec.Env, cmd[0])
	switch {
	case ok && file != spec.Module:
		spec.Module, spec.Digest, spec.Name = file, "", path.Base(file)
	case ok:
	case slices.Contains([]string{spec.Args[0], img.Module.Name}, cmd[0]):
	default:
		return wasmruntime.Spec{}, fmt.Errorf("%w: no module called %q in image %q: WASI has no processes, so what is executed is another module of the same image", ErrNotFound, cmd[0], rec.ImageRef)
	}
	spec.Args = cmd
	spec.Listen, spec.NotifyTerm = nil, false // the sockets are the container's
	spec.Stdin, spec.StdinOnce = stdin, stdin
	spec.Resources = wasmruntime.Resources{} // those of the cgroup above
	if spec.MemoryBytes == 0 {
		spec.MemoryBytes = rec.Spec.Resources.MemoryBytes
	}
	spec.Cgroup = path.Join(rec.Spec.Cgroup, newID()[:16])
	return spec, nil
}

// defaultPath is where programs are looked for if the environment doesn't say.
const defaultPath = "/usr/local/bin:/usr/bin:/bin"

// findProgram finds the module that a command means in an image's root file system.
func findProgram(img *images.Image, env []string, name string) (string, bool) {
	dirs := []string{"/"}
	if !strings.Contains(name, "/") {
		dirs = strings.Split(defaultPath, ":")
		for _, kv := range env {
			if list, ok := strings.CutPrefix(kv, "PATH="); ok {
				dirs = strings.Split(list, ":")
			}
		}
	}
	for _, dir := range dirs {
		if file, ok := findFile(img, path.Join(dir, name), true); ok {
			return file, true
		}
	}
	return "", false
}

// findFile finds a file in an image's root file system, which may have to be a
// module.
func findFile(img *images.Image, name string, module bool) (string, bool) {
	if img.Rootfs == "" {
		return "", false
	}
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	f, err := os.OpenInRoot(img.Rootfs, name)
	if err != nil {
		return "", false
	}
	defer f.Close()
	head := make([]byte, 4)
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		return "", false
	}
	if _, err := io.ReadFull(f, head); module && (err != nil || string(head) != "\x00asm") {
		return "", false
	}
	return filepath.Join(img.Rootfs, name), true
}

// execOutput copies both streams until they end; the channel then has the first
// error.
func execOutput(proc *wasmruntime.Process, s Streams) <-chan error {
	errs := make(chan error, 2)
	copyOut := func(to io.Writer, from *os.File, rest func(wasmruntime.ExitStatus) []byte) {
		if to == nil {
			to = io.Discard
		}
		_, err := io.Copy(to, from)
		if err == nil {
			<-proc.Done()
			exit, _ := proc.ExitStatus()
			_, err = to.Write(rest(exit))
		}
		errs <- err
	}
	go copyOut(s.Stdout, proc.Stdout(), func(e wasmruntime.ExitStatus) []byte { return e.StdoutRest })
	go copyOut(s.Stderr, proc.Stderr(), func(e wasmruntime.ExitStatus) []byte { return e.StderrRest })
	done := make(chan error, 1)
	go func() { done <- errors.Join(<-errs, <-errs) }()
	return done
}

// execInput copies stdin, and lets the guest's end when it ends.
func (m *Manager) execInput(ctx context.Context, c *container, proc *wasmruntime.Process, from io.Reader) error {
	in, err := os.OpenFile(proc.StdinPath(), os.O_WRONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("stdin: %w", err)
	}
	go func() {
		// A guest that doesn't read must not hold the writer back for ever.
		stop := context.AfterFunc(ctx, func() { in.Close() })
		defer stop()
		_, _ = io.Copy(in, from)
		in.Close()
		if err := proc.CloseStdin(); err != nil && !errors.Is(err, wasmruntime.ErrExited) {
			m.log.Warn("stdin can't be closed", "container", c.id, "err", err)
		}
	}()
	return nil
}
