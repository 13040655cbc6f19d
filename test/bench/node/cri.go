package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func dial(socket string) (runtimeapi.RuntimeServiceClient, func() error, error) {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, nil, err
	}
	return runtimeapi.NewRuntimeServiceClient(conn), conn.Close, nil
}

// bareCalls is how long a pod takes by nothing but the three calls of CRI that
// start it, of the same containerd and with the same network.
func (b *bench) bareCalls(ctx context.Context, s *subject, socket string) (err error) {
	c, done, err := dial(socket)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	if err := b.importSocket(ctx, socket); err != nil {
		return err
	}
	var took []time.Duration
	for i := range b.starts + 1 { // the first one unpacks the image
		name := fmt.Sprintf("bare-%d", i)
		cfg := &runtimeapi.PodSandboxConfig{
			Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "default", Uid: name}, LogDirectory: filepath.Join(b.dir, "bare", name), Hostname: name,
			Linux: &runtimeapi.LinuxPodSandboxConfig{CgroupParent: string(s.pods) + "/" + name, SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{}}},
		}
		begin := time.Now()
		sandbox, err := c.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: cfg})
		if err != nil {
			return err
		}
		id := sandbox.GetPodSandboxId()
		container, err := c.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: id, SandboxConfig: cfg, Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "main"}, Image: &runtimeapi.ImageSpec{Image: programImage}, LogPath: "main.log",
			Envs: []*runtimeapi.KeyValue{{Key: "PORT", Value: []byte("8080")}}, Linux: &runtimeapi.LinuxContainerConfig{},
		}})
		if err != nil {
			return err
		}
		if _, err := c.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: container.GetContainerId()}); err != nil {
			return err
		}
		if i > 0 {
			took = append(took, time.Since(begin))
		}
		if _, err := c.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
			return err
		}
	}
	b.bare = took
	return nil
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
