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

// subPathsDir is below a pod's directory, as a kubelet's.
const subPathsDir = "volume-subpaths"

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
	target := filepath.Join(m.PodDir(podUID), subPathsDir, container, strconv.Itoa(index))
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
	if err == nil {
		return fd, nil
	}
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOSYS) {
		return walkBeneath(root, path)
	}
	return -1, err
}

// maxLinks is how many symlinks a path may lead through, as for the kernel.
const maxLinks = 40

// walkBeneath is openBeneath one element at a time, for kernels without openat2
// (before 5.6) and for what is missing. It holds every directory on the way, so
// that ".." leads where it came from whatever was moved meanwhile.
func walkBeneath(root int, path string) (int, error) {
	held := []int{root}
	defer func() {
		for _, fd := range held[1:] {
			_ = unix.Close(fd)
		}
	}()
	links := 0
	for todo := strings.Split(path, "/"); len(todo) > 0; {
		name := todo[0]
		todo = todo[1:]
		here := held[len(held)-1]
		switch name {
		case "", ".":
			continue
		case "..":
			if len(held) == 1 {
				return -1, unix.EXDEV
			}
			_ = unix.Close(here)
			held = held[:len(held)-1]
			continue
		}
		fd, err := openOrMake(here, name)
		if err != nil {
			return -1, err
		}
		target, isLink, err := readLink(fd)
		if err != nil {
			_ = unix.Close(fd)
			return -1, err
		}
		if !isLink {
			held = append(held, fd)
			continue
		}
		_ = unix.Close(fd)
		if links++; links > maxLinks {
			return -1, unix.ELOOP
		}
		if filepath.IsAbs(target) {
			return -1, unix.EXDEV
		}
		todo = append(strings.Split(target, "/"), todo...)
	}
	return unix.FcntlInt(uintptr(held[len(held)-1]), unix.F_DUPFD_CLOEXEC, 0)
}

func openOrMake(dir int, name string) (int, error) {
	const flags = unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(dir, name, flags, 0)
	if !errors.Is(err, unix.ENOENT) {
		return fd, err
	}
	if err := unix.Mkdirat(dir, name, 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
		return -1, err
	}
	return unix.Openat(dir, name, flags, 0)
}

// readLink reads the symlink that fd itself is, if it is one.
func readLink(fd int) (target string, isLink bool, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", false, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		return "", false, nil
	}
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, "", buf)
	if err != nil {
		return "", false, err
	}
	return string(buf[:n]), true, nil
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
