package images

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coracle-edge/coracle/test/lab"
)

func unpackAll(t *testing.T, layers ...[]lab.File) (string, error) {
	t.Helper()
	dir := t.TempDir()
	u := &unpacker{bytes: 1 << 20, files: 100}
	for _, l := range layers {
		_, plain := lab.TarGz(l)
		if err := u.unpack(t.Context(), dir, bytes.NewReader(plain)); err != nil {
			return dir, err
		}
	}
	return dir, nil
}

func TestUnpackLayers(t *testing.T) {
	dir, err := unpackAll(t,
		[]lab.File{
			{Path: "a/gone", Mode: 0o644, Data: []byte("1")},
			{Path: "b/old", Mode: 0o644, Data: []byte("1")},
			{Path: "c", Mode: 0o4755, Data: []byte("c1")},
			{Path: "usr/lib/x", Mode: 0o600, Data: []byte("x")},
			{Path: "lib", Link: "/usr/lib"},
			{Path: "dev", Type: tar.TypeChar},
		},
		[]lab.File{
			{Path: "a/.wh.gone"},
			{Path: "b/new", Mode: 0o644, Data: []byte("2")},
			{Path: "b/.wh..wh..opq"},
			{Path: "c", Mode: 0o755, Data: []byte("c2")},
			{Path: "lib/y", Mode: 0o644, Data: []byte("through the link")},
			{Path: "hard", Hard: "usr/lib/x"},
		})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	_ = filepath.WalkDir(dir, func(p string, d fs.DirEntry, _ error) error {
		if !d.IsDir() {
			rel, _ := filepath.Rel(dir, p)
			got = append(got, rel)
		}
		return nil
	})
	if want := "b/new c hard lib usr/lib/x usr/lib/y"; strings.Join(got, " ") != want {
		t.Errorf("files %q, want %q", strings.Join(got, " "), want)
	}
	if fi, err := os.Stat(filepath.Join(dir, "c")); err != nil || fi.Mode() != 0o755 {
		t.Errorf("c: %v, %v", fi, err)
	}
	if l, err := os.Readlink(filepath.Join(dir, "lib")); err != nil || l != "usr/lib" {
		t.Errorf("lib -> %q, %v", l, err)
	}
}

func TestUnpackStaysInside(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "victim")
	if err := os.WriteFile(outside, []byte("intact"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, files := range map[string][]lab.File{
		"dots":             {{Path: "../../../../" + outside, Mode: 0o644, Data: []byte("pwned")}},
		"through symlink":  {{Path: "d", Link: "../../../../../.." + filepath.Dir(outside)}, {Path: "d/victim", Mode: 0o644, Data: []byte("pwned")}},
		"absolute symlink": {{Path: "d", Link: filepath.Dir(outside)}, {Path: "d/victim", Mode: 0o644, Data: []byte("pwned")}},
		"hard link":        {{Path: "h", Hard: outside}, {Path: "h", Mode: 0o644, Data: []byte("pwned")}},
		"whiteout":         {{Path: "d", Link: "../../../../../.." + filepath.Dir(outside)}, {Path: "d/.wh.victim"}},
		"too many": func() (l []lab.File) {
			for range 101 {
				l = append(l, lab.File{Path: "f", Mode: 0o644})
			}
			return l
		}(),
		"too large": {{Path: "f", Mode: 0o644, Data: make([]byte, 1<<20+1)}},
	} {
		_, err := unpackAll(t, files)
		if b, _ := os.ReadFile(outside); string(b) != "intact" {
			t.Fatalf("%s: wrote outside", name)
		}
		if strings.HasPrefix(name, "too") && !errors.Is(err, ErrInvalidImage) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzUnpack(f *testing.F) {
	_, plain := lab.TarGz([]lab.File{{Path: "a/b", Mode: 0o644, Data: []byte("x")}, {Path: "l", Link: "/a"}, {Path: "a/.wh.b"}})
	f.Add(plain)
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		u := &unpacker{bytes: 1 << 16, files: 50}
		_ = u.unpack(t.Context(), dir, bytes.NewReader(data))
	})
}

// fakeOCI takes what is for containerd.
type fakeOCI map[string]ocispec.Descriptor

func (f fakeOCI) ImportImage(ctx context.Context, name string, desc ocispec.Descriptor, src content.Provider) error {
	if _, err := content.ReadBlob(ctx, src, desc); err != nil {
		return err
	}
	f[name] = desc
	return nil
}

func TestImport(t *testing.T) {
	oci := lab.OCI(ocispec.ImageConfig{Entrypoint: []string{"/x"}}, nil, []lab.File{{Path: "x", Mode: 0o755, Data: []byte("\x7fELF")}})
	for _, c := range []struct {
		name    string
		archive []byte
		ref     string
		want    string
		kind    Kind
	}{
		{"artifact, named", lab.Archive(lab.CNCF(module), ""), "example.org/hello:1", "example.org/hello:1", KindWasm},
		{"artifact with its own name", lab.Archive(lab.CNCF(module), "example.org/own:2"), "", "example.org/own:2", KindWasm},
		{"compat", lab.Archive(lab.Compat(module, "compat"), ""), "hello", "docker.io/library/hello:latest", KindWasm},
		{"OCI", lab.Archive(oci, "example.org/oci:3"), "", "example.org/oci:3", KindOCI},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, target := open(t, Options{}), fakeOCI{}
			names, err := s.Import(t.Context(), bytes.NewReader(c.archive), c.ref, target)
			if err != nil || len(names) != 1 || names[0] != c.want {
				t.Fatalf("%q, %v", names, err)
			}
			_, lookupErr := s.Lookup(c.want)
			if _, inOCI := target[c.want]; inOCI != (c.kind == KindOCI) || (lookupErr == nil) != (c.kind == KindWasm) {
				t.Errorf("in containerd %v, here %v", inOCI, lookupErr)
			}
			if c.kind == KindOCI && blobs(t, s) != 0 {
				t.Errorf("%d blobs stay here", blobs(t, s))
			}
		})
	}
	for _, c := range []struct {
		name    string
		archive []byte
		ref     string
		want    error
		text    string
	}{
		{"no archive", []byte("hello"), "x", ErrInvalidImage, "image archive"},
		{"no name", lab.Archive(lab.CNCF(module), ""), "", nil, "give one"},
		{"no containerd", lab.Archive(oci, ""), "example.org/oci:1", nil, "there is no containerd"},
		{"bad name", lab.Archive(lab.CNCF(module), ""), "a b", ErrInvalidReference, "a b"},
	} {
		s := open(t, Options{})
		_, err := s.Import(t.Context(), bytes.NewReader(c.archive), c.ref, nil)
		if err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", c.name, err)
		}
		if n := blobs(t, s); n != 0 {
			t.Errorf("%s: %d blobs are left", c.name, n)
		}
	}
}

// An import goes on with nothing that a killed one left: all archives call their
// index by the same name.
func TestImportAfterAKilledOne(t *testing.T) {
	s := open(t, Options{})
	w, err := s.content.Writer(t.Context(), content.WithRef("tar-index.json"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("of another archive")); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if err := os.MkdirAll(s.path("content", "ingest", "torn"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Import(t.Context(), bytes.NewReader(lab.Archive(lab.CNCF(module), "")), "x", nil); err != nil {
		t.Error(err)
	}
}

func TestRemovedImageStaysWhileUsed(t *testing.T) {
	used := true
	s := open(t, Options{InUse: func(digest.Digest) bool { return used }})
	if _, err := s.Import(t.Context(), bytes.NewReader(lab.Archive(lab.CNCF(module), "")), "x", nil); err != nil {
		t.Fatal(err)
	}
	img, err := s.Lookup("x")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Remove("x"); err != nil {
		t.Fatal(err)
	}
	if len(s.List()) != 0 {
		t.Error("it is still listed")
	}
	if _, err := os.Stat(img.Module.Path); err != nil {
		t.Errorf("the module went while a container uses it: %v", err)
	}
	used = false
	s.Collect()
	if _, err := os.Stat(img.Module.Path); err == nil {
		t.Error("the module stays when nobody uses it")
	}
}

func TestIndexIsRobust(t *testing.T) {
	s := open(t, Options{})
	for _, ref := range []string{"one", "two"} {
		if _, err := s.Import(t.Context(), bytes.NewReader(lab.Archive(lab.CNCF(append(bytes.Clone(module), 0, 1, ref[0])), "")), ref, nil); err != nil {
			t.Fatal(err)
		}
	}
	index := s.path("index.json")
	whole, err := os.ReadFile(index)
	if err != nil {
		t.Fatal(err)
	}
	img, _ := s.Lookup("one")
	if err := os.Truncate(img.Module.Path, 3); err != nil {
		t.Fatal(err)
	}
	s = open(t, Options{Dir: s.opts.Dir})
	if _, err := s.Lookup("one"); !errors.Is(err, ErrNotFound) {
		t.Errorf("an image with a torn module: %v", err)
	}
	if _, err := s.Lookup("two"); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(index, whole[:len(whole)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	s = open(t, Options{Dir: s.opts.Dir})
	if n := len(s.List()); n != 0 {
		t.Errorf("%d images from half an index", n)
	}
	if err := os.WriteFile(index, []byte(`{"version":99}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Options{Dir: s.opts.Dir}); err == nil || !strings.Contains(err.Error(), "newer program") {
		t.Errorf("an index of the future: %v", err)
	}
}
