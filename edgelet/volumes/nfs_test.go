package volumes

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
)

// What a pod is told whose NFS volume can't be mounted: which part of the node is
// missing and what to do, and only then; else what mount.nfs said. The program is a
// stand-in that says what that of nfs-utils 2.6.2 said on a kernel without a client.
func TestWhatIsMissingForNFS(t *testing.T) {
	known, err := os.ReadFile(kernelFileSystems)
	if err != nil {
		t.Skip(err)
	}
	bin := t.TempDir()
	t.Setenv("PATH", bin)
	m := newManager(t, objects{})
	pod := podWith(v1.Volume{Name: "v", VolumeSource: v1.VolumeSource{NFS: &v1.NFSVolumeSource{Server: "192.0.2.1", Path: "/export"}}})
	says := func(unsupported bool, words ...string) {
		t.Helper()
		_, err := m.SetUp(t.Context(), pod)
		if err == nil || errors.Is(err, ErrUnsupported) != unsupported {
			t.Fatalf("SetUp: %v", err)
		}
		for _, w := range append(words, `MountVolume.SetUp failed for volume "v"`, "192.0.2.1:/export") {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%q isn't said: %v", w, err)
			}
		}
	}
	says(true, "mount.nfs is not on this node: install nfs-common or nfs-utils")
	script := "#!/bin/sh\necho 'mount.nfs: No such device' >&2\nexit 32\n"
	if err := os.WriteFile(filepath.Join(bin, "mount.nfs"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	if knowsNFS(known) {
		says(false, "mount.nfs: No such device")
	} else {
		says(true, "mount.nfs: No such device", "this node's kernel has no NFS client", "modprobe nfs", "CONFIG_NFS_FS")
	}
	if _, err := os.Stat(m.path(pod, "nfs", "v")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder that was to be mounted on is left: %v", err)
	}
}

func TestWhichKernelsKnowNFS(t *testing.T) {
	for list, want := range map[string]bool{
		"": false, "nodev\tsysfs\n\text4\nnodev\tnfsd\n": false, "nodev\tnfs\n": true, "nodev\tsysfs\nnodev\tnfs4": true, "\tnfs_but_not\n": false,
	} {
		if got := knowsNFS([]byte(list)); got != want {
			t.Errorf("%q: %v", list, got)
		}
	}
}
