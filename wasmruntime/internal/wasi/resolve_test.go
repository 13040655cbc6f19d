package wasi

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// tree makes root/inside with links of all kinds, beside root/secret.
func tree(t *testing.T) string {
	root := t.TempDir()
	dir := filepath.Join(root, "inside")
	for _, d := range []string{"a/b/c", "empty"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"../secret", "file", "a/file", "a/b/file"} {
		if err := os.WriteFile(filepath.Join(dir, f), []byte(f), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{
		"out": "../secret", "abs": filepath.Join(root, "secret"), "up": "..", "self": "self", "ping": "pong", "pong": "ping",
		"in": "a/file", "indir": "a/b", "a/back": "../file", "a/b/far": "../../../secret", "deep": "a/b/../../file",
		"dangling": "nothing", "slash": "a/b/", "fileslash": "file/", "dot": ".", "chain": "indir/../file",
	} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// The walk for old kernels must answer as openat2 does.
func TestWalkAnswersAsOpenat2(t *testing.T) {
	dir := tree(t)
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	probe, err := unix.Openat2(fd, "file", &unix.OpenHow{Flags: unix.O_RDONLY, Resolve: resolveFlags})
	if err != nil {
		t.Skipf("no openat2 here: %v", err)
	}
	unix.Close(probe)
	paths := []string{
		"file", "a/file", "./a/./file", "a//file", "a/../file", "a/b/../../file", "a/b/c/../../../file",
		"..", "../secret", "a/../../secret", "a/b/../../../secret", "out", "abs", "up", "up/secret", "self", "ping",
		"in", "indir", "indir/file", "indir/../file", "a/back", "a/b/far", "deep", "dangling", "slash", "slash/file",
		"fileslash", "dot", "dot/file", "chain", "file/", "file/x", "a", "a/", "a/.", "a/..", ".", "nothing", "nothing/x",
		"empty/new", "indir/new", "new/", "dangling/",
	}
	for _, flags := range []int{
		unix.O_RDONLY, unix.O_PATH, unix.O_PATH | unix.O_NOFOLLOW, unix.O_RDONLY | unix.O_NOFOLLOW,
		unix.O_RDONLY | unix.O_DIRECTORY, unix.O_RDWR | unix.O_CREAT, unix.O_RDWR | unix.O_CREAT | unix.O_EXCL, unix.O_PATH | unix.O_DIRECTORY,
	} {
		for _, p := range paths {
			want, have := what(t, dir, false, fd, p, flags), what(t, dir, true, fd, p, flags)
			if want != have {
				t.Errorf("open(%q, %#o): openat2 says %s, the walk %s", p, flags, want, have)
			}
		}
	}
}

// what opens and describes what came of it, and undoes what it made.
func what(t *testing.T, dir string, walked bool, fd int, path string, flags int) string {
	s := &System{noOpenat2: walked}
	before := listing(dir)
	got, err := s.open(fd, path, flags, 0o644)
	defer func() {
		for name := range listing(dir) {
			if !before[name] {
				os.Remove(name)
			}
		}
	}()
	if err != nil {
		var e unix.Errno
		if errors.As(err, &e) {
			return e.Error()
		}
		return fmt.Sprintf("wasi errno %d", err)
	}
	defer unix.Close(got)
	var st unix.Stat_t
	if err := unix.Fstat(got, &st); err != nil {
		t.Fatal(err)
	}
	name, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", got))
	return name
}

func listing(dir string) map[string]bool {
	out := map[string]bool{}
	filepath.WalkDir(filepath.Dir(dir), func(p string, _ os.DirEntry, _ error) error {
		out[p] = true
		return nil
	})
	return out
}
