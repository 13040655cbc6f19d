package volumes

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	v1 "k8s.io/api/core/v1"
)

const (
	defaultFSType = "ext4" // of a local volume that is a device (upstream: local.go)
	// devicesDir is where file systems of local devices are mounted: beside the pods,
	// because pods share them.
	devicesDir = "local-devices"
)

// local binds a local volume's folder into the pod, or mounts the file system of
// its device, made if the device is empty, and binds that.
func (m *Manager) local(ctx context.Context, pod *v1.Pod, pv *v1.PersistentVolume, readOnly bool) (string, error) {
	dir := m.path(pod, "local-volume", pv.Name)
	if mounted, err := m.Mounts.IsMountPoint(dir); mounted || err != nil {
		return dir, err
	}
	source := pv.Spec.Local.Path
	if err := cleanHostPath(source); err != nil {
		return "", err
	}
	info, err := os.Stat(source)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return "", fmt.Errorf("path %q does not exist", source)
	case err != nil:
		return "", err
	case isBlockDevice(info):
		// Held until it is bound: without a pod it would be unmounted.
		m.devices.Lock()
		defer m.devices.Unlock()
		if source, err = m.localFileSystem(ctx, pv, readOnly); err != nil {
			return "", err
		}
	case !info.IsDir():
		return "", fmt.Errorf("%w: local volume %s: only directory and block device are supported", ErrInvalid, source)
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return "", err
	}
	var options []string
	if info.IsDir() {
		options = pv.Spec.MountOptions // of a device they are the file system's
	}
	if readOnly {
		options = append([]string{"ro"}, options...)
	}
	if err := m.Mounts.Mount(source, dir, "", options); err != nil {
		return "", errors.Join(fmt.Errorf("binding %s: %w", source, err), os.Remove(dir))
	}
	if !readOnly {
		if err := ownershipOf(pod).apply(dir); err != nil {
			return "", errors.Join(err, m.Mounts.UnmountBelow(dir))
		}
	}
	return dir, nil
}

// localFileSystem mounts a local device once for all pods, below the agent's data.
// It needs m.devices.
func (m *Manager) localFileSystem(ctx context.Context, pv *v1.PersistentVolume, readOnly bool) (string, error) {
	dir := filepath.Join(filepath.Dir(m.Dir), devicesDir, pv.Name)
	if mounted, err := m.Mounts.IsMountPoint(dir); mounted || err != nil {
		return dir, err
	}
	fstype := defaultFSType
	if pv.Spec.Local.FSType != nil && *pv.Spec.Local.FSType != "" {
		fstype = *pv.Spec.Local.FSType
	}
	device := pv.Spec.Local.Path
	if err := formatIfEmpty(ctx, device, fstype, readOnly); err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return "", err
	}
	if err := m.Mounts.Mount(device, dir, fstype, pv.Spec.MountOptions); err != nil {
		return "", errors.Join(fmt.Errorf("local: failed to mount device %s at %s (fstype: %s), error %w", device, dir, fstype, err), os.Remove(dir))
	}
	return dir, nil
}

// unmountDevices unmounts the file systems of local devices that no pod has bound
// any more: those that are mounted in one place only.
func (m *Manager) unmountDevices() error {
	root := filepath.Join(filepath.Dir(m.Dir), devicesDir)
	if _, err := os.Lstat(root); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	m.devices.Lock()
	defer m.devices.Unlock()
	entries, err := os.ReadDir(root)
	if err != nil {
		return err
	}
	for _, e := range entries {
		dir := filepath.Join(root, e.Name())
		bound, err := filepath.Glob(filepath.Join(m.Dir, "*", "volumes", "kubernetes.io~local-volume", e.Name()))
		if err != nil {
			return err
		}
		inUse := false
		for _, b := range bound {
			mounted, err := m.Mounts.IsMountPoint(b)
			if err != nil {
				return err
			}
			inUse = inUse || mounted
		}
		if inUse {
			continue
		}
		if err := m.Mounts.UnmountBelow(dir); err != nil {
			return err
		}
		if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

func isBlockDevice(info os.FileInfo) bool {
	return info.Mode()&os.ModeDevice != 0 && info.Mode()&os.ModeCharDevice == 0
}

// localDevice is a local volume that is to be a device in the container.
func localDevice(path string) (string, error) {
	if err := cleanHostPath(path); err != nil {
		return "", err
	}
	// As the runtime asks for it: the device itself, not a link to it.
	real, err := filepath.EvalSymlinks(path)
	if errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("path %q does not exist", path)
	}
	if err != nil {
		return "", err
	}
	info, err := os.Stat(real)
	if err == nil && !isBlockDevice(info) {
		err = fmt.Errorf("%w: local volume %s is no block device, and volumeMode is Block", ErrInvalid, path)
	}
	return real, err
}

func cleanHostPath(path string) error {
	if !filepath.IsAbs(path) || strings.Contains(path+"/", "/../") {
		return fmt.Errorf("%w: path %q must be absolute and without '..'", ErrInvalid, path)
	}
	return nil
}
