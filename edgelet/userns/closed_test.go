package userns

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestClosedFoldersAreFoundInAMessage(t *testing.T) {
	root := t.TempDir()
	for dir, mode := range map[string]os.FileMode{"open": 0o711, "open/closed": 0o700, "open/closed/state": 0o711, "open/other": 0o750} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Join(root, dir), mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{root, filepath.Dir(root)} { // of this test
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	at := func(name string) string { return filepath.Join(root, name) }
	for message, want := range map[string][]string{
		"error preparing rootfs: remount-private dst=" + at("open/closed/state/id/rootfs") + ", flags=MS_PRIVATE: permission denied": {at("open/closed")},
		"open \"" + at("open/other/x") + "\" and " + at("open/closed/y") + ": denied":                                                {at("open/closed"), at("open/other")},
		"mkdir " + at("open/x") + ": no such file":                                                                                   nil,
		at("open/closed") + " itself": nil,
		"nothing / at all //":         nil,
	} {
		if got := Closed(message); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", message, got, want)
		}
	}
}

func FuzzClosed(f *testing.F) {
	f.Add("error preparing rootfs: remount-private dst=/tmp/a/b, flags=MS_PRIVATE: permission denied")
	f.Add("/../../x:/\x00/y \"//\" =" + strings.Repeat("/a ", 40))
	f.Fuzz(func(t *testing.T, message string) {
		found := paths(message)
		if len(found) > maxPaths {
			t.Errorf("%d paths", len(found))
		}
		for _, p := range found {
			if !filepath.IsAbs(p) || p != filepath.Clean(p) {
				t.Errorf("%q", p)
			}
		}
		for _, dir := range Closed(message) {
			if info, err := os.Stat(dir); err != nil || !info.IsDir() {
				t.Errorf("%q is no folder", dir)
			}
		}
	})
}
