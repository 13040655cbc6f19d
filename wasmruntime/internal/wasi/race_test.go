package wasi

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// raceTree is root/inside, the guest's, and root/outside, which nobody may see.
func raceTree(t *testing.T) (inside, outside string) {
	root := t.TempDir()
	inside, outside = filepath.Join(root, "inside"), filepath.Join(root, "outside")
	for _, d := range []string{inside + "/d/e", inside + "/deep/down/here", outside + "/e"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for path, text := range map[string]string{
		inside + "/d/f": "inside", inside + "/d/e/f": "inside", inside + "/file": "inside", inside + "/deep/down/here/f": "inside",
		outside + "/f": "outside", outside + "/e/f": "outside", root + "/f": "outside", root + "/d": "outside",
	} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{"relative": "../outside", "absolute": outside, "up": "..", "single": "../outside/f"} {
		if err := os.Symlink(target, filepath.Join(inside, name)); err != nil {
			t.Fatal(err)
		}
	}
	return inside, outside
}

// swap exchanges pairs of names, and moves a directory away and back, until
// stop is closed.
func swap(t *testing.T, dir string, stop <-chan struct{}) {
	in := func(name string) string { return filepath.Join(dir, name) }
	for i := 0; ; i++ {
		select {
		case <-stop:
			return
		default:
		}
		with := []string{"relative", "absolute", "up"}[i/2%3] // twice each, so that all is back in the end
		if err := unix.Renameat2(unix.AT_FDCWD, in("d"), unix.AT_FDCWD, in(with), unix.RENAME_EXCHANGE); err != nil {
			t.Errorf("exchange d and %s: %v", with, err)
			return
		}
		unix.Renameat2(unix.AT_FDCWD, in("file"), unix.AT_FDCWD, in("single"), unix.RENAME_EXCHANGE)
		if i%2 == 0 {
			os.Rename(in("deep/down"), in("down"))
		} else {
			os.Rename(in("down"), in("deep/down"))
		}
	}
}

// contents of everything below a folder.
func contents(t *testing.T, dir string) string {
	text := ""
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			text += path + "\n"
			return err
		}
		b, err := os.ReadFile(path)
		text += fmt.Sprintf("%s %s\n", path, b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// While others swap what a path names for links that lead out, whatever a
// guest's path functions find, make, change or remove is inside. With openat2
// and by the walk for old kernels.
func TestRacesNeverLeadOut(t *testing.T) {
	for _, walked := range []bool{false, true} {
		t.Run(fmt.Sprintf("walk %v", walked), func(t *testing.T) {
			inside, outside := raceTree(t)
			before := contents(t, outside)
			fd, err := unix.Open(inside, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			stop := make(chan struct{})
			var others sync.WaitGroup
			others.Go(func() { swap(t, inside, stop) })
			end := sync.OnceFunc(func() { close(stop); others.Wait() })
			defer end()

			s := &System{noOpenat2: walked}
			f := &file{fd: fd, dirFD: -1, kind: typeDirectory, base: rightsDir, inherit: rightsDir | rightsFile}
			found, refused := 0, 0
			began := time.Now()
			// As long as it takes to see both, and a while.
			for i := 0; time.Since(began) < 1500*time.Millisecond || (found == 0 || refused == 0) && time.Since(began) < 30*time.Second; i++ {
				for _, path := range []string{"d/f", "d/e/f", "file", "d/../d/f", "d/e/../../d/e/f", "deep/down/here/../../../d/f", "deep/down/here/f"} {
					b, err := readAt(s, fd, path)
					if err != nil {
						refused++
						continue
					}
					found++
					if b != "inside" {
						t.Fatalf("open(%q) gave what is %q", path, b)
					}
				}
				name := fmt.Sprintf("new%d", i%8)
				if made, err := s.open(fd, "d/"+name, unix.O_CREAT|unix.O_WRONLY, 0o644); err == nil {
					unix.Write(made, []byte("inside"))
					unix.Close(made)
				}
				s.inParent(f, "d/e/"+name, func(dir int, n string) error { return unix.Mkdirat(dir, n, 0o755) })
				s.inParent(f, "d/e/"+name, func(dir int, n string) error { return unix.Unlinkat(dir, n, unix.AT_REMOVEDIR) })
				s.inParent(f, "d/"+name, func(dir int, n string) error { return unix.Symlinkat("x", dir, n+"l") })
				s.inParent(f, "d/"+name, func(dir int, n string) error { return unix.Unlinkat(dir, n, 0) })
				s.inParent(f, "d/"+name+"l", func(dir int, n string) error { return unix.Unlinkat(dir, n, 0) })
				if p, err := s.openPath(f, "d/f", true); err == nil {
					unix.UtimesNanoAt(p, "", []unix.Timespec{{Sec: 1}, {Sec: 1}}, unix.AT_EMPTY_PATH)
					unix.Close(p)
				}
			}
			end()
			t.Logf("%d found, %d refused", found, refused)
			if found == 0 || refused == 0 {
				t.Error("nothing was swapped while paths were opened")
			}
			if after := contents(t, outside); after != before {
				t.Errorf("outside was\n%sand is\n%s", before, after)
			}
			for _, name := range []string{"f", "e/f"} {
				if info, err := os.Stat(filepath.Join(outside, name)); err != nil || info.ModTime().Unix() == 1 {
					t.Errorf("outside/%s: its time was changed, or %v", name, err)
				}
			}
		})
	}
}

func readAt(s *System, dir int, path string) (string, error) {
	fd, err := s.open(dir, path, unix.O_RDONLY, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	b := make([]byte, 16)
	n, err := unix.Read(fd, b)
	return string(b[:max(n, 0)]), err
}
