package aot_test

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coracle-edge/coracle/wasmruntime/internal/aot"
	"github.com/coracle-edge/coracle/wasmruntime/internal/cache"
)

// entry is a small one of a cache, with a hole in its engine's file.
func entry(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	t.Cleanup(func() { cache.Remove(dir) })
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.WriteFile(filepath.Join(dir, cache.ModuleFile), []byte("module"), 0o644))
	must(os.WriteFile(filepath.Join(dir, cache.CodeFile), []byte("code"), 0o644))
	must(os.Mkdir(filepath.Join(dir, "engine"), 0o755))
	f, err := os.Create(filepath.Join(dir, "engine", "file"))
	must(err)
	_, err = f.WriteAt([]byte("head"), 0)
	must(err)
	_, err = f.WriteAt([]byte("tail"), 1<<20)
	must(err)
	must(f.Close())
	must(cache.Seal(dir, cache.Index{Digest: "sha256:" + strings.Repeat("0", 64), Engine: cache.Engine{Name: "compiler", Arch: "x"}}))
	return dir
}

func TestArtifactThereAndBack(t *testing.T) {
	pub, priv, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	dir := entry(t)
	var file bytes.Buffer
	if err := aot.Write(&file, dir, priv); err != nil {
		t.Fatal(err)
	}
	if file.Len() > 64<<10 {
		t.Errorf("%d bytes: the hole travels too", file.Len())
	}
	a, err := aot.Read(&file)
	if err != nil {
		t.Fatal(err)
	}
	if name, err := a.Trusted(map[string]ed25519.PublicKey{"a": make([]byte, 32), "b": pub}); err != nil || name != "b" {
		t.Errorf("signed by %q, %v", name, err)
	}
	if _, err := a.Trusted(nil); !errors.Is(err, aot.ErrUntrusted) {
		t.Errorf("trusted by nobody: %v", err)
	}
	back := t.TempDir()
	t.Cleanup(func() { cache.Remove(back) })
	if err := a.Extract(back); err != nil {
		t.Fatal(err)
	}
	if err := cache.SealAs(back, a.Index); err != nil {
		t.Fatal(err)
	}
	if _, err := cache.Verify(back, a.Index.Engine); err != nil {
		t.Error(err)
	}
}

// Nothing that a file says of itself reaches beyond the folder it is for.
func TestHostileArtifacts(t *testing.T) {
	for name, index := range map[string]string{
		"a file above":          `{"index":{"files":{"../x":{"size":1}}}}`,
		"an absolute name":      `{"index":{"files":{"/etc/x":{"size":1}}}}`,
		"an index of its own":   `{"index":{"files":{"index.json":{"size":1}}}}`,
		"deep":                  `{"index":{"files":{"a/b/c":{"size":1}}}}`,
		"a negative size":       `{"index":{"files":{"x":{"size":-1}}}}`,
		"a hole past its end":   `{"index":{"files":{"x":{"size":1,"hole":[0,2]}}}}`,
		"a hole that goes back": `{"index":{"files":{"x":{"size":9,"hole":[5,2]}}}}`,
		"no end of bytes":       `{"index":{"files":{"x":{"size":4611686018427387904}}}}`,
		"no JSON":               `{`,
	} {
		t.Run(name, func(t *testing.T) {
			_, err := aot.Read(strings.NewReader("coracle-wasm-aot 1\n" + index + "\n" + strings.Repeat("A", 86) + "==\n"))
			if !errors.Is(err, aot.ErrFormat) {
				t.Errorf("%v, want ErrFormat", err)
			}
		})
	}
}

func FuzzRead(f *testing.F) {
	_, priv, err := ed25519.GenerateKey(nil)
	if err != nil {
		f.Fatal(err)
	}
	var file bytes.Buffer
	if err := aot.Write(&file, entry(f), priv); err != nil {
		f.Fatal(err)
	}
	f.Add(file.Bytes())
	f.Add([]byte("coracle-wasm-aot 1\n{}\n" + strings.Repeat("A", 86) + "==\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := aot.Read(bytes.NewReader(b))
		if err != nil {
			return
		}
		var sum int64
		for _, file := range a.Index.Files {
			sum += file.Size
		}
		if sum > 1<<30 { // sparse, but some file systems have none that large
			return
		}
		dir := filepath.Join(t.TempDir(), "in", "here")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		_ = a.Extract(dir)
		if left, _ := os.ReadDir(filepath.Dir(dir)); len(left) != 1 {
			t.Fatalf("it wrote outside: %v", left)
		}
	})
}
