package pods

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// fakeCgroups is a mount in which a cgroup has its files as soon as it is asked for
// them, as the kernel's do.
func fakeCgroups(t *testing.T, v2 bool) *cgroups {
	t.Helper()
	c := &cgroups{root: "/kubepods", mount: t.TempDir(), maxPIDs: 99}
	c.limit = rootLimits{milliCPU: 1500, memory: 900 << 20, pids: 5000}
	if v2 {
		if err := os.WriteFile(filepath.Join(c.mount, "cgroup.controllers"), []byte("cpuset cpu io memory hugetlb pids rdma misc\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		return c
	}
	for _, controller := range []string{"cpu", "cpuacct", "memory", "pids", "cpuset"} {
		if err := os.Mkdir(filepath.Join(c.mount, controller), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// populate makes the files that the kernel would have made.
func populate(t *testing.T, c *cgroups) {
	t.Helper()
	names := []string{"cpu.weight", "cpu.max", "memory.max", "pids.max", "hugetlb.2MB.max", "cgroup.subtree_control", "cgroup.controllers",
		"cpu.shares", "cpu.cfs_period_us", "cpu.cfs_quota_us", "memory.limit_in_bytes"}
	if err := filepath.WalkDir(c.mount, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			for _, name := range names {
				file := filepath.Join(path, name)
				if _, err := os.Stat(file); err != nil && file != filepath.Join(c.mount, "cgroup.controllers") {
					if c.v2() || name != "cgroup.controllers" {
						if err := os.WriteFile(file, nil, 0o644); err != nil {
							return err
						}
					}
				}
			}
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, c *cgroups, path string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(c.mount, path))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(raw))
}

func podWith(name string, resources ...v1.ResourceRequirements) *v1.Pod {
	p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "u-1", Name: name, Namespace: "ns"}}
	for i, r := range resources {
		p.Spec.Containers = append(p.Spec.Containers, v1.Container{Name: string(rune('a' + i)), Resources: r})
	}
	return p
}

func list(pairs ...string) v1.ResourceList {
	out := v1.ResourceList{}
	for i := 0; i < len(pairs); i += 2 {
		out[v1.ResourceName(pairs[i])] = resource.MustParse(pairs[i+1])
	}
	return out
}

func TestPodsAreBoundedAsAWhole(t *testing.T) {
	burstable := podWith("b", v1.ResourceRequirements{Requests: list("cpu", "250m", "memory", "32Mi"), Limits: list("cpu", "500m", "memory", "64Mi")},
		v1.ResourceRequirements{Requests: list("cpu", "250m"), Limits: list("cpu", "1", "memory", "64Mi")})
	for _, v2 := range []bool{false, true} {
		c := fakeCgroups(t, v2)
		// Once for the folders, and again when they have their files.
		if err := c.ensure(burstable); err != nil {
			t.Fatal(err)
		}
		populate(t, c)
		c.ready, c.pods = false, nil
		if err := c.ensure(burstable); err != nil {
			t.Fatal(err)
		}
		want := map[string]string{
			"cpu/kubepods/cpu.shares": "1536", "memory/kubepods/memory.limit_in_bytes": "943718400", "pids/kubepods/pids.max": "5000",
			"cpu/kubepods/besteffort/cpu.shares": "2", "cpu/kubepods/burstable/cpu.shares": "512",
			"cpu/kubepods/burstable/podu-1/cpu.shares": "512", "cpu/kubepods/burstable/podu-1/cpu.cfs_quota_us": "150000",
			"memory/kubepods/burstable/podu-1/memory.limit_in_bytes": "134217728", "pids/kubepods/burstable/podu-1/pids.max": "99",
		}
		if v2 {
			want = map[string]string{
				"kubepods/cpu.weight": "138", "kubepods/memory.max": "943718400", "kubepods/pids.max": "5000",
				"kubepods/besteffort/cpu.weight": "1", "kubepods/burstable/cpu.weight": "59",
				"kubepods/burstable/podu-1/cpu.weight": "59", "kubepods/burstable/podu-1/cpu.max": "150000 100000",
				"kubepods/burstable/podu-1/memory.max": "134217728", "kubepods/burstable/podu-1/pids.max": "99",
			}
			if got := read(t, c, "cgroup.subtree_control"); got != "+pids" { // each is a write of its own; a real file adds up
				t.Errorf("delegated %q", got)
			}
		}
		for path, value := range want {
			if got := read(t, c, path); got != value {
				t.Errorf("v2 %t: %s is %q, want %q", v2, path, got, value)
			}
		}
		c.remove(burstable)
		weight := "cpu/kubepods/burstable/cpu.shares"
		least := "2"
		if v2 {
			weight, least = "kubepods/burstable/cpu.weight", "1"
		}
		if got := read(t, c, weight); got != least {
			t.Errorf("v2 %t: a class without pods weighs %s", v2, got)
		}
	}
}

func TestPodLimits(t *testing.T) {
	both := v1.ResourceRequirements{Requests: list("cpu", "1", "memory", "1Gi"), Limits: list("cpu", "1", "memory", "1Gi")}
	level := podWith("p", v1.ResourceRequirements{})
	level.Spec.Resources = &v1.ResourceRequirements{Requests: list("cpu", "200m", "memory", "64Mi"), Limits: list("cpu", "400m", "memory", "128Mi")}
	heavy := podWith("p", both)
	heavy.Spec.Overhead = list("cpu", "100m", "memory", "16Mi")
	huge := podWith("p", v1.ResourceRequirements{Requests: list("hugepages-2Mi", "4Mi", "memory", "1Mi"), Limits: list("hugepages-2Mi", "4Mi")})
	for name, c := range map[string]struct {
		pod                   *v1.Pod
		shares, quota, memory int64
	}{
		"guaranteed":      {podWith("p", both), 1024, 100000, 1 << 30},
		"overhead":        {heavy, 1126, 110000, 1<<30 + 16<<20},
		"best effort":     {podWith("p", v1.ResourceRequirements{}), 2, 0, 0},
		"one unbounded":   {podWith("p", both, v1.ResourceRequirements{Requests: list("cpu", "1")}), 2048, 0, 0},
		"only memory":     {podWith("p", v1.ResourceRequirements{Requests: list("cpu", "1m"), Limits: list("memory", "8Mi")}), 2, 0, 8 << 20},
		"of the pod":      {level, 204, 40000, 128 << 20},
		"with huge pages": {huge, 2, 0, 0},
	} {
		l := podLimits(c.pod)
		if *l.shares != c.shares || l.quota != c.quota || l.memory != c.memory {
			t.Errorf("%s: %d shares, quota %d, memory %d; want %d, %d, %d", name, *l.shares, l.quota, l.memory, c.shares, c.quota, c.memory)
		}
	}
	if l := podLimits(huge); l.hugepages["2MB"] != 4<<20 {
		t.Errorf("huge pages %v", l.hugepages)
	}
}

func TestCgroupNames(t *testing.T) {
	p := podWith("p", v1.ResourceRequirements{})
	p.UID = "ab-cd"
	for want, c := range map[string]*cgroups{
		"/kubepods/besteffort/podab-cd": {root: "/kubepods"},
		"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podab_cd.slice": {root: "/kubepods", systemd: true},
		"": {},
	} {
		if got := c.parent(p); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestCPUWeight(t *testing.T) {
	for shares, want := range map[int64]int64{0: 1, 2: 1, 1024: 100, 2048: 174, 262144: 10000, 1 << 40: 10000} {
		if got := cpuWeight(shares); got != want {
			t.Errorf("%d shares weigh %d, want %d", shares, got, want)
		}
	}
}

func TestOOMScores(t *testing.T) {
	always := v1.ContainerRestartPolicyAlways
	critical := int32(2000001000)
	c := func(memory string) v1.Container {
		out := v1.Container{Name: "main"}
		if memory != "" {
			out.Resources.Requests = list("memory", memory)
		}
		return out
	}
	pod := func(cs ...v1.Container) *v1.Pod { return &v1.Pod{Spec: v1.PodSpec{Containers: cs}} }
	burstable := pod(c("100Mi"))
	node := pod(c(""))
	node.Spec.PriorityClassName, node.Spec.Priority = "system-node-critical", &critical
	sidecar := pod(c("100Mi"))
	side := c("1Mi")
	side.Name, side.RestartPolicy = "side", &always
	sidecar.Spec.InitContainers = []v1.Container{side}
	whole := pod(c("100Mi"), v1.Container{Name: "b"})
	whole.Spec.Resources = &v1.ResourceRequirements{Requests: list("memory", "300Mi")}
	for name, x := range map[string]struct {
		pod  *v1.Pod
		c    *v1.Container
		want int64
	}{
		"asked for a tenth": {burstable, &burstable.Spec.Containers[0], 900},
		"nothing asked":     {pod(c("")), &v1.Container{}, 1000},
		"node critical":     {node, &node.Spec.Containers[0], -997},
		"sidecar":           {sidecar, &sidecar.Spec.InitContainers[0], 900},
		"of the pod":        {whole, &whole.Spec.Containers[0], 800},
	} {
		if got := oomScore(x.pod, x.c, 1000<<20); got != x.want {
			t.Errorf("%s: %d, want %d", name, got, x.want)
		}
	}
}

// A pod with processors of its own has no quota, from when it has them.
func TestThePodsQuotaGoesWithProcessorsOfItsOwn(t *testing.T) {
	for _, v2 := range []bool{true, false} {
		c := fakeCgroups(t, v2)
		its := false
		c.exclusive = func(uid string) bool { return its && uid == "u-1" }
		pod := podWith("p", v1.ResourceRequirements{Limits: list("cpu", "1", "memory", "8Mi"), Requests: list("cpu", "1", "memory", "8Mi")})
		quota := func() string {
			if v2 {
				return read(t, c, "kubepods/podu-1/cpu.max")
			}
			return read(t, c, "cpu/kubepods/podu-1/cpu.cfs_quota_us")
		}
		want := map[bool][]string{true: {"100000 100000", "max 100000"}, false: {"100000", "-1"}}[v2]
		if err := c.apply(pod); err != nil {
			t.Fatal(err)
		}
		populate(t, c)
		if err := c.ensure(pod); err != nil {
			t.Fatal(err)
		}
		for _, its = range []bool{false, true, false} {
			if err := c.follow(pod); err != nil {
				t.Fatal(err)
			}
			if i := map[bool]int{true: 1}[its]; quota() != want[i] {
				t.Errorf("its own %t: %s, want %s", its, quota(), want[i])
			}
		}
	}
}
