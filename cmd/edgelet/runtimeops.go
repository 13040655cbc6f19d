package main

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/edgelet/metrics"
)

// countedRuntime counts the calls that the life of pods makes, as a kubelet does
// (upstream: pkg/kubelet/kuberuntime/instrumented_services.go). Streams and figures,
// which somebody asked for, go to the runtime itself.
type countedRuntime struct {
	containerRuntime
	ops *operations
}

// operations are calls by their kind, of which there are as many as methods below.
type operations struct {
	mu sync.Mutex
	of map[string]*operation
}

type operation struct {
	errors  uint64
	seconds *metrics.Histogram
}

func newOperations() *operations { return &operations{of: map[string]*operation{}} }

func (o *operations) add(kind string, took time.Duration, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	one := o.of[kind]
	if one == nil {
		// Upstream's buckets (pkg/kubelet/metrics).
		one = &operation{seconds: metrics.NewHistogram(metrics.ExponentialBounds(.005, 2.5, 14)...)}
		o.of[kind] = one
	}
	one.seconds.Observe(took.Seconds())
	if err != nil {
		one.errors++
	}
}

// fill writes them.
func (o *operations) fill(p *metrics.Page) {
	o.mu.Lock()
	of := make(map[string]operation, len(o.of))
	for kind, one := range o.of {
		of[kind] = *one
	}
	o.mu.Unlock()
	kinds := slices.Sorted(maps.Keys(of))
	counter := func(name, help string, n func(operation) uint64) {
		p.Counter(name, help)
		for _, kind := range kinds {
			if v := n(of[kind]); v > 0 {
				p.Sample(name, float64(v), "operation_type", kind)
			}
		}
	}
	counter("kubelet_runtime_operations_total", "[ALPHA] Cumulative number of runtime operations by operation type.", func(o operation) uint64 { return o.seconds.Count() })
	counter("kubelet_runtime_operations_errors_total", "[ALPHA] Cumulative number of runtime operation errors by operation type.", func(o operation) uint64 { return o.errors })
	const name = "kubelet_runtime_operations_duration_seconds"
	p.Histogram(name, "[ALPHA] Duration in seconds of runtime operations. Broken down by operation type.")
	for _, kind := range kinds {
		of[kind].seconds.Fill(p, name, "operation_type", kind)
	}
}

// counted makes a call and counts it.
func counted[Q, A any](ctx context.Context, o *operations, kind string, call func(context.Context, Q) (A, error), q Q) (A, error) {
	began := time.Now()
	a, err := call(ctx, q)
	o.add(kind, time.Since(began), err)
	return a, err
}

func (r countedRuntime) RunPodSandbox(ctx context.Context, q *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	return counted(ctx, r.ops, "run_podsandbox", r.containerRuntime.RunPodSandbox, q)
}

func (r countedRuntime) StopPodSandbox(ctx context.Context, q *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	return counted(ctx, r.ops, "stop_podsandbox", r.containerRuntime.StopPodSandbox, q)
}

func (r countedRuntime) RemovePodSandbox(ctx context.Context, q *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	return counted(ctx, r.ops, "remove_podsandbox", r.containerRuntime.RemovePodSandbox, q)
}

func (r countedRuntime) PodSandboxStatus(ctx context.Context, q *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	return counted(ctx, r.ops, "podsandbox_status", r.containerRuntime.PodSandboxStatus, q)
}

func (r countedRuntime) ListPodSandbox(ctx context.Context, q *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	return counted(ctx, r.ops, "list_podsandbox", r.containerRuntime.ListPodSandbox, q)
}

func (r countedRuntime) CreateContainer(ctx context.Context, q *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	return counted(ctx, r.ops, "create_container", r.containerRuntime.CreateContainer, q)
}

func (r countedRuntime) StartContainer(ctx context.Context, q *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	return counted(ctx, r.ops, "start_container", r.containerRuntime.StartContainer, q)
}

func (r countedRuntime) StopContainer(ctx context.Context, q *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	return counted(ctx, r.ops, "stop_container", r.containerRuntime.StopContainer, q)
}

func (r countedRuntime) RemoveContainer(ctx context.Context, q *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	return counted(ctx, r.ops, "remove_container", r.containerRuntime.RemoveContainer, q)
}

func (r countedRuntime) ListContainers(ctx context.Context, q *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	return counted(ctx, r.ops, "list_containers", r.containerRuntime.ListContainers, q)
}

func (r countedRuntime) ContainerStatus(ctx context.Context, q *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	return counted(ctx, r.ops, "container_status", r.containerRuntime.ContainerStatus, q)
}

func (r countedRuntime) UpdateContainerResources(ctx context.Context, q *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	return counted(ctx, r.ops, "update_container", r.containerRuntime.UpdateContainerResources, q)
}

func (r countedRuntime) ExecSync(ctx context.Context, q *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	return counted(ctx, r.ops, "exec_sync", r.containerRuntime.ExecSync, q)
}

func (r countedRuntime) PullImage(ctx context.Context, q *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	return counted(ctx, r.ops, "pull_image", r.containerRuntime.PullImage, q)
}

func (r countedRuntime) ImageStatus(ctx context.Context, q *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	return counted(ctx, r.ops, "image_status", r.containerRuntime.ImageStatus, q)
}

func (r countedRuntime) Status(ctx context.Context, q *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	return counted(ctx, r.ops, "status", r.containerRuntime.Status, q)
}

func (r countedRuntime) Version(ctx context.Context, q *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return counted(ctx, r.ops, "version", r.containerRuntime.Version, q)
}
