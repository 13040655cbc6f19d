package e2e

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coracle-edge/coracle/cmd/coracle/registry"
)

// run runs a tool that the tests need and fails without it.
func run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// cModule compiles testdata/NAME.c.
func cModule(t *testing.T, name string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), name+".wasm")
	run(t, "clang", "--target=wasm32-wasi", "-Oz", "-o", out, filepath.Join("testdata", name+".c"))
	return out
}

func wasmPod(name, image string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %[1]s, labels: {app: %[1]s}}
spec:
  runtimeClassName: wasm
  terminationGracePeriodSeconds: 1
  containers:
  - {name: main, image: %[2]q}
`, name, image)
}

// push makes an image of a module in the shared cluster's registry.
func push(t *testing.T, c *cluster, module, name string) string {
	t.Helper()
	ref := registry.Name + "/test/" + name + ":v1"
	out, err := coracle("image", "push", module, ref, "--hosts-dir", c.state.HostsDir)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out, ref+"@sha256:") {
		t.Fatalf("push printed %q", out)
	}
	return ref
}

// module writes bytes to a file to be pushed.
func module(t *testing.T, raw []byte) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "m.wasm")
	if err := os.WriteFile(file, raw, 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

// wat assembles a module with wabt.
func wat(t *testing.T, text string) string {
	t.Helper()
	in := filepath.Join(t.TempDir(), "m.wat")
	if err := os.WriteFile(in, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	out := strings.TrimSuffix(in, "wat") + "wasm"
	run(t, "wat2wasm", in, "-o", out)
	return out
}

func TestLogs(t *testing.T) {
	ns := shared.namespace(t)
	image := push(t, shared, cModule(t, "ticker"), "ticker")
	shared.apply(t, ns, wasmPod("ticker", image))
	shared.must(t, "wait", "-n", ns, "--for=jsonpath={.status.phase}=Running", "pod/ticker", "--timeout=30s")
	shared.shows(t, 20*time.Second, []string{"tick 1", "tick 3"}, "logs", "-n", ns, "ticker")
	if out := shared.must(t, "logs", "-n", ns, "ticker", "--tail=1"); strings.Count(out, "\n") != 1 {
		t.Errorf("--tail=1 gave %q", out)
	}
	if out := shared.must(t, "logs", "-n", ns, "ticker", "--since=1h", "--timestamps"); !strings.Contains(out, "Z tick 1") {
		t.Errorf("--timestamps gave %q", out)
	}
	// Older lines are not shown; newer ones are.
	all := shared.must(t, "logs", "-n", ns, "ticker")
	time.Sleep(2 * time.Second)
	if out := shared.must(t, "logs", "-n", ns, "ticker", "--since=1s"); strings.Contains(out, "tick 1\n") || !strings.Contains(out, "tick ") {
		t.Errorf("--since=1s gave %q, all was %q before", out, all)
	}
	out, err := shared.kubectl("", "logs", "-n", ns, "ticker", "--previous")
	if err == nil || !strings.Contains(out, "previous terminated container") {
		t.Errorf("--previous of a container that never ended: %v %q", err, out)
	}

	// -f goes on showing what comes.
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(binDir(), "coracle"), "kubectl", "logs", "-f", "--tail=1", "-n", ns, "ticker")
	cmd.Env = append(os.Environ(), "KUBECONFIG="+shared.layout.Kubeconfig())
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var first, n int
	lines := bufio.NewScanner(stdout)
	for seen := 0; seen < 10 && lines.Scan(); seen++ {
		if _, err := fmt.Sscanf(lines.Text(), "tick %d", &n); err != nil {
			t.Fatalf("line %q: %v", lines.Text(), err)
		}
		if seen == 0 {
			first = n
		}
		if n != first+seen {
			t.Fatalf("line %d is tick %d after tick %d", seen, n, first)
		}
	}
	cancel()
	_ = cmd.Wait()
	if n < first+9 {
		t.Fatalf("-f ended at tick %d, began at %d", n, first)
	}
}

func TestExamples(t *testing.T) {
	ns := shared.namespace(t)
	run(t, "../../examples/build.sh", "config")
	run(t, "../../examples/build.sh", "python")
	for _, e := range []struct {
		dir, module, manifest string
		words                 []string // what is shown in the end
		args                  []string // by this command
	}{
		{"http", "http.wasm", "pod.yaml", []string{"Running"}, []string{"get", "pod", "http"}},
		{"config", "config.wasm", "pod.yaml", []string{"file colour = blue"}, []string{"logs", "config"}},
		{"deployment", "", "deployment.yaml", []string{"3/3"}, []string{"get", "deployment"}},
		{"job", "primes.wasm", "job.yaml", []string{"Complete"}, []string{"get", "job"}},
		{"python", "python.wasm", "pod.yaml", []string{"Python 3", "hello world"}, []string{"logs", "python"}},
	} {
		t.Run(e.dir, func(t *testing.T) {
			dir, err := filepath.Abs(filepath.Join("../../examples", e.dir))
			if err != nil {
				t.Fatal(err)
			}
			if e.module != "" {
				ref := registry.Name + "/coracle/" + strings.TrimSuffix(e.module, ".wasm") + ":v1"
				if _, err := coracle("image", "push", filepath.Join(dir, e.module), ref, "--hosts-dir", shared.state.HostsDir); err != nil {
					t.Fatal(err)
				}
			}
			shared.must(t, "apply", "-n", ns, "-f", filepath.Join(dir, e.manifest))
			t.Log(shared.shows(t, 90*time.Second, e.words, append(e.args, "-n", ns)...))
		})
	}
	// The server answers, on the pod's own address or on that of its node.
	ip := shared.must(t, "get", "pod", "-n", ns, "http", "-o", "jsonpath={.status.podIP}")
	node := shared.must(t, "get", "pod", "-n", ns, "http", "-o", "jsonpath={.spec.nodeName}")
	eventually(t, 20*time.Second, func() error {
		body, err := shared.onNode(node, "curl", "-sS", "--fail", "--noproxy", "*", "--max-time", "5", "http://"+net.JoinHostPort(ip, "8080")+"/").CombinedOutput()
		if err != nil || !strings.Contains(string(body), "Hello from WebAssembly over HTTP") {
			return fmt.Errorf("curl on %s: %v: %s", node, err, body)
		}
		return nil
	})
}

// containerState waits until the state of a pod's container has all the words.
func (c *cluster) containerState(t *testing.T, ns, pod string, words ...string) {
	t.Helper()
	c.shows(t, 60*time.Second, words, "get", "pod", "-n", ns, pod, "-o", "jsonpath={.status.containerStatuses[0].state}")
}

func TestWrongManifestIsRefusedInUpstreamsWords(t *testing.T) {
	ns := shared.namespace(t)
	out, err := shared.kubectl(strings.Replace(wasmPod("bad", "x:v1"), "name: main", "name: Main_", 1), "apply", "-n", ns, "-f", "-")
	if err == nil || !strings.Contains(out, `The Pod "bad" is invalid: spec.containers[0].name: Invalid value: "Main_": a lowercase RFC 1123 label`) {
		t.Errorf("err = %v\n%s", err, out)
	}
	out, err = shared.kubectl(strings.Replace(wasmPod("bad", "x:v1"), "containers:", "contaners:", 1), "apply", "-n", ns, "-f", "-")
	if err == nil || !strings.Contains(out, `unknown field "spec.contaners"`) {
		t.Errorf("err = %v\n%s", err, out)
	}
}

func TestBadModules(t *testing.T) {
	ns := shared.namespace(t)
	for _, m := range []struct {
		name, file string
		words      []string
	}{
		{"exit3", wat(t, `(module (import "wasi_snapshot_preview1" "proc_exit" (func $x (param i32))) (memory (export "memory") 1) (func (export "_start") i32.const 3 call $x))`),
			[]string{"terminated", `"exitCode":3`, `"reason":"Error"`}},
		{"trap", wat(t, `(module (memory (export "memory") 1) (func (export "_start") unreachable))`),
			[]string{"terminated", `"reason":"Error"`, "unreachable"}},
		{"unknown-import", wat(t, `(module (import "env" "launch_missiles" (func)) (memory (export "memory") 1) (func (export "_start")))`),
			[]string{"waiting", "unknown-import.wasm", "unknown import env.launch_missiles"}},
		// A section that claims more entries than there are bytes left kills a
		// decoder that trusts it.
		{"bomb", module(t, []byte("\x00asm\x01\x00\x00\x00\x01\x05\xff\xff\xff\xff\x0f")), []string{"waiting", "bomb.wasm", "section"}},
		{"component", module(t, []byte("\x00asm\x0d\x00\x01\x00")), []string{"waiting", "component", "component"}},
	} {
		t.Run(m.name, func(t *testing.T) {
			pod := strings.Replace(wasmPod(m.name, push(t, shared, m.file, m.name)), "spec:", "spec:\n  restartPolicy: Never", 1)
			agents := func() (pids []int) {
				for _, node := range shared.state.Nodes {
					pids = append(pids, shared.pid(t, node))
				}
				return pids
			}
			before := agents()
			shared.apply(t, ns, pod)
			shared.containerState(t, ns, m.name, m.words...)
			if now := agents(); !slices.Equal(now, before) {
				t.Errorf("an edgelet died of it: %v, before %v", now, before)
			}
		})
	}
}

func TestMissingImage(t *testing.T) {
	ns := shared.namespace(t)
	shared.apply(t, ns, wasmPod("missing", registry.Name+"/test/nothing:v1"))
	shared.containerState(t, ns, "missing", "ErrImagePull", "test/nothing:v1")
	shared.containerState(t, ns, "missing", "ImagePullBackOff")
}

func TestPodThatFitsNowhere(t *testing.T) {
	ns := shared.namespace(t)
	shared.apply(t, ns, strings.Replace(wasmPod("huge", "x:v1"), `"x:v1"`, `"x:v1", resources: {requests: {cpu: "1000"}}`, 1))
	shared.shows(t, 20*time.Second, []string{"0/2 nodes are available: 2 Insufficient cpu"}, "get", "events", "-n", ns)
}

func TestPodRestartsWithBackOff(t *testing.T) {
	ns := shared.namespace(t)
	m := wat(t, `(module (import "wasi_snapshot_preview1" "proc_exit" (func $x (param i32)))
		(import "wasi_snapshot_preview1" "fd_write" (func $w (param i32 i32 i32 i32) (result i32)))
		(memory (export "memory") 1) (data (i32.const 16) "last words\0a") (data (i32.const 0) "\10\00\00\00\0b\00\00\00")
		(func (export "_start") (drop (call $w (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))) i32.const 1 call $x))`)
	shared.apply(t, ns, wasmPod("crash", push(t, shared, m, "crash")))
	shared.shows(t, 60*time.Second, []string{"CrashLoopBackOff", `"restartCount":1`}, "get", "pod", "-n", ns, "crash", "-o", "jsonpath={.status.containerStatuses[0]}")
	if out := shared.must(t, "logs", "-n", ns, "crash", "--previous"); out != "last words\n" {
		t.Errorf("--previous gave %q", out)
	}
}

// A pod that is deleted goes away at once, and so does its process.
func TestDeleteStopsTheGuest(t *testing.T) {
	ns := shared.namespace(t)
	before := len(shared.guests(t))
	shared.apply(t, ns, wasmPod("short", push(t, shared, cModule(t, "ticker"), "ticker")))
	shared.must(t, "wait", "-n", ns, "--for=jsonpath={.status.phase}=Running", "pod/short", "--timeout=30s")
	if n := len(shared.guests(t)); n <= before {
		t.Fatalf("%d guests, %d before the pod", n, before)
	}
	shared.must(t, "delete", "pod", "-n", ns, "short", "--timeout=20s")
	if n := len(shared.guests(t)); n != before {
		t.Fatalf("%d guests after the pod is gone, want %d", n, before)
	}
}
