package volumes

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

var (
	// ErrUnsupported is returned when a volume's type isn't one this node makes.
	ErrUnsupported = errors.New("volume type is not supported on this node")
	// ErrNotFound is returned when an object a volume is made of isn't on the node.
	ErrNotFound = errors.New("not found")
	// ErrHostPath is returned when what is at a hostPath isn't of the type asked for.
	ErrHostPath = errors.New("hostPath type check failed")
	// ErrInvalid is returned when a volume says something that can't be done, such
	// as a path that leaves the volume.
	ErrInvalid = errors.New("invalid volume")
	// ErrClaim is returned when a volume's claim has no volume that this pod may use.
	ErrClaim = errors.New("error processing PVC")
	// ErrNotAttached is returned while a volume's controller has not attached it.
	ErrNotAttached = errors.New("volume is not attached to this node yet")
	// ErrInUse is returned when a volume of one pod only is another pod's.
	ErrInUse = errors.New("volume uses the ReadWriteOncePod access mode and is already in use by another pod")
	// ErrFull is returned when a file system is full; it may not stay so.
	ErrFull = errors.New("no space left on the node")
	// ErrMounted is returned when something is still mounted where files were to be
	// removed: nothing is deleted through a mount.
	ErrMounted = errors.New("still mounted")
)

// Error names the volume that can't be set up, in a kubelet's words.
type Error struct {
	Volume string
	Err    error
	// Block says that it was to be a device in a container.
	Block bool
}

func (e *Error) Error() string {
	if errors.Is(e.Err, ErrClaim) || errors.Is(e.Err, ErrInUse) {
		return fmt.Sprintf("Unable to attach or mount volumes: unmounted volumes=[%s], unattached volumes=[], failed to process volumes=[%s]: %v", e.Volume, e.Volume, e.Err)
	}
	if errors.Is(e.Err, ErrNotAttached) {
		return fmt.Sprintf("AttachVolume.Attach failed for volume %q : %v", e.Volume, e.Err)
	}
	if e.Block {
		return fmt.Sprintf("MapVolume.SetUpDevice failed for volume %q : %v", e.Volume, e.Err)
	}
	return fmt.Sprintf("MountVolume.SetUp failed for volume %q : %v", e.Volume, e.Err)
}
func (e *Error) Unwrap() error { return e.Err }

// full adds to an error of a full file system which one it is: at most it is
// the tmpfs of the volume itself, not the board's card.
func full(err error, path string) error {
	if !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) {
		return err
	}
	at := path
	var perr *fs.PathError
	if errors.As(err, &perr) {
		at = perr.Path
	}
	where, kind := fileSystemOf(at)
	return fmt.Errorf("%w: the file system at %s (%s) is full: %w; make room there, it is tried again", ErrFull, where, kind, err)
}

// fileSystemOf finds the mount point that a path lies on, and its type. The path
// itself need not exist.
func fileSystemOf(path string) (point, kind string) {
	for {
		var st unix.Statfs_t
		if err := unix.Statfs(path, &st); err == nil {
			kind = fileSystemName(int64(st.Type))
			break
		}
		if path == "/" || path == "." {
			return path, "unknown"
		}
		path = filepath.Dir(path)
	}
	var here unix.Stat_t
	if err := unix.Stat(path, &here); err != nil {
		return path, kind
	}
	for path != "/" {
		var parent unix.Stat_t
		if err := unix.Stat(filepath.Dir(path), &parent); err != nil || parent.Dev != here.Dev {
			break
		}
		path = filepath.Dir(path)
	}
	return path, kind
}

func fileSystemName(magic int64) string {
	switch uint32(magic) {
	case unix.EXT4_SUPER_MAGIC:
		return "ext4"
	case unix.TMPFS_MAGIC:
		return "tmpfs"
	case unix.XFS_SUPER_MAGIC:
		return "xfs"
	case unix.BTRFS_SUPER_MAGIC:
		return "btrfs"
	case unix.OVERLAYFS_SUPER_MAGIC:
		return "overlay"
	case unix.F2FS_SUPER_MAGIC:
		return "f2fs"
	case unix.NFS_SUPER_MAGIC:
		return "nfs"
	case unix.HUGETLBFS_MAGIC:
		return "hugetlbfs"
	case unix.MSDOS_SUPER_MAGIC:
		return "vfat"
	}
	return fmt.Sprintf("type %#x", uint32(magic))
}
