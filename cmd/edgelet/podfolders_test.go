package main

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/coracle-edge/coracle/edgelet/volumes"
)

// Folders of pods are where a kubelet has them and stay on the data folder's disk;
// what an agent that didn't do so has mounted goes with them.
func TestPodFoldersAreWhereAKubeletHasThem(t *testing.T) {
	ownMounts(t)
	dir := t.TempDir()
	a := &agent{log: slog.New(slog.DiscardHandler), o: &options{dataDir: filepath.Join(dir, "data"), kubeletDir: filepath.Join(dir, "kubelet")}}
	volume := func(pods string) string { return filepath.Join(pods, "uid/volumes/kubernetes.io~empty-dir/memory") }
	if err := os.MkdirAll(volume(a.ownPods()), 0o755); err != nil {
		t.Fatal(err)
	}
	if got := a.podsDir(); got != a.ownPods() {
		t.Errorf("of an agent that isn't the machine's kubelet: %s", got)
	}
	if err := unix.Mount("tmpfs", volume(a.ownPods()), "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(volume(a.ownPods()), "file"), []byte("kept"), 0o644); err != nil {
		t.Fatal(err)
	}

	a.o.asKubelet = true
	want := filepath.Join(a.o.kubeletDir, "pods")
	for range 2 { // the second time it is there, as after a restart of the agent
		if got := a.podsDir(); got != want {
			t.Fatalf("they are in %s, not in %s", got, want)
		}
		if raw, err := os.ReadFile(filepath.Join(volume(want), "file")); string(raw) != "kept" {
			t.Fatalf("the volume has %q, %v", raw, err)
		}
		if point, err := mountedIn(a.ownPods()); point != "" || err != nil {
			t.Fatalf("mounted twice: %s, %v", point, err)
		}
	}
	// What is mounted now is in one place only.
	more := filepath.Join(want, "uid/more")
	if err := os.Mkdir(more, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", more, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	if points, err := volumes.MountsBelow(dir); err != nil || len(points) != 3 || slices.Contains(points, filepath.Join(a.ownPods(), "uid/more")) {
		t.Fatalf("mounted are %q, %v", points, err)
	}

	if err := a.unbindPods(); err == nil {
		t.Error("unmounted with volumes in it")
	}
	for _, p := range []string{more, volume(want)} {
		if err := unix.Unmount(p, 0); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := a.unbindPods(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(filepath.Join(a.ownPods(), "uid/more")); err != nil {
		t.Error("not on the data folder's disk:", err)
	}
	a.forGood = true // a reset mounts nothing
	if got := a.podsDir(); got != a.ownPods() {
		t.Errorf("a reset has bound them: %s", got)
	}
	a.forGood = false

	// An administrator's link does as well, and a reset leaves it.
	linked := &agent{log: a.log, o: &options{dataDir: a.o.dataDir, kubeletDir: filepath.Join(dir, "linked"), asKubelet: true}}
	link := filepath.Join(linked.o.kubeletDir, "pods")
	if err := errors.Join(os.Mkdir(linked.o.kubeletDir, 0o755), os.Symlink(a.ownPods(), link)); err != nil {
		t.Fatal(err)
	}
	if got := linked.podsDir(); got != link {
		t.Errorf("with a link: %s", got)
	}
	if err := linked.unbindPods(); err != nil {
		t.Error("with a link:", err)
	}

	foreign := filepath.Join(want, "of-another")
	if err := errors.Join(os.Mkdir(foreign, 0o755), unix.Mount("tmpfs", foreign, "tmpfs", 0, "")); err != nil {
		t.Fatal(err)
	}
	if err := bindPods(a.ownPods(), want); !errors.Is(err, errPodsOfOthers) {
		t.Error("another kubelet's pods were hidden:", err)
	}
	if got := a.podsDir(); got != a.ownPods() {
		t.Errorf("beside another kubelet: %s", got)
	}
	if err := unix.Unmount(foreign, 0); err != nil {
		t.Fatal(err)
	}
}
