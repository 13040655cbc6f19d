package cache

import (
	"cmp"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Kept is an entry as Entries finds it.
type Kept struct {
	Key string
	// Bytes on the disk; holes have none.
	Bytes int64
	// Used is when it was last used, to a day; see Touch.
	Used time.Time
}

// Digest of the entry's module.
func (k Kept) Digest() string {
	sum, _, _ := strings.Cut(k.Key, "-")
	return "sha256:" + sum
}

// Entries lists a cache, what was used longest ago first. Directories whose names
// begin with skip aren't entries.
func Entries(dir, skip string) ([]Kept, error) {
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var out []Kept
	for _, d := range list {
		if !d.IsDir() || strings.HasPrefix(d.Name(), skip) {
			continue
		}
		k := Kept{Key: d.Name()}
		err := filepath.WalkDir(filepath.Join(dir, k.Key), func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				k.Bytes += st.Blocks * 512
			}
			if path == filepath.Join(dir, k.Key) {
				k.Used = info.ModTime()
			}
			return nil
		})
		if errors.Is(err, fs.ErrNotExist) {
			continue // it was removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		out = append(out, k)
	}
	slices.SortFunc(out, func(a, b Kept) int { return cmp.Or(a.Used.Compare(b.Used), cmp.Compare(a.Key, b.Key)) })
	return out, nil
}

// touchEvery is how old the note of an entry's last use may become: a start writes
// to flash once a day at most.
const touchEvery = 24 * time.Hour

// Touch notes that an entry is used now, as its directory's modification time. It
// writes only if the note is older than a day, or from the future, of a clock that
// was wrong.
func Touch(dir string, now time.Time) error {
	st, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if age := now.Sub(st.ModTime()); age >= 0 && age < touchEvery {
		return nil
	}
	return os.Chtimes(dir, time.Time{}, now)
}
