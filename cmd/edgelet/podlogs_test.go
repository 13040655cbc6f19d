package main

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/coracle-edge/coracle/edgelet/pods"
)

// ownMounts gives the test a mount namespace, which ends with it.
func ownMounts(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting takes root")
	}
	runtime.LockOSThread() // the namespace is this thread's
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
		t.Skip("no mount namespace:", err)
	}
	// As systemd has it, but not reaching the machine.
	for _, propagation := range []uintptr{unix.MS_PRIVATE, unix.MS_SHARED} {
		if err := unix.Mount("", "/", "", unix.MS_REC|propagation, ""); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLogsAreShownWhereCollectorsLook(t *testing.T) {
	ownMounts(t)
	dir := t.TempDir()
	own, at := filepath.Join(dir, "pods-logs"), pods.ShownLogs{LogsDir: filepath.Join(dir, "log/pods"), LinksDir: filepath.Join(dir, "log/containers")}
	if err := os.MkdirAll(filepath.Join(own, "default_web_uid"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := show(own, at, false); err == nil {
		t.Error("what isn't mounted was taken for shown")
	}
	for range 2 { // the second time it is there, as after a restart of the agent
		if err := show(own, at, true); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(at.LogsDir, "default_web_uid")); err != nil {
			t.Error(err)
		}
	}
	for range 2 {
		if err := hideLogs(own, at); err != nil {
			t.Fatal(err)
		}
		if left, err := os.ReadDir(at.LogsDir); err != nil || len(left) != 0 {
			t.Errorf("mounted once too often: %v, %v", left, err)
		}
	}
	if err := os.Mkdir(filepath.Join(at.LogsDir, "of-another-kubelet"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := show(own, at, true); !errors.Is(err, errLogsOfOthers) {
		t.Error("another's logs:", err)
	}
}

// A second agent of a machine leaves the machine's folders to the first.
func TestWhoShowsLogs(t *testing.T) {
	for _, c := range []struct {
		args []string
		want bool
	}{
		{nil, true},
		{[]string{"--data-dir", "/d"}, false},
		{[]string{"--data-dir", "/d", "--kubelet-dir", "/var/lib/kubelet"}, true},
	} {
		o, err := parse(c.args, nil)
		if err != nil {
			t.Fatal(err)
		}
		if o.asKubelet != c.want {
			t.Errorf("%q: %v", c.args, o.asKubelet)
		}
	}
}
