package e2e

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coracle-edge/coracle/examples"
	"github.com/coracle-edge/coracle/test/lab"
)

// boardProcess is an edgelet that a person starts on a board of their own: no
// part of `coracle up`.
type boardProcess struct {
	t    *testing.T
	dir  string
	log  string // file
	cmd  *exec.Cmd
	done chan error
}

func newBoard(t *testing.T) *boardProcess {
	t.Helper()
	dir, err := os.MkdirTemp("", "coracle-e2e")
	if err != nil {
		t.Fatal(err)
	}
	b := &boardProcess{t: t, dir: filepath.Join(dir, "node"), log: filepath.Join(dir, "edgelet.log")}
	t.Cleanup(func() {
		b.stop()
		if t.Failed() {
			raw, _ := os.ReadFile(b.log)
			t.Logf("=== %s\n%s", b.log, raw)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return b
}

// start runs `edgelet ARGS...` with what makes this board one of its own: no
// registry that another has set up, and no network of pods.
func (b *boardProcess) start(args ...string) {
	b.t.Helper()
	log, err := os.OpenFile(b.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		b.t.Fatal(err)
	}
	defer log.Close()
	none := filepath.Join(b.dir, "none")
	b.cmd = exec.Command(filepath.Join(binDir(), "edgelet"), append(args, "--data-dir", b.dir, "--registry-hosts", none, "--cni-conf-dir", none, "--stop-pods")...)
	b.cmd.Stdout, b.cmd.Stderr = log, log
	if err := b.cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	b.done = make(chan error, 1)
	go func(cmd *exec.Cmd, done chan error) { done <- cmd.Wait() }(b.cmd, b.done)
}

// stop ends it as systemd would; the pods go with it.
func (b *boardProcess) stop() {
	b.t.Helper()
	if b.cmd == nil {
		return
	}
	_ = b.cmd.Process.Signal(syscall.SIGTERM)
	if err := b.ended(60 * time.Second); err != nil {
		b.t.Errorf("edgelet: %v", err)
	}
}

// ended waits for the end of the process and returns how it ended.
func (b *boardProcess) ended(within time.Duration) error {
	defer func() { b.cmd = nil }()
	select {
	case err := <-b.done:
		return err
	case <-time.After(within):
		_ = b.cmd.Process.Kill()
		<-b.done
		return fmt.Errorf("still running after %s", within)
	}
}

// token runs `coracle token create` and returns the words that it says to run on
// the board, without the program.
func (c *cluster) token(t *testing.T, args ...string) []string {
	t.Helper()
	out, err := coracle(append([]string{"token", "create", "--kubeconfig", c.layout.Kubeconfig()}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	words := strings.Fields(out)
	if strings.Count(out, "\n") != 1 || len(words) != 3 || words[0] != "edgelet" || words[1] != "--join" || !strings.HasPrefix(words[2], "coracle1.") {
		t.Fatalf("`coracle token create` printed %q, want one line `edgelet --join coracle1.…`", out)
	}
	return words[1:]
}

// podOn is a Wasm pod for one node, of an image that no registry has.
func podOn(node, name, image string) string {
	return wasmPod(name, image) + "  nodeName: " + node + "\n"
}

// A board joins by the line that the operator was given, and stays a node without
// it; the line serves no other board.
func TestJoinByTheLineOfAToken(t *testing.T) {
	c := newCluster(t, "--no-example")
	line := c.token(t, "gate-1")
	b := newBoard(t)
	b.start(line...)
	c.must(t, "wait", "--for=create", "serviceaccount/default", "--timeout=30s")
	c.must(t, "wait", "--for=create", "node/gate-1", "--timeout=60s")
	c.must(t, "wait", "--for=condition=Ready", "node/gate-1", "--timeout=60s")

	t.Run("another board with the same line", func(t *testing.T) {
		refused(t, line, "this join token was used by another board", "coracle token create")
	})
	t.Run("a line that is too late", func(t *testing.T) {
		late := c.token(t, "gate-2", "--ttl", "1s")
		time.Sleep(2100 * time.Millisecond) // expiry is kept to the second
		refused(t, late, "this join token has expired", "coracle token create gate-2")
	})
	t.Run("a line that was cut off", func(t *testing.T) {
		refused(t, []string{"--join", line[1][:len(line[1])-7]}, "cut off or mistyped")
	})
	t.Run("a name that is taken", func(t *testing.T) {
		out, err := coracle("token", "create", "gate-1", "--kubeconfig", c.layout.Kubeconfig())
		if err == nil || !strings.Contains(out, `node "gate-1"`) || !strings.Contains(out, "--replace gate-1") {
			t.Errorf("%v\n%s", err, out)
		}
	})

	// Images without any registry: the board knows none.
	module := lab.Archive(lab.CNCF(examples.HelloModule), "")
	t.Run("image from an archive", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "hello.tar")
		if err := os.WriteFile(file, lab.Archive(lab.CNCF(examples.HelloModule), "registry.invalid/hello:archive"), 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := coracle("image", "import", file, "--node-dir", b.dir)
		if err != nil || !strings.Contains(out, "registry.invalid/hello:archive") {
			t.Fatalf("%v\n%s", err, out)
		}
		c.runs(t, podOn("gate-1", "archive", "registry.invalid/hello:archive"), "archive", "Hello from WebAssembly")
	})
	t.Run("image from a layout", func(t *testing.T) {
		out, err := coracle("image", "import", layout(t, module), "--node-dir", b.dir, "--ref", "registry.invalid/hello:layout")
		if err != nil || !strings.Contains(out, "registry.invalid/hello:layout") {
			t.Fatalf("%v\n%s", err, out)
		}
		c.runs(t, podOn("gate-1", "layout", "registry.invalid/hello:layout"), "layout", "Hello from WebAssembly")
	})
	t.Run("what is no image", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "notes.txt")
		if err := os.WriteFile(file, []byte("this is not an image"), 0o644); err != nil {
			t.Fatal(err)
		}
		if out, err := coracle("image", "import", file, "--node-dir", b.dir); err == nil {
			t.Errorf("imported: %s", out)
		}
		if out, err := coracle("image", "import", file, "--node-dir", t.TempDir()); err == nil || !strings.Contains(out, "no edgelet answers at") {
			t.Errorf("a folder without an edgelet: %v\n%s", err, out)
		}
	})

	t.Run("started again without the line", func(t *testing.T) {
		b.stop()
		b.start()
		c.runs(t, podOn("gate-1", "again", "registry.invalid/hello:layout"), "again", "Hello from WebAssembly")
	})
}

// An image of native code goes to the node's containerd, by the same command.
func TestImportOfANativeImage(t *testing.T) {
	node := shared.state.Nodes[0]
	if got := shared.must(t, "get", "node", node, "-o", `jsonpath={.metadata.labels.coracle\.dev/oci}`); got != "present" {
		t.Skipf("%s runs no OCI containers here", node)
	}
	const ref = "registry.invalid/busybox:1"
	file := filepath.Join(t.TempDir(), "busybox.tar")
	if err := os.WriteFile(file, lab.Archive(lab.Busybox(t), ref), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := coracle("image", "import", file, "--node-dir", shared.layout.Node(node)); err != nil || !strings.Contains(out, ref) {
		t.Fatalf("%v\n%s", err, out)
	}
	ns := shared.namespace(t)
	shared.apply(t, ns, fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: native}
spec:
  nodeName: %s
  terminationGracePeriodSeconds: 1
  containers:
  - {name: main, image: %q, command: [sh, -c, "echo native code of $(hostname); sleep 3600"]}
`, node, ref))
	shared.must(t, "wait", "-n", ns, "--for=jsonpath={.status.phase}=Running", "pod/native", "--timeout=60s")
	shared.shows(t, 20*time.Second, []string{"native code of native"}, "logs", "-n", ns, "native")
}

// refused runs edgelet on a new board and wants it to end at once with a reason
// that has all the words in its last line.
func refused(t *testing.T, line []string, words ...string) {
	t.Helper()
	b := newBoard(t)
	b.start(line...)
	var exit *exec.ExitError
	if err := b.ended(30 * time.Second); !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("it ended with %v, want exit code 1", err)
	}
	raw, err := os.ReadFile(b.log)
	if err != nil {
		t.Fatal(err)
	}
	said := strings.Split(strings.TrimSpace(string(raw)), "\n")
	for _, w := range append(words, "edgelet: ") {
		if last := said[len(said)-1]; !strings.Contains(last, w) {
			t.Errorf("the last line lacks %q: %s", w, last)
		}
	}
	if _, err := os.Stat(filepath.Join(b.dir, "identity", "identity.json")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("identity after a refusal: %v", err)
	}
}

// runs applies a pod in the default namespace and waits until it runs and has
// said something.
func (c *cluster) runs(t *testing.T, manifest, name, says string) {
	t.Helper()
	c.apply(t, "default", manifest)
	defer func() {
		if t.Failed() {
			out, _ := c.kubectl("", "describe", "pod", name)
			t.Log(out)
		}
	}()
	c.must(t, "wait", "--for=jsonpath={.status.phase}=Running", "pod/"+name, "--timeout=60s")
	c.shows(t, 30*time.Second, []string{says}, "logs", name)
}

// layout unpacks an OCI archive: the same is an OCI layout as a folder.
func layout(t *testing.T, archive []byte) string {
	t.Helper()
	dir := t.TempDir()
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return dir
		}
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, filepath.FromSlash(h.Name))
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
