package volumes

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"

	"github.com/coracle-edge/coracle/controlplane/api/localvolumes"
)

const (
	defaultFSType = "ext4" // of a local volume that is a device (upstream: local.go)
	devicesDir    = "local-devices"
)

// local binds a local volume's folder into the pod, or mounts the file system of
// its device, made if the device is empty, and binds that.
func (m *Manager) local(ctx context.Context, pod *v1.Pod, pv *v1.PersistentVolume, readOnly bool) (dir string, used bool, err error) {
	dir = m.path(pod, "local-volume", pv.Name)
	if there, err := m.Mounts.IsMountPoint(dir); there || err != nil {
		return dir, there, err
	}
	source := pv.Spec.Local.Path
	if err := cleanHostPath(source); err != nil {
		return "", false, err
	}
	mounted := func() {}
	if localvolumes.Ours(pv) {
		// Held until it is mounted: without a pod it could be removed.
		mounted = sync.OnceFunc(m.folders.Unlock)
		m.folders.Lock()
		defer mounted()
		if err := m.makeFolder(pv); err != nil {
			return "", false, err
		}
	}
	info, err := os.Stat(source)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return "", false, fmt.Errorf("path %q does not exist", source)
	case err != nil:
		return "", false, err
	case isBlockDevice(info):
		// Held until it is bound: without a pod it would be unmounted.
		m.devices.Lock()
		defer m.devices.Unlock()
		if source, err = m.localFileSystem(ctx, pv, readOnly); err != nil {
			return "", false, err
		}
	case !info.IsDir():
		return "", false, fmt.Errorf("%w: local volume %s: only directory and block device are supported", ErrInvalid, source)
	}
	if err := m.tellShared(pod, pv.Name, source); err != nil {
		return "", false, err
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return "", false, err
	}
	var options []string
	if info.IsDir() {
		options = pv.Spec.MountOptions // of a device they are the file system's
	}
	if readOnly {
		options = append([]string{"ro"}, options...)
	}
	if err := m.Mounts.Mount(source, dir, "", options); err != nil {
		return "", false, errors.Join(fmt.Errorf("binding %s: %w", source, err), os.Remove(dir))
	}
	mounted()
	if !readOnly {
		if err := m.ownershipOf(pod, dir).apply(dir); err != nil {
			return "", false, errors.Join(err, m.Mounts.UnmountBelow(dir))
		}
	}
	return dir, false, nil
}

// tellShared tells that a volume which other pods have is about to be given to
// another group than theirs (upstream: local.go, SetUpAt).
func (m *Manager) tellShared(pod *v1.Pod, volume, source string) error {
	group := fsGroup(pod)
	if group == nil {
		return nil
	}
	bound, err := m.boundLocal(volume)
	if err != nil || len(bound) == 0 {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat(source, &st); err != nil {
		return fmt.Errorf("failed to check fsGroup for %s (%w)", source, err)
	}
	if int64(st.Gid) != *group {
		m.notice(Notice{PodUID: string(pod.UID), Type: v1.EventTypeWarning, Reason: "AlreadyMountedVolume",
			Message: fmt.Sprintf("The requested fsGroup is %d, but the volume %s has GID %d. The volume may not be shareable.", *group, volume, st.Gid)})
	}
	return nil
}

// boundLocal are the places in pods' folders where a local volume is mounted.
func (m *Manager) boundLocal(volume string) (bound []string, err error) {
	places, err := filepath.Glob(filepath.Join(m.Dir, "*", "volumes", "kubernetes.io~local-volume", volume))
	if err != nil {
		return nil, err
	}
	for _, p := range places {
		mounted, err := m.Mounts.IsMountPoint(p)
		if err != nil {
			return nil, err
		}
		if mounted {
			bound = append(bound, p)
		}
	}
	return bound, nil
}

// localFileSystem mounts a local device once for all pods, below the agent's data.
// It needs m.devices.
func (m *Manager) localFileSystem(ctx context.Context, pv *v1.PersistentVolume, readOnly bool) (string, error) {
	dir := filepath.Join(m.DevicesDir, pv.Name)
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
		err = errors.Join(fmt.Errorf("local: failed to mount device %s at %s (fstype: %s), error %w", device, dir, fstype, err), os.Remove(dir))
		if has, failed := fileSystemOn(ctx, device); failed == nil && has != fstype {
			err = fmt.Errorf("%w; the device has a file system of the type %q: name that in the volume's local.fsType, or use another device", err, has)
			message := fmt.Sprintf("MountVolume failed for volume %q %v", pv.Name, err)
			if m.mismatch[pv.Name] != message {
				m.mismatch[pv.Name] = message
				m.notice(Notice{Volume: pv.Name, VolumeUID: string(pv.UID), Type: v1.EventTypeWarning, Reason: "FailedMountOnFilesystemMismatch", Message: message})
			}
		}
		return "", err
	}
	delete(m.mismatch, pv.Name)
	return dir, nil
}

// unmountDevices unmounts the file systems of local devices that no pod has bound
// any more: those that are mounted in one place only.
func (m *Manager) unmountDevices() error {
	root := m.DevicesDir
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
		bound, err := m.boundLocal(e.Name())
		if err != nil {
			return err
		}
		if len(bound) > 0 {
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
