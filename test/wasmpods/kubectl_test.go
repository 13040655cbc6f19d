package wasmpods

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestExec(t *testing.T) {
	b := newBed(t)
	b.pod("p", `{containers: [{args: [say, up, --, http], ports: [{containerPort: 8080}], env: [{name: OF, value: the container}]}]}`)
	b.ready("p", true)
	if out := b.kubectl("exec", "p", "--", "/probe.wasm", "env", "OF"); out != "OF=the container\n" {
		t.Errorf("%q", out)
	}
	if out, err := b.try("through\n", "exec", "-i", "p", "--", "/probe.wasm", "copy"); err != nil || out != "through\n" {
		t.Errorf("%q %v", out, err)
	}
	for _, refused := range []struct {
		args  []string
		words []string
	}{
		{[]string{"exec", "p", "--", "/probe.wasm", "exit", "5"}, []string{"exit code 5"}},
		{[]string{"exec", "p", "--", "sh"}, []string{`no module called "sh"`, "WASI has no processes"}},
		{[]string{"cp", "p:/usr/share/motd", filepath.Join(t.TempDir(), "motd")}, []string{`no module called "tar"`}},
	} {
		out, err := b.try("", refused.args...)
		if err == nil {
			t.Errorf("kubectl %q works: %q", refused.args, out)
		}
		for _, w := range refused.words {
			if !strings.Contains(out, w) {
				t.Errorf("kubectl %q doesn't say %q: %s", refused.args, w, out)
			}
		}
	}
}

func TestAttach(t *testing.T) {
	b := newBed(t)
	b.pod("p", `{restartPolicy: Never, containers: [{args: [copy], stdin: true, stdinOnce: true}]}`)
	b.phase("p", corev1.PodRunning)
	if out, err := b.try("by attach\n", "attach", "-i", "p"); err != nil || !strings.Contains(out, "by attach\n") {
		t.Errorf("%q %v", out, err)
	}
	b.phase("p", corev1.PodSucceeded)
	b.logs("p", "c0", "by attach")
}

func TestPortForward(t *testing.T) {
	b := newBed(t)
	b.pod("p", `{containers: [{args: [http], ports: [{containerPort: 8080}]}]}`)
	b.ready("p", true)
	ctx, cancel := context.WithCancel(t.Context())
	cmd := exec.CommandContext(ctx, filepath.Join(bin(), "coracle"), "kubectl", "port-forward", "-n", b.ns, "p", ":8080")
	cmd.Env = append(os.Environ(), "KUBECONFIG="+cluster.layout.Kubeconfig())
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cancel(); _ = cmd.Wait() }()
	lines := bufio.NewScanner(out)
	var port int
	for port == 0 && lines.Scan() {
		_, _ = fmt.Sscanf(lines.Text(), "Forwarding from 127.0.0.1:%d", &port)
	}
	for range 3 {
		resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/healthz", port))
		if err != nil {
			t.Fatal(err)
		}
		if resp.Body.Close(); resp.StatusCode != http.StatusOK {
			t.Error(resp.Status)
		}
	}
	b.logs("p", "c0", "GET /healthz", "GET /healthz", "GET /healthz")
}

func TestLogs(t *testing.T) {
	b := newBed(t)
	b.pod("p", `{containers: [{name: one, args: [say, a, --, say, b, --, say, c, --, sleep]}, {name: two, args: [say, d, --, sleep]}]}`)
	b.logs("p", "one", "a", "b", "c")
	b.logs("p", "two", "d")
	for want, args := range map[string][]string{
		"c\n":    {"logs", "p", "-c", "one", "--tail=1"},
		"Z a\n":  {"logs", "p", "-c", "one", "--timestamps"},
		"[pod/p": {"logs", "-l", "app=p", "--all-containers", "--prefix"},
	} {
		if out := b.kubectl(args...); !strings.Contains(out, want) || args[len(args)-1] == "--tail=1" && out != want {
			t.Errorf("kubectl %q gave %q", args, out)
		}
	}
	if out, err := b.try("", "logs", "p", "-c", "one", "--previous"); err == nil || !strings.Contains(out, "previous terminated container") {
		t.Errorf("%q %v", out, err)
	}
}

func TestEphemeralContainers(t *testing.T) {
	b := newBed(t)
	b.pod("p", `{containers: [{args: [sleep]}]}`)
	b.phase("p", corev1.PodRunning)
	b.kubectl("debug", "p", "--image="+guestImage, "--image-pull-policy=Never", "-c", "look", "--", "/probe.wasm", "say", "looked", "--", "cat", "/usr/share/motd")
	b.logs("p", "look", "looked", "from the image")
	p := b.become("p", "has debugged", func(p *corev1.Pod) bool { return ended(p, "look") != nil })
	if e := ended(p, "look"); e.ExitCode != 0 || status(p, "c0").State.Running == nil {
		t.Errorf("%+v", p.Status)
	}
}
