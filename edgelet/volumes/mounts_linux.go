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
	// Mount mounts what is at source on dir, with options as of mount(8). Without a
	// file system type it is a bind mount.
	Mount(source, dir, fstype string, options []string) error
	// BindFD mounts what fd refers to on target.
	BindFD(fd int, target string) error
	IsMountPoint(path string) (bool, error)
	// UnmountBelow unmounts everything mounted at or below dir.
	UnmountBelow(dir string) error
}

// Kernel is the machine's own [Mounts].
type Kernel struct{}

// Tmpfs implements [Mounts].
func (Kernel) Tmpfs(dir string, size int64) error {
	// What the kernel gives a tmpfs, and so a kubelet: everybody writes, and nobody
	// removes what is another's. Folders made for subPaths take after it.
	options := "mode=1777"
	if size > 0 {
		options += fmt.Sprintf(",size=%d", size)
	}
	const flags = unix.MS_NOSUID | unix.MS_NODEV
	if !noSwap() {
		return unix.Mount("tmpfs", dir, "tmpfs", flags, options)
	}
	err := unix.Mount("tmpfs", dir, "tmpfs", flags, options+",noswap")
	if errors.Is(err, unix.EINVAL) { // a kernel without swap, or not the first user namespace
		return unix.Mount("tmpfs", dir, "tmpfs", flags, options)
	}
	return err
}

// noSwap says whether the kernel can be asked to keep a tmpfs out of swap: Linux 6.4
// and later.
func noSwap() bool {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return false
	}
	var major, minor int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor); err != nil {
		return false
	}
	return major > 6 || major == 6 && minor >= 4
}

// MaySwapSecrets says whether what is on a tmpfs, secrets among it, may be written to
// a disk: swap is on and the kernel can't leave a tmpfs out of it.
func MaySwapSecrets() bool {
	swaps, err := os.ReadFile("/proc/swaps")
	return err == nil && strings.Count(strings.TrimSpace(string(swaps)), "\n") > 0 && !noSwap() // the first line is a heading
}

// BindFD implements [Mounts].
func (Kernel) BindFD(fd int, target string) error {
	return unix.Mount(fmt.Sprintf("/proc/self/fd/%d", fd), target, "", unix.MS_BIND, "")
}

// mountFlags are mount(8)'s options that are the kernel's flags: the flag, and
// whether the option takes it away.
func mountFlag(option string) (flag uintptr, clear, ok bool) {
	switch option {
	case "defaults", "rw":
		return unix.MS_RDONLY, true, true
	case "ro":
		return unix.MS_RDONLY, false, true
	case "nosuid":
		return unix.MS_NOSUID, false, true
	case "suid":
		return unix.MS_NOSUID, true, true
	case "nodev":
		return unix.MS_NODEV, false, true
	case "dev":
		return unix.MS_NODEV, true, true
	case "noexec":
		return unix.MS_NOEXEC, false, true
	case "exec":
		return unix.MS_NOEXEC, true, true
	case "sync":
		return unix.MS_SYNCHRONOUS, false, true
	case "async":
		return unix.MS_SYNCHRONOUS, true, true
	case "dirsync":
		return unix.MS_DIRSYNC, false, true
	case "noatime":
		return unix.MS_NOATIME, false, true
	case "atime":
		return unix.MS_NOATIME, true, true
	case "nodiratime":
		return unix.MS_NODIRATIME, false, true
	case "relatime":
		return unix.MS_RELATIME, false, true
	case "strictatime":
		return unix.MS_STRICTATIME, false, true
	}
	return 0, false, false
}

func mountFlags(options []string) (flags uintptr, data []string) {
	for _, list := range options {
		for _, o := range strings.Split(list, ",") {
			switch flag, clear, ok := mountFlag(o); {
			case o == "":
			case !ok:
				data = append(data, o)
			case clear:
				flags &^= flag
			default:
				flags |= flag
			}
		}
	}
	return flags, data
}

// Mount implements [Mounts].
func (Kernel) Mount(source, dir, fstype string, options []string) error {
	flags, data := mountFlags(options)
	if fstype != "" {
		return unix.Mount(source, dir, fstype, flags, strings.Join(data, ","))
	}
	if len(data) > 0 {
		return fmt.Errorf("%w: mount options %s are not for a folder that is bound", ErrInvalid, strings.Join(data, ","))
	}
	if err := unix.Mount(source, dir, "", unix.MS_BIND, ""); err != nil || flags == 0 {
		return err
	}
	// The kernel ignores the other flags of a bind mount the first time.
	if err := unix.Mount("", dir, "", unix.MS_BIND|unix.MS_REMOUNT|flags|inherited(dir), ""); err != nil {
		return errors.Join(err, unix.Unmount(dir, unix.UMOUNT_NOFOLLOW))
	}
	return nil
}

// inherited are the flags that a bind mount has from where it was bound and that
// a remount must not lose.
func inherited(dir string) (flags uintptr) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0
	}
	for _, f := range []struct {
		has int64
		set uintptr
	}{{unix.ST_NOSUID, unix.MS_NOSUID}, {unix.ST_NODEV, unix.MS_NODEV}, {unix.ST_NOEXEC, unix.MS_NOEXEC}, {unix.ST_NOATIME, unix.MS_NOATIME},
		{unix.ST_NODIRATIME, unix.MS_NODIRATIME}, {unix.ST_RELATIME, unix.MS_RELATIME}, {unix.ST_RDONLY, unix.MS_RDONLY}} {
		if int64(st.Flags)&f.has != 0 {
			flags |= f.set
		}
	}
	return flags
}

// IsMountPoint implements [Mounts]. It compares mounts, not devices: a folder
// that is bound lies on the device of its parent.
func (Kernel) IsMountPoint(path string) (bool, error) {
	here, err := mountOf(unix.AT_FDCWD, path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	parent, err := mountOf(unix.AT_FDCWD, filepath.Dir(path))
	if err != nil || here != parent || here.id != 0 {
		return err == nil && here != parent, err
	}
	path, err = realPath(path)
	if err != nil {
		return false, err
	}
	points, err := currentMountsBelow(path)
	for _, p := range points {
		if p == path {
			return true, err
		}
	}
	return false, err
}

// mountID tells mounts apart. Kernels before 5.8 don't number them: then it is
// the device, and mountinfo says the rest.
type mountID struct {
	id  uint64
	dev uint64
}

func mountOf(dir int, path string) (mountID, error) {
	var st unix.Statx_t
	err := unix.Statx(dir, path, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT|unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &st)
	if err != nil {
		return mountID{}, &os.PathError{Op: "statx", Path: path, Err: err}
	}
	id := mountID{dev: unix.Mkdev(st.Dev_major, st.Dev_minor)}
	if st.Mask&unix.STATX_MNT_ID != 0 {
		id.id = st.Mnt_id
	}
	return id, nil
}

// UnmountBelow implements [Mounts].
func (Kernel) UnmountBelow(dir string) error {
	dir, err := realPath(dir)
	if err != nil {
		return err
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
		err = fmt.Errorf("%s: %w", points[0], ErrMounted)
	}
	return err
}

func realPath(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	return dir, nil
}

// MountsBelow lists the mount points at or below dir, the deepest first.
func MountsBelow(dir string) ([]string, error) {
	dir, err := realPath(dir)
	if err != nil {
		return nil, err
	}
	return currentMountsBelow(dir)
}

func currentMountsBelow(dir string) ([]string, error) {
	f, err := os.Open("/proc/thread-self/mountinfo") // of the mount namespace that this call mounts in
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
