package wasi

import (
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// Two guests with one volume, and a process of the host that is in it too: one
// guest and the host swap a directory for links that lead out, while the other
// guest works in it. Nothing outside is read or changed.
func TestGuestsRaceInAVolume(t *testing.T) {
	module := clang(t, "race.wasm", "-D_GNU_SOURCE", "race/race.c")
	root := openDir(t, os.Getuid())
	inside, outside := filepath.Join(root, "inside"), filepath.Join(root, "outside")
	for _, dir := range []string{inside + "/d/e", outside + "/e"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, inside+"/d/f", "inside")
	write(t, outside+"/f", "outside")
	if err := os.Symlink(outside, inside+"/absolute"); err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(outside + "/f")
	if err != nil {
		t.Fatal(err)
	}

	stop := make(chan struct{})
	var others sync.WaitGroup
	others.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				unix.Renameat2(unix.AT_FDCWD, inside+"/d", unix.AT_FDCWD, inside+"/absolute", unix.RENAME_EXCHANGE)
			}
		}
	})
	others.Go(func() { guest(t, "", "--dir", inside+"::/", module, "swap", "2") })
	r := guest(t, "", "--dir", inside+"::/", module, "open", "2")
	close(stop)
	others.Wait()
	if r.code != 0 {
		t.Errorf("%+v", r)
	}
	t.Log(r.stdout)
	entries, err := os.ReadDir(outside)
	if err != nil || len(entries) != 2 {
		t.Errorf("outside has %v, %v", entries, err)
	}
	after, err := os.Stat(outside + "/f")
	if err != nil || !after.ModTime().Equal(before.ModTime()) || after.Size() != before.Size() {
		t.Errorf("outside/f was changed: %v, %v", after, err)
	}
}
