package crishim

import (
	"context"
	"net"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/crishim/wasm"
)

// Streams makes the URLs under which a client of the CRI attaches to a Wasm
// container, executes something in it, and forwards ports to a Wasm pod:
// crishim/streaming, which cmd/crishim links. Those of OCI containers and sandboxes
// are containerd's own.
//
// A caller in the same process needs neither URL nor HTTP: see AttachContainer,
// ExecContainer and DialPod.
type Streams interface {
	GetExec(*runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error)
	GetAttach(*runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error)
	GetPortForward(*runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error)
}

// AttachContainer connects streams to a running Wasm container's, until its
// output or ctx ends: see wasm.Manager.Attach.
func (s *Service) AttachContainer(ctx context.Context, id string, streams wasm.Streams) error {
	if !s.ours(id) {
		return status.Errorf(codes.Unimplemented, "container %q is an OCI container: it is attached to by the URL that Attach returns", id)
	}
	return rpcError(s.wasm.Attach(ctx, id, streams))
}

// ExecContainer runs a command in a running Wasm container and returns its exit
// code: see wasm.Manager.Exec.
func (s *Service) ExecContainer(ctx context.Context, id string, cmd []string, streams wasm.Streams) (int, error) {
	if !s.ours(id) {
		return 0, status.Errorf(codes.Unimplemented, "container %q is an OCI container: commands are executed in it by the URL that Exec returns", id)
	}
	code, err := s.wasm.Exec(ctx, id, cmd, streams)
	return code, rpcError(err)
}

// DialPod connects to a port on the loopback of a pod's network, whichever
// runtime its sandbox is of.
func (s *Service) DialPod(ctx context.Context, sandboxID string, port int32) (net.Conn, error) {
	conn, err := s.wasm.Dial(ctx, sandboxID, port)
	return conn, rpcError(err)
}

// InProcess says whether a container's streams are had by function calls, and not
// by a URL of containerd's.
func (s *Service) InProcess(containerID string) bool { return s.ours(containerID) }

// SandboxInProcess says the same of a pod's ports.
func (s *Service) SandboxInProcess(id string) bool { return s.oci == nil || s.wasm.HasSandbox(id) }

// Attachable says whether AttachContainer would begin now.
func (s *Service) Attachable(containerID string) error {
	return rpcError(s.wasm.Attachable(containerID))
}

// Executable says whether ExecContainer would begin now. With a terminal it never
// does: WASI has none.
func (s *Service) Executable(containerID string, cmd []string, tty bool) error {
	if tty {
		return status.Errorf(codes.Unimplemented, "container %q is a Wasm container: WASI has no terminal, execute without one (tty: false)", containerID)
	}
	return rpcError(s.wasm.Executable(containerID, cmd))
}

// SandboxReady says whether DialPod would begin now, for a sandbox in this process.
func (s *Service) SandboxReady(id string) error { return rpcError(s.wasm.SandboxReady(id)) }

// endpoint is a Service for clients outside this process: what needs a URL is
// answered with one.
type endpoint struct {
	*Service
	streams Streams
}

// Attach returns the URL of a Wasm container's streams, or containerd's.
func (e endpoint) Attach(ctx context.Context, req *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	if !e.ours(req.GetContainerId()) {
		return e.Service.Attach(ctx, req)
	}
	if err := e.Attachable(req.GetContainerId()); err != nil {
		return nil, err
	}
	return e.streams.GetAttach(req)
}

// Exec returns the URL of a command in a Wasm container, or containerd's.
func (e endpoint) Exec(ctx context.Context, req *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	if !e.ours(req.GetContainerId()) {
		return e.Service.Exec(ctx, req)
	}
	if err := e.Executable(req.GetContainerId(), req.GetCmd(), req.GetTty()); err != nil {
		return nil, err
	}
	return e.streams.GetExec(req)
}

// PortForward returns the URL of a Wasm pod's streams, or containerd's.
func (e endpoint) PortForward(ctx context.Context, req *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	if !e.SandboxInProcess(req.GetPodSandboxId()) {
		return e.Service.PortForward(ctx, req)
	}
	if err := e.SandboxReady(req.GetPodSandboxId()); err != nil {
		return nil, err
	}
	return e.streams.GetPortForward(req)
}
