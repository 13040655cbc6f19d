package wasmruntime_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coracle-edge/coracle/wasmruntime"
)

// procStatus reads one field of /proc/PID/status.
func procStatus(t *testing.T, pid int, field string) string {
	t.Helper()
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if k, v, _ := strings.Cut(line, ":"); k == field {
			return strings.Join(strings.Fields(v), " ")
		}
	}
	t.Fatalf("no %s in /proc/%d/status", field, pid)
	return ""
}

// isRoot is true for root that may become any user: not in a user namespace.
func isRoot() bool {
	b, _ := os.ReadFile("/proc/self/uid_map")
	return os.Getuid() == 0 && strings.Join(strings.Fields(string(b)), " ") == "0 0 4294967295"
}

func TestWalls(t *testing.T) {
	rt := newRuntime(t, nil)
	check := func(t *testing.T, g *guest, want map[string]string) {
		g.says("hello")
		for field, value := range want {
			if have := procStatus(t, g.PID(), field); have != value {
				t.Errorf("%s is %q, want %q", field, have, value)
			}
		}
		if sid := fields(t, g.PID())[3]; sid != strconv.Itoa(g.PID()) {
			t.Errorf("session %s, want its own, %d", sid, g.PID())
		}
	}
	none := strings.Repeat("0", 16)
	always := map[string]string{"NoNewPrivs": "1", "Seccomp": "2", "CapEff": none, "CapPrm": none, "CapInh": none, "CapAmb": none}
	with := func(more map[string]string) map[string]string {
		for k, v := range always {
			more[k] = v
		}
		return more
	}
	t.Run("default", func(t *testing.T) {
		g := start(t, rt, wasmruntime.Spec{Module: module("sleep")})
		id := strconv.Itoa(os.Getuid())
		if isRoot() {
			id = "65532"
		}
		check(t, g, with(map[string]string{"Uid": strings.TrimSpace(strings.Repeat(id+" ", 4))}))
		t.Logf("%q", g.Walls())
		if root, err := os.Readlink(fmt.Sprintf("/proc/%d/root", g.PID())); slices.Contains(g.Walls(), "chroot") && err == nil && root == "/" {
			t.Errorf("its root is %s", root)
		}
	})
	if !isRoot() {
		t.Log("users can be set by root only")
		return
	}
	t.Run("user and groups", func(t *testing.T) {
		g := start(t, rt, wasmruntime.Spec{Module: module("sleep"), UID: 1234, GID: 2345, Groups: []uint32{7, 8}})
		check(t, g, with(map[string]string{"Uid": "1234 1234 1234 1234", "Gid": "2345 2345 2345 2345", "Groups": "7 8", "CapBnd": none}))
		if root, err := os.Readlink(fmt.Sprintf("/proc/%d/root", g.PID())); err == nil && root == "/" {
			t.Errorf("its root is %s", root)
		}
	})
	t.Run("root, asked for", func(t *testing.T) {
		g := start(t, rt, wasmruntime.Spec{Module: module("sleep"), AllowRoot: true})
		check(t, g, with(map[string]string{"Uid": "0 0 0 0", "CapBnd": none}))
	})
}

// An ordinary user's guests are shut in as root's are, by a user namespace, or
// have landlock alone where the kernel refuses it.
func TestWallsOfAnOrdinaryUser(t *testing.T) {
	if !isRoot() {
		t.Skip("becoming an ordinary user needs root")
	}
	dir, err := os.MkdirTemp("", "ordinary")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	// Where the test's programs are, only root may look.
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for from, to := range map[string]string{self: "test", runnerPath: "wasmrunner"} {
		if out, err := exec.Command("cp", "-L", from, filepath.Join(dir, to)).CombinedOutput(); err != nil {
			t.Fatalf("%v %s", err, out)
		}
	}
	if out, err := exec.Command("cp", "-r", "testdata", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	run := func() string {
		cmd := exec.Command(filepath.Join(dir, "test"), "-test.v", "-test.run", "^TestWalls$/^default$")
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "WASMRUNNER="+filepath.Join(dir, "wasmrunner"), "TMPDIR="+dir, "HOME="+dir)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65531, Gid: 65531}}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return string(out)
	}
	out := run()
	if exec.Command("setpriv", "--reuid=65531", "--regid=65531", "--clear-groups", "unshare", "-r", "true").Run() != nil {
		t.Logf("the kernel lets ordinary users have no user namespaces: %s", out)
	} else if !strings.Contains(out, `"chroot"`) {
		t.Errorf("not shut in:\n%s", out)
	}
}

// fields are those of /proc/PID/stat from the third on.
func fields(t *testing.T, pid int) []string {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
}

// A guest's files belong to its user, who needs the rights for them.
func TestFilesAreOpenedAsTheGuestsUser(t *testing.T) {
	if !isRoot() {
		t.Skip("needs root to have a directory that isn't the guest's")
	}
	data := openDir(t)
	os.Chmod(data, 0o755)
	g := start(t, newRuntime(t, nil), wasmruntime.Spec{Module: module("files"), Mounts: []wasmruntime.Mount{{Host: data, Guest: "/data"}}})
	if st := g.end(); st.Code != 1 || !strings.Contains(g.stdout.String(), "Permission denied") {
		t.Errorf("%+v %s", st, g.stdout.String())
	}
}

func TestOutOfMemory(t *testing.T) {
	probe := "/sys/fs/cgroup/memory"
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		probe = "/sys/fs/cgroup"
	}
	name := fmt.Sprintf("/coracle-test-%d", os.Getpid())
	if err := os.Mkdir(probe+name, 0o755); err != nil {
		t.Skipf("no cgroup can be made here: %v", err)
	}
	os.Remove(probe + name)
	g := start(t, newRuntime(t, nil), wasmruntime.Spec{
		Module: module("grow"), MemoryBytes: 1 << 30, Cgroup: name,
		Resources: wasmruntime.Resources{MemoryBytes: 24 << 20, CPUShares: 512, PidsMax: 32},
	})
	st := g.end()
	if st.Code != 137 || st.Reason != wasmruntime.ReasonOOMKilled || !strings.Contains(st.Message, "grow.wasm") {
		t.Errorf("%+v (walls %q), want OOMKilled", st, g.Walls())
	}
	if err := g.Delete(t.Context()); err != nil {
		t.Error(err)
	}
	if left, _ := filepath.Glob("/sys/fs/cgroup/*" + name); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// What a running guest may take follows its limit, up and down.
func TestMemoryLimitOfARunningGuest(t *testing.T) {
	rt := newRuntime(t, nil)
	name := fmt.Sprintf("/coracle-test-limit-%d", os.Getpid())
	g := start(t, rt, wasmruntime.Spec{Module: module("growmore"), Cgroup: name, Stdin: true, Resources: wasmruntime.Resources{MemoryBytes: 32 << 20}})
	in, err := os.OpenFile(g.StdinPath(), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	most := func(least int) int {
		t.Helper()
		deadline := time.Now().Add(20 * time.Second)
		for time.Now().Before(deadline) {
			lines := strings.Split(g.stdout.String(), "\n")
			if n := 0; len(lines) > 1 {
				if _, err := fmt.Sscanf(lines[len(lines)-2], "%d MiB", &n); err == nil && n >= least {
					return n
				}
			}
			time.Sleep(2 * time.Millisecond)
		}
		st, err := g.Stats()
		t.Fatalf("it never had %d MiB: %q, stderr %q, %+v %v", least, g.stdout.String(), g.stderr.String(), st, err)
		return 0
	}
	if n := most(1); n < 29 || n > 32 {
		t.Errorf("%d MiB of 32", n)
	}
	for _, step := range []struct{ limit, least, most int }{{96, 90, 96}, {64, 90, 96}, {128, 120, 128}} {
		if err := g.Update(wasmruntime.Resources{MemoryBytes: int64(step.limit) << 20}); err != nil {
			t.Skipf("no cgroup can be changed here: %v", err)
		}
		before := strings.Count(g.stdout.String(), "\n")
		in.WriteString("more\n")
		for deadline := time.Now().Add(20 * time.Second); strings.Count(g.stdout.String(), "\n") == before && time.Now().Before(deadline); {
			time.Sleep(2 * time.Millisecond)
		}
		if n := most(step.least); n > step.most {
			t.Errorf("%d MiB with a limit of %d", n, step.limit)
		}
	}
}

func TestCgroupStatistics(t *testing.T) {
	name := fmt.Sprintf("/coracle-test-stat-%d", os.Getpid())
	g := start(t, newRuntime(t, nil), wasmruntime.Spec{Module: module("loop"), Cgroup: name, Resources: wasmruntime.Resources{MemoryBytes: 64 << 20}})
	time.Sleep(200 * time.Millisecond)
	st, err := g.Stats()
	if err != nil || st.CPUNanos < 20e6 || st.MemoryBytes == 0 || st.MemoryBytes > 64<<20 {
		t.Errorf("%+v, %v (walls %q)", st, err, g.Walls())
	}
	t.Logf("%+v", st)
}
