package crishim

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/crishim/images"
)

const noContainerd = "there is no containerd here, so no OCI containers: install containerd, start this program as root and name its socket (--containerd)"

// RunPodSandbox makes a Wasm sandbox or has containerd make one.
func (s *Service) RunPodSandbox(ctx context.Context, req *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	kind := images.KindOCI
	if req.GetRuntimeHandler() == images.HandlerWasm {
		kind = images.KindWasm
	}
	switch v := req.GetConfig().GetAnnotations()[AnnotationSandbox]; images.Kind(v) {
	case images.KindWasm, images.KindOCI:
		kind = images.Kind(v)
	case "":
	default:
		return nil, status.Errorf(codes.InvalidArgument, "pod sandbox %s: annotation %s: %q is neither %q nor %q",
			req.GetConfig().GetMetadata().GetName(), AnnotationSandbox, v, images.KindWasm, images.KindOCI)
	}
	if kind == images.KindWasm {
		id, err := s.wasm.RunPodSandbox(ctx, req)
		if err != nil {
			return nil, rpcError(err)
		}
		return &runtimeapi.RunPodSandboxResponse{PodSandboxId: id}, nil
	}
	if s.oci == nil {
		return nil, status.Errorf(codes.FailedPrecondition, "pod sandbox %s/%s: %s",
			req.GetConfig().GetMetadata().GetNamespace(), req.GetConfig().GetMetadata().GetName(), noContainerd)
	}
	if md := req.GetConfig().GetMetadata(); md.GetName() == "" || md.GetUid() == "" {
		return nil, status.Error(codes.InvalidArgument, "pod sandbox: config.metadata needs name and uid")
	}
	if req.GetRuntimeHandler() == images.HandlerWasm {
		// A mixed pod with RuntimeClass wasm: containerd has no such handler.
		req = &runtimeapi.RunPodSandboxRequest{Config: req.GetConfig()}
	}
	resp, err := s.oci.RunPodSandbox(ctx, req)
	if err == nil {
		s.last.ranSandbox(resp.GetPodSandboxId(), req)
	}
	return resp, err
}

// StopPodSandbox stops a pod's Wasm containers and its sandbox, whosever it is.
func (s *Service) StopPodSandbox(ctx context.Context, req *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	id := req.GetPodSandboxId()
	if s.wasm.HasSandbox(id) {
		return &runtimeapi.StopPodSandboxResponse{}, ignoreNotFound(s.wasm.StopPodSandbox(ctx, id))
	}
	id = s.fullSandboxID(ctx, id)
	if err := s.wasm.StopContainersOf(ctx, id); err != nil {
		return nil, rpcError(err)
	}
	if s.oci == nil {
		return &runtimeapi.StopPodSandboxResponse{}, nil
	}
	resp, err := s.oci.StopPodSandbox(ctx, req)
	if err == nil {
		s.last.sandboxIs(id, runtimeapi.PodSandboxState_SANDBOX_NOTREADY)
	}
	return resp, err
}

// RemovePodSandbox removes a pod's Wasm containers and its sandbox.
func (s *Service) RemovePodSandbox(ctx context.Context, req *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	id := req.GetPodSandboxId()
	defer s.store.Collect()
	if s.wasm.HasSandbox(id) {
		return &runtimeapi.RemovePodSandboxResponse{}, ignoreNotFound(s.wasm.RemovePodSandbox(ctx, id))
	}
	id = s.fullSandboxID(ctx, id)
	if err := s.wasm.RemoveContainersOf(ctx, id); err != nil {
		return nil, rpcError(err)
	}
	if s.oci == nil {
		return &runtimeapi.RemovePodSandboxResponse{}, nil
	}
	resp, err := s.oci.RemovePodSandbox(ctx, req)
	if err == nil {
		s.last.removedSandbox(id)
		if err := s.oci.ReleaseImageVolumes(ctx, s.imageVolumes(), id); err != nil {
			s.log.Warn("image volumes of a removed pod sandbox are left until the next start", "sandbox", id, "err", err)
		}
	}
	return resp, err
}

// fullSandboxID makes the ID of a sandbox of containerd's of the beginning of one,
// which people type; kubelets give it in full. What can't be found stays as it is.
func (s *Service) fullSandboxID(ctx context.Context, id string) string {
	if s.oci == nil || id == "" || len(id) >= fullID {
		return id
	}
	resp, err := s.oci.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id})
	if err != nil {
		return id
	}
	return resp.GetStatus().GetId()
}

// fullID is the length of containerd's IDs and of ours.
const fullID = 64

// ignoreNotFound is for calls that the CRI wants to be repeatable.
func ignoreNotFound(err error) error {
	if err = rpcError(err); status.Code(err) == codes.NotFound {
		return nil
	}
	return err
}

// PodSandboxStatus of a Wasm sandbox, or containerd's answer, with a mixed
// pod's Wasm containers added.
func (s *Service) PodSandboxStatus(ctx context.Context, req *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	if s.wasm.HasSandbox(req.GetPodSandboxId()) {
		resp, err := s.wasm.PodSandboxStatus(req.GetPodSandboxId(), req.GetVerbose())
		return resp, rpcError(err)
	}
	if s.oci == nil {
		return nil, notFound("pod sandbox", req.GetPodSandboxId())
	}
	resp, err := s.oci.PodSandboxStatus(ctx, req)
	if err == nil && len(resp.GetContainersStatuses()) > 0 {
		resp.ContainersStatuses = append(resp.ContainersStatuses, s.wasm.StatusesOf(resp.GetStatus().GetId())...)
	}
	return resp, err
}

func notFound(what, id string) error {
	return status.Errorf(codes.NotFound, "%s %q: not found", what, id)
}

// ListPodSandbox lists both kinds; see the package's comment for what it does
// while containerd doesn't answer.
func (s *Service) ListPodSandbox(ctx context.Context, req *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	out := s.wasm.ListPodSandbox(req.GetFilter())
	if s.oci != nil {
		resp, err := s.oci.ListPodSandbox(ctx, req)
		switch {
		case err == nil:
			if emptySandboxFilter(req.GetFilter()) {
				s.last.sawSandboxes(resp.GetItems())
			}
			out = append(out, resp.GetItems()...)
		case status.Code(err) == codes.Unavailable:
			out = append(out, s.last.listSandboxes(req.GetFilter())...)
		default:
			return nil, err
		}
	}
	return &runtimeapi.ListPodSandboxResponse{Items: out}, nil
}

// PodSandboxStats of one pod.
func (s *Service) PodSandboxStats(ctx context.Context, req *runtimeapi.PodSandboxStatsRequest) (*runtimeapi.PodSandboxStatsResponse, error) {
	if s.wasm.HasSandbox(req.GetPodSandboxId()) {
		st, err := s.wasm.PodSandboxStats(req.GetPodSandboxId())
		return &runtimeapi.PodSandboxStatsResponse{Stats: st}, rpcError(err)
	}
	if s.oci == nil {
		return nil, notFound("pod sandbox", req.GetPodSandboxId())
	}
	resp, err := s.oci.PodSandboxStats(ctx, req)
	if err == nil {
		s.addWasmStats(resp.GetStats())
	}
	return resp, err
}

// addWasmStats adds a mixed pod's Wasm containers. Their CPU and memory are in
// the pod's sums already where containerd reads the pod's cgroup.
func (s *Service) addWasmStats(st *runtimeapi.PodSandboxStats) {
	if st.GetLinux() == nil {
		return
	}
	st.Linux.Containers = append(st.Linux.Containers,
		s.wasm.ListContainerStats(&runtimeapi.ContainerStatsFilter{PodSandboxId: st.GetAttributes().GetId()})...)
}

// ListPodSandboxStats of both kinds. Without an answer of containerd's it has
// Wasm pods only: numbers that are missing harm nobody.
func (s *Service) ListPodSandboxStats(ctx context.Context, req *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	out := s.wasm.ListPodSandboxStats(req.GetFilter())
	if s.oci != nil {
		resp, err := s.oci.ListPodSandboxStats(ctx, req)
		if err != nil && !hasNone(err) {
			return nil, err
		}
		for _, st := range resp.GetStats() {
			s.addWasmStats(st)
			out = append(out, st)
		}
	}
	return &runtimeapi.ListPodSandboxStatsResponse{Stats: out}, nil
}

// UpdatePodSandboxResources of a Wasm sandbox are noted, those of another are
// containerd's to note.
func (s *Service) UpdatePodSandboxResources(ctx context.Context, req *runtimeapi.UpdatePodSandboxResourcesRequest) (*runtimeapi.UpdatePodSandboxResourcesResponse, error) {
	if s.oci == nil || s.wasm.HasSandbox(req.GetPodSandboxId()) {
		return &runtimeapi.UpdatePodSandboxResourcesResponse{}, rpcError(s.wasm.UpdatePodSandboxResources(req.GetPodSandboxId(), req.GetOverhead(), req.GetResources()))
	}
	resp, err := s.oci.UpdatePodSandboxResources(ctx, req)
	if status.Code(err) == codes.Unimplemented {
		return nil, status.Errorf(codes.Unimplemented, "pod sandbox %q: this containerd is too old to be told of a pod's resources; use UpdateContainerResources for each container, or a newer containerd", req.GetPodSandboxId())
	}
	return resp, err
}
