package oci

import (
	"context"
	"time"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/task"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// RemovePodSandbox has containerd remove a sandbox, and first, where that is
// refused, what runs in it without containerd's CRI knowing. Afterwards it looks
// whether the sandbox's own process is gone: containerd forgets it where the
// caller of RunPodSandbox died at the wrong moment.
func (c *Client) RemovePodSandbox(ctx context.Context, req *runtimeapi.RemovePodSandboxRequest, opts ...grpc.CallOption) (*runtimeapi.RemovePodSandboxResponse, error) {
	resp, err := c.RuntimeServiceClient.RemovePodSandbox(ctx, req, opts...)
	if c.endStrays(ctx, err, &runtimeapi.ContainerFilter{PodSandboxId: req.GetPodSandboxId()}) {
		resp, err = c.RuntimeServiceClient.RemovePodSandbox(ctx, req, opts...)
	}
	if err == nil && c.endTask(ctx, req.GetPodSandboxId()) {
		_, derr := containersapi.NewContainersClient(c.conn).Delete(inNamespace(ctx, ""), &containersapi.DeleteContainerRequest{ID: req.GetPodSandboxId()})
		if derr != nil && status.Code(derr) != codes.NotFound {
			c.log.Warn("containerd keeps the container of a removed pod sandbox", "sandbox", req.GetPodSandboxId(), "err", derr)
		}
	}
	return resp, err
}

// RemoveContainer is the same for a container.
func (c *Client) RemoveContainer(ctx context.Context, req *runtimeapi.RemoveContainerRequest, opts ...grpc.CallOption) (*runtimeapi.RemoveContainerResponse, error) {
	resp, err := c.RuntimeServiceClient.RemoveContainer(ctx, req, opts...)
	if c.endStrays(ctx, err, &runtimeapi.ContainerFilter{Id: req.GetContainerId()}) {
		return c.RuntimeServiceClient.RemoveContainer(ctx, req, opts...)
	}
	return resp, err
}

// endStrays ends tasks of containers that have exited, says the CRI. containerd
// makes them when the caller of StartContainer dies at the wrong moment, and
// then refuses for ever to remove container and pod.
func (c *Client) endStrays(ctx context.Context, refusal error, of *runtimeapi.ContainerFilter) (ended bool) {
	if status.Code(refusal) != codes.FailedPrecondition {
		return false
	}
	list, err := c.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: of})
	if err != nil {
		return false
	}
	for _, ct := range list.GetContainers() {
		if ct.GetState() == runtimeapi.ContainerState_CONTAINER_EXITED && c.endTask(ctx, ct.GetId()) {
			ended = true
		}
	}
	return ended
}

// endTask kills a container's task and deletes it; false if it has none, or it
// can't be ended.
func (c *Client) endTask(ctx context.Context, id string) bool {
	ctx, cancel := context.WithTimeout(inNamespace(ctx, ""), 10*time.Second)
	defer cancel()
	tasks := tasksapi.NewTasksClient(c.conn)
	got, err := tasks.Get(ctx, &tasksapi.GetRequest{ContainerID: id})
	if err != nil {
		return false
	}
	if got.GetProcess().GetStatus() != task.Status_STOPPED {
		if _, err := tasks.Kill(ctx, &tasksapi.KillRequest{ContainerID: id, Signal: uint32(unix.SIGKILL), All: true}); err != nil && status.Code(err) != codes.NotFound {
			c.log.Warn("a stray task of containerd can't be killed", "container", id, "err", err)
			return false
		}
	}
	for wait := 5 * time.Millisecond; ; wait *= 2 {
		_, err := tasks.Delete(ctx, &tasksapi.DeleteTaskRequest{ContainerID: id})
		if err == nil || status.Code(err) == codes.NotFound {
			c.log.Info("ended a stray task of containerd", "container", id)
			return true
		}
		select {
		case <-ctx.Done():
			c.log.Warn("a stray task of containerd can't be deleted", "container", id, "err", err)
			return false
		case <-time.After(wait):
		}
	}
}
