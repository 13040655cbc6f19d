package volumes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
)

// programTimeout bounds a program of the node: a server may not answer, a disk
// may be large.
const programTimeout = 2 * time.Minute

// run runs a program of the node and returns what it printed. The error says
// what it said.
func run(ctx context.Context, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, programTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.WaitDelay = time.Second
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(said.String()))
	}
	return out.String(), nil
}

// formatIfEmpty makes a file system on a device that has nothing on it. Whatever
// else is there stays: mounting will say if it isn't what was asked for.
func formatIfEmpty(ctx context.Context, device, fstype string, readOnly bool) error {
	const nothingFound = 2 // blkid(8)
	out, err := run(ctx, "blkid", "-p", "-s", "TYPE", "-s", "PTTYPE", "-o", "export", device)
	var exit *exec.ExitError
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return fmt.Errorf("%w: a local volume on device %s needs blkid (install util-linux)", ErrUnsupported, device)
	case errors.As(err, &exit) && exit.ExitCode() == nothingFound:
	case err != nil:
		return err
	case strings.Contains(out, "PTTYPE="):
		return fmt.Errorf("%w: device %s has a partition table: name one of its partitions", ErrInvalid, device)
	default:
		return nil
	}
	if readOnly {
		return fmt.Errorf("%w: device %s has no file system, and the volume is read-only", ErrInvalid, device)
	}
	program := "mkfs." + fstype
	if strings.ContainsAny(fstype, "/ ") {
		return fmt.Errorf("%w: file system type %q", ErrInvalid, fstype)
	}
	args := []string{device}
	if strings.HasPrefix(fstype, "ext") {
		args = []string{"-F", "-m0", device} // a whole device, nothing kept for root (upstream: mount_linux.go)
	}
	if _, err := run(ctx, program, args...); errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("%w: %s is not on this node to make a file system on %s", ErrUnsupported, program, device)
	} else if err != nil {
		return err
	}
	return nil
}

// fileSystemOn is the type of the file system that a device has.
func fileSystemOn(ctx context.Context, device string) (string, error) {
	fstype, err := run(ctx, "blkid", "-p", "-s", "TYPE", "-o", "value", device)
	if err != nil {
		return "", fmt.Errorf("which file system is on device %s: %w", device, err)
	}
	return strings.TrimSpace(fstype), nil
}

// growFileSystem makes the file system of a device, mounted at dir, as large as the
// device (upstream: k8s.io/mount-utils/resizefs_linux.go).
func growFileSystem(ctx context.Context, device, dir string) error {
	fstype, err := fileSystemOn(ctx, device)
	if err != nil {
		return err
	}
	var program, from string
	var args []string
	switch fstype {
	case "ext3", "ext4":
		program, from, args = "resize2fs", "e2fsprogs", []string{device}
	case "xfs":
		program, from, args = "xfs_growfs", "xfsprogs", []string{"-d", dir}
	case "btrfs":
		program, from, args = "btrfs", "btrfs-progs", []string{"filesystem", "resize", "max", dir}
	default:
		return fmt.Errorf("%w: growing a file system of the type %q, on device %s mounted at %s", ErrUnsupported, fstype, device, dir)
	}
	if _, err := run(ctx, program, args...); errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("%w: %s is not on this node to grow the %s on device %s (install %s)", ErrUnsupported, program, fstype, device, from)
	} else if err != nil {
		return fmt.Errorf("resize of device %s failed: %w", device, err)
	}
	return nil
}

// nfs mounts an NFS export with the node's own mount.nfs, which negotiates what
// the kernel does not.
func (m *Manager) nfs(ctx context.Context, pod *v1.Pod, name string, s *v1.NFSVolumeSource, options []string) (string, error) {
	dir := m.path(pod, "nfs", name)
	if mounted, err := m.Mounts.IsMountPoint(dir); mounted || err != nil {
		return dir, err
	}
	program, err := exec.LookPath("mount.nfs")
	if err != nil {
		return "", fmt.Errorf("%w: nfs %s:%s (mount.nfs is not on this node: install nfs-common or nfs-utils)", ErrUnsupported, s.Server, s.Path)
	}
	if strings.HasPrefix(s.Server, "-") || !strings.HasPrefix(s.Path, "/") {
		return "", fmt.Errorf("%w: nfs server %q, path %q", ErrInvalid, s.Server, s.Path)
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return "", err
	}
	server := s.Server
	if strings.Contains(server, ":") && !strings.HasPrefix(server, "[") {
		server = "[" + server + "]" // IPv6
	}
	args := []string{server + ":" + s.Path, dir}
	if s.ReadOnly {
		options = append([]string{"ro"}, options...)
	}
	if len(options) > 0 {
		args = append(args, "-o", strings.Join(options, ","))
	}
	if _, err := run(ctx, program, args...); err != nil {
		err = errors.Join(fmt.Errorf("mounting %s: %w", args[0], err), os.Remove(dir))
		// Looked for only now: a kernel with modules loads its client when it is asked
		// to mount, and what mount.nfs says of one without is "No such device".
		if known, failed := os.ReadFile(kernelFileSystems); failed == nil && !knowsNFS(known) {
			err = fmt.Errorf("%w: nfs (this node's kernel has no NFS client: load its module with `modprobe nfs`, and have it loaded at each boot by a line \"nfs\" in /etc/modules-load.d/nfs.conf, or install a kernel with CONFIG_NFS_FS): %w", ErrUnsupported, err)
		}
		return "", err
	}
	return dir, nil
}

// kernelFileSystems lists what the kernel can mount now (proc(5)).
const kernelFileSystems = "/proc/filesystems"

// knowsNFS reports whether a kernel with these file systems mounts NFS of any version.
func knowsNFS(fileSystems []byte) bool {
	for line := range strings.Lines(string(fileSystems)) {
		if f := strings.Fields(line); len(f) > 0 && (f[len(f)-1] == "nfs" || f[len(f)-1] == "nfs4") {
			return true
		}
	}
	return false
}
