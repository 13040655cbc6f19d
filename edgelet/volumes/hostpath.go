package volumes

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	v1 "k8s.io/api/core/v1"
)

// checkHostPath checks, or makes, what a hostPath volume says is there.
func checkHostPath(s *v1.HostPathVolumeSource) error {
	if !filepath.IsAbs(s.Path) || strings.Contains("/"+filepath.ToSlash(s.Path)+"/", "/../") {
		return fmt.Errorf("%w: hostPath %q must be absolute and without '..'", ErrInvalid, s.Path)
	}
	if s.Type == nil || *s.Type == v1.HostPathUnset {
		return nil
	}
	kind := *s.Type
	info, err := os.Stat(s.Path)
	if errors.Is(err, os.ErrNotExist) {
		switch kind {
		case v1.HostPathDirectoryOrCreate:
			return os.MkdirAll(s.Path, 0o755)
		case v1.HostPathFileOrCreate:
			f, err := os.OpenFile(s.Path, os.O_CREATE|os.O_RDWR, 0o644)
			if err != nil {
				return err
			}
			return f.Close()
		}
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrHostPath, err)
	}
	mode := info.Mode()
	var ok bool
	var what string
	switch kind {
	case v1.HostPathDirectoryOrCreate, v1.HostPathDirectory:
		ok, what = mode.IsDir(), "a directory"
	case v1.HostPathFileOrCreate, v1.HostPathFile:
		ok, what = mode.IsRegular(), "a file"
	case v1.HostPathSocket:
		ok, what = mode&os.ModeSocket != 0, "a socket file"
	case v1.HostPathCharDev:
		ok, what = mode&os.ModeCharDevice != 0, "a character device"
	case v1.HostPathBlockDev:
		ok, what = mode&os.ModeDevice != 0 && mode&os.ModeCharDevice == 0, "a block device"
	default:
		return fmt.Errorf("%w: hostPath type %q", ErrInvalid, kind)
	}
	if !ok {
		return fmt.Errorf("%w: %s is not %s", ErrHostPath, s.Path, what)
	}
	return nil
}
