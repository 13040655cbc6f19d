package streaming

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	cristreaming "k8s.io/cri-streaming/pkg/streaming"
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

// Server makes URLs, each good for one use within a minute, and serves them.
type Server struct {
	l   net.Listener
	rt  Runtime
	cri cristreaming.Server
}

// New prepares a server on l, which must be of an address that only this machine
// reaches: who has a URL needs no other credential.
func New(l net.Listener, rt Runtime) (*Server, error) {
	s := &Server{l: l, rt: rt}
	cfg := cristreaming.DefaultConfig
	cfg.BaseURL = &url.URL{Scheme: "http", Host: l.Addr().String(), Path: "/"}
	var err error
	if s.cri, err = cristreaming.NewServer(cfg, connector{s}); err != nil {
		return nil, fmt.Errorf("streaming on %s: %w", l.Addr(), err)
	}
	return s, nil
}

// GetAttach returns the URL of an attachment.
func (s *Server) GetAttach(req *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	return s.cri.GetAttach(req)
}

// GetExec returns the URL of a command.
func (s *Server) GetExec(req *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	return s.cri.GetExec(req)
}

// GetPortForward returns the URL of a forwarding.
func (s *Server) GetPortForward(req *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	return s.cri.GetPortForward(req)
}

// Run serves until ctx ends, and then ends every session.
func (s *Server) Run(ctx context.Context) error {
	// Sessions are hijacked connections, which http.Server doesn't close.
	srv := &http.Server{Handler: s.cri, ReadHeaderTimeout: 10 * time.Second, BaseContext: func(net.Listener) context.Context { return ctx }}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.Serve(s.l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("streaming on %s: %w", s.l.Addr(), err)
	}
	return nil
}

// connector is the streaming library's view of the runtime.
type connector struct{ s *Server }

// Exec tells an exit code that isn't 0 as the protocol wants it.
func (c connector) Exec(ctx context.Context, id string, cmd []string, in io.Reader, out, errOut io.WriteCloser, _ bool, _ <-chan remotecommand.TerminalSize) error {
	code, err := c.s.rt.ExecContainer(ctx, id, cmd, streamsOf(in, out, errOut))
	if err == nil && code != 0 {
		return utilexec.CodeExitError{Err: fmt.Errorf("command terminated with exit code %d", code), Code: code}
	}
	return err
}

// Attach ends the streams that it is given when the guest's have ended. A guest
// has no terminal, so there is nothing whose size could change.
func (c connector) Attach(ctx context.Context, id string, in io.Reader, out, errOut io.WriteCloser, _ bool, _ <-chan remotecommand.TerminalSize) error {
	return c.s.rt.AttachContainer(ctx, id, streamsOf(in, out, errOut))
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
func (c connector) PortForward(ctx context.Context, id string, port int32, stream io.ReadWriteCloser) error {
	defer stream.Close()
	conn, err := c.s.rt.DialPod(ctx, id, port)
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
