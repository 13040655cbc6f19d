package volumes

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	dataLink    = "..data"
	dataLinkTmp = "..data_tmp"
)

// file is one projected file.
type file struct {
	data []byte
	mode os.FileMode
	user *int64 // its owner; nil: the agent
}

// writeAtomically makes dir show exactly files, all at once, in the layout of a
// kubelet's AtomicWriter: the files lie in a time-stamped directory, ..data
// points to it, and each visible name is a symlink through ..data. Programs
// that watch ..data, and those that keep a directory open, see what they see
// under a kubelet. prepare is called on the staged directory before it shows.
// Nothing is written if dir shows files already.
func writeAtomically(dir string, files map[string]file, now time.Time, prepare func(staged string) error) error {
	clean := make(map[string]file, len(files))
	for name, f := range files {
		path, err := validPath(name)
		if err != nil {
			return err
		}
		clean[path] = f
	}
	old, err := os.Readlink(filepath.Join(dir, dataLink))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if old != filepath.Base(old) || !strings.HasPrefix(old, "..") {
		old = "" // not ours; the swap replaces it
	}
	if old != "" && shows(filepath.Join(dir, old), clean) {
		// A cut between the swap and the visible links is mended here.
		return syncLinks(dir, clean)
	}
	staged, err := os.MkdirTemp(dir, now.UTC().Format("..2006_01_02_15_04_05."))
	if err != nil {
		return err
	}
	if err := stage(staged, clean, prepare); err != nil {
		return errors.Join(err, os.RemoveAll(staged))
	}
	tmp := filepath.Join(dir, dataLinkTmp)
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Symlink(filepath.Base(staged), tmp); err != nil {
		return errors.Join(err, os.RemoveAll(staged))
	}
	if err := os.Rename(tmp, filepath.Join(dir, dataLink)); err != nil {
		return errors.Join(err, os.Remove(tmp), os.RemoveAll(staged))
	}
	if err := syncLinks(dir, clean); err != nil {
		return err
	}
	return removeStale(dir, filepath.Base(staged))
}

// validPath checks a projected file's path: relative, inside, and not in the
// names this layout uses itself.
func validPath(name string) (string, error) {
	path := filepath.Clean(name)
	switch {
	case name == "" || path == ".":
		return "", fmt.Errorf("%w: empty path", ErrInvalid)
	case filepath.IsAbs(name):
		return "", fmt.Errorf("%w: path %q must be relative", ErrInvalid, name)
	case strings.HasPrefix(path, ".."):
		return "", fmt.Errorf("%w: path %q must not start with '..'", ErrInvalid, name)
	case slices.Contains(strings.Split(name, "/"), ".."):
		return "", fmt.Errorf("%w: path %q must not contain '..'", ErrInvalid, name)
	case len(path) > 4096:
		return "", fmt.Errorf("%w: path is longer than 4096", ErrInvalid)
	case strings.ContainsRune(path, 0):
		return "", fmt.Errorf("%w: path %q contains a NUL", ErrInvalid, name)
	}
	return path, nil
}

// shows reports whether dir holds exactly files.
func shows(dir string, files map[string]file) bool {
	seen := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		want, ok := files[rel]
		if !ok {
			return fs.ErrExist
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if info.Mode().Perm() != want.mode || info.Size() != int64(len(want.data)) {
			return fs.ErrExist
		}
		have, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(have, want.data) {
			return fs.ErrExist
		}
		seen++
		return nil
	})
	return err == nil && seen == len(files)
}

func stage(staged string, files map[string]file, prepare func(string) error) error {
	if err := os.Chmod(staged, 0o755); err != nil {
		return err
	}
	for name, f := range files {
		path := filepath.Join(staged, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, f.data, f.mode); err != nil {
			return err
		}
		if err := os.Chmod(path, f.mode); err != nil { // whatever the umask
			return err
		}
		if f.user == nil {
			continue
		}
		if err := os.Lchown(path, int(*f.user), -1); err != nil && os.Geteuid() == 0 {
			return err
		}
	}
	return prepare(staged)
}

// syncLinks makes the visible names those of files' first path elements.
func syncLinks(dir string, files map[string]file) error {
	want := map[string]bool{}
	for name := range files {
		first, _, _ := strings.Cut(name, "/")
		want[first] = true
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := e.Name()
		if strings.HasPrefix(name, "..") {
			continue
		}
		target, err := os.Readlink(filepath.Join(dir, name))
		if want[name] && err == nil && target == filepath.Join(dataLink, name) {
			delete(want, name)
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if err := os.Symlink(filepath.Join(dataLink, name), filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// removeStale removes staged directories other than current, also those that a
// power cut left.
func removeStale(dir, current string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if name := e.Name(); e.IsDir() && strings.HasPrefix(name, "..") && name != current {
			if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
				return err
			}
		}
	}
	return nil
}
