package volumes

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

// Mounts is what volumes need of the kernel.
type Mounts interface {
	// Tmpfs mounts one on dir, limited to size bytes if size is positive. The error
	// is fs.ErrPermission when the agent may not mount.
	Tmpfs(dir string, size int64) error
	// BindFD mounts what fd refers to on target.
	BindFD(fd int, target string) error
	IsMountPoint(path string) (bool, error)
	// UnmountBelow unmounts everything mounted at or below dir.
	UnmountBelow(dir string) error
}

type kernel struct{}

func (kernel) Tmpfs(dir string, size int64) error {
	options := "mode=0777"
	if size > 0 {
		options += fmt.Sprintf(",size=%d", size)
	}
	return unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, options)
}

func (kernel) BindFD(fd int, target string) error {
	return unix.Mount(fmt.Sprintf("/proc/self/fd/%d", fd), target, "", unix.MS_BIND, "")
}

// IsMountPoint compares devices first, which is enough for a tmpfs; a bind
// mount of the same file system shows in mountinfo only.
func (kernel) IsMountPoint(path string) (bool, error) {
	var here, parent unix.Stat_t
	if err := unix.Lstat(path, &here); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return false, nil
		}
		return false, err
	}
	if err := unix.Stat(filepath.Dir(path), &parent); err != nil {
		return false, err
	}
	return here.Dev != parent.Dev, nil
}

func (kernel) UnmountBelow(dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	// Mounts are stacked and appear under each other: unmount until none is left,
	// and say so when one stays, because what follows removes the directory.
	for range 3 {
		points, err := currentMountsBelow(dir)
		if err != nil || len(points) == 0 {
			return err
		}
		for _, p := range points {
			if err := unix.Unmount(p, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
				return fmt.Errorf("%s: %w", p, err)
			}
		}
	}
	points, err := currentMountsBelow(dir)
	if err == nil && len(points) > 0 {
		err = fmt.Errorf("%s is still mounted", points[0])
	}
	return err
}

// MountsBelow lists the mount points at or below dir, the deepest first.
func MountsBelow(dir string) ([]string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	return currentMountsBelow(dir)
}

func currentMountsBelow(dir string) ([]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return mountsBelow(f, dir)
}

// mountsBelow returns the mount points at or below dir, the deepest first.
func mountsBelow(mountinfo io.Reader, dir string) ([]string, error) {
	var points []string
	s := bufio.NewScanner(mountinfo)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		fields := strings.Fields(s.Text())
		if len(fields) < 5 {
			continue
		}
		p := unescape(fields[4])
		if p == dir || strings.HasPrefix(p, dir+"/") {
			points = append(points, p)
		}
	}
	// Later lines are mounted over earlier ones: undo in reverse.
	sort.SliceStable(points, func(i, j int) bool { return len(points[i]) > len(points[j]) })
	return points, s.Err()
}

// unescape undoes mountinfo's octal escapes.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n := int(s[i+1]-'0')<<6 | int(s[i+2]-'0')<<3 | int(s[i+3]-'0'); n >= 0 && n < 256 {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
