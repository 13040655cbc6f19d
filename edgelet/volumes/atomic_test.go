package volumes

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func files(kv ...string) map[string]file {
	m := map[string]file{}
	for i := 0; i < len(kv); i += 2 {
		m[kv[i]] = file{data: []byte(kv[i+1]), mode: 0o640}
	}
	return m
}

func nothing(string) error { return nil }

// visible returns what a program sees: the files reachable by names that don't
// start with "..".
func visible(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	var walk func(prefix string)
	walk = func(prefix string) {
		entries, err := os.ReadDir(filepath.Join(dir, prefix))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			name := filepath.Join(prefix, e.Name())
			if strings.HasPrefix(e.Name(), "..") {
				continue
			}
			info, err := os.Stat(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			if info.IsDir() {
				walk(name)
				continue
			}
			b, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			out[name] = string(b)
		}
	}
	walk("")
	return out
}

func TestAtomicWriterShowsExactlyWhatItIsGiven(t *testing.T) {
	dir := t.TempDir()
	now := time.Unix(1000, 0)
	for step, want := range []map[string]string{
		{"a": "1", "sub/b": "2", "sub/deep/c": "3"},
		{"a": "changed", "sub/b": "2"},
		{"sub": "now a file"},
		{},
		{"a": "back", ".hidden": "x"},
	} {
		in := map[string]file{}
		for k, v := range want {
			in[k] = file{data: []byte(v), mode: 0o600}
		}
		if err := writeAtomically(dir, in, now, nothing); err != nil {
			t.Fatal(err)
		}
		got := visible(t, dir)
		if len(got) != len(want) {
			t.Errorf("step %d: %v, want %v", step, got, want)
		}
		for k, v := range want {
			if got[k] != v {
				t.Errorf("step %d: %s = %q, want %q", step, k, got[k], v)
			}
		}
		link, _ := os.Readlink(filepath.Join(dir, dataLink))
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if e.IsDir() && e.Name() != link {
				t.Errorf("step %d: stale %s", step, e.Name())
			}
		}
	}
}

func TestAtomicWriterWritesNothingWhenNothingChanged(t *testing.T) {
	dir := t.TempDir()
	f := files("a", "1", "b/c", "2")
	if err := writeAtomically(dir, f, time.Unix(1, 0), nothing); err != nil {
		t.Fatal(err)
	}
	before, _ := os.Readlink(filepath.Join(dir, dataLink))
	if err := writeAtomically(dir, f, time.Unix(2, 0), nothing); err != nil {
		t.Fatal(err)
	}
	if after, _ := os.Readlink(filepath.Join(dir, dataLink)); after != before {
		t.Error("swapped without a change")
	}
	f["a"] = file{data: []byte("1"), mode: 0o600}
	if err := writeAtomically(dir, f, time.Unix(3, 0), nothing); err != nil {
		t.Fatal(err)
	}
	if after, _ := os.Readlink(filepath.Join(dir, dataLink)); after == before {
		t.Error("a changed mode was not written")
	}
}

// A program that holds the old directory open keeps reading the old files until
// it looks again; it never sees half of each.
func TestAtomicWriterIsInterruptibleAnywhere(t *testing.T) {
	dir := t.TempDir()
	if err := writeAtomically(dir, files("a", "1", "b", "1"), time.Unix(1, 0), nothing); err != nil {
		t.Fatal(err)
	}
	// The staging fails: nothing shows, nothing stays.
	boom := errors.New("boom")
	if err := writeAtomically(dir, files("a", "2", "b", "2"), time.Unix(2, 0), func(string) error { return boom }); !errors.Is(err, boom) {
		t.Fatal(err)
	}
	if got := visible(t, dir); got["a"] != "1" || got["b"] != "1" {
		t.Errorf("visible = %v", got)
	}
	entries, _ := os.ReadDir(dir)
	if n := slices.IndexFunc(entries, func(e os.DirEntry) bool { return strings.HasPrefix(e.Name(), "..1970_01_01_00_00_02") }); n >= 0 {
		t.Error("the failed staging was left")
	}
	// A power cut left a staged directory, a temporary link, and no visible link.
	os.Mkdir(filepath.Join(dir, "..cut"), 0o755)
	os.Symlink("..cut", filepath.Join(dir, dataLinkTmp))
	os.Remove(filepath.Join(dir, "a"))
	if err := writeAtomically(dir, files("a", "1", "b", "1"), time.Unix(3, 0), nothing); err != nil {
		t.Fatal(err)
	}
	if got := visible(t, dir); got["a"] != "1" || got["b"] != "1" {
		t.Errorf("after a cut: %v", got)
	}
	if err := writeAtomically(dir, files("a", "4"), time.Unix(4, 0), nothing); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "..cut")); err == nil {
		t.Error("what the cut left was not cleaned up")
	}
}

func TestPathsStayInside(t *testing.T) {
	for _, bad := range []string{"", ".", "..", "../x", "/x", "a/../../b", "a/../b", "..data", "..x/y", "a\x00b"} {
		if err := writeAtomically(t.TempDir(), files(bad, "x"), time.Now(), nothing); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func FuzzAtomicPaths(f *testing.F) {
	f.Add("a/b", "c")
	f.Add("../x", "y")
	f.Fuzz(func(t *testing.T, a, b string) {
		root := t.TempDir()
		dir := filepath.Join(root, "volume")
		os.Mkdir(dir, 0o755)
		_ = writeAtomically(dir, files(a, "1", b, "2"), time.Unix(1, 0), nothing)
		entries, err := os.ReadDir(root)
		if err != nil || len(entries) != 1 {
			t.Fatalf("wrote outside: %v %v", entries, err)
		}
	})
}
