package podresources

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	api "k8s.io/kubelet/pkg/apis/podresources/v1"
	alpha "k8s.io/kubelet/pkg/apis/podresources/v1alpha1"

	"github.com/coracle-edge/coracle/edgelet/affinity"
	"github.com/coracle-edge/coracle/edgelet/claims"
	"github.com/coracle-edge/coracle/edgelet/devices"
)

// board has one pod.
type board struct{ err error }

func thePod() Pod {
	return Pod{Namespace: "default", Name: "arm", Containers: []Container{
		{Name: "control", CPUs: affinity.NewSet(0, 3, 300), Memory: []affinity.Block{{Type: "memory", Bytes: 64 << 20, Nodes: 3}},
			Devices: []devices.Held{{Resource: "example.org/camera", ID: "cam-1", Nodes: 5}, {Resource: "example.org/gpio", ID: "pin"}}},
		{Name: "log", Claims: []claims.Held{{Namespace: "default", Name: "c", Devices: []claims.HeldDevice{
			{Driver: "d", Pool: "p", Device: "x", Share: "s", CDI: []string{"v/c=1", "v/c=2"}}, {Driver: "e", Pool: "p", Device: "y"}}}}}}}
}

func (b board) Pods() ([]Pod, error) { return []Pod{thePod(), {Namespace: "x", Name: "idle"}}, b.err }
func (b board) Pod(namespace, name string) (Pod, bool, error) {
	p := thePod()
	return p, namespace == p.Namespace && name == p.Name, b.err
}
func (board) Allocatable() Allocatable {
	return Allocatable{CPUs: affinity.NewSet(1, 2, 3), Memory: []affinity.Block{{Type: "memory", Bytes: 1 << 30, Nodes: 1}},
		Devices: []devices.Held{{Resource: "example.org/camera", ID: "cam-1"}}}
}

// same compares with what upstream's own messages say.
func same(t *testing.T, got, want proto.Message) {
	t.Helper()
	if !proto.Equal(got, want) {
		t.Errorf("got  %s\nwant %s", protojson.Format(got), protojson.Format(want))
	}
	if len(got.ProtoReflect().GetUnknown()) > 0 {
		t.Error("fields that the API doesn't have")
	}
}

func near(nodes ...int64) *api.TopologyInfo {
	out := &api.TopologyInfo{}
	for _, id := range nodes {
		out.Nodes = append(out.Nodes, &api.NUMANode{ID: id})
	}
	return out
}

func pod() *api.PodResources {
	share := "s"
	return &api.PodResources{Name: "arm", Namespace: "default", Containers: []*api.ContainerResources{
		{Name: "control", CpuIds: []int64{0, 3, 300}, Memory: []*api.ContainerMemory{{MemoryType: "memory", Size: 64 << 20, Topology: near(0, 1)}},
			Devices: []*api.ContainerDevices{{ResourceName: "example.org/camera", DeviceIds: []string{"cam-1"}, Topology: near(0)},
				{ResourceName: "example.org/camera", DeviceIds: []string{"cam-1"}, Topology: near(2)},
				{ResourceName: "example.org/gpio", DeviceIds: []string{"pin"}}}},
		{Name: "log", DynamicResources: []*api.DynamicResource{{ClaimName: "c", ClaimNamespace: "default", ClaimResources: []*api.ClaimResource{
			{DriverName: "d", PoolName: "p", DeviceName: "x", ShareId: &share, CdiDevices: []*api.CDIDevice{{Name: "v/c=1"}, {Name: "v/c=2"}}}, {DriverName: "e", PoolName: "p", DeviceName: "y"}}}}}}}
}

func serve(t *testing.T, source Source) (*Server, *grpc.ClientConn) {
	t.Helper()
	dir, err := os.MkdirTemp("", "pr") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{Dir: dir, Source: source, Log: slog.New(slog.DiscardHandler)}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	conn, err := grpc.NewClient("unix:"+s.Socket(), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		_ = os.RemoveAll(dir)
	})
	return s, conn
}

// Upstream's own client understands what is said.
func TestUpstreamsClient(t *testing.T) {
	s, conn := serve(t, board{})
	client := api.NewPodResourcesListerClient(conn)
	list, err := client.List(t.Context(), &api.ListPodResourcesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	same(t, list, &api.ListPodResourcesResponse{PodResources: []*api.PodResources{pod(), {Name: "idle", Namespace: "x"}}})
	got, err := client.Get(t.Context(), &api.GetPodResourcesRequest{PodName: "arm", PodNamespace: "default"})
	if err != nil {
		t.Fatal(err)
	}
	same(t, got, &api.GetPodResourcesResponse{PodResources: pod()})
	if _, err := client.Get(t.Context(), &api.GetPodResourcesRequest{PodName: "x", PodNamespace: "default"}); err == nil || !strings.Contains(err.Error(), "pod x in namespace default not found") {
		t.Error(err)
	}
	all, err := client.GetAllocatableResources(t.Context(), &api.AllocatableResourcesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	same(t, all, &api.AllocatableResourcesResponse{CpuIds: []int64{1, 2, 3}, Memory: []*api.ContainerMemory{{MemoryType: "memory", Size: 1 << 30, Topology: near(0)}},
		Devices: []*api.ContainerDevices{{ResourceName: "example.org/camera", DeviceIds: []string{"cam-1"}}}})
	old, err := alpha.NewPodResourcesListerClient(conn).List(t.Context(), &alpha.ListPodResourcesRequest{})
	if err != nil || len(old.PodResources) != 2 || old.PodResources[0].Containers[0].Devices[0].DeviceIds[0] != "cam-1" {
		t.Errorf("v1alpha1: %v, %v", old, err)
	}
	if info, err := os.Stat(s.Socket()); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v, %v", info.Mode(), err)
	}
}

func TestWhatGoesWrong(t *testing.T) {
	s, conn := serve(t, board{errors.New("unreadable order")})
	client := api.NewPodResourcesListerClient(conn)
	if _, err := client.List(t.Context(), &api.ListPodResourcesRequest{}); err == nil || !strings.Contains(err.Error(), "unreadable order") {
		t.Error(err)
	}
	err := conn.Invoke(t.Context(), "/v1.PodResourcesLister/Get", &api.ListPodResourcesResponse{PodResources: []*api.PodResources{{}}}, &api.GetPodResourcesResponse{})
	if err == nil {
		t.Error("another message is taken")
	}
	limited := false
	for range 200 {
		_, err := client.GetAllocatableResources(t.Context(), &api.AllocatableResourcesRequest{})
		limited = limited || status.Code(err) == codes.ResourceExhausted && strings.Contains(err.Error(), "rejected by rate limit")
	}
	if !limited {
		t.Error("whoever asks for ever is answered for ever")
	}
	// Beside another one it leaves the socket to it.
	var said bytes.Buffer
	other := &Server{Dir: s.Dir, Source: board{}, Log: slog.New(slog.NewTextHandler(&said, nil))}
	if _, err := other.listen(); !errors.Is(err, ErrTaken) {
		t.Error(err)
	}
}

// One that died leaves its socket.
func TestASocketThatNobodyServes(t *testing.T) {
	dir := t.TempDir()
	s := &Server{Dir: dir, Source: board{}, Log: slog.New(slog.DiscardHandler)}
	l, err := net.Listen("unix", s.Socket())
	if err != nil {
		t.Skip("the path is too long:", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	_ = l.Close()
	again, err := s.listen()
	if err != nil {
		t.Fatal(err)
	}
	_ = again.Close()
}

// Ten at once, a hundred a second.
func TestRequestsAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bucket
		taken := func() (n int) {
			for b.take(time.Now()) {
				n++
			}
			return n
		}
		got := fmt.Sprint(taken())
		time.Sleep(50 * time.Millisecond)
		got += fmt.Sprint(" ", taken())
		time.Sleep(time.Hour)
		got += fmt.Sprint(" ", taken())
		if got != "10 5 10" {
			t.Error(got)
		}
	})
}

func FuzzGet(f *testing.F) {
	raw, err := proto.Marshal(&api.GetPodResourcesRequest{PodName: "arm", PodNamespace: "default"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Fuzz(func(t *testing.T, raw []byte) {
		namespace, name, err := decodeGet(raw)
		var theirs api.GetPodResourcesRequest
		if proto.Unmarshal(raw, &theirs) == nil && (err != nil || name != theirs.PodName || namespace != theirs.PodNamespace) {
			t.Errorf("%s/%s, upstream reads %s/%s: %v", namespace, name, theirs.PodNamespace, theirs.PodName, err)
		}
	})
}
