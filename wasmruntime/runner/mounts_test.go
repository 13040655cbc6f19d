package runner

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestOpenHost(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	if err := errors.Join(os.MkdirAll(in("real/deep"), 0o755), os.WriteFile(in("real/file"), []byte("x"), 0o644),
		os.Symlink("real", in("link")), os.Symlink("real/file", in("file.link")), os.Symlink("nowhere", in("dangling"))); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]struct {
		dir  bool
		name string
	}{"real": {true, ""}, "link/deep": {true, ""}, "link": {true, ""}, "file.link": {false, "file"}, "link/file": {false, "file"}} {
		e, err := openHost(in(path))
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		if e.dir != want.dir || e.name != want.name || (e.parent >= 0) == e.dir {
			t.Errorf("%s is %+v", path, e)
		}
		if !e.dir {
			var is, there unix.Stat_t
			if err := errors.Join(unix.Fstat(e.fd, &is), unix.Fstatat(e.parent, e.name, &there, unix.AT_SYMLINK_NOFOLLOW)); err != nil || is.Ino != there.Ino {
				t.Errorf("%s: its folder has another file of that name, %v", path, err)
			}
			unix.Close(e.parent)
		}
		unix.Close(e.fd)
	}
	for _, path := range []string{"nothing", "dangling", "real/file/below"} {
		if e, err := openHost(in(path)); err == nil {
			t.Errorf("%s was opened: %+v", path, e)
		}
	}
}

// A file that went meanwhile isn't taken for another one, not even for one that has
// the name by which the kernel calls it then.
func TestAFileThatWent(t *testing.T) {
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(file, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	var is unix.Stat_t
	if err := errors.Join(unix.Fstat(fd, &is), os.Remove(file), os.WriteFile(file+" (deleted)", []byte("another"), 0o644)); err != nil {
		t.Fatal(err)
	}
	e := hostEntry{fd: fd, parent: -1}
	if err := e.findParent(&is); !errors.Is(err, unix.ESTALE) {
		t.Errorf("%+v, %v", e, err)
	}
}
