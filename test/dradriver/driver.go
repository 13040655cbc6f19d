// Package dradriver is a DRA driver for tests, built as vendors build theirs: on
// k8s.io/dynamic-resource-allocation/kubeletplugin, with CDI files. Its devices are
// names; what a container sees of one is a variable, a folder and, if asked for, a
// device node. It remembers what it was asked.
package dradriver

import (
	"context"
	"encoding/json"
	"errors"

	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/dynamic-resource-allocation/kubeletplugin"
	"k8s.io/dynamic-resource-allocation/resourceslice"
	drahealth "k8s.io/kubelet/pkg/apis/dra-health/v1alpha1"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
	cdi "tags.cncf.io/container-device-interface/specs-go"
)

// Driver is one driver on one node. Set its fields before [Driver.Start].
type Driver struct {
	drahealth.UnimplementedDRAResourceHealthServer

	Name, Node string
	Client     kubernetes.Interface
	// KubeletDir is where it registers; CDIDir where it writes what its devices are.
	KubeletDir, CDIDir string
	// Dir has a folder for each device, which containers see as /devices/NAME; empty:
	// there are none.
	Dir string
	// NodeFile is a device node that containers get as /dev/NAME; empty: none.
	NodeFile string
	// Hook is the path of a program that is to be run as a hook; empty: none.
	Hook string
	// Devices are offered by ResourceSlices; empty: nothing is.
	Devices []string
	// Rolling tells one instance of a rolling update from another; empty: no such.
	Rolling types.UID
	// Record is a file to which each request is added as a line; empty: none.
	Record string
	Log    func(format string, args ...any)

	helper     *kubeletplugin.Helper
	mu         sync.Mutex
	asked      []string
	registered bool
	fail       map[string]error
	hang       chan struct{}
	health     chan []*drahealth.DeviceHealth
}

// Start serves and registers. [Driver.Stop] ends it as a driver ends that is told to.
func (d *Driver) Start(ctx context.Context) error {
	data := filepath.Join(d.KubeletDir, "plugins", d.Name)
	for _, dir := range []string{data, filepath.Join(d.KubeletDir, "plugins_registry"), d.CDIDir} {
		if err := os.MkdirAll(dir, 0o750); err != nil {
			return err
		}
	}
	d.mu.Lock()
	d.health, d.registered = make(chan []*drahealth.DeviceHealth, 16), false
	d.mu.Unlock()
	options := []kubeletplugin.Option{
		kubeletplugin.DriverName(d.Name), kubeletplugin.NodeName(d.Node), kubeletplugin.KubeClient(d.Client),
		kubeletplugin.RegistrarDirectoryPath(filepath.Join(d.KubeletDir, "plugins_registry")),
		kubeletplugin.PluginDataDirectoryPath(data), kubeletplugin.Serialize(false), kubeletplugin.GRPCInterceptor(d.hear),
	}
	if d.Rolling != "" {
		options = append(options, kubeletplugin.RollingUpdate(d.Rolling))
	}
	helper, err := kubeletplugin.Start(ctx, d, options...)
	if err != nil {
		return err
	}
	d.helper = helper
	if len(d.Devices) == 0 {
		return nil
	}
	var devices []resourceapi.Device
	for _, name := range d.Devices {
		devices = append(devices, resourceapi.Device{Name: name})
	}
	return helper.PublishResources(ctx, resourceslice.DriverResources{Pools: map[string]resourceslice.Pool{
		d.Node: {Slices: []resourceslice.Slice{{Devices: devices}}}}})
}

// Stop ends the driver and removes its sockets.
func (d *Driver) Stop() {
	d.Hang(false)
	d.helper.Stop()
}

// Registered says whether the node has told the driver that it is.
func (d *Driver) Registered() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.registered
}

// hear notes what the node tells.
func (d *Driver) hear(ctx context.Context, request any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if s, ok := request.(*registration.RegistrationStatus); ok {
		d.mu.Lock()
		d.registered = s.PluginRegistered
		d.mu.Unlock()
	}
	return handler(ctx, request)
}

// Fail has "prepare" or "unprepare" fail for every claim, after doing what it is to
// do: the worst an answer can be. nil has it work again.
func (d *Driver) Fail(what string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fail == nil {
		d.fail = map[string]error{}
	}
	d.fail[what] = err
}

// Hang has no call answered, whatever its caller does; false lets those that wait go
// on.
func (d *Driver) Hang(hang bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.hang != nil {
		close(d.hang)
		d.hang = nil
	}
	if hang {
		d.hang = make(chan struct{})
	}
}

// Asked returns what was asked since the last call, as "prepare NAME" and "unprepare
// NAME", and forgets it.
func (d *Driver) Asked() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := d.asked
	d.asked = nil
	return out
}

// Say has the driver tell how devices are, to who follows.
func (d *Driver) Say(devices ...*drahealth.DeviceHealth) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.health <- devices
}

// NodeWatchResources implements the health service.
func (d *Driver) NodeWatchResources(_ *drahealth.NodeWatchResourcesRequest, s drahealth.DRAResourceHealth_NodeWatchResourcesServer) error {
	d.mu.Lock()
	health := d.health
	d.mu.Unlock()
	for {
		select {
		case <-s.Context().Done():
			return s.Context().Err()
		case devices := <-health:
			if err := s.Send(&drahealth.NodeWatchResourcesResponse{Devices: devices}); err != nil {
				return err
			}
		}
	}
}

// note remembers a request, and says how it is to end.
func (d *Driver) note(what string, names []string) error {
	d.mu.Lock()
	for _, name := range names {
		d.asked = append(d.asked, what+" "+name)
	}
	hang, fail := d.hang, d.fail[what]
	d.mu.Unlock()
	if d.Record != "" {
		f, err := os.OpenFile(d.Record, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
		if err != nil {
			return err
		}
		_, err = f.WriteString(what + " " + strings.Join(names, " ") + "\n")
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	if hang != nil {
		<-hang
	}
	return fail
}

// PrepareResourceClaims implements [kubeletplugin.DRAPlugin].
func (d *Driver) PrepareResourceClaims(_ context.Context, claims []*resourceapi.ResourceClaim) (map[types.UID]kubeletplugin.PrepareResult, error) {
	var names []string
	for _, c := range claims {
		names = append(names, c.Name)
	}
	fail := d.note("prepare", names)
	out := map[types.UID]kubeletplugin.PrepareResult{}
	for _, c := range claims {
		devices, err := d.prepare(c)
		if err == nil {
			err = fail
		}
		out[c.UID] = kubeletplugin.PrepareResult{Err: err, Devices: devices}
	}
	return out, nil
}

func (d *Driver) kind() string { return d.Name + "/device" }

func (d *Driver) file(uid types.UID) string {
	return filepath.Join(d.CDIDir, d.Name+"-"+string(uid)+".json")
}

func (d *Driver) prepare(claim *resourceapi.ResourceClaim) (out []kubeletplugin.Device, err error) {
	spec := cdi.Spec{Version: "0.5.0", Kind: d.kind(), ContainerEdits: cdi.ContainerEdits{Env: []string{"DRA_CLAIM=" + claim.Name}}}
	for _, r := range claim.Status.Allocation.Devices.Results {
		if r.Driver != d.Name {
			continue
		}
		name := string(claim.UID) + "-" + r.Device
		request, _, _ := strings.Cut(r.Request, "/")
		edits := cdi.ContainerEdits{Env: []string{"DRA_" + strings.ToUpper(strings.ReplaceAll(request, "-", "_")) + "=" + r.Device}}
		if d.Dir != "" {
			host := filepath.Join(d.Dir, r.Device)
			if err := os.MkdirAll(host, 0o755); err != nil {
				return nil, err
			}
			edits.Mounts = []*cdi.Mount{{HostPath: host, ContainerPath: "/devices/" + r.Device, Options: []string{"rw", "rbind"}}}
		}
		if d.NodeFile != "" {
			edits.DeviceNodes = []*cdi.DeviceNode{{Path: "/dev/" + r.Device, HostPath: d.NodeFile}}
		}
		if d.Hook != "" {
			edits.Hooks = []*cdi.Hook{{HookName: "createContainer", Path: d.Hook}}
		}
		if !slices.ContainsFunc(spec.Devices, func(have cdi.Device) bool { return have.Name == name }) {
			spec.Devices = append(spec.Devices, cdi.Device{Name: name, ContainerEdits: edits})
		}
		out = append(out, kubeletplugin.Device{Requests: []string{r.Request}, PoolName: r.Pool, DeviceName: r.Device, CDIDeviceIDs: []string{d.kind() + "=" + name}})
	}
	raw, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	// Whole or not at all: runtimes read the folder at any time.
	tmp, err := os.CreateTemp(d.CDIDir, ".tmp-*")
	if err != nil {
		return nil, err
	}
	_, err = tmp.Write(raw)
	if err = errors.Join(err, tmp.Close()); err != nil {
		return nil, err
	}
	return out, os.Rename(tmp.Name(), d.file(claim.UID))
}

// UnprepareResourceClaims implements [kubeletplugin.DRAPlugin].
func (d *Driver) UnprepareResourceClaims(_ context.Context, claims []kubeletplugin.NamespacedObject) (map[types.UID]error, error) {
	var names []string
	for _, c := range claims {
		names = append(names, c.Name)
	}
	fail := d.note("unprepare", names)
	out := map[types.UID]error{}
	for _, c := range claims {
		out[c.UID] = fail
		if err := os.Remove(d.file(c.UID)); err != nil && !os.IsNotExist(err) {
			out[c.UID] = err
		}
	}
	return out, nil
}

// HandleError implements [kubeletplugin.DRAPlugin].
func (d *Driver) HandleError(_ context.Context, err error, what string) {
	if d.Log != nil {
		d.Log("%s: %v", what, err)
	}
}

// Health is what [Driver.Say] says of a device.
func Health(pool, device string, is drahealth.HealthStatus, message string) *drahealth.DeviceHealth {
	return &drahealth.DeviceHealth{Device: &drahealth.DeviceIdentifier{PoolName: pool, DeviceName: device}, Health: is, Message: message,
		LastUpdatedTime: time.Now().Unix(), HealthCheckTimeoutSeconds: 3600}
}
