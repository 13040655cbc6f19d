package wasmpods

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestReadinessByEachKindOfProbe(t *testing.T) {
	b := newBed(t)
	for name, c := range map[string]struct{ args, probe string }{
		"http": {"[http]", "httpGet: {path: /healthz, port: 8080}"},
		"tcp":  {"[http]", "tcpSocket: {port: 8080}"},
		"grpc": {"[grpc]", "grpc: {port: 8080}"},
		"exec": {"[sleep]", "exec: {command: [/probe.wasm, exists, /usr/share/motd]}"},
	} {
		b.pod(name, `
containers:
- args: `+c.args+`
  ports: [{containerPort: 8080}]
  readinessProbe: {`+c.probe+`, periodSeconds: 1, timeoutSeconds: 10}
`)
	}
	// None of these can pass.
	for name, probe := range map[string]string{
		"nohttp": "httpGet: {path: /healthz, port: 8081}", "notcp": "tcpSocket: {port: 8081}", "nogrpc": "grpc: {port: 8081}",
		"noexec": "exec: {command: [/probe.wasm, exists, /nothing]}", "noprogram": "exec: {command: [/bin/true]}",
	} {
		b.pod(name, `{containers: [{args: [sleep], readinessProbe: {`+probe+`, periodSeconds: 1, timeoutSeconds: 10}}]}`)
	}
	for _, name := range []string{"http", "tcp", "grpc", "exec"} {
		b.ready(name, true)
	}
	for _, name := range []string{"nohttp", "notcp", "nogrpc", "noexec"} {
		b.ready(name, false)
	}
	b.ready("noprogram", false)
}

func TestReadinessComesAndGoes(t *testing.T) {
	b := newBed(t)
	b.pod("sick", `
containers:
- args: [http]
  ports: [{containerPort: 8080}]
  readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1, failureThreshold: 1, timeoutSeconds: 10}
`)
	b.ready("sick", true)
	get := func(path string) {
		t.Helper()
		b.kubectl("get", "--raw", "/api/v1/namespaces/"+b.ns+"/pods/sick:8080/proxy"+path)
	}
	get("/fail")
	b.ready("sick", false)
	get("/heal")
	p := b.ready("sick", true)
	if n := status(p, "c0").RestartCount; n != 0 {
		t.Errorf("readiness restarted it %d times", n)
	}
}

func TestLivenessAndStartup(t *testing.T) {
	b := newBed(t)
	b.pod("dies", `
containers:
- args: [http]
  ports: [{containerPort: 8080}]
  livenessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1, failureThreshold: 2, timeoutSeconds: 10}
`)
	b.pod("late", `
volumes: [{name: v, emptyDir: {}}]
containers:
- args: [sleep]
  volumeMounts: [{name: v, mountPath: /v}]
  startupProbe: {exec: {command: [/probe.wasm, exists, /v/up]}, periodSeconds: 1, failureThreshold: 600, timeoutSeconds: 10}
  livenessProbe: {exec: {command: [/probe.wasm, exists, /usr/share/motd]}, periodSeconds: 1, timeoutSeconds: 10}
`)
	b.pod("never", `
containers:
- args: [sleep]
  startupProbe: {tcpSocket: {port: 8081}, periodSeconds: 1, failureThreshold: 2}
`)
	b.ready("dies", true)
	b.kubectl("get", "--raw", "/api/v1/namespaces/"+b.ns+"/pods/dies:8080/proxy/fail")
	b.become("dies", "is restarted", func(p *corev1.Pod) bool { return status(p, "c0").RestartCount > 0 })
	b.ready("dies", true)

	p := b.ready("late", false)
	if s := status(p, "c0"); s.Started == nil || *s.Started {
		t.Errorf("started before its probe says so: %+v", s)
	}
	b.kubectl("exec", "late", "--", "/probe.wasm", "write", "/v/up", "x")
	if p = b.ready("late", true); status(p, "c0").RestartCount != 0 {
		t.Errorf("%+v", p.Status)
	}
	b.become("never", "is restarted", func(p *corev1.Pod) bool { return status(p, "c0").RestartCount > 0 })
}
