package wasm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/wasmruntime"
)

// Streams are what a caller attaches to a container. Each may be nil.
type Streams struct {
	// Stdin is read until it ends or fails. Its reader is not waited for: the
	// caller closes it when Attach has returned.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// Attachable says whether a container can be attached to now.
func (m *Manager) Attachable(id string) error {
	_, err := m.running(id, "attach")
	return err
}

func (m *Manager) running(id, what string) (*container, error) {
	c, err := m.container(id)
	if err != nil {
		return nil, err
	}
	if st := c.state(); st != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return nil, fmt.Errorf("container %q: %s: %w: it is %s", c.id, what, ErrState, stateName(st))
	}
	return c, nil
}

// Attach connects streams to a running guest's: output from now on, as it comes
// and not line by line, and input if the container was made with stdin. It
// returns when the guest's output has ended, ctx does, or the input ends; the
// latter closes the guest's stdin if the container says stdinOnce, and then the
// output is waited for. The container's log gets all of it as well.
func (m *Manager) Attach(ctx context.Context, id string, s Streams) error {
	c, err := m.running(id, "attach")
	if err != nil {
		return err
	}
	if s.Stdin == nil && s.Stdout == nil && s.Stderr == nil {
		return fmt.Errorf("container %q: attach: %w: none of stdin, stdout and stderr is wanted", c.id, ErrInvalid)
	}
	c.mu.Lock()
	proc, logs, spec := c.proc, c.logs, c.rec.Spec
	c.mu.Unlock()
	if logs == nil || len(logs.fifos) < 2 {
		return fmt.Errorf("container %q: attach: %w: its output isn't followed here", c.id, ErrState)
	}
	if s.Stdin != nil && !spec.Stdin {
		return fmt.Errorf("container %q: attach: %w: it has no stdin, set stdin: true in the container to give it one", c.id, ErrState)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	errs := make(chan error, 2)
	for i, w := range []io.Writer{s.Stdout, s.Stderr} {
		if w == nil {
			continue
		}
		in := logs.fifos[i]
		t := in.taps.add()
		wg.Go(func() {
			defer in.taps.remove(t)
			if err := t.copyTo(w, ctx.Done()); err != nil {
				errs <- fmt.Errorf("container %q: attach: %s: %w", c.id, in.stream, err)
			}
		})
	}
	stdinDone := make(chan error, 1)
	if s.Stdin != nil {
		in, err := os.OpenFile(proc.StdinPath(), os.O_WRONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			cancel()
			wg.Wait()
			return fmt.Errorf("container %q: attach: stdin: %w", c.id, err)
		}
		// A guest that doesn't read must not hold the writer back for ever.
		stop := context.AfterFunc(ctx, func() { in.Close() })
		defer stop()
		go func() {
			_, err := io.Copy(in, s.Stdin)
			in.Close()
			if spec.StdinOnce {
				if cerr := proc.CloseStdin(); cerr != nil && !errors.Is(cerr, wasmruntime.ErrExited) {
					m.log.Warn("stdin can't be closed", "container", c.id, "err", cerr)
				}
			}
			stdinDone <- err
		}()
	}
	outDone := make(chan struct{})
	go func() { wg.Wait(); close(outDone) }()
	output := s.Stdout != nil || s.Stderr != nil
	for {
		select {
		case <-outDone:
			if !output { // stdin only: it is waited for
				outDone = nil
				continue
			}
		case <-c.ended:
			// What is queued is still written.
			if output {
				select {
				case <-outDone:
				case <-ctx.Done():
				}
			}
		case err := <-stdinDone:
			// EPIPE: the guest has ended, its last output comes.
			if output && (spec.StdinOnce && err == nil || errors.Is(err, unix.EPIPE)) {
				continue
			}
		case <-m.closing:
		case <-ctx.Done():
		}
		break
	}
	cancel()
	wg.Wait()
	select {
	case err := <-errs:
		return err
	default:
		return nil
	}
}
