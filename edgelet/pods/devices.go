package pods

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/edgelet/devices"
	"github.com/coracle-edge/coracle/edgelet/images"
)

// Devices is where the devices of plugins come in: [devices.Manager].
type Devices interface {
	// Allocate gives the pod's containers what they ask for, durably. A container
	// that has it already keeps it.
	Allocate(ctx context.Context, pod *v1.Pod) error
	// Begin does the same step by step.
	Begin(pod *v1.Pod) *devices.Allocation
	// Container is what a container was given, nil if nothing.
	Container(ctx context.Context, podUID, container string) (*devices.Given, error)
	// Health of what it was given, nil if nothing.
	Health(podUID, container string) []v1.ResourceStatus
	// Free takes everything back from a pod that is over.
	Free(podUID string) error
}

// addDevices puts a container's devices into its configuration. What the pod
// itself says of a variable, a path or an annotation counts more.
func (m *Manager) addDevices(ctx context.Context, pod *v1.Pod, c *v1.Container, img images.Image, cfg *runtimeapi.ContainerConfig) error {
	if m.cfg.Devices == nil {
		return nil
	}
	g, err := m.cfg.Devices.Container(ctx, string(pod.UID), c.Name)
	if err != nil || g == nil {
		return err
	}
	if img.Kind == images.KindWasm && len(g.Devices) > 0 { // the runtime says it of CDI devices, which may be none
		return fmt.Errorf("container %q is a Wasm module and has %s: its plugin gives device nodes, which WASI has no call for; "+
			"a plugin that gives a socket or a folder as a mount works, or use an OCI image", c.Name, strings.Join(g.Resources, ", "))
	}
	for _, e := range slices.Backward(g.Env) {
		if !slices.ContainsFunc(cfg.Envs, func(have *runtimeapi.KeyValue) bool { return have.Key == e.Key }) {
			cfg.Envs = slices.Insert(cfg.Envs, 0, e)
		}
	}
	for _, mt := range slices.Backward(g.Mounts) {
		if !slices.ContainsFunc(cfg.Mounts, func(have *runtimeapi.Mount) bool { return have.ContainerPath == mt.ContainerPath }) {
			cfg.Mounts = slices.Insert(cfg.Mounts, 0, mt)
		}
	}
	own := cfg.Annotations
	cfg.Annotations = maps.Clone(g.Annotations)
	maps.Copy(cfg.Annotations, own)
	cfg.Devices = append(cfg.Devices, g.Devices...)
	cfg.CDIDevices = append(cfg.CDIDevices, g.CDIDevices...)
	return nil
}

func (w *worker) freeDevices() error {
	if w.m.cfg.Devices == nil {
		return nil
	}
	return w.m.cfg.Devices.Free(w.uid)
}
