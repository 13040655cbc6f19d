package pods

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/edgelet/images"
	"github.com/coracle-edge/coracle/edgelet/volumes"
)

// mounts are a container's volumes, its hosts file and its termination log.
func (m *Manager) mounts(ctx context.Context, pod *v1.Pod, c *v1.Container, kind string, mounted volumes.Mounted, env map[string]string, ips []string) ([]*runtimeapi.Mount, error) {
	var out []*runtimeapi.Mount
	hosts := len(ips) > 0 || pod.Spec.HostNetwork
	for i := range c.VolumeMounts {
		vm := &c.VolumeMounts[i]
		sub, err := subPath(vm, env)
		if err != nil {
			return nil, fmt.Errorf("volumeMount %q of container %q: %w", vm.Name, c.Name, err)
		}
		mount := &runtimeapi.Mount{ContainerPath: vm.MountPath, Readonly: vm.ReadOnly || mounted.ReadOnly[vm.Name],
			Propagation: propagation(vm.MountPropagation)}
		if !filepath.IsAbs(mount.ContainerPath) {
			mount.ContainerPath = "/" + mount.ContainerPath
		}
		if mount.RecursiveReadOnly, err = m.recursiveReadOnly(ctx, pod, kind, vm); err != nil {
			return nil, fmt.Errorf("failed to resolve recursive read-only mode: %w", err)
		}
		path, ok := mounted.Paths[vm.Name]
		switch image := mounted.Images[vm.Name]; {
		case image != nil:
			mount.Image = &runtimeapi.ImageSpec{Image: mounted.ImageRefs[vm.Name], UserSpecifiedImage: image.Reference}
			mount.ImageSubPath = sub
		case !ok:
			return nil, fmt.Errorf("cannot find volume %q to mount into container %q", vm.Name, c.Name)
		case sub != "":
			if mount.HostPath, err = m.cfg.Volumes.SubPath(string(pod.UID), c.Name, i, path, sub); err != nil {
				// What is on the host's side of a volume isn't told to whoever made the pod.
				m.log.Warn("a subPath can't be prepared", "pod", pod.Namespace+"/"+pod.Name, "volume", vm.Name, "subPath", sub, "err", err)
				failed := fmt.Errorf("failed to prepare subPath for volumeMount %q of container %q", vm.Name, c.Name)
				if errors.Is(err, volumes.ErrFull) {
					failed = fmt.Errorf("%w: %w", failed, volumes.ErrFull)
				}
				return nil, failed
			}
		default:
			mount.HostPath = path
		}
		hosts = hosts && mount.ContainerPath != etcHosts
		out = append(out, mount)
	}
	if hosts {
		path, err := m.writeHosts(pod, ips)
		if err != nil {
			return nil, fmt.Errorf("writing the hosts file: %w", err)
		}
		out = append(out, &runtimeapi.Mount{HostPath: path, ContainerPath: etcHosts})
	}
	if c.TerminationMessagePath != "" {
		path, err := m.terminationLog(pod, c)
		if err != nil {
			return nil, fmt.Errorf("making the termination log: %w", err)
		}
		out = append(out, &runtimeapi.Mount{HostPath: path, ContainerPath: c.TerminationMessagePath})
	}
	return out, nil
}

// subPath is what of a volume is mounted, empty for all of it. Words are a
// kubelet's (kubelet_pods.go: makeMounts).
func subPath(vm *v1.VolumeMount, env map[string]string) (string, error) {
	sub := vm.SubPath
	if vm.SubPathExpr != "" {
		var err error
		if sub, err = expandStrict(vm.SubPathExpr, env); err != nil {
			return "", fmt.Errorf("subPathExpr: %w", err)
		}
	}
	switch {
	case filepath.IsAbs(sub):
		return "", fmt.Errorf("error SubPath `%s` must not be an absolute path", sub)
	case slices.Contains(strings.Split(sub, "/"), ".."):
		return "", fmt.Errorf("unable to provision SubPath `%s`: must not contain '..'", sub)
	}
	return sub, nil
}

// blockDevices are the block volumes that a container has as devices.
func blockDevices(c *v1.Container, mounted volumes.Mounted) ([]*runtimeapi.Device, error) {
	var out []*runtimeapi.Device
	for _, d := range c.VolumeDevices {
		path, ok := mounted.Devices[d.Name]
		if !ok {
			return nil, fmt.Errorf("cannot find volume %q to pass into container %q", d.Name, c.Name)
		}
		permissions := "mrw"
		if mounted.ReadOnly[d.Name] {
			permissions = "r"
		}
		out = append(out, &runtimeapi.Device{HostPath: path, ContainerPath: d.DevicePath, Permissions: permissions})
	}
	return out, nil
}

// recursiveReadOnly says whether a mount is read-only with all that is mounted
// below it (KEP 3857; kubelet_pods.go: resolveRecursiveReadOnly). A preopen that is
// read-only is so whatever containerd's handlers can do.
func (m *Manager) recursiveReadOnly(ctx context.Context, pod *v1.Pod, kind string, vm *v1.VolumeMount) (bool, error) {
	mode := deref(vm.RecursiveReadOnly, v1.RecursiveReadOnlyDisabled)
	if mode == v1.RecursiveReadOnlyDisabled {
		return false, nil
	}
	if !vm.ReadOnly {
		return false, fmt.Errorf("volume %q requested recursive read-only mode, but it is not read-only", vm.Name)
	}
	if p := deref(vm.MountPropagation, v1.MountPropagationNone); p != v1.MountPropagationNone {
		return false, fmt.Errorf("volume %q requested recursive read-only mode, but it is not compatible with propagation %q", vm.Name, p)
	}
	if kind == images.KindWasm {
		return true, nil
	}
	able, err := m.readsRecursively(ctx, pod)
	if err == nil && !able && mode == v1.RecursiveReadOnlyEnabled {
		err = fmt.Errorf("volume %q requested recursive read-only mode, but it is not supported by the runtime", vm.Name)
	}
	return able, err
}

// readsRecursively asks the runtime whether the pod's handler can do that.
func (m *Manager) readsRecursively(ctx context.Context, pod *v1.Pod) (bool, error) {
	handler, err := m.handler(pod)
	if err != nil {
		return false, err
	}
	handlers, err := m.runtimeHandlers(ctx)
	if err != nil {
		return false, err
	}
	for _, h := range handlers {
		if h.GetName() == handler {
			return h.GetFeatures().GetRecursiveReadOnlyMounts(), nil
		}
	}
	return false, nil
}

func propagation(mode *v1.MountPropagationMode) runtimeapi.MountPropagation {
	switch deref(mode, v1.MountPropagationNone) {
	case v1.MountPropagationHostToContainer:
		return runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
	case v1.MountPropagationBidirectional:
		return runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL
	}
	return runtimeapi.MountPropagation_PROPAGATION_PRIVATE
}
