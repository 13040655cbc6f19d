package stats

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestTreeCountsAsDuDoes(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, size int) {
		check(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
		check(t, os.WriteFile(filepath.Join(dir, name), make([]byte, size), 0o644))
	}
	empty, err := Tree(t.Context(), dir)
	check(t, err)
	write("a", 100_000)
	write("sub/deep/b", 50_000)
	check(t, os.Link(filepath.Join(dir, "a"), filepath.Join(dir, "sub", "again")))
	outside := t.TempDir()
	check(t, os.WriteFile(filepath.Join(outside, "huge"), make([]byte, 1<<20), 0o644))
	check(t, os.Symlink(outside, filepath.Join(dir, "link")))
	sparse, err := os.Create(filepath.Join(dir, "sparse"))
	check(t, err)
	check(t, sparse.Truncate(1<<30))
	check(t, sparse.Close())
	got, err := Tree(t.Context(), dir)
	check(t, err)
	// sub, deep, a (once for two names), b, link, sparse.
	if got.Inodes != empty.Inodes+6 {
		t.Errorf("%d inodes, want %d", got.Inodes, empty.Inodes+6)
	}
	if more := got.Bytes - empty.Bytes; more < 150_000 || more > 220_000 {
		t.Errorf("%d bytes, want some 160000: a file of two names counted twice, a symlink followed, or holes counted", more)
	}
	if gone, err := Tree(t.Context(), filepath.Join(dir, "nothing")); err != nil || gone != (TreeUsage{}) {
		t.Errorf("what isn't there: %+v, %v", gone, err)
	}
	if link, err := Tree(t.Context(), filepath.Join(dir, "link")); err != nil || link.Inodes != 1 {
		t.Errorf("a symlink in place of the folder was followed: %+v, %v", link, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Tree(ctx, dir); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestTreeIsBounded(t *testing.T) {
	dir := t.TempDir()
	check(t, os.MkdirAll(filepath.Join(dir, strings.Repeat("d/", maxDepth+5)), 0o755))
	if _, err := Tree(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "nested more than") {
		t.Errorf("%v", err)
	}
}

func TestFileSystem(t *testing.T) {
	s, err := FileSystem(t.TempDir())
	check(t, err)
	if s.Capacity == 0 || s.Available > s.Capacity || s.Used > s.Capacity || s.Device == 0 {
		t.Errorf("%+v", s)
	}
	if _, err := FileSystem("/nowhere/at/all"); err == nil {
		t.Error("no error of what isn't there")
	}
}
