package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func dial(socket string) (runtimeapi.RuntimeServiceClient, func() error, error) {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, nil, err
	}
	return runtimeapi.NewRuntimeServiceClient(conn), conn.Close, nil
}

// bareCalls are the three calls of CRI that start a pod, and nothing but them.
type bareCalls struct {
	runtime   runtimeapi.RuntimeServiceClient
	close     func() error
	sandbox   *runtimeapi.PodSandboxConfig
	container *runtimeapi.ContainerConfig
}

// likeThoseOf takes the calls to be the agent's own for a pod that runs, as containerd
// has them: whatever the agent asks for, the bare calls ask for, too.
func likeThoseOf(ctx context.Context, p *corev1.Pod, socket string) (_ *bareCalls, err error) {
	c := &bareCalls{sandbox: new(runtimeapi.PodSandboxConfig), container: new(runtimeapi.ContainerConfig)}
	if c.runtime, c.close, err = dial(socket); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.close())
		}
	}()
	of := map[string]string{"io.kubernetes.pod.uid": string(p.UID)}
	sandboxes, err := c.runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{LabelSelector: of}})
	if err != nil {
		return nil, err
	}
	containers, err := c.runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{LabelSelector: of}})
	if err != nil {
		return nil, err
	}
	if len(sandboxes.GetItems()) != 1 || len(containers.GetContainers()) != 1 {
		return nil, fmt.Errorf("pod %s has %d sandboxes and %d containers", p.Name, len(sandboxes.GetItems()), len(containers.GetContainers()))
	}
	sandbox, err := c.runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: sandboxes.GetItems()[0].GetId(), Verbose: true})
	if err != nil {
		return nil, err
	}
	container, err := c.runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: containers.GetContainers()[0].GetId(), Verbose: true})
	if err != nil {
		return nil, err
	}
	if err := errors.Join(configOf(sandbox.GetInfo(), c.sandbox), configOf(container.GetInfo(), c.container)); err != nil {
		return nil, fmt.Errorf("what containerd was asked for pod %s: %w", p.Name, err)
	}
	return c, nil
}

// configOf is what a sandbox or container was made from (containerd's verbose status).
func configOf(info map[string]string, out any) error {
	var verbose struct{ Config json.RawMessage }
	if err := json.Unmarshal([]byte(info["info"]), &verbose); err != nil {
		return err
	}
	return json.Unmarshal(verbose.Config, out)
}

// once starts such a pod, removes it, and says how long the former took.
func (c *bareCalls) once(ctx context.Context, name string) (time.Duration, error) {
	sandbox := proto.CloneOf(c.sandbox)
	container := proto.CloneOf(c.container)
	// Beside those of the agent's pods, and none that the agent knows.
	sandbox.Linux.CgroupParent = path.Join(path.Dir(sandbox.Linux.CgroupParent), name)
	sandbox.Metadata.Name, sandbox.Metadata.Uid, sandbox.Labels, container.Labels = name, name, nil, nil
	begin := time.Now()
	made, err := c.runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: sandbox})
	if err != nil {
		return 0, err
	}
	in, err := c.runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: made.GetPodSandboxId(), SandboxConfig: sandbox, Config: container})
	if err == nil {
		_, err = c.runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: in.GetContainerId()})
	}
	took := time.Since(begin)
	_, rmErr := c.runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: made.GetPodSandboxId()})
	return took, errors.Join(err, rmErr)
}

// removeSandboxes takes away what an agent has left.
func removeSandboxes(ctx context.Context, socket string) (err error) {
	c, done, err := dial(socket)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	list, err := c.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	for _, s := range list.GetItems() {
		_, rmErr := c.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: s.GetId()})
		err = errors.Join(err, rmErr)
	}
	return err
}
