package stats

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	dto "github.com/prometheus/client_model/go"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

// cri knows one container's writable layer and one sandbox's network.
type cri struct {
	dir   string
	layer uint64 // beyond 12345 bytes
	down  bool
	lists atomic.Int32
}

func (c *cri) ListContainerStats(context.Context, *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	c.lists.Add(1)
	if c.down {
		return nil, errors.New("no answer")
	}
	n := func(v uint64) *runtimeapi.UInt64Value { return &runtimeapi.UInt64Value{Value: v} }
	return &runtimeapi.ListContainerStatsResponse{Stats: []*runtimeapi.ContainerStats{{Attributes: &runtimeapi.ContainerAttributes{Id: "abc"},
		Cpu:    &runtimeapi.CpuUsage{UsageCoreNanoSeconds: n(uint64(time.Now().UnixNano()) / 10 % 1e15)},
		Memory: &runtimeapi.MemoryUsage{WorkingSetBytes: n(4 << 20)}, WritableLayer: &runtimeapi.FilesystemUsage{UsedBytes: n(12345 + c.layer), InodesUsed: n(6)}}}}, nil
}

func (c *cri) PodSandboxStats(context.Context, *runtimeapi.PodSandboxStatsRequest) (*runtimeapi.PodSandboxStatsResponse, error) {
	return &runtimeapi.PodSandboxStatsResponse{Stats: &runtimeapi.PodSandboxStats{Linux: &runtimeapi.LinuxPodSandboxStats{Network: &runtimeapi.NetworkUsage{
		DefaultInterface: &runtimeapi.NetworkInterfaceUsage{Name: "eth0", RxBytes: &runtimeapi.UInt64Value{Value: 77}}}}}}, nil
}

func (c *cri) ListPodSandbox(context.Context, *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	return &runtimeapi.ListPodSandboxResponse{Items: []*runtimeapi.PodSandbox{{Id: "s"}}}, nil
}

func (c *cri) ImageFsInfo(context.Context, *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	return &runtimeapi.ImageFsInfoResponse{ImageFilesystems: []*runtimeapi.FilesystemUsage{{FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: c.dir}, UsedBytes: &runtimeapi.UInt64Value{Value: 999}}}}, nil
}

// proc is a machine with 512 MiB.
func proc() map[string]string {
	return map[string]string{
		"meminfo":                "MemTotal: 524288 kB\nMemFree: 100000 kB\nInactive(file): 200000 kB\nAnonPages: 50000 kB\nSwapTotal: 1000 kB\nSwapFree: 400 kB\n",
		"stat":                   "cpu  100 0 200 5000 10 0 0 0 0 0\ncpu0 100 0 200 5000 10 0 0 0 0 0\nbtime 1700000000\n",
		"vmstat":                 "pgfault 10\npgmajfault 2\n",
		"loadavg":                "0.00 0.00 0.00 1/123 999\n",
		"sys/kernel/pid_max":     "32768\n",
		"sys/kernel/threads-max": "4000\n",
		"self/net/dev":           "Inter-|\n face |bytes\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  eth0: 500 5 1 2 0 0 0 0 600 6 3 4 0 0 0 0\n",
		"self/cgroup":            "0::/system.slice/coracle.service\n",
		"partitions":             "major minor  #blocks  name\n\n   8        0   1000 sda\n",
	}
}

// world is a node with one pod of one container, whose cgroup is that of cgroup_test.go.
func world(t *testing.T, files map[string]string) (*Collector, *cri, string) {
	t.Helper()
	cgroups := tree(t, files)
	data := tree(t, map[string]string{"pods/1/volumes/kubernetes.io~empty-dir/cache/file": strings.Repeat("x", 100_000), "pods/1/volumes/kubernetes.io~csi/driven/mount/file": "its driver counts it", "pods/1/etc-hosts": "127.0.0.1 localhost\n",
		"logs/main/0.log": strings.Repeat("y", 50_000)})
	rt := &cri{dir: data}
	status := v1.PodStatus{Phase: v1.PodRunning, QOSClass: v1.PodQOSBurstable, PodIP: "10.0.0.2", HostIP: "192.0.2.1", StartTime: &metav1.Time{Time: time.Unix(1700000100, 0)},
		ContainerStatuses: []v1.ContainerStatus{{Name: "main", Image: "r/app:1", ContainerID: "coracle://abc",
			State: v1.ContainerState{Running: &v1.ContainerStateRunning{StartedAt: metav1.Unix(1700000101, 0)}}}}}
	c := New(Config{NodeName: "board", Runtime: rt, DataDir: data, Proc: tree(t, proc()), CgroupRoot: cgroups, PodsCgroup: func() string { return "/kubepods" },
		Pods: func() []Pod {
			return []Pod{{Namespace: "default", Name: "app", UID: "1", Cgroup: pod, Status: status, Dir: filepath.Join(data, "pods/1"), LogDir: filepath.Join(data, "logs"),
				Spec: func() (*v1.Pod, error) { return &v1.Pod{}, nil }},
				{Namespace: "default", Name: "done", UID: "2", Status: v1.PodStatus{Phase: v1.PodSucceeded}}}
		}})
	return c, rt, cgroups
}

func withContainer(files map[string]string) map[string]string {
	for name, text := range files {
		if rest, ok := strings.CutPrefix(name, "memory"+pod+"/"); ok {
			files["memory"+pod+"/abc/"+rest] = text
		}
		if rest, ok := strings.CutPrefix(name, "cpuacct"+pod+"/"); ok {
			files["cpuacct"+pod+"/abc/"+rest] = text
		}
		if rest, ok := strings.CutPrefix(name, pod+"/"); ok && !strings.Contains(rest, "/") {
			files[pod+"/abc/"+rest] = text
		}
	}
	return files
}

func get(t *testing.T, c *Collector, path string) *httptest.ResponseRecorder {
	t.Helper()
	mux := http.NewServeMux()
	for pattern, h := range c.Paths() {
		mux.Handle(pattern, h)
	}
	w := httptest.NewRecorder()
	mux.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	return w
}

func TestSummary(t *testing.T) {
	for name, files := range map[string]map[string]string{"v1": v1Pod(), "v2": v2Pod()} {
		t.Run(name, func(t *testing.T) {
			c, _, cgroups := world(t, withContainer(files))
			start := time.Now()
			s, err := c.Sample(t.Context())
			check(t, err)
			if time.Since(start) < rateWait || s.Pods[0].Rate == nil || *s.Pods[0].Rate != 0 {
				t.Errorf("%v, rate %v: the first look is two", time.Since(start), s.Pods[0].Rate)
			}
			var got statsapi.Summary
			w := get(t, c, "/stats/summary")
			check(t, json.Unmarshal(w.Body.Bytes(), &got))
			if w.Code != 200 || w.Header().Get("Content-Type") != "application/json" || got.Node.NodeName != "board" || len(got.Pods) != 1 {
				t.Fatalf("%d %s", w.Code, w.Body)
			}
			n, p := got.Node, got.Pods[0]
			main := p.Containers[0]
			for what, x := range map[string]struct {
				got  *uint64
				want uint64
			}{
				"node cpu": {n.CPU.UsageCoreNanoSeconds, 3e9}, "node available": {n.Memory.AvailableBytes, 300000 << 10}, "node working set": {n.Memory.WorkingSetBytes, 224288 << 10},
				"node swap": {n.Swap.SwapUsageBytes, 600 << 10}, "node received": {n.Network.RxBytes, 500}, "images": {n.Runtime.ImageFs.UsedBytes, 999},
				"pod cpu": {p.CPU.UsageCoreNanoSeconds, 5e9}, "pod memory": {p.Memory.WorkingSetBytes, 7e5}, "pod available": {p.Memory.AvailableBytes, 64<<20 - 7e5},
				"pod processes": {p.ProcessStats.ProcessCount, 2}, "pod network": {p.Network.RxBytes, 77},
				"container cpu": {main.CPU.UsageCoreNanoSeconds, 5e9}, "rate": {main.CPU.UsageNanoCores, 0}, "layer": {main.Rootfs.UsedBytes, 12345}, "swap": {main.Swap.SwapUsageBytes, 4096},
			} {
				if name == "v1" && what == "swap" && x.got != nil {
					continue
				}
				if x.got == nil || *x.got != x.want {
					t.Errorf("%s: %v, want %d", what, x.got, x.want)
				}
			}
			if *n.Rlimit.MaxPID != 4000 || *n.Rlimit.NumOfRunningProcesses != 123 {
				t.Errorf("%+v", n.Rlimit)
			}
			if logs := *main.Logs.UsedBytes; logs < 50_000 || logs > 80_000 {
				t.Errorf("logs take %d", logs)
			}
			if len(p.VolumeStats) != 1 || p.VolumeStats[0].Name != "cache" || *p.VolumeStats[0].UsedBytes < 100_000 || *p.VolumeStats[0].UsedBytes > 200_000 {
				t.Errorf("%+v", p.VolumeStats)
			}
			if e := *p.EphemeralStorage.UsedBytes; e < 162_345 || e > 350_000 {
				t.Errorf("%d of ephemeral storage", e)
			}
			if len(n.SystemContainers) == 0 && name == "v2" {
				t.Logf("no system containers: %s", cgroups)
			}
			var small statsapi.Summary
			check(t, json.Unmarshal(get(t, c, "/stats/summary?only_cpu_and_memory=true").Body.Bytes(), &small))
			if small.Node.Fs != nil || small.Pods[0].Network != nil || small.Pods[0].CPU == nil || small.Pods[0].Containers[0].Rootfs != nil {
				t.Errorf("%+v", small)
			}
			if w := get(t, c, "/stats/summary?only_cpu_and_memory=maybe"); w.Code != 400 {
				t.Errorf("%d %s", w.Code, w.Body)
			}
		})
	}
}

func families(t *testing.T, w *httptest.ResponseRecorder) map[string]*dto.MetricFamily {
	t.Helper()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	got, err := parser.TextToMetricFamilies(w.Body)
	check(t, err)
	return got
}

// find returns the value whose labels are at least these.
func find(f *dto.MetricFamily, labels map[string]string) (float64, bool) {
next:
	for _, m := range f.GetMetric() {
		have := map[string]string{}
		for _, l := range m.GetLabel() {
			have[l.GetName()] = l.GetValue()
		}
		for k, v := range labels {
			if have[k] != v {
				continue next
			}
		}
		return m.GetCounter().GetValue() + m.GetGauge().GetValue(), true
	}
	return 0, false
}

func TestCAdvisorsNamesAndLabels(t *testing.T) {
	c, _, _ := world(t, withContainer(v2Pod()))
	got := families(t, get(t, c, "/metrics/cadvisor"))
	main := map[string]string{"container": "main", "namespace": "default", "pod": "app", "image": "r/app:1", "name": "abc", "id": pod + "/abc"}
	whole := map[string]string{"container": "", "namespace": "default", "pod": "app", "image": "", "name": "", "id": pod}
	for _, x := range []struct {
		name   string
		labels map[string]string
		more   string
		want   float64
	}{
		{"container_cpu_usage_seconds_total", main, "cpu=total", 5}, {"container_cpu_usage_seconds_total", whole, "cpu=total", 5},
		{"container_cpu_usage_seconds_total", map[string]string{"id": "/"}, "", 3},
		{"container_cpu_cfs_throttled_seconds_total", main, "", 0.007}, {"container_memory_working_set_bytes", main, "", 7e5},
		{"container_memory_failures_total", main, "failure_type=pgfault,scope=container", 11}, {"container_oom_events_total", main, "", 1},
		{"container_network_receive_bytes_total", whole, "interface=eth0", 77}, {"container_network_transmit_packets_dropped_total", map[string]string{"id": "/"}, "interface=eth0", 4},
		{"container_fs_usage_bytes", main, "", 12345}, {"container_fs_reads_bytes_total", main, "device=/dev/sda", 4096},
		{"container_spec_memory_limit_bytes", main, "", 64 << 20}, {"container_spec_cpu_quota", main, "", 50000}, {"container_start_time_seconds", main, "", 1700000101},
		{"container_pressure_memory_waiting_seconds_total", main, "", 0.001234}, {"container_threads_max", main, "", 0},
		{"machine_memory_bytes", nil, "", 512 << 20}, {"machine_cpu_cores", nil, "", 1},
	} {
		labels := map[string]string{}
		for k, v := range x.labels {
			labels[k] = v
		}
		for _, kv := range strings.Split(x.more, ",") {
			if k, v, ok := strings.Cut(kv, "="); ok {
				labels[k] = v
			}
		}
		if v, ok := find(got[x.name], labels); !ok || v != x.want {
			t.Errorf("%s%v = %v %t, want %v", x.name, labels, v, ok, x.want)
		}
	}
}

func TestResourcePage(t *testing.T) {
	c, _, _ := world(t, withContainer(v1Pod()))
	w := get(t, c, "/metrics/resource")
	got := families(t, w)
	main := map[string]string{"container": "main", "namespace": "default", "pod": "app"}
	for name, x := range map[string]struct {
		labels map[string]string
		want   float64
	}{
		"node_cpu_usage_seconds_total": {nil, 3}, "node_memory_working_set_bytes": {nil, 224288 << 10}, "container_cpu_usage_seconds_total": {main, 5},
		"container_memory_working_set_bytes": {main, 7e5}, "pod_memory_working_set_bytes": {map[string]string{"namespace": "default", "pod": "app"}, 7e5},
		"container_start_time_seconds": {main, 1700000101}, "resource_scrape_error": {nil, 0},
	} {
		if v, ok := find(got[name], x.labels); !ok || v != x.want {
			t.Errorf("%s = %v %t, want %v", name, v, ok, x.want)
		}
	}
	u, err := fleet.ReadUsage(get(t, c, fleet.UsagePath).Body)
	if err != nil || len(u.Pods) != 1 || u.Pods[0].Containers[0].WorkingSet != 7e5 || u.WorkingSet != 224288<<10 || u.WindowMilli < 900 {
		t.Errorf("%+v, %v", u, err)
	}
}

// Nothing is measured twice within the time, and rates come of two looks.
func TestAnswersAreKeptForAWhile(t *testing.T) {
	c, _, cgroups := world(t, withContainer(v1Pod()))
	synctest.Test(t, func(t *testing.T) {
		first, err := c.Sample(t.Context())
		check(t, err)
		write := func(nanos int64) {
			for _, at := range []string{pod, pod + "/abc"} {
				check(t, os.WriteFile(filepath.Join(cgroups, "cpuacct", at, "cpuacct.usage"), []byte(fmt.Sprint(nanos)), 0o644))
			}
		}
		write(6e9)
		time.Sleep(DefaultFresh - time.Second)
		if again, _ := c.Sample(t.Context()); again != first {
			t.Error("measured again within its time")
		}
		time.Sleep(time.Second)
		start := time.Now()
		second, err := c.Sample(t.Context())
		check(t, err)
		if time.Since(start) != 0 {
			t.Errorf("waited %v though there was a look before", time.Since(start))
		}
		// A second of CPU within ten.
		if r := second.Pods[0].Containers[0].Rate; r == nil || *r != 1e8 || second.Pods[0].Window != DefaultFresh {
			t.Errorf("rate %v over %v", r, second.Pods[0].Window)
		}
		time.Sleep(rateOldest + time.Second)
		write(1e9) // another container
		start = time.Now()
		third, err := c.Sample(t.Context())
		check(t, err)
		if time.Since(start) != rateWait || *third.Pods[0].Containers[0].Rate != 0 {
			t.Errorf("after a pause: %v, rate %v", time.Since(start), third.Pods[0].Containers[0].Rate)
		}
	})
}

// Without root there are no cgroups of pods: the runtime says what its containers use.
func TestWithoutCgroupsTheRuntimeIsAsked(t *testing.T) {
	c, rt, _ := world(t, map[string]string{"x": ""})
	s, err := c.Sample(t.Context())
	check(t, err)
	one := s.Pods[0].Containers[0]
	if one.Usage == nil || *one.Usage.WorkingSet != 4<<20 || one.Rate == nil || *s.Pods[0].Usage.WorkingSet != 4<<20 {
		t.Errorf("%+v", one)
	}
	rt.down = true
	c.Fresh = time.Nanosecond
	time.Sleep(time.Millisecond)
	if s, err = c.Sample(t.Context()); err != nil || s.Pods[0].Containers[0].Usage != nil {
		t.Errorf("with a runtime that doesn't answer: %+v, %v", s, err)
	}
	if w := get(t, c, "/metrics/cadvisor"); w.Code != 200 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// Folders are counted once a minute, layers as often as anything else.
func TestLayersAreAskedForOftener(t *testing.T) {
	c, rt, _ := world(t, withContainer(v2Pod()))
	synctest.Test(t, func(t *testing.T) {
		first, err := c.Files(t.Context())
		check(t, err)
		rt.layer = 1000
		check(t, os.WriteFile(filepath.Join(c.DataDir, "logs/main/1.log"), make([]byte, 100_000), 0o644))
		time.Sleep(DefaultFresh)
		second, err := c.Files(t.Context())
		check(t, err)
		a, b := first.Pods["1"], second.Pods["1"]
		if b.Containers["main"].Rootfs.Bytes != 13345 || b.Ephemeral.Bytes != a.Ephemeral.Bytes+1000 || b.Containers["main"].Logs != a.Containers["main"].Logs {
			t.Errorf("%+v, then %+v", a, b)
		}
		time.Sleep(DefaultFreshFiles)
		third, err := c.Files(t.Context())
		check(t, err)
		if more := third.Pods["1"].Ephemeral.Bytes - b.Ephemeral.Bytes; more < 100_000 {
			t.Errorf("%d bytes more after a minute", more)
		}
	})
}
