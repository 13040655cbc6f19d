package crishim

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/crishim/images"
	"github.com/coracle-edge/coracle/crishim/wasm"
)

// ConditionOCI is the condition of Status that says whether OCI containers can
// be run. Kubelets ignore conditions they don't know.
const ConditionOCI = "coracle.dev/OCIReady"

// askTimeout bounds what Status waits for containerd.
const askTimeout = time.Second

// Version of this runtime.
func (s *Service) Version(ctx context.Context, req *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	v := s.cfg.Version
	if v == "" {
		v = "0.0.0"
	}
	return &runtimeapi.VersionResponse{Version: "0.1.0", RuntimeName: RuntimeName, RuntimeVersion: v, RuntimeApiVersion: "v1"}, nil
}

// Status is ready whether or not containerd answers: a condition of its own
// says so.
func (s *Service) Status(ctx context.Context, req *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	network := &runtimeapi.RuntimeCondition{Type: runtimeapi.NetworkReady, Status: true}
	if !s.wasm.NetworkConfigured() {
		network.Reason, network.Message = "HostNetwork", "there is no CNI configuration: Wasm pods use the host's network"
	}
	out := &runtimeapi.StatusResponse{
		Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
			{Type: runtimeapi.RuntimeReady, Status: true}, network, s.ociCondition(ctx),
		}},
		RuntimeHandlers: []*runtimeapi.RuntimeHandler{
			{Name: "", Features: &runtimeapi.RuntimeHandlerFeatures{}},
			{Name: images.HandlerWasm, Features: &runtimeapi.RuntimeHandlerFeatures{}},
		},
		Features: &runtimeapi.RuntimeFeatures{SupplementalGroupsPolicy: false},
	}
	if s.oci != nil {
		ctx, cancel := context.WithTimeout(ctx, askTimeout)
		defer cancel()
		resp, err := s.oci.Status(ctx, &runtimeapi.StatusRequest{Verbose: req.GetVerbose()})
		if err == nil {
			for _, h := range resp.GetRuntimeHandlers() {
				if h.GetName() == "" {
					out.RuntimeHandlers[0] = h
				} else if h.GetName() != images.HandlerWasm {
					out.RuntimeHandlers = append(out.RuntimeHandlers, h)
				}
			}
			if req.GetVerbose() {
				out.Info = map[string]string{"containerd": wasm.JSON(resp.GetInfo())}
			}
		}
	}
	if req.GetVerbose() {
		if out.Info == nil {
			out.Info = map[string]string{}
		}
		out.Info["pulls"] = wasm.JSON(s.store.Pulls())
		out.Info["config"] = wasm.JSON(map[string]any{
			"stateDir": s.cfg.StateDir, "containerd": s.cfg.ContainerdSocket, "cniConfDir": s.cfg.CNIConfDir, "registryHosts": s.cfg.RegistryHosts,
		})
	}
	return out, nil
}

// OCIReady says whether OCI containers can be run; if not, a sentence says why.
func (s *Service) OCIReady(ctx context.Context) (bool, string) {
	c := s.ociCondition(ctx)
	return c.GetStatus(), c.GetMessage()
}

func (s *Service) ociCondition(ctx context.Context) *runtimeapi.RuntimeCondition {
	c := &runtimeapi.RuntimeCondition{Type: ConditionOCI}
	if s.oci == nil {
		c.Reason, c.Message = "NoContainerd", noContainerd
		return c
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	resp, err := s.oci.Status(ctx, &runtimeapi.StatusRequest{})
	if err != nil {
		c.Reason, c.Message = "ContainerdUnavailable", status.Convert(err).Message()
		return c
	}
	for _, cond := range resp.GetStatus().GetConditions() {
		if !cond.GetStatus() {
			c.Reason, c.Message = cond.GetReason(), "containerd: "+cond.GetType()+" is false: "+cond.GetMessage()
			return c
		}
	}
	c.Status = true
	return c
}

// RuntimeConfig says which cgroup driver is used: containerd's, so that the
// pods of both kinds lie in one tree; else cgroupfs.
func (s *Service) RuntimeConfig(ctx context.Context, req *runtimeapi.RuntimeConfigRequest) (*runtimeapi.RuntimeConfigResponse, error) {
	if s.oci != nil {
		ctx, cancel := context.WithTimeout(ctx, askTimeout)
		defer cancel()
		if resp, err := s.oci.RuntimeConfig(ctx, req); err == nil {
			return resp, nil
		}
	}
	return &runtimeapi.RuntimeConfigResponse{Linux: &runtimeapi.LinuxRuntimeConfiguration{CgroupDriver: runtimeapi.CgroupDriver_CGROUPFS}}, nil
}

// UpdateRuntimeConfig tells containerd the node's pod CIDR; nothing here needs
// it.
func (s *Service) UpdateRuntimeConfig(ctx context.Context, req *runtimeapi.UpdateRuntimeConfigRequest) (*runtimeapi.UpdateRuntimeConfigResponse, error) {
	if s.oci != nil {
		resp, err := s.oci.UpdateRuntimeConfig(ctx, req)
		if status.Code(err) != codes.Unavailable {
			return resp, err
		}
	}
	return &runtimeapi.UpdateRuntimeConfigResponse{}, nil
}

// ListMetricDescriptors is not there yet.
func (s *Service) ListMetricDescriptors(context.Context, *runtimeapi.ListMetricDescriptorsRequest) (*runtimeapi.ListMetricDescriptorsResponse, error) {
	return nil, status.Error(codes.Unimplemented, "metric descriptors are not there yet: use ListPodSandboxStats")
}

// ListPodSandboxMetrics is not there yet.
func (s *Service) ListPodSandboxMetrics(context.Context, *runtimeapi.ListPodSandboxMetricsRequest) (*runtimeapi.ListPodSandboxMetricsResponse, error) {
	return nil, status.Error(codes.Unimplemented, "pod sandbox metrics are not there yet: use ListPodSandboxStats")
}
