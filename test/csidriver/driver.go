// Package csidriver is a CSI driver for tests: volumes are folders of one folder,
// staged and published by bind mounts, as the real hostpath driver does it. It
// speaks through the specification's generated code, not ours, and remembers
// what it was asked.
package csidriver

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	csi "github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// Driver is one driver on one node. Set its fields before [Driver.Serve].
type Driver struct {
	csi.UnimplementedNodeServer
	registration.UnimplementedRegistrationServer

	Name, NodeID string
	Dir          string // of the volumes
	Capabilities []csi.NodeServiceCapability_RPC_Type
	Topology     map[string]string
	Limit        int64
	// Record is a file to which each request that changes something is added as a
	// line: its method and the volume. Empty: none.
	Record string

	mu       sync.Mutex
	asked    []any
	fail     map[string]error
	hangs    bool
	endpoint string
	told     []*registration.RegistrationStatus
}

// Fail has a method, such as NodeStageVolume, fail; nil has it work again. What
// it is to do it does all the same: the worst an answer can be.
func (d *Driver) Fail(method string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fail == nil {
		d.fail = map[string]error{}
	}
	d.fail[method] = err
}

// Hang has NodeGetVolumeStats and NodeStageVolume give no answer until their caller
// gives up.
func (d *Driver) Hang(hang bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hangs = hang
}

func (d *Driver) hang(ctx context.Context) error {
	d.mu.Lock()
	hangs := d.hangs
	d.mu.Unlock()
	if !hangs {
		return nil
	}
	<-ctx.Done()
	return ctx.Err()
}

// Asked returns the requests since the last call, of the types that change
// something, and forgets them.
func (d *Driver) Asked() []any {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := d.asked
	d.asked = nil
	return out
}

func (d *Driver) note(method string, request any) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asked = append(d.asked, request)
	if d.Record != "" {
		volume := request.(interface{ GetVolumeId() string }).GetVolumeId()
		if err := appendLine(d.Record, method+" "+volume); err != nil {
			return status.Error(codes.Internal, err.Error())
		}
	}
	return d.fail[method]
}

func appendLine(file, line string) error {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteString(line + "\n")
	return errors.Join(err, f.Close())
}

// Serve serves the driver at a socket, and its registration at another one, until
// the function that it returns is called.
func (d *Driver) Serve(socket, registry string) (stop func(), err error) {
	return d.serve(socket, socket, registry)
}

// Register serves only the registration, of a driver that somebody else serves at
// socket, as the node-driver-registrar of vendors does.
func (d *Driver) Register(socket, registry string) (stop func(), err error) {
	return d.serve(socket, registry)
}

func (d *Driver) serve(endpoint string, sockets ...string) (stop func(), err error) {
	d.mu.Lock()
	d.endpoint = endpoint
	d.mu.Unlock()
	server := grpc.NewServer()
	csi.RegisterNodeServer(server, d)
	registration.RegisterRegistrationServer(server, d)
	var all sync.WaitGroup
	for _, path := range sockets {
		l, err := net.Listen("unix", path)
		if err != nil {
			server.Stop()
			return nil, err
		}
		all.Go(func() { _ = server.Serve(l) })
	}
	return func() { server.Stop(); all.Wait() }, nil
}

// GetInfo implements the kubelet's registration.
func (d *Driver) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return &registration.PluginInfo{Type: registration.CSIPlugin, Name: d.Name, Endpoint: d.endpoint, SupportedVersions: []string{"1.0.0"}}, nil
}

// NotifyRegistrationStatus implements the kubelet's registration.
func (d *Driver) NotifyRegistrationStatus(_ context.Context, s *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.told = append(d.told, s)
	return &registration.RegistrationStatusResponse{}, nil
}

// Registered says that a kubelet has taken the driver.
func (d *Driver) Registered() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.ContainsFunc(d.told, func(s *registration.RegistrationStatus) bool { return s.PluginRegistered })
}

// NodeGetInfo implements the driver.
func (d *Driver) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	out := &csi.NodeGetInfoResponse{NodeId: d.NodeID, MaxVolumesPerNode: d.Limit}
	if len(d.Topology) > 0 {
		out.AccessibleTopology = &csi.Topology{Segments: d.Topology}
	}
	return out, nil
}

// NodeGetCapabilities implements the driver.
func (d *Driver) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	out := new(csi.NodeGetCapabilitiesResponse)
	for _, c := range d.Capabilities {
		out.Capabilities = append(out.Capabilities, &csi.NodeServiceCapability{Type: &csi.NodeServiceCapability_Rpc{Rpc: &csi.NodeServiceCapability_RPC{Type: c}}})
	}
	return out, nil
}

func (d *Driver) folder(id string) (string, error) {
	if id == "" || id != filepath.Base(id) {
		return "", status.Errorf(codes.InvalidArgument, "volume ID %q", id)
	}
	dir := filepath.Join(d.Dir, id)
	return dir, os.MkdirAll(dir, 0o755)
}

func bind(source, target string, readOnly bool) error {
	if mounted(target) {
		return nil
	}
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil || !readOnly {
		return err
	}
	return unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
}

// mounted asks mountinfo: an emulated processor's statx knows no mounts.
func mounted(path string) bool {
	raw, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(raw)) {
		if f := strings.Fields(line); len(f) > 4 && f[4] == path {
			return true
		}
	}
	return false
}

func unbind(path string) error {
	for mounted(path) {
		if err := unix.Unmount(path, 0); err != nil {
			return err
		}
	}
	return nil
}

// NodeStageVolume implements the driver.
func (d *Driver) NodeStageVolume(ctx context.Context, r *csi.NodeStageVolumeRequest) (*csi.NodeStageVolumeResponse, error) {
	if err := d.hang(ctx); err != nil {
		return nil, err
	}
	failed := d.note("NodeStageVolume", r)
	dir, err := d.folder(r.VolumeId)
	if err == nil && r.VolumeCapability.GetMount() != nil {
		err = bind(dir, r.StagingTargetPath, false)
	}
	return &csi.NodeStageVolumeResponse{}, errors.Join(err, failed)
}

// NodeUnstageVolume implements the driver.
func (d *Driver) NodeUnstageVolume(_ context.Context, r *csi.NodeUnstageVolumeRequest) (*csi.NodeUnstageVolumeResponse, error) {
	failed := d.note("NodeUnstageVolume", r)
	return &csi.NodeUnstageVolumeResponse{}, errors.Join(unbind(r.StagingTargetPath), failed)
}

// NodePublishVolume implements the driver. A volume that isn't staged though it
// should be is refused.
func (d *Driver) NodePublishVolume(_ context.Context, r *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	failed := d.note("NodePublishVolume", r)
	source, err := d.folder(r.VolumeId)
	if err != nil {
		return nil, err
	}
	if r.VolumeCapability.GetBlock() != nil {
		device := filepath.Join(source, "device")
		if err := os.Symlink("/dev/null", device); err != nil && !errors.Is(err, os.ErrExist) {
			return nil, err
		}
		if err := os.WriteFile(r.TargetPath, nil, 0o600); err != nil && !mounted(r.TargetPath) {
			return nil, err
		}
		return &csi.NodePublishVolumeResponse{}, errors.Join(bind(device, r.TargetPath, false), failed)
	}
	if r.StagingTargetPath != "" {
		if source = r.StagingTargetPath; !mounted(source) {
			return nil, status.Errorf(codes.FailedPrecondition, "%s is not staged", source)
		}
	}
	if err := os.Mkdir(r.TargetPath, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	return &csi.NodePublishVolumeResponse{}, errors.Join(bind(source, r.TargetPath, r.Readonly), failed)
}

// NodeUnpublishVolume implements the driver.
func (d *Driver) NodeUnpublishVolume(_ context.Context, r *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	failed := d.note("NodeUnpublishVolume", r)
	err := unbind(r.TargetPath)
	if err == nil {
		if err = os.Remove(r.TargetPath); errors.Is(err, os.ErrNotExist) {
			err = nil
		}
	}
	return &csi.NodeUnpublishVolumeResponse{}, errors.Join(err, failed)
}

// NodeGetVolumeStats implements the driver.
func (d *Driver) NodeGetVolumeStats(ctx context.Context, r *csi.NodeGetVolumeStatsRequest) (*csi.NodeGetVolumeStatsResponse, error) {
	if err := d.hang(ctx); err != nil {
		return nil, err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(r.VolumePath, &st); err != nil {
		return nil, status.Error(codes.NotFound, err.Error())
	}
	return &csi.NodeGetVolumeStatsResponse{
		Usage: []*csi.VolumeUsage{
			{Unit: csi.VolumeUsage_BYTES, Total: int64(st.Blocks) * int64(st.Bsize), Available: int64(st.Bavail) * int64(st.Bsize), Used: int64(st.Blocks-st.Bfree) * int64(st.Bsize)},
			{Unit: csi.VolumeUsage_INODES, Total: int64(st.Files), Available: int64(st.Ffree), Used: int64(st.Files - st.Ffree)},
		},
		VolumeCondition: &csi.VolumeCondition{Abnormal: true, Message: "a test's"},
	}, nil
}

// NodeExpandVolume implements the driver.
func (d *Driver) NodeExpandVolume(_ context.Context, r *csi.NodeExpandVolumeRequest) (*csi.NodeExpandVolumeResponse, error) {
	return &csi.NodeExpandVolumeResponse{CapacityBytes: r.CapacityRange.RequiredBytes}, d.note("NodeExpandVolume", r)
}
