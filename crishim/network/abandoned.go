package network

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// EndAbandoned kills the plugins that a former process started for a pod and
// didn't live to see the end of, and waits until they are gone: one that adds
// the pod would go on and give it an address after that was taken back.
func (c *CNI) EndAbandoned(ctx context.Context, id string) {
	mark := []byte("CNI_CONTAINERID=" + id + "\x00")
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		busy := false
		procs, _ := filepath.Glob("/proc/[0-9]*/environ")
		for _, file := range procs {
			// A plugin's own plugins inherit its environment. A zombie has none.
			env, err := os.ReadFile(file)
			if err != nil || !bytes.Contains(append([]byte{0}, env...), append([]byte{0}, mark...)) {
				continue
			}
			if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file))); err == nil && pid != os.Getpid() {
				busy = true
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
		if !busy || ctx.Err() != nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}
