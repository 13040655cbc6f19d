package wasmpods

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

func TestInitAndSidecarContainersInOrder(t *testing.T) {
	b := newBed(t)
	b.pod("order", `
restartPolicy: Never
volumes: [{name: v, emptyDir: {}}]
initContainers:
- {args: [append, /v/log, first], volumeMounts: [{name: v, mountPath: /v}]}
- name: side
  restartPolicy: Always
  args: [append, /v/log, sidecar, --, http]
  ports: [{containerPort: 8080}]
  startupProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
  volumeMounts: [{name: v, mountPath: /v}]
- {args: [append, /v/log, last], volumeMounts: [{name: v, mountPath: /v}]}
containers:
- {args: [append, /v/log, main, --, cat, /v/log], volumeMounts: [{name: v, mountPath: /v}]}
`)
	p := b.phase("order", corev1.PodSucceeded)
	if out := b.logs("order", "c0"); out != "first\nsidecar\nlast\nmain\n" {
		t.Errorf("they ran as %q", out)
	}
	side := status(p, "side")
	if side.State.Terminated == nil || side.Started == nil || *side.Started {
		t.Errorf("the sidecar did not end with its pod: %+v", side)
	}
	for _, c := range []string{"i0", "i2"} {
		if e := ended(p, c); e == nil || e.Reason != "Completed" || e.ExitCode != 0 {
			t.Errorf("init container %s ended with %+v", c, e)
		}
	}
}

func TestInitContainerThatFails(t *testing.T) {
	b := newBed(t)
	b.pod("never", `{restartPolicy: Never, initContainers: [{args: [exit, "3"]}], containers: [{args: [sleep]}]}`)
	p := b.phase("never", corev1.PodFailed)
	if e := ended(p, "i0"); e == nil || e.ExitCode != 3 || status(p, "c0").State.Waiting == nil {
		t.Errorf("%+v", p.Status)
	}
	b.pod("again", `
volumes: [{name: v, emptyDir: {}}]
initContainers: [{args: [once, /v/x, "4"], volumeMounts: [{name: v, mountPath: /v}]}]
containers: [{args: [sleep]}]
`)
	p = b.phase("again", corev1.PodRunning)
	if s := status(p, "i0"); s.RestartCount != 1 || s.State.Terminated == nil || s.State.Terminated.ExitCode != 0 {
		t.Errorf("%+v", s)
	}
}

func TestRestartPolicies(t *testing.T) {
	b := newBed(t)
	b.pod("never", `{restartPolicy: Never, containers: [{args: [say, bye, --, exit, "7"]}]}`)
	b.pod("onfailure", `
restartPolicy: OnFailure
volumes: [{name: v, emptyDir: {}}]
containers: [{args: [once, /v/x, "3", --, say, second], volumeMounts: [{name: v, mountPath: /v}]}]
`)
	b.pod("always", `{containers: [{args: [say, bye]}]}`)
	b.pod("trap", `{restartPolicy: Never, containers: [{args: [trap]}]}`)

	p := b.phase("never", corev1.PodFailed)
	if e := ended(p, "c0"); e == nil || e.ExitCode != 7 || e.Reason != "Error" {
		t.Errorf("%+v", e)
	}
	p = b.phase("onfailure", corev1.PodSucceeded)
	if s := status(p, "c0"); s.RestartCount != 1 || s.LastTerminationState.Terminated == nil || s.LastTerminationState.Terminated.ExitCode != 3 {
		t.Errorf("%+v", s)
	}
	if out := b.kubectl("logs", "onfailure", "--previous"); !strings.Contains(out, "exits with 3") {
		t.Errorf("logs --previous gave %q", out)
	}
	b.logs("onfailure", "c0", "second")
	p = b.become("always", "backs off", func(p *corev1.Pod) bool { return waits(p, "c0", "CrashLoopBackOff") })
	if s := status(p, "c0"); !strings.Contains(s.State.Waiting.Message, "back-off") || s.LastTerminationState.Terminated == nil || p.Status.Phase != corev1.PodRunning {
		t.Errorf("%+v", s)
	}
	p = b.phase("trap", corev1.PodFailed)
	if e := ended(p, "c0"); e == nil || e.ExitCode == 0 {
		t.Errorf("%+v", e)
	}
}

func TestTerminationMessages(t *testing.T) {
	b := newBed(t)
	b.pod("file", `{restartPolicy: Never, containers: [{args: [write, /dev/termination-log, written, --, exit, "1"]}]}`)
	b.pod("log", `{restartPolicy: Never, containers: [{terminationMessagePolicy: FallbackToLogsOnError, args: [say, the last line, --, exit, "1"]}]}`)
	for name, want := range map[string]string{"file": "written", "log": "the last line"} {
		p := b.phase(name, corev1.PodFailed)
		// It stays when all that the pod had on the node has gone.
		b.eventually("the pod's folder to go", func() error {
			_, err := os.Stat(filepath.Join(cluster.layout.Node("board-1"), "pods", string(p.UID)))
			if errors.Is(err, os.ErrNotExist) {
				return nil
			}
			return fmt.Errorf("it is there: %v", err)
		})
		b.kubectl("annotate", "pod", name, "seen=again")
		b.never("the message of "+name+" goes", func() bool {
			p = b.phase(name, corev1.PodFailed)
			return ended(p, "c0") == nil || ended(p, "c0").Message == ""
		})
		if e := ended(p, "c0"); e == nil || !strings.Contains(e.Message, want) || e.ExitCode != 1 {
			t.Errorf("%s: %+v", name, e)
		}
	}
}

func TestHooks(t *testing.T) {
	b := newBed(t)
	b.pod("after", `
volumes: [{name: v, emptyDir: {}}]
containers:
- args: [wait, /v/started, --, say, the hook ran, --, http]
  ports: [{containerPort: 8080}]
  volumeMounts: [{name: v, mountPath: /v}]
  lifecycle:
    postStart: {exec: {command: [/probe.wasm, write, /v/started, x]}}
    preStop: {exec: {command: [/probe.wasm, write, /v/stopping, x]}}
- args: [wait, /v/stopping, --, say, it stops, --, sleep]
  volumeMounts: [{name: v, mountPath: /v}]
  lifecycle: {preStop: {sleep: {seconds: 4}}}
terminationGracePeriodSeconds: 20
`)
	b.logs("after", "c0", "the hook ran")
	b.ready("after", true)
	b.kubectl("delete", "pod", "after", "--wait=false")
	b.logs("after", "c1", "it stops")

	b.pod("get", `
containers:
- args: [http]
  ports: [{name: web, containerPort: 8080}]
  lifecycle: {postStart: {httpGet: {path: /hello, port: web}}}
`)
	b.logs("get", "c0", "GET /hello")
	b.pod("bad", `{containers: [{args: [sleep], lifecycle: {postStart: {exec: {command: [/probe.wasm, exit, "9"]}}}}]}`)
	b.become("bad", "is killed", func(p *corev1.Pod) bool { return ended(p, "c0") != nil })
}

func TestDeletion(t *testing.T) {
	b := newBed(t)
	b.pod("gone", `{terminationGracePeriodSeconds: 60, containers: [{args: [http], ports: [{containerPort: 8080}]}]}`)
	b.ready("gone", true)
	begin := time.Now()
	b.kubectl("delete", "pod", "gone", "--wait=true")
	// WASI has no signals: a guest can't stay to the end of its grace.
	if took := time.Since(begin); took > 50*time.Second {
		t.Errorf("it took %s of a grace of 60 s", took)
	}
}

func TestActiveDeadline(t *testing.T) {
	b := newBed(t)
	b.pod("late", `{activeDeadlineSeconds: 3, containers: [{args: [sleep]}]}`)
	p := b.phase("late", corev1.PodFailed)
	if p.Status.Reason != "DeadlineExceeded" || !strings.Contains(p.Status.Message, "deadline") {
		t.Errorf("%s: %s", p.Status.Reason, p.Status.Message)
	}
}

func TestJobPodFailurePolicy(t *testing.T) {
	b := newBed(t)
	job := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: "job"}}
	if err := yaml.UnmarshalStrict([]byte(`
backoffLimit: 6
podFailurePolicy:
  rules: [{action: FailJob, onExitCodes: {containerName: c0, operator: In, values: [42]}}]
template:
  spec: {restartPolicy: Never, containers: [{name: c0, args: [exit, "42"]}]}
`), &job.Spec); err != nil {
		t.Fatal(err)
	}
	complete(&job.Spec.Template.Spec)
	if _, err := cluster.client.BatchV1().Jobs(b.ns).Create(t.Context(), job, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	b.eventually("the job's failure", func() error {
		j, err := cluster.client.BatchV1().Jobs(b.ns).Get(t.Context(), "job", metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, c := range j.Status.Conditions {
			if c.Type == batchv1.JobFailed && c.Reason == "PodFailurePolicy" && c.Status == corev1.ConditionTrue {
				if j.Status.Failed != 1 {
					t.Errorf("%d pods failed, not one", j.Status.Failed)
				}
				return nil
			}
		}
		raw, _ := yaml.Marshal(j.Status)
		return errStatus(raw)
	})
}

type errStatus string

func (e errStatus) Error() string { return string(e) }
