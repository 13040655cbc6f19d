package wasmpods

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestMemoryLimit(t *testing.T) {
	b := newBed(t)
	b.pod("oom", `{restartPolicy: Never, containers: [{args: [eat, "200"], resources: {limits: {memory: 32Mi}}}]}`)
	b.pod("enough", `{restartPolicy: Never, containers: [{args: [eat, "20"], resources: {limits: {memory: 64Mi}}}]}`)
	p := b.phase("oom", corev1.PodFailed)
	if e := ended(p, "c0"); e == nil || e.Reason != "OOMKilled" || e.ExitCode != 137 {
		t.Errorf("%+v", e)
	}
	if p.Status.QOSClass != corev1.PodQOSBurstable {
		t.Errorf("class %s", p.Status.QOSClass)
	}
	b.phase("enough", corev1.PodSucceeded)
}

func TestResize(t *testing.T) {
	b := newBed(t)
	// What its own memory may grow to is settled when a guest starts; what it and its
	// runner may use beside that is the cgroup's.
	b.pod("grows", `{containers: [{args: [wait, /v/go, --, say, goes, --, sleep], resources: {limits: {memory: 32Mi}}, volumeMounts: [{name: v, mountPath: /v}]}], volumes: [{name: v, emptyDir: {}}]}`)
	b.phase("grows", corev1.PodRunning)
	b.kubectl("patch", "pod", "grows", "--subresource=resize", "-p", `{"spec": {"containers": [{"name": "c0", "resources": {"limits": {"memory": "128Mi"}, "requests": {"memory": "128Mi"}}}]}}`)
	b.become("grows", "is resized", func(p *corev1.Pod) bool {
		r := status(p, "c0").Resources
		return r != nil && r.Limits.Memory().String() == "128Mi"
	})
	b.kubectl("exec", "grows", "--", "/probe.wasm", "write", "/v/go", "x")
	b.logs("grows", "c0", "goes")
	p := b.phase("grows", corev1.PodRunning)
	if n := status(p, "c0").RestartCount; n != 0 {
		t.Errorf("it was restarted %d times", n)
	}
}

// A guest that computes for ever is held to its part of the processor, and others go on.
func TestProcessorLimit(t *testing.T) {
	b := newBed(t)
	b.pod("p", `{containers: [{args: [spin], resources: {limits: {cpu: 100m}}}]}`)
	p := b.phase("p", corev1.PodRunning)
	held := func() error {
		var all []string
		for _, root := range []string{"/sys/fs/cgroup/cpu", "/sys/fs/cgroup"} {
			_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
				if err != nil || d.Name() != "cpu.stat" || !strings.Contains(path, string(p.UID)) && !strings.Contains(path, strings.ReplaceAll(string(p.UID), "-", "_")) {
					return nil
				}
				raw, _ := os.ReadFile(path)
				quota := ""
				for _, file := range []string{"cpu.cfs_quota_us", "cpu.max"} {
					more, _ := os.ReadFile(filepath.Join(filepath.Dir(path), file))
					quota += string(more)
				}
				all = append(all, quota+string(raw))
				return nil
			})
		}
		for _, text := range all {
			var throttled int
			_, after, _ := strings.Cut(text, "nr_throttled ")
			if _, err := fmt.Sscan(after, &throttled); err == nil && throttled > 5 && strings.HasPrefix(text, "10000") {
				return nil
			}
		}
		return fmt.Errorf("it isn't held: %q", all)
	}
	b.eventually("the guest to be held to a tenth of a processor", held)
	if s := status(b.phase("p", corev1.PodRunning), "c0"); s.RestartCount != 0 || s.Resources == nil || s.Resources.Limits.Cpu().String() != "100m" {
		t.Errorf("%+v", s)
	}
}

func TestEvictionByEmptyDirLimit(t *testing.T) {
	b := newBed(t)
	b.pod("greedy", `
volumes: [{name: v, emptyDir: {sizeLimit: 1Mi}}]
containers: [{args: [fill, /v/x, "3000", --, sleep], volumeMounts: [{name: v, mountPath: /v}]}]
`)
	p := b.phase("greedy", corev1.PodFailed)
	if p.Status.Reason != "Evicted" || !strings.Contains(p.Status.Message, `EmptyDir volume "v" exceeds the limit "1Mi"`) {
		t.Errorf("%s: %s", p.Status.Reason, p.Status.Message)
	}
}

func TestSecurityContext(t *testing.T) {
	b := newBed(t)
	b.pod("root", `{containers: [{args: [sleep], securityContext: {runAsNonRoot: true, runAsUser: 0}}]}`)
	b.become("root", "is refused", func(p *corev1.Pod) bool {
		return waits(p, "c0", "CreateContainerConfigError") && strings.Contains(status(p, "c0").State.Waiting.Message, "root")
	})
	// Two users and one group of a volume.
	b.pod("users", `
restartPolicy: Never
securityContext: {fsGroup: 4000, runAsUser: 1001, runAsGroup: 1001}
volumes: [{name: v, emptyDir: {}}]
initContainers: [{args: [write, /v/x, of 1001], volumeMounts: [{name: v, mountPath: /v}]}]
containers: [{args: [cat, /v/x, --, write, /v/y, of 1002], securityContext: {runAsUser: 1002, runAsNonRoot: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}, seccompProfile: {type: RuntimeDefault}}, volumeMounts: [{name: v, mountPath: /v}]}]
`)
	b.phase("users", corev1.PodSucceeded)
	b.logs("users", "c0", "of 1001")
	b.pod("sysctl", `{securityContext: {sysctls: [{name: net.ipv4.ip_unprivileged_port_start, value: "80"}]}, containers: [{args: [http], ports: [{containerPort: 80}], securityContext: {runAsUser: 1001}}]}`)
	b.ready("sysctl", true)
	b.pod("unsafe", `{securityContext: {sysctls: [{name: kernel.msgmax, value: "65536"}]}, containers: [{args: [sleep]}]}`)
	if p := b.phase("unsafe", corev1.PodFailed); p.Status.Reason != "SysctlForbidden" || !strings.Contains(p.Status.Message, `forbidden sysctl: "kernel.msgmax" not allowlisted`) {
		t.Errorf("%s: %s", p.Status.Reason, p.Status.Message)
	}
	// Groups are a guest's too, and what there is no call for in WASI is no hindrance.
	b.pod("groups", `
restartPolicy: Never
hostPID: true
hostIPC: true
shareProcessNamespace: false
securityContext: {runAsUser: 1001, runAsGroup: 1002, supplementalGroups: [1003], supplementalGroupsPolicy: Strict, fsGroup: 4000, fsGroupChangePolicy: OnRootMismatch}
volumes: [{name: v, emptyDir: {}}]
containers:
- args: [write, /v/x, x]
  securityContext: {privileged: true, capabilities: {add: [NET_ADMIN]}}
  volumeMounts: [{name: v, mountPath: /v}]
`)
	if u := status(b.phase("groups", corev1.PodSucceeded), "c0").User; u == nil || u.Linux == nil || u.Linux.UID != 1001 || u.Linux.GID != 1002 || fmt.Sprint(u.Linux.SupplementalGroups) != "[1002 1003 4000]" {
		t.Errorf("it ran as %+v", u)
	}
	b.pod("tty", `{containers: [{args: [sleep], tty: true}]}`)
	b.refused("tty", "c0", "CreateContainerError", "WASI has none")
}
