package e2e

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/remotecommand"

	"github.com/coracle-edge/coracle/cmd/coracle/registry"
	"github.com/coracle-edge/coracle/test/lab"
)

// kubectlCommand is kubectl to be run as the test likes.
func (c *cluster) kubectlCommand(ctx context.Context, args ...string) *exec.Cmd {
	program, err := exec.LookPath("kubectl")
	if err != nil {
		program, args = filepath.Join(binDir(), "coracle"), append([]string{"kubectl"}, args...)
	}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.layout.Kubeconfig())
	return cmd
}

// native gives a node's containerd an image; the test is skipped where none runs.
func native(t *testing.T, node, ref string, image *lab.Image) {
	t.Helper()
	if got := shared.must(t, "get", "node", node, "-o", `jsonpath={.metadata.labels.coracle\.dev/oci}`); got != "present" {
		t.Skipf("%s runs no OCI containers here", node)
	}
	file := filepath.Join(t.TempDir(), "image.tar")
	if err := os.WriteFile(file, lab.Archive(image, ref), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := coracle("image", "import", file, "--node-dir", shared.layout.Node(node)); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// exits runs kubectl with stdin and wants an exit code.
func exits(t *testing.T, code int, stdin string, args ...string) (stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := shared.kubectlCommand(ctx, args...)
	var out, errOut bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errOut
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == code || err == nil && code == 0 {
		return out.String(), errOut.String()
	}
	t.Errorf("kubectl %s: %v, want exit code %d\n%s%s", strings.Join(args, " "), err, code, out.String(), errOut.String())
	return out.String(), errOut.String()
}

// forward runs kubectl port-forward and returns the local address.
func forward(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cmd := shared.kubectlCommand(ctx, append([]string{"port-forward", "--address=127.0.0.1"}, args...)...)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); _ = cmd.Wait() })
	buf := make([]byte, 1024)
	n, err := stdout.Read(buf)
	m := regexp.MustCompile(`from (127\.0\.0\.1:\d+) ->`).FindSubmatch(buf[:n])
	if m == nil {
		t.Fatalf("kubectl port-forward said %q %v %s", buf[:n], err, errOut.String())
	}
	return string(m[1])
}

func TestStreamsOfNativePods(t *testing.T) {
	node := shared.state.Nodes[0]
	native(t, node, "registry.invalid/tools:1", lab.Busybox(t))
	ns := shared.namespace(t)
	shared.apply(t, ns, fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: tools}
spec:
  nodeName: %s
  terminationGracePeriodSeconds: 1
  initContainers:
  - {name: before, image: "registry.invalid/tools:1", args: ["-c", "echo from the init container"]}
  containers:
  - name: web
    image: registry.invalid/tools:1
    args: ["-c", "mkdir /www; echo a page > /www/index.html; echo ready; exec httpd -f -p 8080 -h /www"]
    ports: [{containerPort: 8080}]
  - {name: echo, image: "registry.invalid/tools:1", stdin: true, args: ["-c", "cat; sleep 3600"]}
`, node))
	shared.must(t, "wait", "-n", ns, "--for=condition=Ready", "pod/tools", "--timeout=60s")
	args := func(more ...string) []string { return append([]string{"-n", ns}, more...) }

	t.Run("exec", func(t *testing.T) {
		out, errOut := exits(t, 7, "said", args("exec", "-i", "tools", "-c", "web", "--", "sh", "-c", "cat; echo wrong >&2; exit 7")...)
		if out != "said" || !strings.HasPrefix(errOut, "wrong\n") {
			t.Errorf("%q %q", out, errOut)
		}
		if _, errOut = exits(t, 1, "", args("exec", "tools", "-c", "web", "--", "none")...); !strings.Contains(errOut, "none") {
			t.Errorf("a command that isn't there: %q", errOut)
		}
		exits(t, 137, "", args("exec", "tools", "-c", "web", "--", "sh", "-c", "kill -9 $$")...) // as a shell says of a signal
		large := strings.Repeat("0123456789abcdef", 1<<16)
		if out, _ = exits(t, 0, large, args("exec", "-i", "tools", "-c", "web", "--", "cat")...); out != large {
			t.Errorf("%d of %d bytes came back", len(out), len(large))
		}
	})
	t.Run("a terminal and its size", func(t *testing.T) { terminal(t, ns) })
	t.Run("cp", func(t *testing.T) {
		dir := t.TempDir()
		there, back := filepath.Join(dir, "there"), filepath.Join(dir, "back")
		if err := os.WriteFile(there, bytes.Repeat([]byte("copied\n"), 50_000), 0o644); err != nil {
			t.Fatal(err)
		}
		exits(t, 0, "", args("cp", "-c", "web", there, "tools:/tmp/file")...)
		exits(t, 0, "", args("cp", "-c", "web", "tools:/tmp/file", back)...)
		want, _ := os.ReadFile(there)
		if got, err := os.ReadFile(back); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d of %d bytes, %v", len(got), len(want), err)
		}
	})
	t.Run("attach", func(t *testing.T) {
		out, _ := exits(t, 0, "typed\n", "run", "-n", ns, "-i", "--rm", "--quiet", "--restart=Never", "--image=registry.invalid/tools:1",
			"--overrides", `{"spec":{"nodeName":"`+node+`"}}`, "once", "--command", "--", "sh", "-c", "sleep 1; cat; echo the end")
		if !strings.Contains(out, "typed\n") || !strings.Contains(out, "the end\n") {
			t.Errorf("run -i --rm: %q", out)
		}
	})
	t.Run("debug", func(t *testing.T) {
		image, script := "--image=registry.invalid/tools:1", "read line; echo $line in $(ls -d /host/etc 2>/dev/null) beside $(cat /proc/1/comm); exit 0"
		for _, c := range []struct {
			says string
			args []string
		}{
			{"typed in beside httpd\n", []string{"debug", "-n", ns, "-i", "--quiet", "tools", "--target=web", image, "--", "sh", "-c", script}},
			{"typed in /host/etc beside ", []string{"debug", "-n", ns, "-i", "--quiet", "node/" + node, image, "--", "sh", "-c", script}},
		} {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			cmd := shared.kubectlCommand(ctx, c.args...)
			// The end of stdin ends an attachment to a container that may be attached to again.
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(in, "typed\n"); err != nil {
				t.Fatal(err)
			}
			if out, err := cmd.Output(); err != nil || !strings.Contains(string(out), c.says) {
				t.Errorf("%v: %v %q", c.args, err, out)
			}
			in.Close()
			cancel()
		}
	})
	t.Run("port-forward", func(t *testing.T) {
		address := forward(t, "-n", ns, "pod/tools", ":8080")
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() {
				resp, err := http.Get("http://" + address + "/index.html")
				if err != nil {
					t.Error(err)
					return
				}
				defer resp.Body.Close()
				if body, _ := io.ReadAll(resp.Body); string(body) != "a page\n" {
					t.Errorf("%q", body)
				}
			})
		}
		all.Wait()
	})
	t.Run("many at once", func(t *testing.T) {
		var all sync.WaitGroup
		for i := range 12 {
			all.Go(func() {
				if out, _ := exits(t, 0, "", args("exec", "tools", "-c", "web", "--", "echo", fmt.Sprint(i))...); out != fmt.Sprintln(i) {
					t.Errorf("%q", out)
				}
			})
		}
		all.Wait()
	})
	t.Run("logs", func(t *testing.T) {
		if out := shared.must(t, args("logs", "tools", "--all-containers", "--prefix")...); !strings.Contains(out, "[pod/tools/before] from the init container\n") ||
			!strings.Contains(out, "[pod/tools/web] ready\n") {
			t.Errorf("%q", out)
		}
		if out := shared.must(t, args("logs", "tools", "-c", "before", "--limit-bytes=4")...); out != "from" {
			t.Errorf("--limit-bytes: %q", out)
		}
		if out, err := shared.kubectl("", args("logs", "tools", "-c", "none")...); err == nil || !strings.Contains(out, "none") {
			t.Errorf("a container that isn't there: %q", out)
		}
	})
}

// sizes are those that a terminal takes, one after the other.
type sizes chan remotecommand.TerminalSize

func (s sizes) Next() *remotecommand.TerminalSize {
	size, ok := <-s
	if !ok {
		return nil
	}
	return &size
}

// terminal resizes one and asks inside how large it is.
func terminal(t *testing.T, ns string) {
	cfg, err := clientcmd.BuildConfigFromFlags("", shared.layout.Kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	target := cfg.Host + "/api/v1/namespaces/" + ns + "/pods/tools/exec?container=web&tty=true&stdin=true&stdout=true&command=sh"
	e, err := remotecommand.NewWebSocketExecutor(cfg, http.MethodGet, target)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	in, keys := io.Pipe()
	screen, out := io.Pipe()
	size := make(sizes, 2)
	size <- remotecommand.TerminalSize{Width: 100, Height: 40}
	done := make(chan error, 1)
	go func() {
		done <- e.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: in, Stdout: out, Tty: true, TerminalSizeQueue: size})
		out.Close()
	}()
	// What is typed is read by the stream's own goroutine, at its own time.
	typed := make(chan string, 8)
	go func() {
		for text := range typed {
			_, _ = io.WriteString(keys, text)
		}
		keys.Close()
	}()
	defer close(typed)
	typed <- "while sleep 0.1; do stty size; done\n"
	var seen strings.Builder
	await := func(want string) {
		t.Helper()
		buf := make([]byte, 256)
		for !strings.Contains(seen.String(), want) {
			n, err := screen.Read(buf)
			if seen.Write(buf[:n]); err != nil {
				t.Fatalf("%q doesn't appear: %v\n%s", want, err, seen.String())
			}
		}
	}
	await("40 100\r\n")
	size <- remotecommand.TerminalSize{Width: 132, Height: 50}
	await("50 132\r\n")
	close(size)
	go func() { _, _ = io.Copy(io.Discard, screen) }()
	typed <- "\x03" // Ctrl-C ends the loop, not the shell
	typed <- "exit 5\n"
	select {
	case err := <-done:
		if err == nil || !strings.Contains(err.Error(), "exit code 5") {
			t.Errorf("the shell ended with %v", err)
		}
	case <-time.After(30 * time.Second):
		t.Error("the shell doesn't end")
	}
}

func TestStreamsOfWasmPods(t *testing.T) {
	ns := shared.namespace(t)
	archive := filepath.Join(t.TempDir(), "probe.tar")
	if err := os.WriteFile(archive, lab.Archive(lab.Compat(lab.Probe(t), "compat", lab.File{Path: "bin/tool", Mode: 0o755, Hard: "probe.wasm"}),
		registry.Name+"/test/probe:1"), 0o644); err != nil {
		t.Fatal(err)
	}
	node := shared.state.Nodes[1]
	if out, err := coracle("image", "import", archive, "--node-dir", shared.layout.Node(node)); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	shared.apply(t, ns, fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: wasm, labels: {app: wasm}}
spec:
  nodeName: %s
  runtimeClassName: wasm
  terminationGracePeriodSeconds: 1
  containers:
  - {name: server, image: %[2]q, args: [serve], ports: [{containerPort: 8099}]}
  - {name: copy, image: %[2]q, args: [copy], stdin: true}
`, node, registry.Name+"/test/probe:1"))
	shared.must(t, "wait", "-n", ns, "--for=condition=Ready", "pod/wasm", "--timeout=60s")
	if out, errOut := exits(t, 3, "", "exec", "-n", ns, "wasm", "-c", "server", "--", "tool", "args", "a", "--", "exit", "3"); out != "a\n" {
		t.Errorf("exec: %q %q", out, errOut)
	}
	if out, _ := exits(t, 0, "typed\n", "exec", "-i", "-n", ns, "wasm", "-c", "server", "--", "tool", "copy"); out != "typed\n" {
		t.Errorf("exec -i: %q", out)
	}
	for _, c := range []struct {
		words string
		args  []string
	}{
		{"WASI has no terminal", []string{"exec", "-it", "-n", ns, "wasm", "-c", "server", "--", "tool", "args", "a"}},
		{"WASI has no processes", []string{"exec", "-n", ns, "wasm", "-c", "server", "--", "sh"}},
	} {
		cmd := shared.kubectlCommand(t.Context(), c.args...)
		if c.args[1] == "-it" { // kubectl asks for a terminal only if it has one
			cmd = exec.CommandContext(t.Context(), "script", "-qec", strings.Join(cmd.Args, " "), "/dev/null")
			cmd.Env = append(os.Environ(), "KUBECONFIG="+shared.layout.Kubeconfig())
		}
		if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), c.words) {
			t.Errorf("%v: %v %q; want %q", c.args, err, out, c.words)
		}
	}
	conn, err := net.Dial("tcp", forward(t, "-n", ns, "pod/wasm", ":8099"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	if text, err := io.ReadAll(conn); string(text) != "served\n" {
		t.Errorf("port-forward: %q, %v", text, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	attach := shared.kubectlCommand(ctx, "attach", "-i", "--quiet", "-n", ns, "wasm", "-c", "copy")
	in, _ := attach.StdinPipe()
	out, _ := attach.StdoutPipe()
	if err := attach.Start(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64)
	if _, err := io.WriteString(in, "attached\n"); err != nil {
		t.Fatal(err)
	}
	if n, err := out.Read(buf); string(buf[:n]) != "attached\n" {
		t.Errorf("attach: %q, %v", buf[:n], err)
	}
	in.Close()
	cancel()
	_ = attach.Wait()
}

func TestWhatANodeShows(t *testing.T) {
	for _, node := range shared.state.Nodes {
		for path, words := range map[string]string{
			"healthz": "ok", "healthz/ping": "ok", "healthz/log": "ok", "healthz/syncloop": "ok", "healthz?verbose": "[+]syncloop ok",
			"pods": `"kind":"PodList"`, "runningpods/": `"kind":"PodList"`, "configz": `"kind":"KubeletConfiguration"`, "logs/": "<pre>",
		} {
			if out := shared.must(t, "get", "--raw", "/api/v1/nodes/"+node+"/proxy/"+path); !strings.Contains(out, words) {
				t.Errorf("%s of %s: %.300q", path, node, out)
			}
		}
		if out, err := shared.kubectl("", "create", "--raw", "/api/v1/nodes/"+node+"/proxy/checkpoint/default/none/main", "-f", "/dev/null"); err == nil ||
			!strings.Contains(out, "pod does not exist") && !strings.Contains(out, "NotFound") {
			t.Errorf("checkpoint: %v %q", err, out)
		}
	}
}

// The API server has no way to the pods' network but the nodes' tunnels.
func TestTheAPIServerReachesPods(t *testing.T) {
	node := shared.state.Nodes[0]
	native(t, node, "registry.invalid/webhook:1", lab.Webhook(t))
	ns := shared.namespace(t)
	cert, key := certificate(t, "hook."+ns+".svc")
	indent := func(text string) string { return strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n        ") }
	shared.apply(t, ns, fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: page, labels: {app: page}}
spec:
  nodeName: %[1]s
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: "registry.invalid/webhook:1", ports: [{containerPort: 8443}]}]
---
apiVersion: v1
kind: Service
metadata: {name: page}
spec: {selector: {app: page}, ports: [{name: web, port: 80, targetPort: 8443}]}
---
apiVersion: v1
kind: Pod
metadata: {name: hook, labels: {app: hook}}
spec:
  nodeName: %[1]s
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: registry.invalid/webhook:1
    ports: [{containerPort: 8443}]
    env:
    - name: TLS_CERT
      value: |
        %[2]s
    - name: TLS_KEY
      value: |
        %[3]s
---
apiVersion: v1
kind: Service
metadata: {name: hook}
spec: {selector: {app: hook}, ports: [{port: 443, targetPort: 8443}]}
`, node, indent(cert), indent(key)))
	shared.must(t, "wait", "-n", ns, "--for=condition=Ready", "pod/page", "pod/hook", "--timeout=60s")
	ip := shared.must(t, "get", "pod", "page", "-n", ns, "-o", "jsonpath={.status.podIP}")
	if conn, err := net.DialTimeout("tcp", net.JoinHostPort(ip, "8443"), 300*time.Millisecond); err == nil {
		conn.Close()
		t.Logf("this machine has a route to the pods of %s: that the tunnel is used is not shown here", node)
	}
	base := "/api/v1/namespaces/" + ns
	for _, path := range []string{"/pods/http:page:8443/proxy/some/path", "/services/http:page:web/proxy/some/path", "/services/page:80/proxy/some/path"} {
		shared.shows(t, 30*time.Second, []string{"GET /some/path\n"}, "get", "--raw", base+path)
	}
	if out, err := shared.kubectl("", "get", "--raw", base+"/pods/http:page:9/proxy/"); err == nil || !strings.Contains(out, "connection refused") {
		t.Errorf("a port where nobody listens: %v %q", err, out)
	}
	webhook := fmt.Sprintf(`
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: %[1]s}
webhooks:
- name: hook.coracle.dev
  clientConfig: {service: {namespace: %[1]s, name: hook, path: /validate}, caBundle: %[2]s}
  rules: [{operations: [CREATE], apiGroups: [""], apiVersions: [v1], resources: [configmaps]}]
  namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: %[1]s}}
  objectSelector: {matchLabels: {asked: "yes"}}
  sideEffects: None
  admissionReviewVersions: [v1]
  failurePolicy: Fail
`, ns, base64.StdEncoding.EncodeToString([]byte(cert)))
	shared.apply(t, ns, webhook)
	t.Cleanup(func() { _, _ = shared.kubectl("", "delete", "validatingwebhookconfiguration", ns) })
	object := func(name, labels string) string {
		return fmt.Sprintf("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: %s, labels: {asked: \"yes\"%s}}\n", name, labels)
	}
	eventually(t, 30*time.Second, func() error { // the configuration is watched, the endpoint may be new
		out, err := shared.kubectl(object("denied", ", deny: x"), "create", "-n", ns, "-f", "-")
		if err == nil {
			_, _ = shared.kubectl("", "delete", "configmap", "denied", "-n", ns)
			return errors.New("it was created")
		}
		if !strings.Contains(out, "this webhook runs in a pod, and denies it") {
			return err
		}
		return nil
	})
	if out, err := shared.kubectl(object("allowed", ""), "create", "-n", ns, "-f", "-"); err != nil {
		t.Error(err, out)
	}
}

// certificate is one that signs itself.
func certificate(t *testing.T, host string) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: host}, DNSNames: []string{host},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}))
}

// What a node is asked comes through a connection that it made itself: it listens on
// no port while its pods run, are spoken to and measured, nor afterwards.
func TestNodesListenOnNoPort(t *testing.T) {
	node := shared.state.Nodes[0]
	ns := shared.namespace(t)
	check := func(when string) {
		t.Helper()
		ports, err := lab.Listening(shared.pid(t, node))
		if err != nil {
			t.Fatal(when, err)
		}
		for _, port := range ports {
			t.Errorf("%s the agent of %s listens: %s", when, node, port)
		}
	}
	pods := []string{"module"}
	image := push(t, shared, cModule(t, "ticker"), "ticker")
	shared.apply(t, ns, strings.Replace(wasmPod("module", image), "spec:\n", "spec:\n  nodeName: "+node+"\n", 1))
	if shared.importBusybox(t) {
		shared.apply(t, ns, fmt.Sprintf(ociPod, node))
		pods = append(pods, "native")
	}
	for _, pod := range pods {
		shared.must(t, "wait", "-n", ns, "--for=condition=Ready", "pod/"+pod, "--timeout=60s")
	}
	for _, pod := range pods {
		shared.must(t, "logs", "-n", ns, pod)
		_, _ = shared.kubectl("", "exec", "-n", ns, pod, "--", "true") // a module may have no such program
		conn, err := net.Dial("tcp", forward(t, "-n", ns, "pod/"+pod, ":9"))
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		_, _ = conn.Read(make([]byte, 1)) // refused in the pod, after it was passed on
		conn.Close()
		check("while port-forward of " + pod + " is open,")
	}
	for _, path := range []string{"/metrics", "/metrics/cadvisor", "/stats/summary", "/pods"} {
		shared.must(t, "get", "--raw", "/api/v1/nodes/"+node+"/proxy"+path)
	}
	check("after all")
}
