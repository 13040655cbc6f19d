package cgroup_test

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/coracle-edge/coracle/wasmruntime/internal/bundle"
	"github.com/coracle-edge/coracle/wasmruntime/internal/cgroup"
)

// files makes a directory as the kernel would, with its files.
func files(t *testing.T, dir string, names ...string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		if err := os.WriteFile(filepath.Join(dir, n), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func have(t *testing.T, want map[string]string) {
	t.Helper()
	for path, value := range want {
		b, err := os.ReadFile(path)
		if err != nil || strings.TrimSpace(string(b)) != value {
			t.Errorf("%s is %q (%v), want %q", path, b, err, value)
		}
	}
}

var limits = bundle.Resources{MemoryBytes: 1 << 20, CPUShares: 1024, CPUQuota: 50_000, PidsMax: 10}

func TestUnified(t *testing.T) {
	root := t.TempDir()
	files(t, root, "cgroup.controllers", "cgroup.subtree_control")
	dir := filepath.Join(root, "pod", "c")
	files(t, filepath.Dir(dir), "cgroup.subtree_control")
	files(t, dir, "memory.max", "memory.swap.max", "memory.oom.group", "cpu.weight", "cpu.max", "pids.max", "cgroup.procs")
	g, err := cgroup.Open(root, "/pod/c")
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Create(limits); err != nil {
		t.Fatal(err)
	}
	have(t, map[string]string{
		dir + "/memory.max": "1048576", dir + "/memory.swap.max": "0", dir + "/cpu.weight": "100",
		dir + "/cpu.max": "50000 100000", dir + "/pids.max": "10",
	})
	os.WriteFile(dir+"/memory.events", []byte("low 0\noom 2\noom_kill 1\n"), 0o644)
	os.WriteFile(dir+"/memory.current", []byte("1000\n"), 0o644)
	os.WriteFile(dir+"/memory.stat", []byte("anon 400\ninactive_file 300\npgfault 9\n"), 0o644)
	os.WriteFile(dir+"/cpu.stat", []byte("usage_usec 5\n"), 0o644)
	if n := g.OOMKills(); n != 1 {
		t.Errorf("%d OOM kills, want 1", n)
	}
	u, ok := g.Usage()
	if want := (cgroup.Usage{CPUNanos: 5000, Memory: 1000, WorkingSet: 700, RSS: 400, PageFaults: 9}); !ok || u != want {
		t.Errorf("usage %+v, %v; want %+v", u, ok, want)
	}
}

func TestVersion1(t *testing.T) {
	root := t.TempDir()
	files(t, root+"/memory/c", "memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "cgroup.procs")
	files(t, root+"/cpu/c", "cpu.shares", "cpu.cfs_quota_us", "cpu.cfs_period_us", "cgroup.procs")
	files(t, root+"/pids/c", "pids.max", "cgroup.procs")
	g, err := cgroup.Open(root, "/c")
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Create(limits); err != nil {
		t.Fatal(err)
	}
	have(t, map[string]string{
		root + "/memory/c/memory.limit_in_bytes": "1048576", root + "/cpu/c/cpu.shares": "1024",
		root + "/cpu/c/cpu.cfs_quota_us": "50000", root + "/cpu/c/cpu.cfs_period_us": "100000", root + "/pids/c/pids.max": "10",
	})
	os.WriteFile(root+"/memory/c/memory.oom_control", []byte("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"), 0o644)
	if n := g.OOMKills(); n != 3 {
		t.Errorf("%d OOM kills, want 3", n)
	}
}

// In version 1 a group is in the hierarchy of processors if it is bound to some: all
// above it is filled first, and who runs in it already is moved.
func TestBoundInVersion1(t *testing.T) {
	root := t.TempDir()
	files(t, root+"/memory/pod/c", "cgroup.procs")
	g, err := cgroup.Open(root, "/pod/c")
	if err != nil {
		t.Fatal(err)
	}
	bound := bundle.Resources{CPUSet: "1-2"}
	if err := g.Set(bound); err == nil || !cgroup.Tolerable(err) {
		t.Errorf("without that hierarchy: %v", err)
	}
	dir := root + "/cpuset/pod/c"
	files(t, dir, "cpuset.cpus", "cpuset.mems", "cgroup.procs")
	files(t, root+"/cpuset/pod", "cpuset.cpus", "cpuset.mems")
	os.WriteFile(root+"/cpuset/cpuset.cpus", []byte("0-3\n"), 0o644)
	os.WriteFile(root+"/cpuset/cpuset.mems", []byte("0\n"), 0o644)
	self := strconv.Itoa(os.Getpid())
	os.WriteFile(root+"/memory/pod/c/cgroup.procs", []byte(self+"\n"), 0o644)
	if err := g.Set(bound); err != nil {
		t.Fatal(err)
	}
	have(t, map[string]string{root + "/cpuset/pod/cpuset.cpus": "0-3", root + "/cpuset/pod/cpuset.mems": "0",
		dir + "/cpuset.cpus": "1-2", dir + "/cpuset.mems": "0", dir + "/cgroup.procs": self})
	if err := g.Set(bundle.Resources{CPUShares: 5}); err == nil || strings.Contains(err.Error(), "cpuset") {
		t.Errorf("nothing of processors was asked: %v", err)
	}
	have(t, map[string]string{dir + "/cpuset.cpus": "1-2"})
	os.WriteFile(dir+"/cgroup.procs", nil, 0o644)
	if err := g.Join(); err != nil {
		t.Fatal(err)
	}
	have(t, map[string]string{dir + "/cgroup.procs": self})
}

func TestPathsThatLeadElsewhere(t *testing.T) {
	for _, p := range []string{"", "/", "relative", "/a/../b", "/a/", "/../x"} {
		if _, err := cgroup.Open(t.TempDir(), p); !errors.Is(err, cgroup.ErrPath) {
			t.Errorf("%q: %v, want ErrPath", p, err)
		}
	}
}
