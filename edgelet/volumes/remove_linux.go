package volumes

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// removeAll removes dir and all below it, and nothing through a mount point or a
// symlink: whatever is mounted there, and whoever mounts while it runs, what is
// another file system's stays. It returns [ErrMounted] then. Once ctx ends it stops, at
// whatever file, with ctx's error.
func removeAll(ctx context.Context, dir string) error {
	parent, err := unix.Open(filepath.Dir(dir), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: filepath.Dir(dir), Err: err}
	}
	defer unix.Close(parent)
	mount, err := mountOf(parent, "")
	if err != nil {
		return err
	}
	return removeAt(ctx, parent, filepath.Base(dir), dir, mount)
}

// removeAt removes name in a folder, which lies on mount; path is for messages.
func removeAt(ctx context.Context, parent int, name, path string, mount mountID) error {
	fail := func(op string, err error) error { return &os.PathError{Op: op, Path: path, Err: err} }
	err := unix.Unlinkat(parent, name, 0)
	switch {
	case err == nil, errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%s: %w", path, ErrMounted)
	case !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM):
		return fail("unlink", err)
	}
	fd, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fail("open", err)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	// Of what was opened, not of what is at the path now.
	if here, err := mountOf(fd, ""); err != nil {
		return err
	} else if here != mount {
		return fmt.Errorf("%s: %w", path, ErrMounted)
	}
	for {
		names, err := f.Readdirnames(256)
		for _, child := range names {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := removeAt(ctx, fd, child, filepath.Join(path, child), mount); err != nil {
				return err
			}
		}
		if len(names) == 0 || err != nil {
			break
		}
		if _, err := f.Seek(0, 0); err != nil {
			return fail("seek", err)
		}
	}
	switch err := unix.Unlinkat(parent, name, unix.AT_REMOVEDIR); {
	case err == nil, errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%s: %w", path, ErrMounted)
	default:
		return fail("rmdir", err)
	}
}
