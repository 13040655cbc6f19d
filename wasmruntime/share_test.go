package wasmruntime_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/coracle-edge/coracle/wasmruntime"
)

// codeMappings are the lines of smaps for executable memory that isn't the runner's.
func codeMappings(t *testing.T, pid int) (fromFile, anonymous []string) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		t.Fatal(err)
	}
	head := ""
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if strings.Contains(f[0], "-") {
			head = strings.TrimSpace(line)
		}
		if f[0] != "Rss:" || !strings.Contains(head, " r-xp ") || strings.Contains(head, "[v") || strings.Contains(head, "wasmrunner") {
			continue
		}
		if strings.HasSuffix(head, "/code") {
			fromFile = append(fromFile, head)
		} else if kb, _ := strconv.Atoi(f[1]); kb > 16 { // trampolines are small
			anonymous = append(anonymous, head+": "+f[1]+" kB")
		}
	}
	return fromFile, anonymous
}

// Replicas map one file with the module's code, and have none of it to themselves.
func TestReplicasShareTheirCode(t *testing.T) {
	rt := newRuntime(t, nil)
	for range 2 {
		g := start(t, rt, wasmruntime.Spec{Module: module("sleep")})
		g.says("hello")
		if shared, own := codeMappings(t, g.PID()); len(shared) != 1 || len(own) > 0 {
			t.Errorf("code from the cache's file: %q, of its own: %q", shared, own)
		}
	}
}

// A file system that lets nothing be executed is no reason not to run.
func TestCodeOnAFileSystemWithoutExec(t *testing.T) {
	if !isRoot() {
		t.Skip("mounting needs root")
	}
	const inside = "WASMRUNTIME_NOEXEC"
	if os.Getenv(inside) == "" {
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("unshare", "--mount", "--propagation", "private", exe, "-test.v", "-test.run", "^"+t.Name()+"$")
		cmd.Env = append(os.Environ(), inside+"=1", "WASMRUNNER="+runnerPath)
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "--- PASS") {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "noexec,mode=755", "tmpfs", dir).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v\n%s", err, out)
	}
	defer exec.Command("umount", "-l", dir).Run()
	rt := newRuntime(t, func(o *wasmruntime.Options) { o.CacheDir = filepath.Join(dir, "cache") })
	g := start(t, rt, wasmruntime.Spec{Module: module("sleep")})
	g.says("hello")
	if shared, own := codeMappings(t, g.PID()); len(shared) != 0 || len(own) != 1 {
		t.Errorf("code from the cache's file: %q, of its own: %q", shared, own)
	}
}
