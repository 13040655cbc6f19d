package stats

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// tree writes files below a new folder.
func tree(t testing.TB, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

const pod = "/kubepods/burstable/pod1"

// v1Pod and v2Pod are the same pod, as the two kinds of hierarchy show it.
func v1Pod() map[string]string {
	return map[string]string{
		"cpuacct" + pod + "/cpuacct.usage":                           "5000000000\n",
		"cpuacct" + pod + "/cpuacct.stat":                            "user 300\nsystem 200\n",
		"cpu" + pod + "/cpu.stat":                                    "nr_periods 10\nnr_throttled 3\nthrottled_time 7000000\n",
		"cpu" + pod + "/cpu.shares":                                  "1024\n",
		"cpu" + pod + "/cpu.cfs_period_us":                           "100000\n",
		"cpu" + pod + "/cpu.cfs_quota_us":                            "50000\n",
		"memory" + pod + "/memory.usage_in_bytes":                    "1000000\n",
		"memory" + pod + "/memory.stat":                              "cache 1\nrss 2\ntotal_cache 400000\ntotal_rss 500000\ntotal_inactive_file 300000\ntotal_mapped_file 7\ntotal_pgfault 11\ntotal_pgmajfault 2\ntotal_swap 4096\n",
		"memory" + pod + "/memory.limit_in_bytes":                    "67108864\n",
		"memory" + pod + "/memory.memsw.limit_in_bytes":              "67108864\n",
		"memory" + pod + "/memory.oom_control":                       "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
		"pids" + pod + "/pids.current":                               "4\n",
		"pids" + pod + "/pids.max":                                   "max\n",
		"pids" + pod + "/abc/cgroup.procs":                           "12\n13\n",
		"blkio" + pod + "/blkio.throttle.io_service_bytes_recursive": "8:0 Read 4096\n8:0 Write 8192\n8:0 Total 12288\nTotal 12288\n",
		"blkio" + pod + "/blkio.throttle.io_serviced_recursive":      "8:0 Read 1\n8:0 Write 2\nTotal 3\n",
	}
}

func v2Pod() map[string]string {
	return map[string]string{
		"cgroup.controllers":         "cpuset cpu io memory hugetlb pids\n",
		pod + "/cpu.stat":            "usage_usec 5000000\nuser_usec 3000000\nsystem_usec 2000000\nnr_periods 10\nnr_throttled 3\nthrottled_usec 7000\n",
		pod + "/cpu.weight":          "39\n",
		pod + "/cpu.max":             "50000 100000\n",
		pod + "/memory.current":      "1000000\n",
		pod + "/memory.stat":         "anon 500000\nfile 400000\nfile_mapped 7\ninactive_file 300000\npgfault 11\npgmajfault 2\n",
		pod + "/memory.max":          "67108864\n",
		pod + "/memory.swap.max":     "0\n",
		pod + "/memory.swap.current": "4096\n",
		pod + "/memory.events":       "low 0\nhigh 0\nmax 5\noom 1\noom_kill 1\n",
		pod + "/memory.pressure":     "some avg10=0.12 avg60=0.00 avg300=0.00 total=1234\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=99\n",
		pod + "/pids.current":        "4\n",
		pod + "/pids.max":            "max\n",
		pod + "/abc/cgroup.procs":    "12\n13\n",
		pod + "/io.stat":             "8:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n",
	}
}

func TestBothHierarchiesSayTheSame(t *testing.T) {
	for name, files := range map[string]map[string]string{"v1": v1Pod(), "v2": v2Pod()} {
		t.Run(name, func(t *testing.T) {
			c := OpenCgroups(tree(t, files))
			if c.V2() != (name == "v2") {
				t.Fatalf("v2: %t", c.V2())
			}
			u, err := c.Read(pod)
			if err != nil {
				t.Fatal(err)
			}
			for what, x := range map[string]struct {
				got  *uint64
				want uint64
			}{
				"cpu": {u.CPUNanos, 5e9}, "user": {u.UserNanos, 3e9}, "system": {u.SystemNanos, 2e9},
				"periods": {u.Periods, 10}, "throttled": {u.Throttled, 3}, "throttled time": {u.ThrottledNanos, 7e6},
				"memory": {u.Memory, 1e6}, "working set": {u.WorkingSet, 7e5}, "rss": {u.RSS, 5e5}, "cache": {u.Cache, 4e5}, "mapped": {u.Mapped, 7},
				"faults": {u.PageFaults, 11}, "major faults": {u.MajorPageFaults, 2}, "swap": {u.Swap, 4096},
				"limit": {u.MemoryLimit, 64 << 20}, "swap limit": {u.SwapLimit, 0}, "oom kills": {u.OOMKills, 1}, "pids": {u.PIDs, 4},
			} {
				if x.got == nil || *x.got != x.want {
					t.Errorf("%s: %v, want %d", what, x.got, x.want)
				}
			}
			if u.PIDsLimit != nil {
				t.Errorf("a limit of processes where there is none: %d", *u.PIDsLimit)
			}
			if u.Quota == nil || *u.Quota != 50000 || *u.Period != 100000 {
				t.Errorf("quota %v of %v", u.Quota, u.Period)
			}
			if len(u.Disks) != 1 || u.Disks[0] != (DiskUsage{8, 0, 4096, 8192, 1, 2}) {
				t.Errorf("disks %+v", u.Disks)
			}
			if _, ws, ok := c.MemoryUsage(pod); !ok || ws != 7e5 {
				t.Errorf("memory alone: %d, %t", ws, ok)
			}
			if got := c.Children(pod); len(got) != 1 || got[0] != "abc" {
				t.Errorf("children %q", got)
			}
			if got := c.PIDs(pod + "/abc"); len(got) != 2 || got[1] != 13 {
				t.Errorf("processes %v", got)
			}
			if p := u.MemoryPressure; name == "v2" && (p == nil || p.Some.Avg10 != 0.12 || p.Some.Total != 1234 || p.Full.Total != 99) {
				t.Errorf("pressure %+v", p)
			}
		})
	}
}

func TestNoCgroup(t *testing.T) {
	c := OpenCgroups(tree(t, v1Pod()))
	for _, name := range []string{"/kubepods/podX", "/../../etc", ""} {
		if _, err := c.Read(name); name != "" && !errors.Is(err, ErrNoCgroup) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if u := OpenCgroups(t.TempDir()); u.Exists("/x") {
		t.Error("a cgroup in an empty folder")
	}
}

func FuzzCgroupFiles(f *testing.F) {
	f.Add("usage_usec 5\nuser_usec 18446744073709551615\n", "8:0 rbytes=1 wbytes=x\n1:2:3 rios=1", "some avg10=NaN total=5", "max 100000")
	f.Add("a", "8:0 Read 1\n8:0 Write 2", "full avg10=1e309 avg60=1 avg300=1 total=18446744073709551616", "-1")
	f.Fuzz(func(t *testing.T, stat, io, pressure, quota string) {
		c := OpenCgroups(tree(t, map[string]string{"cgroup.controllers": "", pod + "/cpu.stat": stat, pod + "/memory.stat": stat, pod + "/memory.current": quota,
			pod + "/io.stat": io, pod + "/memory.pressure": pressure, pod + "/cpu.max": quota, pod + "/cpu.weight": quota}))
		u, err := c.Read(pod)
		if err != nil {
			t.Fatal(err)
		}
		if p := u.MemoryPressure; p != nil && (p.Some.Avg10 < 0 || p.Some.Avg10 > 100) {
			t.Errorf("%+v", p)
		}
		if u.Memory != nil && u.WorkingSet != nil && *u.WorkingSet > *u.Memory {
			t.Errorf("working set %d of %d", *u.WorkingSet, *u.Memory)
		}
		parseBlkio([]byte(io), []byte(stat))
		parsePairs([]byte(pressure))
		parseNetDev([]byte(io))
		parseMeminfo([]byte(stat))
		parseStat([]byte(stat))
	})
}
