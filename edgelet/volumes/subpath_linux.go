package volumes

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// SubPath returns a host path for a subPath of a volume: never one that leads
// out of the volume, whatever symlinks are in it. What is missing is created as
// a directory. Where the agent may mount, the result is a bind mount of the
// opened file, so that what a container does to the volume afterwards can't
// turn it elsewhere; index tells several mounts of a container apart.
func (m *Manager) SubPath(podUID, container string, index int, volume, subPath string) (string, error) {
	if filepath.IsAbs(subPath) {
		return "", fmt.Errorf("%w: subPath %q must not be an absolute path", ErrInvalid, subPath)
	}
	for _, part := range strings.Split(subPath, "/") {
		if part == ".." {
			return "", fmt.Errorf("%w: subPath %q must not contain '..'", ErrInvalid, subPath)
		}
	}
	root, err := unix.Open(volume, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("opening volume: %w", err)
	}
	defer unix.Close(root)
	fd, err := openBeneath(root, filepath.Clean(subPath))
	if err != nil {
		return "", fmt.Errorf("%w: subPath %q: %w", ErrInvalid, subPath, err)
	}
	defer unix.Close(fd)
	target := filepath.Join(m.PodDir(podUID), "volume-subpaths", container, strconv.Itoa(index))
	if err := m.bind(fd, target); err == nil {
		return target, nil
	} else if !errors.Is(err, os.ErrPermission) {
		return "", fmt.Errorf("binding subPath %q: %w", subPath, err)
	}
	return os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
}

// openBeneath opens path under root, making directories that are missing.
func openBeneath(root int, path string) (int, error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS}
	fd, err := unix.Openat2(root, path, &how)
	if err == nil || !errors.Is(err, unix.ENOENT) {
		return fd, err
	}
	if parent := filepath.Dir(path); parent != "." {
		dir, err := openBeneath(root, parent)
		if err != nil {
			return -1, err
		}
		defer unix.Close(dir)
		root = dir
	}
	name := filepath.Base(path)
	if err := unix.Mkdirat(root, name, 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
		return -1, err
	}
	how.Resolve |= unix.RESOLVE_NO_SYMLINKS
	how.Flags |= unix.O_NOFOLLOW
	return unix.Openat2(root, name, &how)
}

// bind mounts fd on target, replacing what an earlier container had there.
func (m *Manager) bind(fd int, target string) error {
	if os.Geteuid() != 0 {
		return os.ErrPermission
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if err := m.Mounts.UnmountBelow(target); err != nil {
		return err
	}
	if err := os.RemoveAll(target); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o750); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		if err := os.Mkdir(target, 0o750); err != nil {
			return err
		}
	} else if err := os.WriteFile(target, nil, 0o640); err != nil {
		return err
	}
	return m.Mounts.BindFD(fd, target)
}
