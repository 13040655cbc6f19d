package connect

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"

	"github.com/coracle-edge/coracle/crishim/wasm"
)

// Runtime is what the streams are connected to: crishim.Service.
type Runtime interface {
	AttachContainer(ctx context.Context, id string, streams wasm.Streams) error
	ExecContainer(ctx context.Context, id string, cmd []string, streams wasm.Streams) (int, error)
	DialPod(ctx context.Context, sandboxID string, port int32) (net.Conn, error)
}

// Connector is the streaming library's view of a Runtime.
type Connector struct{ Runtime Runtime }

// Exec tells an exit code that isn't 0 as the protocol wants it.
func (c Connector) Exec(ctx context.Context, id string, cmd []string, in io.Reader, out, errOut io.WriteCloser, _ bool, _ <-chan remotecommand.TerminalSize) error {
	code, err := c.Runtime.ExecContainer(ctx, id, cmd, streamsOf(in, out, errOut))
	if err == nil && code != 0 {
		return utilexec.CodeExitError{Err: fmt.Errorf("command terminated with exit code %d", code), Code: code}
	}
	return err
}

// Attach ends the streams that it is given when the guest's have ended. A guest
// has no terminal, so there is nothing whose size could change.
func (c Connector) Attach(ctx context.Context, id string, in io.Reader, out, errOut io.WriteCloser, _ bool, _ <-chan remotecommand.TerminalSize) error {
	return c.Runtime.AttachContainer(ctx, id, streamsOf(in, out, errOut))
}

// streamsOf leaves out what the caller didn't ask for: an interface with a nil in
// it is not nil.
func streamsOf(in io.Reader, out, errOut io.WriteCloser) wasm.Streams {
	streams := wasm.Streams{Stdin: in}
	if out != nil {
		streams.Stdout = out
	}
	if errOut != nil {
		streams.Stderr = errOut
	}
	return streams
}

// halfClose is how long the other direction may go on when one has ended.
const halfClose = time.Second

// PortForward copies until both directions have ended, or one and a second more:
// the protocol can't say that one has.
func (c Connector) PortForward(ctx context.Context, id string, port int32, stream io.ReadWriteCloser) error {
	defer stream.Close()
	conn, err := c.Runtime.DialPod(ctx, id, port)
	if err != nil {
		return err
	}
	defer conn.Close()
	ended := make(chan error, 2)
	go func() {
		_, err := io.Copy(stream, conn)
		ended <- err
	}()
	go func() {
		_, err := io.Copy(conn, stream)
		if tcp, ok := conn.(*net.TCPConn); ok && err == nil {
			err = tcp.CloseWrite()
		}
		ended <- err
	}()
	var first error
	select {
	case first = <-ended:
	case <-ctx.Done():
		return ctx.Err()
	}
	timer := time.NewTimer(halfClose)
	defer timer.Stop()
	select {
	case second := <-ended:
		return errors.Join(first, second)
	case <-timer.C:
		return first
	case <-ctx.Done():
		return ctx.Err()
	}
}
