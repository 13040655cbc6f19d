package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// ociPod writes to an emptyDir and to its own layer, and goes on using CPU.
const ociPod = `
apiVersion: v1
kind: Pod
metadata: {name: native, labels: {app: native}}
spec:
  nodeName: %s
  terminationGracePeriodSeconds: 0
  volumes: [{name: cache, emptyDir: {}}]
  containers:
  - name: main
    image: example.org/busybox:1
    imagePullPolicy: Never
    command: [sh, -c, "dd if=/dev/zero of=/cache/a bs=1024 count=2048; dd if=/dev/zero of=/layer bs=1024 count=1024; while true; do :; done"]
    resources: {requests: {cpu: 50m}, limits: {cpu: 100m, memory: 64Mi}}
    readinessProbe: {exec: {command: ["true"]}, periodSeconds: 5}
    volumeMounts: [{name: cache, mountPath: /cache}]
`

// What a Wasm pod and a native one use is served as a kubelet and metrics-server
// serve it.
func TestFiguresOfPods(t *testing.T) {
	ns := shared.namespace(t)
	oci := shared.importBusybox(t)
	node := shared.state.Nodes[0]
	image := push(t, shared, cModule(t, "ticker"), "ticker")
	shared.apply(t, ns, strings.Replace(wasmPod("module", image), "spec:\n", "spec:\n  nodeName: "+node+"\n", 1))
	pods := []string{"module"}
	if oci {
		shared.apply(t, ns, fmt.Sprintf(ociPod, node))
		pods = append(pods, "native")
	}
	for _, pod := range pods {
		shared.must(t, "-n", ns, "wait", "--for=condition=Ready", "pod/"+pod, "--timeout=90s")
	}
	raw := func(path string) string { return shared.must(t, "get", "--raw", "/api/v1/nodes/"+node+"/proxy"+path) }

	eventually(t, 90*time.Second, func() error {
		out, err := shared.kubectl("", "-n", ns, "top", "pods", "--containers", "--no-headers")
		if err != nil {
			return err
		}
		for _, pod := range pods {
			if !strings.Contains(out, pod) {
				return fmt.Errorf("kubectl top shows no %s:\n%s", pod, out)
			}
		}
		return nil
	})
	if out := shared.must(t, "-n", ns, "top", "pods", "-l", "app=module", "--no-headers"); strings.Contains(out, "native") || !strings.Contains(out, "module") {
		t.Errorf("with a label selector: %s", out)
	}
	if out := shared.must(t, "top", "nodes", "--no-headers"); strings.Count(out, "\n") != len(shared.state.Nodes) || strings.Contains(out, "<unknown>") {
		t.Errorf("kubectl top nodes: %s", out)
	}
	shared.must(t, "create", "rolebinding", "reader", "-n", ns, "--clusterrole=view", "--user=jane")
	for who, want := range map[string]string{"jane": "yes", "joe": "no"} {
		if out, _ := shared.kubectl("", "auth", "can-i", "list", "pods.metrics.k8s.io", "-n", ns, "--as", who); strings.TrimSpace(out) != want {
			t.Errorf("may %s see what pods use? %s, want %s", who, out, want)
		}
	}

	check := func(summary *statsapi.Summary, pod string) error {
		for i := range summary.Pods {
			p := &summary.Pods[i]
			if p.PodRef.Namespace != ns || p.PodRef.Name != pod {
				continue
			}
			c := p.Containers[0]
			switch {
			case len(p.Containers) != 1 || c.Name != "main" || c.StartTime.IsZero():
				return fmt.Errorf("containers %+v", p.Containers)
			case c.CPU == nil || c.CPU.UsageCoreNanoSeconds == nil || *c.CPU.UsageCoreNanoSeconds == 0 || c.CPU.UsageNanoCores == nil:
				return fmt.Errorf("CPU %+v", c.CPU)
			case c.Memory == nil || c.Memory.WorkingSetBytes == nil || *c.Memory.WorkingSetBytes == 0 || *c.Memory.WorkingSetBytes > 64<<20:
				return fmt.Errorf("memory %+v", c.Memory)
			case c.Logs == nil || c.Rootfs == nil || p.EphemeralStorage == nil || p.ProcessStats == nil:
				return fmt.Errorf("disks %+v", c)
			}
			if pod == "native" {
				if p.Network == nil || p.Network.Name != "eth0" || len(p.VolumeStats) == 0 || *p.VolumeStats[0].UsedBytes < 2<<20 || *c.Rootfs.UsedBytes < 1<<20 || *p.EphemeralStorage.UsedBytes < 3<<20 {
					return fmt.Errorf("network %+v, volumes %+v, layer %d, ephemeral storage %d", p.Network, p.VolumeStats, *c.Rootfs.UsedBytes, *p.EphemeralStorage.UsedBytes)
				}
				if *c.CPU.UsageNanoCores < 50e6 || *c.CPU.UsageNanoCores > 200e6 {
					return fmt.Errorf("it uses a tenth of a CPU, and %d billionths are said", *c.CPU.UsageNanoCores)
				}
			}
			return nil
		}
		return fmt.Errorf("no pod %s among %d", pod, len(summary.Pods))
	}
	for _, pod := range pods {
		eventually(t, 2*time.Minute, func() error { // folders are counted once a minute, layers by containerd's own clock
			var summary statsapi.Summary
			if err := json.Unmarshal([]byte(raw("/stats/summary")), &summary); err != nil {
				return err
			}
			if n := summary.Node; n.NodeName != node || *n.Memory.AvailableBytes == 0 || n.Fs == nil || n.Runtime.ImageFs == nil || n.Rlimit == nil {
				return fmt.Errorf("node %+v", n)
			}
			return check(&summary, pod)
		})
	}
	cadvisor, resource, own := raw("/metrics/cadvisor"), raw("/metrics/resource"), raw("/metrics")
	for _, pod := range pods {
		for page, words := range map[string][]string{
			cadvisor: {`container_cpu_usage_seconds_total{container="main",cpu="total"`, `container_memory_working_set_bytes{container="main"`, `container_start_time_seconds{container="main"`},
			resource: {`container_cpu_usage_seconds_total{container="main",namespace="` + ns + `"`, `pod_memory_working_set_bytes{namespace="` + ns + `"`},
		} {
			for _, word := range words {
				found := false
				for line := range strings.Lines(page) {
					found = found || strings.HasPrefix(line, word) && strings.Contains(line, `namespace="`+ns+`",pod="`+pod+`"`)
				}
				if !found {
					t.Errorf("no line %s... of pod %s in a page of %d bytes", word, pod, len(page))
				}
			}
		}
	}
	if got := raw("/metrics/probes"); oci && !strings.Contains(got, `prober_probe_total{container="main",namespace="`+ns+`",pod="native"`) {
		t.Errorf("the page of probes:\n%s", got)
	}
	for _, line := range []string{"kubelet_running_pods ", `kubelet_running_containers{container_state="running"}`, `kubelet_active_pods{static=""} `,
		"kubelet_started_pods_total ", `kubelet_runtime_operations_total{operation_type="run_podsandbox"} `, `kubelet_started_containers_total{container_type="container"} `, "kubelet_terminated_containers_total counter", "kubernetes_build_info{"} {
		if !strings.Contains(own, line) {
			t.Errorf("no %s in the node's own page:\n%s", line, own)
		}
	}
}

// evicted waits for a pod that failed as a kubelet's eviction makes it.
func (c *cluster) evicted(t *testing.T, ns, pod, message string, disrupted bool) {
	t.Helper()
	eventually(t, 2*time.Minute, func() error {
		p, err := c.client.CoreV1().Pods(ns).Get(t.Context(), pod, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if p.Status.Phase != corev1.PodFailed || p.Status.Reason != "Evicted" || !strings.HasPrefix(p.Status.Message, message) {
			return fmt.Errorf("pod %s is %s %s %q", pod, p.Status.Phase, p.Status.Reason, p.Status.Message)
		}
		has := false
		for _, cond := range p.Status.Conditions {
			has = has || cond.Type == corev1.DisruptionTarget && cond.Status == corev1.ConditionTrue && cond.Reason == corev1.PodReasonTerminationByKubelet
		}
		if has != disrupted {
			return fmt.Errorf("conditions %+v", p.Status.Conditions)
		}
		return nil
	})
	c.shows(t, time.Minute, []string{strings.TrimSpace(strings.TrimPrefix(message, "Pod was rejected: "))}, "-n", ns, "get", "events", "--field-selector", "reason=Evicted,involvedObject.name="+pod)
}

// A board of which so much memory is to stay free that it never is: its pods go
// one after the other, critical ones stay, and no others are let in.
func TestPodsAreEvictedWhenMemoryIsShort(t *testing.T) {
	c := newCluster(t, "--nodes=1", "--no-example", "--node-arg=--eviction-hard=memory.available<99%", "--node-arg=--eviction-pressure-transition-period=5s")
	node := c.state.Nodes[0]
	condition := func(want corev1.ConditionStatus) error {
		n, err := c.client.CoreV1().Nodes().Get(t.Context(), node, metav1.GetOptions{})
		if err != nil {
			return err
		}
		tainted := false
		for _, taint := range n.Spec.Taints {
			tainted = tainted || taint.Key == corev1.TaintNodeMemoryPressure && taint.Effect == corev1.TaintEffectNoSchedule
		}
		for _, cond := range n.Status.Conditions {
			if cond.Type == corev1.NodeMemoryPressure && cond.Status == want && tainted == (want == corev1.ConditionTrue) {
				return nil
			}
		}
		return fmt.Errorf("conditions %+v, taints %+v", n.Status.Conditions, n.Spec.Taints)
	}
	eventually(t, time.Minute, func() error { return condition(corev1.ConditionTrue) })
	image := push(t, c, cModule(t, "ticker"), "ticker")
	place := func(name, more string) {
		c.apply(t, "default", strings.Replace(wasmPod(name, image), "spec:\n", "spec:\n  nodeName: "+node+"\n"+more, 1))
	}
	place("plain", "")
	c.evicted(t, "default", "plain", "Pod was rejected: The node had condition: [MemoryPressure]. ", false)
	place("tolerant", "  tolerations: [{key: node.kubernetes.io/memory-pressure, operator: Exists}]\n")
	c.evicted(t, "default", "tolerant", "The node was low on resource: memory. Threshold quantity: ", true)
	c.apply(t, "kube-system", strings.Replace(wasmPod("critical", image), "spec:\n", "spec:\n  nodeName: "+node+"\n  priorityClassName: system-node-critical\n", 1))
	c.must(t, "-n", "kube-system", "wait", "--for=condition=Ready", "pod/critical", "--timeout=90s")
	if got := c.must(t, "get", "--raw", "/api/v1/nodes/"+node+"/proxy/metrics"); !strings.Contains(got, `kubelet_evictions{eviction_signal="memory.available"}`) {
		t.Errorf("no eviction is counted:\n%s", got)
	}
}

// Pods that take more of the disk than they may.
func TestPodsAreEvictedByTheirOwnLimits(t *testing.T) {
	ns := shared.namespace(t)
	if !shared.importBusybox(t) {
		t.Skip("no OCI containers run here")
	}
	manifest := func(name, limit, volume, command string) string {
		return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  terminationGracePeriodSeconds: 0
  restartPolicy: Never
  volumes: [{name: v, emptyDir: {%s}}]
  containers:
  - {name: main, image: "example.org/busybox:1", imagePullPolicy: Never, command: [sh, -c, %q], resources: {limits: {%s}}, volumeMounts: [{name: v, mountPath: /v}]}
`, name, volume, command, limit)
	}
	shared.apply(t, ns, manifest("volume", "", "sizeLimit: 1Mi", "dd if=/dev/zero of=/v/a bs=1024 count=3072; sleep 3600"))
	shared.apply(t, ns, manifest("layer", "ephemeral-storage: 2Mi", "", "dd if=/dev/zero of=/a bs=1024 count=8192; sleep 3600"))
	shared.evicted(t, ns, "volume", `Usage of EmptyDir volume "v" exceeds the limit "1Mi". `, false)
	shared.evicted(t, ns, "layer", "Pod ephemeral local storage usage exceeds the total limit of containers 2Mi. ", false)
}

// A board with a small disk: unused images go first, then the pod that fills it;
// what another pod is made of stays.
func TestPodsAreEvictedWhenTheDiskIsFull(t *testing.T) {
	dir, err := os.MkdirTemp("", "coracle-e2e")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	disk, err := os.MkdirTemp("", "coracle-disk")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(disk) })
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=64m,mode=755"); err != nil {
		t.Skipf("no file system of the test's own: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(disk, 0); err != nil {
			t.Error(err)
		}
	})
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "nodes"), 0o755), os.Symlink(disk, filepath.Join(dir, "nodes", "board-1"))); err != nil {
		t.Fatal(err)
	}
	c := newClusterIn(t, dir, "--nodes=1", "--no-example", "--node-arg=--eviction-hard=nodefs.available<20%,imagefs.available<20%",
		"--node-arg=--minimum-image-ttl=1s", "--node-arg=--image-gc-high-threshold=100", "--node-arg=--eviction-pressure-transition-period=5s")
	spare, kept := push(t, c, cModule(t, "until"), "spare"), push(t, c, cModule(t, "ticker"), "kept")
	c.apply(t, "default", wasmPod("spare", spare))
	c.apply(t, "default", wasmPod("kept", kept))
	c.must(t, "wait", "--for=condition=Ready", "pod/kept", "--timeout=90s")
	names := func() string {
		return c.must(t, "get", "node", "board-1", "-o", "jsonpath={.status.images[*].names}")
	}
	c.must(t, "wait", "--for=condition=PodReadyToStartContainers", "pod/spare", "--timeout=90s")
	c.shows(t, time.Minute, []string{"Pulled"}, "get", "events", "--field-selector", "involvedObject.name=spare")
	c.must(t, "delete", "pod", "spare", "--wait")
	// What the kernel counts is what matters: the file is the board's own.
	filler := filepath.Join(disk, "filler")
	fill := func(free uint64) {
		t.Helper()
		var st unix.Statfs_t
		if err := unix.Statfs(disk, &st); err != nil {
			t.Fatal(err)
		}
		if now := st.Bavail * uint64(st.Bsize); now > free {
			if err := os.WriteFile(filler, make([]byte, now-free), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	fill(12 << 20)
	eventually(t, 2*time.Minute, func() error {
		got := names()
		if strings.Contains(got, "/spare") || !strings.Contains(got, "/kept") {
			return fmt.Errorf("images %s", got)
		}
		n, err := c.client.CoreV1().Nodes().Get(t.Context(), "board-1", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(n.Spec.Taints, func(taint corev1.Taint) bool { return taint.Key == corev1.TaintNodeDiskPressure }) {
			return fmt.Errorf("taints %+v", n.Spec.Taints)
		}
		return nil
	})
	c.evicted(t, "default", "kept", "The node was low on resource: ephemeral-storage. Threshold quantity: ", true)
	if got := names(); !strings.Contains(got, "/kept") {
		t.Errorf("the image of a pod that is still ordered was removed: %s", got)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	c.shows(t, time.Minute, []string{"False"}, "get", "node", "board-1", "-o", `jsonpath={.status.conditions[?(@.type=="DiskPressure")].status}`)
}
