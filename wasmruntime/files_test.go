package wasmruntime_test

import (
	"os"
	"path/filepath"
	"testing"

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
