package wasmpods

import (
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

func condition(p *corev1.Pod, kind corev1.PodConditionType) corev1.PodCondition {
	for _, c := range p.Status.Conditions {
		if c.Type == kind {
			return c
		}
	}
	return corev1.PodCondition{}
}

func TestReadinessGates(t *testing.T) {
	b := newBed(t)
	b.pod("p", `{readinessGates: [{conditionType: example.com/ok}], containers: [{args: [sleep]}]}`)
	p := b.become("p", "has its containers ready", func(p *corev1.Pod) bool {
		return condition(p, corev1.ContainersReady).Status == corev1.ConditionTrue && condition(p, corev1.PodReady).Reason == "ReadinessGatesNotReady"
	})
	if c := condition(p, corev1.PodReady); c.Status != corev1.ConditionFalse || c.Message != `corresponding condition of pod readiness gate "example.com/ok" does not exist.` {
		t.Errorf("%+v", c)
	}
	for _, kind := range []corev1.PodConditionType{corev1.PodReadyToStartContainers, corev1.PodInitialized, corev1.PodScheduled} {
		if c := condition(p, kind); c.Status != corev1.ConditionTrue || c.ObservedGeneration != p.Generation {
			t.Errorf("%s: %+v", kind, c)
		}
	}
	b.kubectl("patch", "pod", "p", "--subresource=status", "-p", `{"status": {"conditions": [{"type": "example.com/ok", "status": "True"}]}}`)
	b.ready("p", true)
}

func TestRestartRulesOfAContainer(t *testing.T) {
	b := newBed(t)
	b.pod("rule", `
restartPolicy: Never
volumes: [{name: v, emptyDir: {}}]
containers:
- args: [once, /v/x, "42", --, say, again, --, exit, "1"]
  restartPolicy: Never
  restartPolicyRules: [{action: Restart, exitCodes: {operator: In, values: [42]}}]
  volumeMounts: [{name: v, mountPath: /v}]
- {args: [once, /v/y, "3", --, say, second], restartPolicy: OnFailure, volumeMounts: [{name: v, mountPath: /v}]}
- {args: [exit, "5"]}
`)
	p := b.phase("rule", corev1.PodFailed)
	for name, want := range map[string][2]int32{"c0": {1, 1}, "c1": {1, 0}, "c2": {0, 5}} {
		s := status(p, name)
		if s.State.Terminated == nil || [2]int32{s.RestartCount, s.State.Terminated.ExitCode} != want {
			t.Errorf("%s: %+v, want restarts and exit code %d", name, s, want)
		}
	}
}

func TestReasonsOfWaiting(t *testing.T) {
	b := newBed(t)
	b.pod("absent", `{containers: [{image: "wasmpods.example/none:1", args: [sleep]}]}`)
	b.refused("absent", "c0", "ErrImageNeverPull", `Container image "wasmpods.example/none:1" is not present with pull policy of Never`)
	b.pod("badname", `{containers: [{image: "wasmpods.example/Bad Name", args: [sleep]}]}`)
	b.become("badname", "has an invalid image name", func(p *corev1.Pod) bool { return waits(p, "c0", "InvalidImageName") })
	b.pod("class", `{containers: [{args: [sleep], env: [{name: A, valueFrom: {configMapKeyRef: {name: absent, key: k}}}]}]}`)
	b.refused("class", "c0", "CreateContainerConfigError", `configmap "absent" not found`)
}

// cgroup finds where the kernel counts a pod.
func (b *bed) cgroup(p *corev1.Pod) (dir string) {
	b.Helper()
	b.eventually("a cgroup of pod "+p.Name, func() error {
		for _, root := range []string{"/sys/fs/cgroup/memory", "/sys/fs/cgroup"} {
			_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
				if err == nil && d.IsDir() && (strings.Contains(d.Name(), string(p.UID)) || strings.Contains(d.Name(), strings.ReplaceAll(string(p.UID), "-", "_"))) {
					dir = path
					return fs.SkipAll
				}
				return nil
			})
			if dir != "" {
				return nil
			}
		}
		return os.ErrNotExist
	})
	return dir
}

func TestOverheadOfTheRuntimeClass(t *testing.T) {
	b := newBed(t)
	class := `{"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "` + b.ns + `"}, "handler": "wasm", "overhead": {"podFixed": {"memory": "16Mi", "cpu": "20m"}}}`
	if out, err := b.try(class, "create", "-f", "-"); err != nil {
		t.Fatal(out, err)
	}
	t.Cleanup(func() { b.kubectl("delete", "runtimeclass", b.ns) })
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}}
	if err := yaml.UnmarshalStrict([]byte(`{containers: [{args: [sleep], resources: {limits: {memory: 32Mi, cpu: 100m}}}]}`), &p.Spec); err != nil {
		t.Fatal(err)
	}
	complete(&p.Spec)
	p.Spec.RuntimeClassName = &b.ns
	if _, err := cluster.client.CoreV1().Pods(b.ns).Create(t.Context(), p, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	p = b.phase("p", corev1.PodRunning)
	if m := p.Spec.Overhead.Memory().String(); m != "16Mi" {
		t.Errorf("an overhead of %s", m)
	}
	// The pod's cgroup has room for both, and is the class of service's.
	dir, limit := b.cgroup(p), ""
	for _, file := range []string{"memory.limit_in_bytes", "memory.max"} {
		if raw, err := os.ReadFile(filepath.Join(dir, file)); err == nil {
			limit = strings.TrimSpace(string(raw))
		}
	}
	if limit != fmt.Sprint(48<<20) {
		t.Errorf("the limit of %s is %s, not 48 MiB", dir, limit)
	}
	if strings.Contains(dir, "besteffort") || strings.Contains(dir, "burstable") {
		t.Errorf("a guaranteed pod is in %s", dir)
	}
}

func TestScoreOfTheKiller(t *testing.T) {
	b := newBed(t)
	b.pod("p", `{containers: [{args: [sleep]}]}`)
	p := b.phase("p", corev1.PodRunning)
	if p.Status.QOSClass != corev1.PodQOSBestEffort {
		t.Errorf("class %s", p.Status.QOSClass)
	}
	dir, seen := b.cgroup(p), 0
	if !strings.Contains(dir, "besteffort") {
		t.Errorf("it is in %s", dir)
	}
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Name() == "cgroup.procs" {
			raw, _ := os.ReadFile(path)
			for pid := range strings.Lines(string(raw)) {
				score, _ := os.ReadFile(filepath.Join("/proc", strings.TrimSpace(pid), "oom_score_adj"))
				if seen++; strings.TrimSpace(string(score)) != "1000" {
					t.Errorf("process %s has a score of %s", pid, score)
				}
			}
		}
		return nil
	})
	if seen == 0 {
		t.Errorf("there are no processes in %s", dir)
	}
}

func TestHostsFileAndHostNetwork(t *testing.T) {
	b := newBed(t)
	b.pod("p", `
restartPolicy: Never
hostname: called
subdomain: sub
hostAliases: [{ip: 192.0.2.1, hostnames: [alias.example]}]
containers: [{args: [cat, /etc/hosts, --, env, HOSTNAME]}]
`)
	p := b.phase("p", corev1.PodSucceeded)
	b.logs("p", "c0", "# Kubernetes-managed hosts file.", p.Status.PodIP+"\tcalled.sub."+b.ns+".svc.cluster.local\tcalled", "192.0.2.1\talias.example", "HOSTNAME=called")

	b.pod("port", `{containers: [{args: [http], ports: [{containerPort: 8080, hostPort: 18080}]}]}`)
	b.pod("host", `{hostNetwork: true, containers: [{args: [http], ports: [{containerPort: 18081}]}]}`)
	b.ready("port", true)
	p = b.ready("host", true)
	if p.Status.PodIP != p.Status.HostIP || p.Status.PodIP == "" {
		t.Errorf("%s on %s", p.Status.PodIP, p.Status.HostIP)
	}
	for pod, port := range map[string]string{"port": "18080", "host": "18081"} {
		b.eventually("port "+port+" of the board", func() error {
			client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
			resp, err := client.Get("http://" + p.Status.HostIP + ":" + port + "/of-" + pod)
			if err != nil {
				return err
			}
			return resp.Body.Close()
		})
		b.logs(pod, "c0", "GET /of-"+pod)
	}
}

func TestResizeThatRestartsOrCanNotBe(t *testing.T) {
	b := newBed(t)
	// As much as it may have is settled when a guest starts, so this one asks to be
	// started again.
	b.pod("again", `
volumes: [{name: v, emptyDir: {}}]
containers:
- args: [append, /v/log, started, --, cat, /v/log, --, wait, /v/go, --, eat, "60", --, sleep]
  resizePolicy: [{resourceName: memory, restartPolicy: RestartContainer}]
  resources: {limits: {memory: 32Mi}}
  volumeMounts: [{name: v, mountPath: /v}]
`)
	b.pod("deferred", `{containers: [{args: [sleep], resources: {requests: {cpu: 10m}}}]}`)
	b.pod("taken", `{containers: [{args: [sleep], resources: {requests: {cpu: 300m}}}]}`)
	b.phase("again", corev1.PodRunning)
	b.phase("deferred", corev1.PodRunning)
	b.phase("taken", corev1.PodRunning)
	cpu := func(pod, much string) (string, error) {
		return b.try("", "patch", "pod", pod, "--subresource=resize", "-p", `{"spec": {"containers": [{"name": "c0", "resources": {"requests": {"cpu": "`+much+`"}}}]}}`)
	}
	if out, err := cpu("deferred", "900"); err == nil || !strings.Contains(out, "node didn't have enough allocatable resources: cpu, requested: 900000") {
		t.Errorf("%v: %s", err, out)
	}
	n, err := cluster.client.CoreV1().Nodes().Get(t.Context(), "board-1", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if out, err := cpu("deferred", fmt.Sprintf("%dm", n.Status.Allocatable.Cpu().MilliValue()-200)); err != nil {
		t.Fatal(out, err)
	}
	b.kubectl("patch", "pod", "again", "--subresource=resize", "-p", `{"spec": {"containers": [{"name": "c0", "resources": {"limits": {"memory": "128Mi"}, "requests": {"memory": "128Mi"}}}]}}`)
	p := b.become("deferred", "says so", func(p *corev1.Pod) bool {
		return condition(p, corev1.PodResizePending).Reason == corev1.PodReasonDeferred
	})
	if c := condition(p, corev1.PodResizePending); !strings.Contains(c.Message, "Node didn't have enough resource: cpu") || status(p, "c0").RestartCount != 0 {
		t.Errorf("%+v", c)
	}
	b.kubectl("delete", "pod", "deferred", "--wait=false") // others want the processor
	b.logs("again", "c0", "started\nstarted\n")
	b.kubectl("exec", "again", "--", "/probe.wasm", "write", "/v/go", "x")
	b.logs("again", "c0", "eaten")
	p = b.phase("again", corev1.PodRunning)
	if s := status(p, "c0"); s.RestartCount != 1 || s.Resources == nil || s.Resources.Limits.Memory().String() != "128Mi" {
		t.Errorf("%+v", s)
	}
}

func TestEvictionByEphemeralStorage(t *testing.T) {
	b := newBed(t)
	b.pod("greedy", `
volumes: [{name: v, emptyDir: {}}]
containers: [{args: [fill, /v/x, "3000", --, sleep], resources: {limits: {ephemeral-storage: 1Mi}}, volumeMounts: [{name: v, mountPath: /v}]}]
`)
	p := b.phase("greedy", corev1.PodFailed)
	if p.Status.Reason != "Evicted" || !strings.Contains(p.Status.Message, "Pod ephemeral local storage usage exceeds the total limit of containers 1Mi") {
		t.Errorf("%s: %s", p.Status.Reason, p.Status.Message)
	}
}

func TestHookThatHangs(t *testing.T) {
	b := newBed(t)
	b.pod("p", `{terminationGracePeriodSeconds: 4, containers: [{args: [http], lifecycle: {preStop: {exec: {command: [/probe.wasm, sleep]}}}}]}`)
	b.pod("force", `{terminationGracePeriodSeconds: 600, containers: [{args: [http], lifecycle: {preStop: {exec: {command: [/probe.wasm, sleep]}}}}]}`)
	b.phase("p", corev1.PodRunning)
	b.phase("force", corev1.PodRunning)
	begin := time.Now()
	b.kubectl("delete", "pod", "p", "--wait=true")
	if took := time.Since(begin); took < 3*time.Second || took > 60*time.Second {
		t.Errorf("it took %s of a grace of 4 s", took)
	}
	p := b.phase("force", corev1.PodRunning)
	dir := b.cgroup(p)
	b.kubectl("delete", "pod", "force", "--grace-period=0", "--force", "--wait=true")
	b.eventually("its guest to end", func() error {
		if _, err := os.Stat(dir); err == nil {
			return fmt.Errorf("%s is there", dir)
		}
		return nil
	})
}

func TestSidecarsOutliveTheirPodsMainContainer(t *testing.T) {
	b := newBed(t)
	b.pod("p", `
terminationGracePeriodSeconds: 20
volumes: [{name: v, emptyDir: {}}]
initContainers:
- name: side
  restartPolicy: Always
  args: [wait, /v/stopped, --, say, the main one is stopped, --, sleep]
  lifecycle: {preStop: {sleep: {seconds: 2}}}
  volumeMounts: [{name: v, mountPath: /v}]
containers:
- args: [sleep]
  lifecycle: {preStop: {exec: {command: [/probe.wasm, write, /v/stopped, x]}}}
  volumeMounts: [{name: v, mountPath: /v}]
`)
	b.ready("p", true)
	b.kubectl("delete", "pod", "p", "--wait=false")
	b.logs("p", "side", "the main one is stopped")
}

func TestStaticPod(t *testing.T) {
	b := newBed(t)
	file := filepath.Join(cluster.layout.Node("board-1"), "static-pods", b.ns+".yaml")
	write := func(text string) {
		t.Helper()
		tmp := filepath.Join(filepath.Dir(file), "."+filepath.Base(file))
		if err := os.WriteFile(tmp, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(tmp, file); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { _ = os.Remove(file) })
	manifest := `{apiVersion: v1, kind: Pod, metadata: {name: fixed, namespace: ` + b.ns + `}, spec: {runtimeClassName: wasm, terminationGracePeriodSeconds: 1,
  containers: [{name: c0, image: "` + guestImage + `", imagePullPolicy: Never, args: [say, WORD, --, sleep]}]}}`
	write(strings.Replace(manifest, "WORD", "first", 1))
	p := b.ready("fixed-board-1", true)
	if p.Annotations["kubernetes.io/config.source"] != "file" || p.Annotations["kubernetes.io/config.mirror"] == "" || p.OwnerReferences[0].Kind != "Node" {
		t.Errorf("the mirror pod is %+v", p.ObjectMeta)
	}
	b.logs("fixed-board-1", "c0", "first")
	id := status(p, "c0").ContainerID
	b.kubectl("delete", "pod", "fixed-board-1", "--wait=false")
	q := b.become("fixed-board-1", "is mirrored again", func(q *corev1.Pod) bool { return q.UID != p.UID && status(q, "c0").State.Running != nil })
	if status(q, "c0").ContainerID != id {
		t.Error("deleting the mirror stopped the pod")
	}
	write(strings.Replace(manifest, "WORD", "second", 1))
	b.logs("fixed-board-1", "c0", "second")
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	b.kubectl("wait", "--for=delete", "pod/fixed-board-1", "--timeout=60s")
}

func TestPortForwardToNobody(t *testing.T) {
	b := newBed(t)
	b.pod("p", `{containers: [{args: [sleep]}]}`)
	b.phase("p", corev1.PodRunning)
	cmd := exec.CommandContext(t.Context(), filepath.Join(bin(), "coracle"), "kubectl", "port-forward", "-n", b.ns, "p", ":9999")
	cmd.Env = append(os.Environ(), "KUBECONFIG="+cluster.layout.Kubeconfig())
	out, err := os.Create(filepath.Join(t.TempDir(), "said"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	b.eventually("what port-forward says", func() error {
		raw, _ := os.ReadFile(out.Name())
		var port int
		_, _ = fmt.Sscanf(string(raw), "Forwarding from 127.0.0.1:%d", &port)
		if port == 0 {
			return fmt.Errorf("it forwards nothing: %s", raw)
		}
		if resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/", port)); err == nil {
			resp.Body.Close()
			t.Error("somebody answered")
		}
		if !strings.Contains(string(raw), "connection refused") || !strings.Contains(string(raw), "9999") {
			return fmt.Errorf("it doesn't say why: %s", raw)
		}
		return nil
	})
}

func TestJobIgnoresDisruptions(t *testing.T) {
	b := newBed(t)
	job := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: "job"}}
	if err := yaml.UnmarshalStrict([]byte(`
backoffLimit: 0
podFailurePolicy:
  rules: [{action: Ignore, onPodConditions: [{type: DisruptionTarget}]}]
template:
  metadata: {labels: {app: disrupted}}
  spec: {restartPolicy: Never, volumes: [{name: v, hostPath: {path: `+b.hostDir("v")+`}}], containers: [{name: c0, args: [wait, /v/go], volumeMounts: [{name: v, mountPath: /v}]}]}
`), &job.Spec); err != nil {
		t.Fatal(err)
	}
	complete(&job.Spec.Template.Spec)
	if _, err := cluster.client.BatchV1().Jobs(b.ns).Create(t.Context(), job, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	pod := func(not string) (name string) {
		b.eventually("a pod of the job that runs", func() error {
			l, err := cluster.client.CoreV1().Pods(b.ns).List(t.Context(), metav1.ListOptions{LabelSelector: "app=disrupted"})
			if err != nil {
				return err
			}
			for _, p := range l.Items {
				if p.Name != not && p.Status.Phase == corev1.PodRunning {
					name = p.Name
					return nil
				}
			}
			return fmt.Errorf("of %d none runs", len(l.Items))
		})
		return name
	}
	first := pod("")
	b.evict(first)
	second := pod(first)
	b.kubectl("exec", second, "--", "/probe.wasm", "write", "/v/go", "x")
	b.kubectl("wait", "--for=condition=Complete", "job/job", "--timeout=90s")
	if j, err := cluster.client.BatchV1().Jobs(b.ns).Get(t.Context(), "job", metav1.GetOptions{}); err != nil || j.Status.Failed != 0 || j.Status.Succeeded != 1 {
		t.Errorf("%+v, %v", j.Status, err)
	}
}

func TestPreemption(t *testing.T) {
	b := newBed(t)
	// Something of which there is one.
	thing := "wasmpods.example/" + b.ns
	if _, err := cluster.client.CoreV1().Nodes().Patch(t.Context(), "board-1", "application/strategic-merge-patch+json",
		[]byte(`{"status": {"capacity": {"`+thing+`": "1"}, "allocatable": {"`+thing+`": "1"}}}`), metav1.PatchOptions{}, "status"); err != nil {
		t.Fatal(err)
	}
	class := `{"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "` + b.ns + `"}, "value": 1000}`
	if out, err := b.try(class, "create", "-f", "-"); err != nil {
		t.Fatal(out, err)
	}
	t.Cleanup(func() { b.kubectl("delete", "priorityclass", b.ns) })
	one := `resources: {limits: {` + thing + `: 1}}`
	b.pod("low", `{terminationGracePeriodSeconds: 1, containers: [{args: [sleep], `+one+`}]}`)
	b.phase("low", corev1.PodRunning)
	// It stays until it was seen why it went.
	b.kubectl("patch", "pod", "low", "--type=merge", "-p", `{"metadata": {"finalizers": ["example.com/seen"]}}`)
	t.Cleanup(func() {
		_, _ = b.try("", "patch", "pod", "low", "--type=merge", "-p", `{"metadata": {"finalizers": null}}`)
	})
	b.pod("high", `{priorityClassName: `+b.ns+`, containers: [{args: [sleep], `+one+`}]}`)
	p := b.become("low", "is preempted", func(p *corev1.Pod) bool { return condition(p, corev1.DisruptionTarget).Status == corev1.ConditionTrue })
	if c := condition(p, corev1.DisruptionTarget); c.Reason != "PreemptionByScheduler" {
		t.Errorf("%+v", c)
	}
	b.ready("high", true)
}

func (b *bed) evict(name string) {
	b.Helper()
	b.eventually("eviction of "+name, func() error {
		_, err := b.try(`{"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "`+name+`", "namespace": "`+b.ns+`"}}`,
			"create", "--raw", "/api/v1/namespaces/"+b.ns+"/pods/"+name+"/eviction", "-f", "-")
		return err
	})
}

// Alone: while it lasts, no pod of another test gets a node.
func TestDrain(t *testing.T) {
	b := bedAlone(t)
	b.pod("p", `{terminationGracePeriodSeconds: 1, containers: [{args: [http], ports: [{containerPort: 8080}]}]}`)
	b.ready("p", true)
	budget := `{"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "p"}, "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "p"}}}}`
	if out, err := b.try(budget, "create", "-f", "-"); err != nil {
		t.Fatal(out, err)
	}
	t.Cleanup(func() { _, _ = b.try("", "uncordon", "board-1") })
	drain := []string{"drain", "board-1", "--pod-selector=app=p", "--force", "--delete-emptydir-data"}
	if out, err := b.try("", append(drain, "--timeout=2s")...); err == nil || !strings.Contains(out, "violate the pod's disruption budget") {
		t.Errorf("a budget of one was not heeded: %v %s", err, out)
	}
	b.phase("p", corev1.PodRunning)
	b.kubectl("delete", "poddisruptionbudget", "p")
	b.kubectl(append(drain, "--timeout=60s")...)
	if out, err := b.try("", "get", "pod", "p"); err == nil || !strings.Contains(out, "NotFound") {
		t.Errorf("the pod is there: %s", out)
	}
	b.pod("late", `{containers: [{args: [sleep]}]}`)
	b.become("late", "gets no node", func(p *corev1.Pod) bool {
		return strings.Contains(condition(p, corev1.PodScheduled).Message, "node(s) were unschedulable")
	})
	b.kubectl("uncordon", "board-1")
	b.phase("late", corev1.PodRunning)
}
