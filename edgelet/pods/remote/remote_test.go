package remote

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/edgelet/images"
	"github.com/coracle-edge/coracle/edgelet/node"
	"github.com/coracle-edge/coracle/edgelet/pods"
	"github.com/coracle-edge/coracle/edgelet/pods/fakecri"
)

var (
	_ pods.Runtime   = (*Runtime)(nil)
	_ images.Service = (*Runtime)(nil)
	_ node.Runtime   = (*Runtime)(nil)
)

type sink struct {
	grpc.ServerStream
	ctx context.Context
	got chan *runtimeapi.ContainerEventResponse
}

func (s *sink) Context() context.Context { return s.ctx }
func (s *sink) Send(e *runtimeapi.ContainerEventResponse) error {
	s.got <- e
	return nil
}

func TestCallsAndEventsOverASocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cri.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	fake := fakecri.New()
	fake.AddImage("wasm:1", "wasm")
	server := grpc.NewServer()
	runtimeapi.RegisterRuntimeServiceServer(server, fake)
	runtimeapi.RegisterImageServiceServer(server, fake)
	go server.Serve(l)
	defer server.Stop()

	rt, err := Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	defer rt.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if v, err := rt.Version(ctx, &runtimeapi.VersionRequest{}); err != nil || v.RuntimeName != "fake" {
		t.Fatal(v, err)
	}
	if img, ok, err := images.New(images.Config{Service: rt}).Lookup(ctx, "wasm:1", ""); err != nil || !ok || img.Kind != "wasm" {
		t.Error(img, ok, err)
	}
	events := &sink{ctx: ctx, got: make(chan *runtimeapi.ContainerEventResponse, 1)}
	ended := make(chan error, 1)
	go func() { ended <- rt.GetContainerEvents(&runtimeapi.GetEventsRequest{}, events) }()
	s, err := rt.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "p", Uid: "u"}, LogDirectory: t.TempDir()}})
	if err != nil {
		t.Fatal(err)
	}
	labels := map[string]string{"io.kubernetes.pod.uid": "u"}
	c, err := rt.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: s.PodSandboxId, Config: &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "main"}, Image: &runtimeapi.ImageSpec{Image: "sha256:wasm:1"}, Labels: labels}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := rt.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: c.ContainerId}); err != nil {
		t.Fatal(err)
	}
	for fake.Subscribers() == 0 {
		if ctx.Err() != nil {
			t.Fatal("no subscription")
		}
		time.Sleep(time.Millisecond)
	}
	fake.Kill("u", "main", 1)
	select {
	case e := <-events.got:
		if e.ContainerId != c.ContainerId {
			t.Errorf("event %v", e)
		}
	case <-ctx.Done():
		t.Error("no event")
	}
	server.Stop()
	if err := <-ended; err == nil {
		t.Error("the end of the runtime was not an error")
	}
}

func TestOnlySockets(t *testing.T) {
	if _, err := Dial("tcp://10.0.0.1:1"); !errors.Is(err, ErrEndpoint) {
		t.Error(err)
	}
}
