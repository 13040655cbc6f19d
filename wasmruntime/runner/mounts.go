package runner

import (
	"fmt"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/coracle-edge/coracle/wasmruntime/internal/bundle"
	"github.com/coracle-edge/coracle/wasmruntime/internal/jail"
	"github.com/coracle-edge/coracle/wasmruntime/internal/wasi"
)

// openMounts opens the host's side of all mounts, O_PATH: what the guest
// makes of them asks for its own user's rights.
func (s *stage) openMounts() error {
	singles := map[string]int{} // guest directory of single files -> preopen
	for _, m := range s.spec.Mounts {
		if m.Guest == "" || strings.IndexByte(m.Guest, 0) >= 0 {
			return fmt.Errorf("mount %s: %q can't be a path of the guest", m.Host, m.Guest)
		}
		// Links in the host's path are the host's own.
		host, err := filepath.EvalSymlinks(m.Host)
		if err != nil {
			return fmt.Errorf("mount at %s: %w", m.Guest, err)
		}
		fd, err := unix.Open(host, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err == nil {
			fd, err = s.hold(fd)
		}
		if err != nil {
			return fmt.Errorf("mount %s at %s: %w", m.Host, m.Guest, err)
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return err
		}
		isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
		s.paths = append(s.paths, jail.Path{FD: fd, Dir: isDir, Write: !m.ReadOnly})
		if isDir {
			s.order.Preopens = append(s.order.Preopens, wasi.Preopen{FD: fd, Guest: path.Clean(m.Guest), ReadOnly: m.ReadOnly})
			continue
		}
		if err := s.addSingle(singles, m, host); err != nil {
			return err
		}
	}
	return nil
}

// addSingle makes a file visible in a directory that has nothing else.
// WASI opens files only through directories.
func (s *stage) addSingle(at map[string]int, m bundle.Mount, host string) error {
	dir, name := path.Split(path.Clean(m.Guest))
	dir = path.Clean(dir)
	if name == "" {
		return fmt.Errorf("mount %s: a file can't be mounted at %s", m.Host, m.Guest)
	}
	parent, err := unix.Open(filepath.Dir(host), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == nil {
		parent, err = s.hold(parent)
	}
	if err != nil {
		return fmt.Errorf("mount %s at %s: %w", m.Host, m.Guest, err)
	}
	i, found := at[dir]
	if !found {
		i = len(s.order.Preopens)
		at[dir] = i
		s.order.Preopens = append(s.order.Preopens, wasi.Preopen{FD: -1, Guest: dir})
	}
	p := &s.order.Preopens[i]
	p.Singles = append(p.Singles, wasi.Single{Name: name, Parent: parent, HostName: filepath.Base(host), ReadOnly: m.ReadOnly})
	return nil
}
