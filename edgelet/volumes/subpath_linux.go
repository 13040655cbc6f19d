package volumes

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// subPathsDir is below a pod's directory, as a kubelet's.
const subPathsDir = "volume-subpaths"

// SubPath returns a host path for a subPath of a volume: never one that leads
// out of the volume, whatever symlinks are in it and whoever swaps them
// meanwhile. What is missing is created as a folder with the mode of the
// volume's root. Where the agent may mount, the result is a bind mount of what
// was opened, so that what a container does to the volume afterwards can't turn
// it elsewhere; index tells several mounts of a container apart.
func (m *Manager) SubPath(podUID, container string, index int, volume, subPath string) (string, error) {
	if filepath.IsAbs(subPath) {
		return "", fmt.Errorf("%w: subPath %q must not be an absolute path", ErrInvalid, subPath)
	}
	if slices.Contains(strings.Split(subPath, "/"), "..") {
		return "", fmt.Errorf("%w: subPath %q must not contain '..'", ErrInvalid, subPath)
	}
	root, err := unix.Open(volume, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("opening volume: %w", err)
	}
	defer unix.Close(root)
	fd, err := openBeneath(root, volume, filepath.Clean(subPath))
	if err != nil {
		if e := full(err, volume); errors.Is(e, ErrFull) {
			return "", e
		}
		return "", fmt.Errorf("%w: subPath %q: %w", ErrInvalid, subPath, err)
	}
	defer unix.Close(fd)
	target := filepath.Join(m.PodDir(podUID), subPathsDir, container, strconv.Itoa(index))
	if err := m.bind(fd, target); err == nil {
		return target, nil
	} else if !errors.Is(err, os.ErrPermission) {
		return "", fmt.Errorf("binding subPath %q: %w", subPath, full(err, target))
	}
	// Not root: all here is one user's, and there is nobody to keep out.
	return os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
}

// openBeneath opens path under root, making folders that are missing. volume is
// root's path: links that are absolute are followed if they lead below it.
func openBeneath(root int, volume, path string) (int, error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS}
	fd, err := unix.Openat2(root, path, &how)
	if err == nil {
		return fd, nil
	}
	// ENOENT: something is to be made. EAGAIN: something was renamed meanwhile, and
	// the kernel can't tell. EXDEV: a link that is absolute, or leads out. ENOSYS: a
	// kernel before 5.6.
	for _, e := range []error{unix.ENOENT, unix.EAGAIN, unix.EXDEV, unix.ENOSYS} {
		if errors.Is(err, e) {
			return walkBeneath(root, volume, path)
		}
	}
	return -1, err
}

// maxLinks is how many symlinks a path may lead through, as for the kernel.
const maxLinks = 40

// walkBeneath is openBeneath one element at a time. It holds every folder on the
// way, so that ".." leads where it came from whatever was moved meanwhile.
func walkBeneath(root int, volume, path string) (int, error) {
	held := []int{root}
	release := func() {
		for _, fd := range held[1:] {
			_ = unix.Close(fd)
		}
		held = held[:1]
	}
	defer release()
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
		fd, err := openOrMake(root, here, name)
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
			below, ok := strings.CutPrefix(filepath.Clean(target)+"/", filepath.Clean(volume)+"/")
			if !ok {
				return -1, unix.EXDEV
			}
			release()
			target = below
		}
		todo = append(strings.Split(target, "/"), todo...)
	}
	return unix.FcntlInt(uintptr(held[len(held)-1]), unix.F_DUPFD_CLOEXEC, 0)
}

// openOrMake opens an entry of a folder, without following it, or makes a folder
// of the mode that root has.
func openOrMake(root, dir int, name string) (int, error) {
	const flags = unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(dir, name, flags, 0)
	if !errors.Is(err, unix.ENOENT) {
		return fd, err
	}
	var like unix.Stat_t
	if err := unix.Fstat(root, &like); err != nil {
		return -1, err
	}
	if err := unix.Mkdirat(dir, name, like.Mode&0o777); err != nil {
		if errors.Is(err, unix.EEXIST) {
			return unix.Openat(dir, name, flags, 0)
		}
		return -1, err
	}
	// The umask had its say.
	made, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(made)
	if err := unix.Fchmod(made, like.Mode&0o7777); err != nil {
		return -1, err
	}
	return unix.Openat(made, ".", unix.O_PATH|unix.O_CLOEXEC, 0)
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
	// Empty: it was only mounted over.
	if err := os.Remove(target); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o750); err != nil {
		return err
	}
	// Through this folder, those above stay closed, a guest of another user reaches
	// a file that is mounted in it.
	if err := os.Chmod(filepath.Dir(target), 0o711); err != nil {
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
