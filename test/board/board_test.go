//go:build slow

package board_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/coracle-edge/coracle/test/board"
	"github.com/coracle-edge/coracle/test/lab"
)

func TestMain(m *testing.M) { os.Exit(lab.Main(m)) }

// podTimeout is until pods run or go on an emulated board of a busy host.
const podTimeout = 8 * time.Minute

// lane is a board that is a node, with what a test asks of it.
type lane struct {
	*board.Node
	t   *testing.T
	ctx context.Context
}

// TestBoard is all that only a real machine shows, in one boot: a pure cgroup v2, with
// OCI and Wasm containers, and a clock that jumps.
func TestBoard(t *testing.T) {
	parts := os.Getenv("CORACLE_BOARD")
	if parts == "" {
		t.Skip("CORACLE_BOARD names no folder that test/board/fetch.sh filled")
	}
	lab.Need(t, "qemu-system-aarch64", "clang")
	root := lab.Root(t)
	programs := t.TempDir()
	ctx := t.Context()
	if err := board.Build(ctx, filepath.Join(root, "test/go"), root, programs); err != nil {
		t.Fatal(err)
	}
	web, err := board.Busybox(parts, "httpd", "-f", "-p", "8080", "-h", "/www")
	if err != nil {
		t.Fatal(err)
	}
	shell, err := board.Busybox(parts, "sh", "-c")
	if err != nil {
		t.Fatal(err)
	}
	lab.Program(t, "coracle")
	n, err := board.StartNode(ctx, board.NodeConfig{
		Config: board.Config{Parts: parts, Memory: 512, OCI: true, Console: console{t}},
		Bin:    filepath.Dir(lab.Program(t, "controlplane")), Programs: programs,
		Images: map[string]*lab.Image{"web:1": web, "shell:1": shell, "http:1": lab.CNCF(lab.Wasm(t, filepath.Join(root, "examples/http/http.c")))},
		Args:   []string{"--eviction-hard", "memory.available<60Mi", "--eviction-pressure-transition-period", "10s"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	l := &lane{Node: n, t: t, ctx: ctx}
	l.pods()
	t.Run("Cgroups", l.cgroups)
	t.Run("Stats", l.stats)
	t.Run("Clock", l.clock)
	t.Run("Eviction", l.eviction)
}

// console is a test's log.
type console struct{ t *testing.T }

func (c console) Write(line []byte) (int, error) {
	if testing.Verbose() {
		c.t.Log(strings.TrimSpace(string(line)))
	}
	return len(line), nil
}

func (l *lane) run(t *testing.T, script string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(l.ctx, 5*time.Minute)
	defer cancel()
	said, err := l.Run(ctx, script)
	if err != nil {
		t.Fatal(err)
	}
	return said
}

func (l *lane) create(t *testing.T, p *corev1.Pod) {
	t.Helper()
	if _, err := l.Client.CoreV1().Pods("default").Create(l.ctx, p, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func (l *lane) await(t *testing.T, what string, ok func() error) {
	t.Helper()
	if err := l.Await(l.ctx, podTimeout, what, ok); err != nil {
		t.Fatal(err)
	}
}

func (l *lane) get(name string) (*corev1.Pod, error) {
	return l.Client.CoreV1().Pods("default").Get(l.ctx, name, metav1.GetOptions{})
}

// ready is nil if all pods of these names are, and none was ever restarted.
func (l *lane) ready(names ...string) error {
	for _, name := range names {
		p, err := l.get(name)
		if err != nil {
			return err
		}
		for _, c := range p.Status.ContainerStatuses {
			if c.RestartCount > 0 {
				return fmt.Errorf("pod %s was restarted: %+v", name, c.LastTerminationState)
			}
		}
		ready := false
		for _, c := range p.Status.Conditions {
			ready = ready || c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
		}
		if !ready {
			return fmt.Errorf("pod %s: %s %+v", name, p.Status.Phase, p.Status.ContainerStatuses)
		}
	}
	return nil
}

func list(cpu, memory string) corev1.ResourceList {
	return corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory)}
}

// server is a pod that answers /healthz, and is asked for it.
func server(name string, wasm bool, r corev1.ResourceRequirements) *corev1.Pod {
	probe := &corev1.Probe{PeriodSeconds: 5, TimeoutSeconds: 10, FailureThreshold: 3,
		ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/healthz", Port: intstr.FromInt32(8080)}}}
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"}, Spec: corev1.PodSpec{
		TerminationGracePeriodSeconds: new(int64),
		Containers: []corev1.Container{{Name: "main", Image: board.ImageHost + "/web:1", Resources: r, LivenessProbe: probe, ReadinessProbe: probe,
			Ports: []corev1.ContainerPort{{ContainerPort: 8080}}}},
	}}
	if wasm {
		class := "wasm"
		p.Spec.RuntimeClassName, p.Spec.Containers[0].Image = &class, board.ImageHost+"/http:1"
	}
	return p
}

// qos are pods of all classes, by their name.
var qos = []struct {
	name  string
	wasm  bool
	class string
	res   corev1.ResourceRequirements
}{
	{"oci-guaranteed", false, "", corev1.ResourceRequirements{Requests: list("100m", "32Mi"), Limits: list("100m", "32Mi")}},
	{"wasm-guaranteed", true, "", corev1.ResourceRequirements{Requests: list("500m", "32Mi"), Limits: list("500m", "32Mi")}},
	{"oci-burstable", false, "burstable", corev1.ResourceRequirements{Requests: list("50m", "16Mi"), Limits: list("500m", "64Mi")}},
	{"wasm-burstable", true, "burstable", corev1.ResourceRequirements{Requests: list("50m", "16Mi"), Limits: list("500m", "64Mi")}},
	{"oci-besteffort", false, "besteffort", corev1.ResourceRequirements{}},
	{"wasm-besteffort", true, "besteffort", corev1.ResourceRequirements{}},
}

func names() (all []string) {
	for _, q := range qos {
		all = append(all, q.name)
	}
	return all
}

func (l *lane) pods() {
	for _, q := range qos {
		l.create(l.t, server(q.name, q.wasm, q.res))
	}
	l.await(l.t, "pods of all classes are ready", func() error { return l.ready(names()...) })
}

// cgroups are where a kubelet with the driver cgroupfs makes them, with its values
// (pkg/kubelet/cm: pod_container_manager_linux.go, helpers_linux.go).
func (l *lane) cgroups(t *testing.T) {
	said := l.run(t, `cd /sys/fs/cgroup; for d in $(find kubepods -type d); do for f in cpu.weight cpu.max memory.max memory.oom.group pids.max cgroup.subtree_control; do echo "$d/$f=$(cat $d/$f)"; done; for p in $(cat $d/cgroup.procs); do oom=$(cat /proc/$p/oom_score_adj 2>/dev/null) && echo "$d/oom=$oom"; done; done; true`)
	is := map[string]string{}
	for line := range strings.Lines(said) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		is[name] = value
	}
	want := func(name, value string) {
		t.Helper()
		if is[name] != value {
			t.Errorf("%s is %q, want %q", name, is[name], value)
		}
	}
	node, err := l.Client.CoreV1().Nodes().Get(l.ctx, board.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	want("kubepods/memory.max", fmt.Sprint(node.Status.Capacity.Memory().Value())) // nothing is reserved
	want("kubepods/cpu.weight", "174")                                             // two processors
	want("kubepods/burstable/cpu.weight", "17")                                    // 100m together
	want("kubepods/besteffort/cpu.weight", "1")
	for _, q := range qos {
		p, err := l.get(q.name)
		if err != nil {
			t.Fatal(err)
		}
		dir := filepath.Join("kubepods", q.class, "pod"+string(p.UID))
		weight, quota, memory, oom := "1", "max 100000", "max", 1000
		switch q.class {
		case "":
			weight, quota, memory, oom = "17", "10000 100000", "33554432", -997
			if q.wasm {
				weight, quota = "59", "50000 100000"
			}
		case "burstable":
			weight, quota, memory = "11", "50000 100000", "67108864"
			oom = int(1000 - 1000*(16<<20)/node.Status.Capacity.Memory().Value())
		}
		want(dir+"/cpu.weight", weight)
		want(dir+"/cpu.max", quota)
		want(dir+"/memory.max", memory)
		want(dir+"/pids.max", "max")
		for _, controller := range []string{"cpu", "memory", "pids"} {
			if !strings.Contains(is[dir+"/cgroup.subtree_control"], controller) {
				t.Errorf("%s: its containers have no %s: %q", dir, controller, is[dir+"/cgroup.subtree_control"])
			}
		}
		_, id, _ := strings.Cut(p.Status.ContainerStatuses[0].ContainerID, "://")
		container := dir + "/" + id
		want(container+"/cpu.max", quota)
		want(container+"/memory.max", memory)
		if memory != "max" || !q.wasm { // a Wasm container without a limit is one process
			want(container+"/memory.oom.group", "1")
		}
		want(container+"/oom", strconv.Itoa(oom))
	}
}

// stats are what the kernel's files of cgroup v2 say.
func (l *lane) stats(t *testing.T) {
	raw, err := l.Client.CoreV1().RESTClient().Get().AbsPath("/api/v1/nodes/" + board.Name + "/proxy/stats/summary").DoRaw(l.ctx)
	if err != nil {
		t.Fatal(err)
	}
	var summary struct {
		Node struct{ Memory, CPU map[string]any }
		Pods []struct {
			PodRef struct{ Name, UID string }
			Memory struct{ WorkingSetBytes, UsageBytes float64 }
			CPU    struct{ UsageCoreNanoSeconds float64 }
		}
	}
	if err := json.Unmarshal(raw, &summary); err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, p := range summary.Pods {
		for _, q := range qos {
			if q.name != p.PodRef.Name {
				continue
			}
			seen++
			dir := filepath.Join("/sys/fs/cgroup/kubepods", q.class, "pod"+p.PodRef.UID)
			f := strings.Fields(l.run(t, "cat "+dir+"/memory.current; awk '/^inactive_file/ { print $2 }' "+dir+"/memory.stat; awk '/^usage_usec/ { print $2 }' "+dir+"/cpu.stat"))
			if len(f) != 3 {
				t.Fatalf("pod %s: %q", q.name, f)
			}
			var now [3]float64
			for i := range f {
				if now[i], err = strconv.ParseFloat(f[i], 64); err != nil {
					t.Fatal(err)
				}
			}
			const slack = 4 << 20 // between the two looks
			if d := p.Memory.WorkingSetBytes - (now[0] - now[1]); p.Memory.WorkingSetBytes == 0 || d > slack || d < -slack {
				t.Errorf("pod %s: its working set is %.0f, the kernel's %.0f less %.0f of files", q.name, p.Memory.WorkingSetBytes, now[0], now[1])
			}
			if used := p.CPU.UsageCoreNanoSeconds / 1000; used == 0 || used > now[2] || used < now[2]/4 {
				t.Errorf("pod %s: it used %.0f us of processors, the kernel says %.0f by now", q.name, used, now[2])
			}
		}
	}
	if seen != len(qos) {
		t.Errorf("%d of %d pods are in %s", seen, len(qos), raw)
	}
	available, _ := summary.Node.Memory["availableBytes"].(float64)
	kernel, err := strconv.ParseFloat(l.run(t, "awk '/^MemAvailable/ { print $2 }' /proc/meminfo"), 64)
	if err != nil {
		t.Fatal(err)
	}
	// Capacity less the working set of all (cAdvisor), which is near what the kernel calls available.
	if ratio := available / (kernel * 1024); ratio < 0.8 || ratio > 1.25 {
		t.Errorf("%.0f bytes are available, the kernel says %.0f KiB", available, kernel)
	}
}

// jumpWatch is how long pods are watched after a jump: some periods of their probes.
const jumpWatch = 45 * time.Second

// clock is set forth by thirty days, back by a year, and to what it should be.
func (l *lane) clock(t *testing.T) {
	sleeper := func(name string, limit int64) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"}, Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: new(int64), ActiveDeadlineSeconds: &limit, RestartPolicy: corev1.RestartPolicyNever,
			Containers: []corev1.Container{{Name: "main", Image: board.ImageHost + "/shell:1", Args: []string{"exec sleep 100000"}}}}}
	}
	// One deadline is beyond all this, one within it.
	l.create(t, sleeper("long", 7200))
	limit := int64(2*jumpWatch/time.Second) + 90
	l.create(t, sleeper("brief", limit))
	l.await(t, "both run", func() error { return l.ready("long", "brief") })
	began, err := l.get("brief")
	if err != nil {
		t.Fatal(err)
	}
	ids := l.containers(t, append(names(), "long")...)
	watch := func(when string) {
		t.Helper()
		for end := time.Now().Add(jumpWatch); time.Now().Before(end); time.Sleep(2 * time.Second) {
			if err := l.ready(append(names(), "long")...); err != nil {
				t.Fatalf("%s: %v\n%s", when, err, l.run(t, "tail -n 30 /var/log/edgelet.log"))
			}
			if err := l.Ready(l.ctx); err != nil {
				t.Fatalf("%s: %v", when, err)
			}
			if p, err := l.get("brief"); err != nil || p.Status.Phase == corev1.PodFailed && time.Since(began.Status.StartTime.Time) < time.Duration(limit)*time.Second {
				t.Fatalf("%s: pod brief of %d s was ended after %s: %v", when, limit, time.Since(began.Status.StartTime.Time), err)
			}
		}
		if now := l.containers(t, append(names(), "long")...); now != ids {
			t.Fatalf("%s: the containers were\n%s\nand are\n%s", when, ids, now)
		}
	}
	l.run(t, "date -s @$(($(date +%s) + 30 * 86400))")
	watch("thirty days ahead")
	l.run(t, "date -s @$(($(date +%s) - 395 * 86400))")
	watch("a year behind")
	l.run(t, fmt.Sprintf("date -s @%d", time.Now().Unix()))
	watch("right again")
	l.await(t, "the deadline ends the other", func() error {
		p, err := l.get("brief")
		if err == nil && p.Status.Reason != "DeadlineExceeded" {
			err = fmt.Errorf("pod brief: %s %s", p.Status.Phase, p.Status.Reason)
		}
		return err
	})
	// Both ways are open: an order arrives, and a stream goes through the tunnel.
	l.create(t, server("after", true, corev1.ResourceRequirements{}))
	l.await(t, "a pod made afterwards runs", func() error { return l.ready("after") })
	if _, err := l.Client.CoreV1().RESTClient().Get().AbsPath("/api/v1/nodes/" + board.Name + "/proxy/healthz").DoRaw(l.ctx); err != nil {
		t.Error(err)
	}
	// The agent starts again with the certificates it has, and takes the pods over.
	l.run(t, "kill $(pidof edgelet); while pidof edgelet; do sleep 1; done; sh /usr/bin/start-edgelet >/dev/null 2>&1 </dev/null &")
	l.await(t, "the agent is back", func() error {
		if _, err := l.Client.CoreV1().RESTClient().Get().AbsPath("/api/v1/nodes/" + board.Name + "/proxy/healthz").DoRaw(l.ctx); err != nil {
			return err
		}
		return l.ready(append(names(), "long")...)
	})
	if now := l.containers(t, append(names(), "long")...); now != ids {
		t.Errorf("the containers were\n%s\nand are\n%s", ids, now)
	}
}

// containers are the IDs of pods' containers, a line each.
func (l *lane) containers(t *testing.T, pods ...string) (ids string) {
	t.Helper()
	for _, name := range pods {
		p, err := l.get(name)
		if err != nil {
			t.Fatal(err)
		}
		ids += name + " " + p.Status.ContainerStatuses[0].ContainerID + "\n"
	}
	return ids
}

// eviction: of all pods, the one that takes what it never asked for.
func (l *lane) eviction(t *testing.T) {
	l.create(t, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "hog", Namespace: "default"}, Spec: corev1.PodSpec{
		TerminationGracePeriodSeconds: new(int64), RestartPolicy: corev1.RestartPolicyNever,
		Volumes: []corev1.Volume{{Name: "mem", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}}}},
		Containers: []corev1.Container{{Name: "main", Image: board.ImageHost + "/shell:1", VolumeMounts: []corev1.VolumeMount{{Name: "mem", MountPath: "/mem"}},
			// Until less is left than the threshold, but enough for the machine.
			Args: []string{`i=0; while [ $(awk '/^MemAvailable/ { print $2 }' /proc/meminfo) -gt 51200 ]; do i=$((i+1)); dd if=/dev/zero of=/mem/$i bs=1M count=8 2>/dev/null; done; exec sleep 100000`}}}}})
	l.await(t, "the hog is evicted", func() error {
		p, err := l.get("hog")
		if err == nil && p.Status.Reason != "Evicted" {
			err = fmt.Errorf("pod hog: %s %s %s", p.Status.Phase, p.Status.Reason, p.Status.Message)
		}
		if err == nil && !strings.Contains(p.Status.Message, "low on resource: memory") {
			t.Errorf("it was evicted as %q", p.Status.Message)
		}
		return err
	})
	if err := l.ready(names()...); err != nil {
		t.Error(err)
	}
	l.await(t, "the node has memory again", func() error {
		node, err := l.Client.CoreV1().Nodes().Get(l.ctx, board.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, c := range node.Status.Conditions {
			if c.Type == corev1.NodeMemoryPressure && c.Status != corev1.ConditionFalse {
				return fmt.Errorf("%s", c.Message)
			}
		}
		return nil
	})
}
