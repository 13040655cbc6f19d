package oci

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestWhichContainerdHasImageVolumes(t *testing.T) {
	for version, want := range map[string]bool{
		"1.6.20~ds1": false, "1.7.24": false, "v2.0.5": false, "v2.1.0": true, "2.4.2+unknown": true, "v3.0.0-rc.1": true, "": false, "custom": false,
	} {
		if got := hasImageVolumes(version); got != want {
			t.Errorf("%q: %v", version, got)
		}
	}
}

// A view is mounted read-only even where its snapshot's options say otherwise: a
// snapshot of one layer is a bind mount, whose flags count only when it is mounted
// again.
func TestViewsAreReadOnly(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to mount")
	}
	source, target := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(source, "motd"), []byte("hello"), 0o644); err != nil {
		t.Fatal(err)
	}
	if mounted, err := isMountPoint(target); err != nil || mounted {
		t.Fatalf("before: %v, %v", mounted, err)
	}
	if err := mountReadOnly("bind", source, target, []string{"rbind", "rw"}); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(target, unix.MNT_DETACH)
	if mounted, err := isMountPoint(target); err != nil || !mounted {
		t.Errorf("mounted: %v, %v", mounted, err)
	}
	if raw, err := os.ReadFile(filepath.Join(target, "motd")); err != nil || string(raw) != "hello" {
		t.Errorf("%q, %v", raw, err)
	}
	if err := os.WriteFile(filepath.Join(target, "x"), nil, 0o644); err == nil {
		t.Error("it can be written to")
	}
}
