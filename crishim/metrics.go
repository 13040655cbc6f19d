package crishim

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/crishim/wasm"
)

// hasNone says of an error of containerd's that it has no numbers: it doesn't
// answer, or is too old to know the call. Those of Wasm pods are given then:
// numbers that are missing harm nobody.
func hasNone(err error) bool {
	c := status.Code(err)
	return c == codes.Unavailable || c == codes.Unimplemented
}

// ListMetricDescriptors of both kinds. Names that both know mean the same.
func (s *Service) ListMetricDescriptors(ctx context.Context, req *runtimeapi.ListMetricDescriptorsRequest) (*runtimeapi.ListMetricDescriptorsResponse, error) {
	out := &runtimeapi.ListMetricDescriptorsResponse{}
	known := map[string]bool{}
	if s.oci != nil {
		resp, err := s.oci.ListMetricDescriptors(ctx, req)
		if err != nil && !hasNone(err) {
			return nil, err
		}
		for _, d := range resp.GetDescriptors() {
			known[d.GetName()] = true
			out.Descriptors = append(out.Descriptors, d)
		}
	}
	for _, d := range wasm.MetricDescriptors() {
		if !known[d.GetName()] {
			out.Descriptors = append(out.Descriptors, d)
		}
	}
	return out, nil
}

// ListPodSandboxMetrics of both kinds; a mixed pod's Wasm containers are in its
// entry, also if containerd gives none.
func (s *Service) ListPodSandboxMetrics(ctx context.Context, req *runtimeapi.ListPodSandboxMetricsRequest) (*runtimeapi.ListPodSandboxMetricsResponse, error) {
	out := s.wasm.ListPodSandboxMetrics()
	if s.oci == nil {
		return &runtimeapi.ListPodSandboxMetricsResponse{PodMetrics: out}, nil
	}
	resp, err := s.oci.ListPodSandboxMetrics(ctx, req)
	if err != nil && !hasNone(err) {
		return nil, err
	}
	of := map[string]*runtimeapi.PodSandboxMetrics{}
	for _, p := range resp.GetPodMetrics() {
		of[p.GetPodSandboxId()] = p
		out = append(out, p)
	}
	for _, sb := range s.last.listSandboxes(nil) {
		if !s.wasm.HasContainersOf(sb.GetId()) {
			continue
		}
		p := of[sb.GetId()]
		if p == nil {
			p = &runtimeapi.PodSandboxMetrics{PodSandboxId: sb.GetId()}
			out = append(out, p)
		}
		p.ContainerMetrics = append(p.ContainerMetrics, s.wasm.ContainerMetricsOf(sb.GetId(), sb.GetMetadata())...)
	}
	return &runtimeapi.ListPodSandboxMetricsResponse{PodMetrics: out}, nil
}

// StreamPodSandboxMetrics is ListPodSandboxMetrics for lists larger than a message.
func (s *Service) StreamPodSandboxMetrics(_ *runtimeapi.StreamPodSandboxMetricsRequest, stream grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxMetricsResponse]) error {
	resp, err := s.ListPodSandboxMetrics(stream.Context(), &runtimeapi.ListPodSandboxMetricsRequest{})
	return sendAll(resp.GetPodMetrics(), err, func(part []*runtimeapi.PodSandboxMetrics) error {
		return stream.Send(&runtimeapi.StreamPodSandboxMetricsResponse{PodSandboxMetrics: part})
	})
}
