package stats

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// maxDepth of folders that are counted: each level holds one descriptor open.
const maxDepth = 200

// Space is what a file system has, in bytes and inodes.
type Space struct {
	Capacity, Available, Used     uint64
	Inodes, InodesFree, InodesUse uint64
	// Device tells file systems apart.
	Device uint64
}

// FileSystem asks for the file system that path is on. It costs one call and
// reads nothing from the disk.
func FileSystem(path string) (Space, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return Space{}, fmt.Errorf("asking for the file system of %s: %w", path, err)
	}
	var s unix.Stat_t
	if err := unix.Stat(path, &s); err != nil {
		return Space{}, fmt.Errorf("asking for the file system of %s: %w", path, err)
	}
	size := uint64(st.Bsize)
	if st.Frsize > 0 {
		size = uint64(st.Frsize)
	}
	return Space{
		Capacity: st.Blocks * size, Available: st.Bavail * size, Used: (st.Blocks - st.Bfree) * size,
		Inodes: st.Files, InodesFree: st.Ffree, InodesUse: st.Files - st.Ffree, Device: uint64(s.Dev),
	}, nil
}

// TreeUsage is what a folder takes of its file system.
type TreeUsage struct{ Bytes, Inodes uint64 }

func (u *TreeUsage) add(v TreeUsage) { u.Bytes += v.Bytes; u.Inodes += v.Inodes }

// Tree counts what lies in a folder, itself included, as du does: blocks, a file
// with several names once, and nothing of other file systems mounted below. It
// follows no symlink, whoever swaps one in meanwhile. What vanishes while it counts
// is left out; a folder that isn't there takes nothing.
func Tree(ctx context.Context, path string) (TreeUsage, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOENT):
		return TreeUsage{}, nil
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return TreeUsage{}, fmt.Errorf("counting %s: %w", path, err)
		}
		return TreeUsage{uint64(st.Blocks) * 512, 1}, nil
	case err != nil:
		return TreeUsage{}, fmt.Errorf("counting %s: %w", path, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return TreeUsage{}, fmt.Errorf("counting %s: %w", path, err)
	}
	w := &treeWalk{ctx: ctx, device: uint64(st.Dev), linked: map[uint64]bool{}}
	w.sum.add(TreeUsage{uint64(st.Blocks) * 512, 1})
	if err := w.folder(fd, path, 0); err != nil {
		return TreeUsage{}, fmt.Errorf("counting %s: %w", path, err)
	}
	return w.sum, nil
}

type treeWalk struct {
	ctx    context.Context
	device uint64
	linked map[uint64]bool // inodes with several names that were counted
	sum    TreeUsage
}

// folder owns fd.
func (w *treeWalk) folder(fd int, name string, depth int) error {
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	if depth > maxDepth {
		return fmt.Errorf("folders are nested more than %d deep", maxDepth)
	}
	for {
		if err := w.ctx.Err(); err != nil {
			return err
		}
		names, err := f.Readdirnames(256)
		for _, child := range names {
			if err := w.entry(fd, child, depth); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) || err == nil && len(names) == 0 || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (w *treeWalk) entry(parent int, name string, depth int) error {
	var st unix.Stat_t
	if err := unix.Fstatat(parent, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return ignoreGone(err)
	}
	if uint64(st.Dev) != w.device {
		return nil
	}
	isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	if !isDir && uint64(st.Nlink) > 1 {
		if w.linked[st.Ino] {
			return nil
		}
		w.linked[st.Ino] = true
	}
	w.sum.add(TreeUsage{uint64(st.Blocks) * 512, 1})
	if !isDir {
		return nil
	}
	fd, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.EACCES) {
			return nil // it was swapped, or isn't ours to look into
		}
		return ignoreGone(err)
	}
	return w.folder(fd, name, depth+1)
}

func ignoreGone(err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESTALE) {
		return nil
	}
	return err
}
