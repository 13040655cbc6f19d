package volumes

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// ownByGroup gives a tree to a group, as fsGroup asks: readable to it, writable
// unless readOnly, directories with setgid. Without the right to change owners
// it does nothing: then there is one user only.
func ownByGroup(root string, gid *int64, readOnly bool) error {
	if gid == nil {
		return nil
	}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := os.Lchown(path, -1, int(*gid)); err != nil {
			return err
		}
		if d.Type()&os.ModeSymlink != 0 {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		mode := info.Mode() | 0o060
		if readOnly {
			mode = info.Mode() | 0o040
		}
		if d.IsDir() {
			mode |= os.ModeSetgid | 0o010
		}
		return os.Chmod(path, mode)
	})
	if errors.Is(err, os.ErrPermission) && os.Geteuid() != 0 {
		return nil
	}
	return err
}
