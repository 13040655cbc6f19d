package runner

import (
	"errors"
	"fmt"
	"os"
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
	for _, m := range s.spec.Mounts {
		if m.Guest == "" || strings.IndexByte(m.Guest, 0) >= 0 {
			return fmt.Errorf("mount %s: %q can't be a path of the guest", m.Host, m.Guest)
		}
		found, err := openHost(m.Host)
		if err != nil {
			return fmt.Errorf("mount %s at %s: %w", m.Host, m.Guest, err)
		}
		fd, err := s.hold(found.fd)
		if err != nil {
			return fmt.Errorf("mount %s at %s: %w", m.Host, m.Guest, err)
		}
		s.paths = append(s.paths, jail.Path{FD: fd, Dir: found.dir, Write: !m.ReadOnly})
		if found.dir {
			s.addDirectory(wasi.Preopen{FD: fd, Guest: path.Clean(m.Guest), ReadOnly: m.ReadOnly})
			continue
		}
		if err := s.addSingle(m, found); err != nil {
			return err
		}
	}
	for i, p := range s.order.Preopens {
		if p.FD >= 0 {
			continue
		}
		below, err := s.openBelow(p.Guest)
		if err != nil {
			return fmt.Errorf("mounts in %s: %w", p.Guest, err)
		}
		below.Singles = p.Singles
		s.order.Preopens[i] = below
	}
	return nil
}

// hostEntry is what a mount's path on the host led to.
type hostEntry struct {
	fd  int
	dir bool
	// Of what is no directory: the one that it lies in, and its name there.
	parent int
	name   string
}

// maxMoves is how often a file is looked for again because it was moved meanwhile.
const maxMoves = 40

// openHost opens what a path leads to. Links in it are the host's own. They are
// followed by the kernel, all at one moment, so that whoever turns one elsewhere
// meanwhile has the guest given the one thing or the other, and never the link itself.
func openHost(host string) (hostEntry, error) {
	var why error
	for range maxMoves {
		var st unix.Stat_t
		fd, err := unix.Open(host, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return hostEntry{}, err
		}
		if err := unix.Fstat(fd, &st); err != nil {
			_ = unix.Close(fd)
			return hostEntry{}, err
		}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			return hostEntry{fd: fd, dir: true, parent: -1}, nil
		}
		e := hostEntry{fd: fd, parent: -1}
		if why = e.findParent(&st); why == nil {
			return e, nil
		}
		_ = unix.Close(fd)
	}
	return hostEntry{}, fmt.Errorf("the folder of the file isn't found; it is moved all the time, or was removed: %w", why)
}

// findParent opens the directory that has the file.
func (e *hostEntry) findParent(is *unix.Stat_t) error {
	at, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", e.fd))
	if err != nil {
		return err
	}
	e.name = filepath.Base(at)
	if e.parent, err = unix.Open(filepath.Dir(at), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return err
	}
	var st unix.Stat_t
	err = unix.Fstatat(e.parent, e.name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == nil && (st.Dev != is.Dev || st.Ino != is.Ino) {
		err = unix.ESTALE
	}
	if err != nil {
		_ = unix.Close(e.parent)
	}
	return err
}

// addDirectory adds a preopen, or puts it below the single files of its place.
func (s *stage) addDirectory(p wasi.Preopen) {
	if i := s.preopenAt(p.Guest); i >= 0 && s.order.Preopens[i].FD < 0 {
		p.Singles = s.order.Preopens[i].Singles
		s.order.Preopens[i] = p
		return
	}
	s.order.Preopens = append(s.order.Preopens, p)
}

// preopenAt is the last preopen at a place of the guest, -1 if there is none.
func (s *stage) preopenAt(guest string) int {
	for i := len(s.order.Preopens) - 1; i >= 0; i-- {
		if s.order.Preopens[i].Guest == guest {
			return i
		}
	}
	return -1
}

// addSingle makes a file visible in its directory, which has else what the mounts
// have there, if anything. WASI opens files only through directories.
func (s *stage) addSingle(m bundle.Mount, found hostEntry) error {
	parent, err := s.hold(found.parent)
	if err != nil {
		return fmt.Errorf("mount %s at %s: %w", m.Host, m.Guest, err)
	}
	dir, name := path.Split(path.Clean(m.Guest))
	dir = path.Clean(dir)
	if name == "" {
		return fmt.Errorf("mount %s: a file can't be mounted at %s", m.Host, m.Guest)
	}
	i := s.preopenAt(dir)
	if i < 0 {
		i = len(s.order.Preopens)
		s.order.Preopens = append(s.order.Preopens, wasi.Preopen{FD: -1, Guest: dir})
	}
	p := &s.order.Preopens[i]
	p.Singles = append(p.Singles, wasi.Single{Name: name, Parent: parent, HostName: found.name, ReadOnly: m.ReadOnly})
	return nil
}

// openBelow opens the directory that the guest has at dir by a mount that holds it,
// the deepest one: an image's root is such a mount.
func (s *stage) openBelow(dir string) (wasi.Preopen, error) {
	below := wasi.Preopen{FD: -1, Guest: dir}
	best, rest := -1, ""
	for i, p := range s.order.Preopens {
		in, holds := beneath(p.Guest, dir)
		if holds && p.FD >= 0 && (best < 0 || len(p.Guest) > len(s.order.Preopens[best].Guest)) {
			best, rest = i, in
		}
	}
	if best < 0 {
		return below, nil
	}
	fd, err := wasi.OpenDir(s.order.Preopens[best].FD, rest)
	if errors.Is(err, wasi.ErrNoDir) {
		return below, nil
	}
	if err == nil {
		fd, err = s.hold(fd)
	}
	if err != nil {
		return below, err
	}
	below.FD, below.ReadOnly = fd, s.order.Preopens[best].ReadOnly
	return below, nil
}

// beneath is dir as seen from a directory of the guest, and whether it is there.
func beneath(from, dir string) (string, bool) {
	rest, ok := strings.CutPrefix(dir, strings.TrimSuffix(from, "/")+"/")
	return rest, ok
}
