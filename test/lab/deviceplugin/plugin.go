// Package deviceplugin is a real device plugin, over the real API, for tests: its
// devices are as good as /dev/null.
package deviceplugin

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

// Plugin has devices of one resource.
type Plugin struct {
	pluginapi.UnimplementedDevicePluginServer
	Resource string
	// Dir is where the kubelet's socket is, Socket the name of the plugin's own.
	Dir, Socket string
	Options     pluginapi.DevicePluginOptions
	// Answer is what a container gets for devices; nil gives /dev/null under the name
	// of the first of them.
	Answer func(ids []string) *pluginapi.ContainerAllocateResponse
	// Prefer chooses among devices, if the options say that it is asked.
	Prefer func(available, must []string, n int) []string

	mu      sync.Mutex
	devices []*pluginapi.Device
	changed chan struct{}
	hang    chan struct{}
	calls   []string
	server  *grpc.Server
}

// New returns a plugin whose devices are well.
func New(dir, resource string, ids ...string) *Plugin {
	p := &Plugin{Resource: resource, Dir: dir, Socket: "plugin.sock", changed: make(chan struct{})}
	p.Set(pluginapi.Healthy, ids...)
	return p
}

// Set adds devices or changes their health.
func (p *Plugin) Set(health string, ids ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, id := range ids {
		p.devices = slices.DeleteFunc(slices.Clone(p.devices), func(d *pluginapi.Device) bool { return d.ID == id })
		p.devices = append(p.devices, &pluginapi.Device{ID: id, Health: health})
	}
	close(p.changed)
	p.changed = make(chan struct{})
}

// Near says near which NUMA node devices are, which it sets to be well.
func (p *Plugin) Near(node int64, ids ...string) {
	p.Set(pluginapi.Healthy, ids...)
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, d := range p.devices {
		if slices.Contains(ids, d.ID) {
			d.Topology = &pluginapi.TopologyInfo{Nodes: []*pluginapi.NUMANode{{ID: node}}}
		}
	}
}

// Hang has every call from now on wait until the caller gives up.
func (p *Plugin) Hang() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hang = make(chan struct{})
}

// Calls are what was asked of the plugin, in order: METHOD and device IDs.
func (p *Plugin) Calls() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.calls)
}

func (p *Plugin) note(ctx context.Context, method string, ids []string) error {
	p.mu.Lock()
	p.calls = append(p.calls, fmt.Sprint(method, ids))
	hang := p.hang
	p.mu.Unlock()
	if hang != nil {
		<-ctx.Done()
		return ctx.Err()
	}
	return nil
}

// Serve opens the plugin's socket.
func (p *Plugin) Serve() error {
	l, err := net.Listen("unix", filepath.Join(p.Dir, p.Socket))
	if err != nil {
		return err
	}
	p.server = grpc.NewServer()
	pluginapi.RegisterDevicePluginServer(p.server, p)
	go func() { _ = p.server.Serve(l) }()
	return nil
}

// Start serves, and registers with the kubelet.
func (p *Plugin) Start(ctx context.Context) error {
	if err := p.Serve(); err != nil {
		return err
	}
	return p.Register(ctx)
}

// Register tells the kubelet.
func (p *Plugin) Register(ctx context.Context) error {
	c, err := grpc.NewClient("unix://"+filepath.Join(p.Dir, "kubelet.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	_, err = pluginapi.NewRegistrationClient(c).Register(ctx, &pluginapi.RegisterRequest{Version: pluginapi.Version,
		Endpoint: p.Socket, ResourceName: p.Resource, Options: &p.Options}, grpc.WaitForReady(true))
	return err
}

// Stop ends it as a kill does.
func (p *Plugin) Stop() { p.server.Stop() }

// GetDevicePluginOptions implements the API, as do those below.
func (p *Plugin) GetDevicePluginOptions(ctx context.Context, _ *pluginapi.Empty) (*pluginapi.DevicePluginOptions, error) {
	return &p.Options, p.note(ctx, "Options", nil)
}

func (p *Plugin) ListAndWatch(_ *pluginapi.Empty, s grpc.ServerStreamingServer[pluginapi.ListAndWatchResponse]) error {
	for {
		p.mu.Lock()
		list, changed := p.devices, p.changed
		p.mu.Unlock()
		if err := s.Send(&pluginapi.ListAndWatchResponse{Devices: list}); err != nil {
			return err
		}
		select {
		case <-s.Context().Done():
			return nil
		case <-changed:
		}
	}
}

func (p *Plugin) GetPreferredAllocation(ctx context.Context, r *pluginapi.PreferredAllocationRequest) (*pluginapi.PreferredAllocationResponse, error) {
	c := r.ContainerRequests[0]
	if err := p.note(ctx, "Preferred", c.AvailableDeviceIDs); err != nil {
		return nil, err
	}
	return &pluginapi.PreferredAllocationResponse{ContainerResponses: []*pluginapi.ContainerPreferredAllocationResponse{
		{DeviceIDs: p.Prefer(c.AvailableDeviceIDs, c.MustIncludeDeviceIDs, int(c.AllocationSize))}}}, nil
}

func (p *Plugin) Allocate(ctx context.Context, r *pluginapi.AllocateRequest) (*pluginapi.AllocateResponse, error) {
	ids := r.ContainerRequests[0].DevicesIds
	if err := p.note(ctx, "Allocate", ids); err != nil {
		return nil, err
	}
	if p.Answer != nil {
		return &pluginapi.AllocateResponse{ContainerResponses: []*pluginapi.ContainerAllocateResponse{p.Answer(ids)}}, nil
	}
	return &pluginapi.AllocateResponse{ContainerResponses: []*pluginapi.ContainerAllocateResponse{{
		Envs:    map[string]string{"DEVICES": fmt.Sprint(ids)},
		Devices: []*pluginapi.DeviceSpec{{HostPath: "/dev/null", ContainerPath: "/dev/" + ids[0], Permissions: "rw"}},
	}}}, nil
}

func (p *Plugin) PreStartContainer(ctx context.Context, r *pluginapi.PreStartContainerRequest) (*pluginapi.PreStartContainerResponse, error) {
	return &pluginapi.PreStartContainerResponse{}, p.note(ctx, "PreStart", r.DevicesIds)
}
