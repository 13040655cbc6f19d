package wasm

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coracle-edge/coracle/crishim/images"
)

// A command of exec and a PATH, which are a client's and an image's: what is found is
// in the image's root file system, and a module.
func FuzzFindProgram(f *testing.F) {
	f.Add("a.wasm", "PATH=/bin:/")
	f.Add("../../outside.wasm", "PATH=..:")
	f.Add("/link", "PATH")
	base := f.TempDir()
	root := filepath.Join(base, "root")
	for name, text := range map[string]string{"root/bin/a.wasm": "\x00asm\x01", "root/text": "x", "outside.wasm": "\x00asm\x01"} {
		path := filepath.Join(base, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			f.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			f.Fatal(err)
		}
	}
	for name, to := range map[string]string{"link": "../outside.wasm", "abs": filepath.Join(base, "outside.wasm")} {
		if err := os.Symlink(to, filepath.Join(root, name)); err != nil {
			f.Fatal(err)
		}
	}
	img := &images.Image{Rootfs: root}
	f.Fuzz(func(t *testing.T, name, env string) {
		if file, ok := findProgram(img, []string{env}, name); ok && (!strings.HasPrefix(file, root+"/") || !strings.HasSuffix(file, "/a.wasm")) {
			t.Errorf("%q with %q is %s", name, env, file)
		}
	})
}
