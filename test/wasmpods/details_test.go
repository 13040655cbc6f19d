package wasmpods

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Where a guest works (WASI has no working directory: programs go by PWD), and where
// it leaves its last words, is the pod's to say.
func TestWorkingDirectoryAndPathOfTheLastWords(t *testing.T) {
	b := newBed(t)
	b.pod("p", `
restartPolicy: Never
volumes: [{name: v, emptyDir: {}}]
containers:
- args: [env, PWD, --, write, /v/last, its last words, --, exit, "4"]
  workingDir: /usr
  terminationMessagePath: /v/last
  volumeMounts: [{name: v, mountPath: /other}]
`)
	p := b.phase("p", corev1.PodFailed)
	b.logs("p", "c0", "PWD=/usr\n")
	if e := ended(p, "c0"); e == nil || e.ExitCode != 4 || e.Message != "its last words\n" {
		t.Errorf("%+v", e)
	}
}

// Hooks by HTTP on both ends of a life, and a grace of a probe's own, which is shorter
// than its pod's.
func TestHookBeforeTheEndAndGraceOfAProbe(t *testing.T) {
	b := newBed(t)
	b.pod("asked", `{terminationGracePeriodSeconds: 20, containers: [{args: [http], ports: [{name: web, containerPort: 8080}], lifecycle: {preStop: {httpGet: {path: /before-the-end, port: web}}}}]}`)
	b.pod("watches", `
terminationGracePeriodSeconds: 600
containers:
- args: [http]
  ports: [{containerPort: 8080}]
  livenessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1, failureThreshold: 1, timeoutSeconds: 10, terminationGracePeriodSeconds: 2}
  lifecycle: {preStop: {exec: {command: [/probe.wasm, sleep]}}}
`)
	b.ready("asked", true)
	done := make(chan string, 1)
	go func() {
		out, err := b.try("", "logs", "-f", "asked")
		if err != nil {
			out += err.Error()
		}
		done <- out
	}()
	b.ready("watches", true)
	b.kubectl("delete", "pod", "asked", "--wait=true")
	if out := <-done; !strings.Contains(out, "GET /before-the-end") {
		t.Errorf("the hook wasn't asked: %q", out)
	}
	begin := time.Now()
	b.kubectl("get", "--raw", "/api/v1/namespaces/"+b.ns+"/pods/watches:8080/proxy/fail")
	b.become("watches", "is restarted", func(p *corev1.Pod) bool { return status(p, "c0").RestartCount == 1 })
	if took := time.Since(begin); took > time.Minute {
		t.Errorf("its probe gives it 2 s, and it took %s", took)
	}
	b.kubectl("delete", "pod", "watches", "--grace-period=1", "--wait=false")
}

// Two containers of a pod can't both have a port; the second one's end says which.
func TestAPortThatIsTaken(t *testing.T) {
	b := newBed(t)
	b.pod("p", `
restartPolicy: Never
containers:
- {args: [http], ports: [{containerPort: 8080}]}
- {args: [http], ports: [{containerPort: 8080}]}
`)
	says := func(p *corev1.Pod, container string) bool {
		s := status(p, container)
		return s.State.Terminated != nil && strings.Contains(s.State.Terminated.Message, "8080") ||
			s.State.Waiting != nil && strings.Contains(s.State.Waiting.Message, "8080")
	}
	b.become("p", "says which port is taken", func(p *corev1.Pod) bool { return says(p, "c0") || says(p, "c1") })
}
