package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/coracle-edge/coracle/edgelet/pods"
	"github.com/coracle-edge/coracle/edgelet/volumes"
)

// shownLogs is where Fluent Bit, Promtail, Vector and the like look for the logs of all
// pods: they run as a DaemonSet with the host's /var/log mounted.
func shownLogs() pods.ShownLogs {
	return pods.ShownLogs{LogsDir: "/var/log/pods", LinksDir: "/var/log/containers"}
}

// podLogsDir is the folder of logs in the data folder.
const podLogsDir = "pods-logs"

// errLogsOfOthers is returned when the folder has what this agent didn't put there.
var errLogsOfOthers = errors.New("has logs of another kubelet, which a mount would hide")

// showLogs binds the logs, which stay on the disk of the data folder (/var/log is in
// memory on many boards), to where collectors look. The mount outlives the agent, as
// what is in it does, and not the boot. Where it can't be made, logs aren't shown and
// all else works.
func (a *agent) showLogs() pods.ShownLogs {
	if !a.o.asKubelet || os.Geteuid() != 0 {
		return pods.ShownLogs{}
	}
	at := shownLogs()
	if err := show(filepath.Join(a.o.dataDir, podLogsDir), at, !a.forGood); err != nil {
		a.log.Warn("the logs of pods are not shown to pods that collect them; kubectl logs works", "where", at.LogsDir, "err", err)
		return pods.ShownLogs{}
	}
	return at
}

// show mounts own unless it is there, which is all it takes if mount is false.
func show(own string, at pods.ShownLogs, mount bool) error {
	if shown, err := sameFolder(own, at.LogsDir); err != nil || shown {
		return err
	}
	if !mount {
		return fmt.Errorf("%s isn't mounted there", own)
	}
	for _, dir := range []string{at.LogsDir, at.LinksDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(at.LogsDir)
	if err != nil {
		return err
	}
	if len(entries) > 0 {
		return fmt.Errorf("%s %w: end it, remove them and start edgelet again", at.LogsDir, errLogsOfOthers)
	}
	if err := (volumes.Kernel{}).Mount(own, at.LogsDir, "", nil); err != nil {
		return fmt.Errorf("binding %s to %s: %w", own, at.LogsDir, err)
	}
	return nil
}

// hideLogs undoes show.
func hideLogs(own string, at pods.ShownLogs) error { return unbind(own, at.LogsDir) }

// unbind unmounts own from at, if that is a mount and not the same by a link.
func unbind(own, at string) error {
	bound, err := sameFolder(own, at)
	if err != nil || !bound {
		return err
	}
	if mounted, err := (volumes.Kernel{}).IsMountPoint(at); err != nil || !mounted {
		return err
	}
	if err := unix.Unmount(at, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmounting %s: %w", at, err)
	}
	return nil
}

func sameFolder(a, b string) (bool, error) {
	of, err := os.Stat(a)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	other, err := os.Stat(b)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && os.SameFile(of, other), err
}
