package wasmruntime_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/coracle-edge/coracle/wasmruntime"
)

func TestFiles(t *testing.T) {
	data, ro, motd := openDir(t), openDir(t), filepath.Join(openDir(t), "some-motd")
	write(t, filepath.Join(ro, "x"), "ro")
	write(t, motd, "motd")
	write(t, filepath.Join(filepath.Dir(motd), "neighbour"), "hidden")
	g := start(t, newRuntime(t, nil), wasmruntime.Spec{Module: module("files"), Mounts: []wasmruntime.Mount{
		{Host: data, Guest: "/data"}, {Host: ro, Guest: "/ro", ReadOnly: true}, {Host: motd, Guest: "/etc/motd", ReadOnly: true},
	}})
	if st := g.end(); st.Code != 0 {
		t.Errorf("%+v\n%s%s", st, g.stdout.String(), g.stderr.String())
	}
}

// A mounted file leaves those beside it to see.
func TestSingleFilesAmongOthers(t *testing.T) {
	root, data, file := openDir(t), openDir(t), filepath.Join(openDir(t), "file")
	for name, text := range map[string]string{"etc/passwd": "image", "etc/hosts": "of-the-image", "etc/ssl/certs/ca.pem": "ca", "other": "other"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(root, name), text)
	}
	for i := range 300 { // more than one call lists
		write(t, filepath.Join(root, "etc", fmt.Sprintf("a-file-with-a-rather-long-name-%03d", i)), "")
	}
	spec := wasmruntime.Spec{Module: module("singles"), Mounts: []wasmruntime.Mount{{Host: root, Guest: "/", ReadOnly: true}}}
	for guest, text := range map[string]string{"/etc/hosts": "node", "/etc/motd": "motd", "/data/fixed": "fixed"} {
		write(t, file+text, text)
		spec.Mounts = append(spec.Mounts, wasmruntime.Mount{Host: file + text, Guest: guest, ReadOnly: true})
	}
	spec.Mounts = append(spec.Mounts, wasmruntime.Mount{Host: data, Guest: "/data"}) // below a file that was there before
	g := start(t, newRuntime(t, nil), spec)
	if st := g.end(); st.Code != 0 {
		t.Errorf("%+v\n%s%s", st, g.stdout.String(), g.stderr.String())
	}
	if got, err := os.ReadFile(filepath.Join(data, "moved")); err != nil || string(got) != "x" {
		t.Errorf("what the guest wrote beside a single file: %q, %v", got, err)
	}
}

func TestGuestStaysInItsDirectories(t *testing.T) {
	parent := openDir(t)
	data := filepath.Join(parent, "data")
	os.Mkdir(data, 0o777)
	os.Chmod(data, 0o777)
	os.Mkdir(filepath.Join(data, "sub"), 0o777)
	write(t, filepath.Join(parent, "secret"), "SECRET")
	write(t, filepath.Join(data, "inner"), "inner")
	os.Symlink("../secret", filepath.Join(data, "hostlink"))
	os.Symlink(filepath.Join(parent, "secret"), filepath.Join(data, "abslink"))
	os.Symlink("..", filepath.Join(data, "dirlink"))
	os.Symlink("sub/../inner", filepath.Join(data, "within"))
	g := start(t, newRuntime(t, nil), wasmruntime.Spec{Module: module("escape"), Mounts: []wasmruntime.Mount{{Host: data, Guest: "/data"}}})
	if st := g.end(); st.Code != 0 {
		t.Errorf("escaped: %+v\n%s", st, g.stdout.String())
	}
	t.Log(g.stdout.String())
	g.says("inside: works")
	g.says("link within: opened")
	if b, err := os.ReadFile(filepath.Join(parent, "secret")); err != nil || string(b) != "SECRET" {
		t.Errorf("the secret is %q, %v", b, err)
	}
	if _, err := os.Stat(filepath.Join(parent, "made")); err == nil {
		t.Error("a directory was made outside")
	}
}

// What a mount's path leads to is turned into a link to something else and back while
// guests start: each is given one of the two, whole, and never the link itself.
func TestMountsThatAreSwapped(t *testing.T) {
	parent := openDir(t)
	in := func(name string) string { return filepath.Join(parent, name) }
	for _, dir := range []string{"target", "other"} {
		if err := errors.Join(os.Mkdir(in(dir), 0o777), os.WriteFile(in(dir+"/id"), []byte(dir), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("other", in("link")); err != nil {
		t.Fatal(err)
	}
	rt := newRuntime(t, nil)
	spec := wasmruntime.Spec{Module: module("show"), Args: []string{"show", "/v/id"}, Mounts: []wasmruntime.Mount{{Host: in("target"), Guest: "/v"}}}
	for i := range 15 { // each is another chance
		spec.Mounts = append(spec.Mounts, wasmruntime.Mount{Host: in("target"), Guest: fmt.Sprint("/more/", i)})
	}
	start(t, rt, spec).end() // compiled
	stop := make(chan struct{})
	var swapper sync.WaitGroup
	swapper.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				_ = unix.Renameat2(unix.AT_FDCWD, in("target"), unix.AT_FDCWD, in("link"), unix.RENAME_EXCHANGE)
			}
		}
	})
	defer func() { close(stop); swapper.Wait() }()
	saw := map[string]int{}
	for i := 0; i < 60 || len(saw) < 2 && i < 500; i++ {
		spec.Dir = t.TempDir()
		g := start(t, rt, spec)
		if st := g.end(); st.Code != 0 {
			t.Fatalf("after %v: %+v %s", saw, st, g.stderr.String())
		}
		saw[g.stdout.String()]++
	}
	if saw["target"] == 0 || saw["other"] == 0 || len(saw) != 2 {
		t.Errorf("guests saw %v", saw)
	}
}

// openDir is a directory that any user may use, below one that any may pass.
func openDir(t *testing.T) string {
	dir, err := os.MkdirTemp("", "wasmruntime")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	os.Chmod(dir, 0o777)
	return dir
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
