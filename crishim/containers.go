package crishim

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/crishim/cdi"
)

// CreateContainer makes a Wasm container if the image is Wasm, in a sandbox of
// either kind.
func (s *Service) CreateContainer(ctx context.Context, req *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	image := req.GetConfig().GetImage().GetImage()
	_, err := s.store.Lookup(image)
	isWasm := err == nil
	switch {
	case isWasm:
		if err := s.applyCDI(ctx, req.GetConfig(), true); err != nil {
			return nil, err
		}
		id, err := s.wasm.CreateContainer(ctx, req)
		if err != nil {
			return nil, rpcError(err)
		}
		return &runtimeapi.CreateContainerResponse{ContainerId: id}, nil
	case s.wasm.HasSandbox(req.GetPodSandboxId()):
		return nil, status.Errorf(codes.FailedPrecondition,
			"container %q: image %q is not a Wasm image of this node, and its pod sandbox is Wasm only: it has no process whose namespaces an OCI container could join. Put the container into a pod that has an OCI container from the beginning",
			req.GetConfig().GetMetadata().GetName(), image)
	case s.oci == nil:
		return nil, notFound("pod sandbox", req.GetPodSandboxId())
	}
	if err := wholeCreate(req); err != nil {
		return nil, err
	}
	if err := s.applyCDI(ctx, req.GetConfig(), false); err != nil {
		return nil, err
	}
	if err := s.oci.PlaceImageVolumes(ctx, s.imageVolumes(), req.GetPodSandboxId(), req.GetConfig()); err != nil {
		return nil, rpcError(fmt.Errorf("container %q: %w", req.GetConfig().GetMetadata().GetName(), err))
	}
	resp, err := s.oci.CreateContainer(ctx, req)
	if err == nil {
		s.last.createdContainer(resp.GetContainerId(), req)
	}
	return resp, err
}

// applyCDI puts the CDI devices of a container into its configuration, unless its
// runtime does it.
func (s *Service) applyCDI(ctx context.Context, cfg *runtimeapi.ContainerConfig, isWasm bool) error {
	if len(cfg.GetCDIDevices()) == 0 {
		return nil
	}
	if !isWasm {
		theirs, err := s.askContainerd(ctx, true)
		if err != nil {
			return err
		}
		if parsePluginConfig(theirs.GetInfo()["config"]).EnableCDI {
			return nil
		}
	}
	if err := cdi.Apply(cfg, s.cfg.CDIDirs, isWasm); err != nil {
		return status.Errorf(codes.FailedPrecondition, "container %q: %s", cfg.GetMetadata().GetName(), err)
	}
	return nil
}

// imageVolumes is where images are to be seen that are volumes of OCI containers.
func (s *Service) imageVolumes() string { return filepath.Join(s.cfg.StateDir, "image-volumes") }

// wholeCreate refuses what containerd would die of: 1.6 follows pointers that
// aren't there. Later versions say the same as this does.
func wholeCreate(req *runtimeapi.CreateContainerRequest) error {
	for _, f := range []struct {
		missing bool
		field   string
	}{
		{req.GetConfig().GetMetadata().GetName() == "", "config.metadata.name"},
		{req.GetConfig().GetImage().GetImage() == "", "config.image.image"},
		{req.GetSandboxConfig().GetMetadata() == nil, "sandbox_config.metadata (it is what RunPodSandbox was given)"},
	} {
		if f.missing {
			return status.Errorf(codes.InvalidArgument, "container %q in pod sandbox %q: %s is missing", req.GetConfig().GetMetadata().GetName(), req.GetPodSandboxId(), f.field)
		}
	}
	return nil
}

// StartContainer starts a created container.
func (s *Service) StartContainer(ctx context.Context, req *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	if s.ours(req.GetContainerId()) {
		return &runtimeapi.StartContainerResponse{}, rpcError(s.wasm.StartContainer(ctx, req.GetContainerId()))
	}
	resp, err := s.oci.StartContainer(ctx, req)
	if err == nil {
		s.last.containerIs(req.GetContainerId(), runtimeapi.ContainerState_CONTAINER_RUNNING)
	}
	return resp, err
}

// ours says whether a container is to be looked for among the Wasm ones:
// always, if there is no containerd.
func (s *Service) ours(id string) bool { return s.oci == nil || s.wasm.HasContainer(id) }

// StopContainer ends a container within its grace period (seconds).
func (s *Service) StopContainer(ctx context.Context, req *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	if s.ours(req.GetContainerId()) {
		grace := time.Duration(req.GetTimeout()) * time.Second
		return &runtimeapi.StopContainerResponse{}, ignoreNotFound(s.wasm.StopContainer(ctx, req.GetContainerId(), grace))
	}
	resp, err := s.oci.StopContainer(ctx, req)
	if err == nil {
		s.last.containerIs(req.GetContainerId(), runtimeapi.ContainerState_CONTAINER_EXITED)
	}
	return resp, err
}

// RemoveContainer removes a container, killing it if it runs.
func (s *Service) RemoveContainer(ctx context.Context, req *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	if s.ours(req.GetContainerId()) {
		err := s.wasm.RemoveContainer(ctx, req.GetContainerId())
		s.store.Collect()
		return &runtimeapi.RemoveContainerResponse{}, ignoreNotFound(err)
	}
	resp, err := s.oci.RemoveContainer(ctx, req)
	if err == nil {
		s.last.removedContainer(req.GetContainerId())
	}
	return resp, err
}

// ListContainers lists both kinds; see the package's comment for what it does
// while containerd doesn't answer.
func (s *Service) ListContainers(ctx context.Context, req *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	out := s.wasm.ListContainers(req.GetFilter())
	if s.oci != nil {
		resp, err := s.oci.ListContainers(ctx, req)
		switch {
		case err == nil:
			if emptyContainerFilter(req.GetFilter()) {
				s.last.sawContainers(resp.GetContainers())
			}
			out = append(out, resp.GetContainers()...)
		case status.Code(err) == codes.Unavailable:
			out = append(out, s.last.listContainers(req.GetFilter())...)
		default:
			return nil, err
		}
	}
	return &runtimeapi.ListContainersResponse{Containers: out}, nil
}

// ContainerStatus of one container.
func (s *Service) ContainerStatus(ctx context.Context, req *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	if s.ours(req.GetContainerId()) {
		resp, err := s.wasm.ContainerStatus(req.GetContainerId(), req.GetVerbose())
		return resp, rpcError(err)
	}
	return s.oci.ContainerStatus(ctx, req)
}

// UpdateContainerResources changes a container's limits.
func (s *Service) UpdateContainerResources(ctx context.Context, req *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	if s.ours(req.GetContainerId()) {
		return &runtimeapi.UpdateContainerResourcesResponse{}, rpcError(s.wasm.UpdateContainerResources(req))
	}
	return s.oci.UpdateContainerResources(ctx, req)
}

// ReopenContainerLog is called after the kubelet renamed a log.
func (s *Service) ReopenContainerLog(ctx context.Context, req *runtimeapi.ReopenContainerLogRequest) (*runtimeapi.ReopenContainerLogResponse, error) {
	if s.ours(req.GetContainerId()) {
		return &runtimeapi.ReopenContainerLogResponse{}, rpcError(s.wasm.ReopenContainerLog(req.GetContainerId()))
	}
	return s.oci.ReopenContainerLog(ctx, req)
}

// ContainerStats of one running container.
func (s *Service) ContainerStats(ctx context.Context, req *runtimeapi.ContainerStatsRequest) (*runtimeapi.ContainerStatsResponse, error) {
	if s.ours(req.GetContainerId()) {
		st, err := s.wasm.ContainerStats(req.GetContainerId())
		return &runtimeapi.ContainerStatsResponse{Stats: st}, rpcError(err)
	}
	return s.oci.ContainerStats(ctx, req)
}

// ListContainerStats of both kinds; without an answer of containerd's of Wasm
// containers only.
func (s *Service) ListContainerStats(ctx context.Context, req *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	out := s.wasm.ListContainerStats(req.GetFilter())
	if s.oci != nil {
		resp, err := s.oci.ListContainerStats(ctx, req)
		if err != nil && !hasNone(err) {
			return nil, err
		}
		out = append(out, resp.GetStats()...)
	}
	return &runtimeapi.ListContainerStatsResponse{Stats: out}, nil
}

// ExecSync runs a command. In a Wasm container it is a module of its image.
func (s *Service) ExecSync(ctx context.Context, req *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	if !s.ours(req.GetContainerId()) {
		return s.oci.ExecSync(ctx, req)
	}
	stdout, stderr, code, err := s.wasm.ExecSync(ctx, req.GetContainerId(), req.GetCmd(), time.Duration(req.GetTimeout())*time.Second)
	if err != nil {
		return nil, rpcError(err)
	}
	return &runtimeapi.ExecSyncResponse{Stdout: stdout, Stderr: stderr, ExitCode: int32(code)}, nil
}

// Exec returns containerd's streaming URL. For Wasm containers there is one when
// the Service is served by gRPC: see Streams.
func (s *Service) Exec(ctx context.Context, req *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	if err := s.refuse(req.GetContainerId(), "container %q is a Wasm container: in this process there is no URL to execute something in it, call ExecContainer"); err != nil {
		return nil, err
	}
	return s.oci.Exec(ctx, req)
}

// Attach returns containerd's streaming URL. For Wasm containers there is one
// when the Service is served by gRPC: see Streams.
func (s *Service) Attach(ctx context.Context, req *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	if err := s.refuse(req.GetContainerId(), "container %q is a Wasm container: in this process there is no URL to attach to it, call AttachContainer"); err != nil {
		return nil, err
	}
	return s.oci.Attach(ctx, req)
}

// PortForward returns containerd's streaming URL, as Attach does.
func (s *Service) PortForward(ctx context.Context, req *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	if s.wasm.HasSandbox(req.GetPodSandboxId()) {
		return nil, status.Errorf(codes.Unimplemented, "pod sandbox %q is Wasm only: in this process there is no URL for its ports, call DialPod", req.GetPodSandboxId())
	}
	if s.oci == nil {
		return nil, notFound("pod sandbox", req.GetPodSandboxId())
	}
	return s.oci.PortForward(ctx, req)
}

func (s *Service) refuse(id, why string) error {
	if s.wasm.HasContainer(id) {
		return status.Errorf(codes.Unimplemented, why, id)
	}
	if s.oci == nil {
		return notFound("container", id)
	}
	return nil
}

// CheckpointContainer is containerd's to do, for its own containers.
func (s *Service) CheckpointContainer(ctx context.Context, req *runtimeapi.CheckpointContainerRequest) (*runtimeapi.CheckpointContainerResponse, error) {
	if err := s.refuse(req.GetContainerId(), "container %q is a Wasm container: its state can't be saved, start a new one"); err != nil {
		return nil, err
	}
	resp, err := s.oci.CheckpointContainer(ctx, req)
	if status.Code(err) == codes.Unimplemented {
		return nil, status.Errorf(codes.Unimplemented, "container %q: containerd here can't save a container's state: use containerd 2 with CRIU, or start a new container", req.GetContainerId())
	}
	return resp, err
}
