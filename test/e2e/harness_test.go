package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/coracle-edge/coracle/cmd/coracle/up"
	"github.com/coracle-edge/coracle/test/lab"
)

// cluster is one `coracle up` on a data folder of its own.
type cluster struct {
	dir    string
	layout up.Layout
	state  up.State
	client kubernetes.Interface
	// output is what the last `coracle up` printed.
	output string
}

// shared is the cluster that the tests use which disturb nobody.
var shared *cluster

func TestMain(m *testing.M) {
	if raw := os.Getenv("CORACLE_TEST_ETCD"); raw != "" {
		etcdMain(raw)
		return
	}
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "coracle-e2e")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		defer lab.Cleanup()
		// The users of a pod of its own users have to reach its root file system.
		if err := os.Chmod(dir, 0o711); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		if shared, err = startCluster(dir, "--nodes=2"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			logs(os.Stderr, dir)
			_, _ = coracle("down", "--data-dir", dir)
			return 1
		}
		code := m.Run()
		if code != 0 {
			logs(os.Stderr, dir)
		}
		if err := down(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return code
	}())
}

func binDir() string {
	dir, err := filepath.Abs("../../bin")
	if err != nil {
		panic(err)
	}
	return dir
}

// coracle runs the operator's tool and returns all that it printed.
func coracle(args ...string) (string, error) { return lab.Coracle(binDir(), args...) }

// startCluster brings a cluster up, detached, on the ports that are free.
func startCluster(dir string, args ...string) (*cluster, error) {
	c := &cluster{dir: dir, layout: up.Layout{Root: dir}}
	return c, c.up(args...)
}

func (c *cluster) up(args ...string) (err error) {
	args = append([]string{"up", "--detach", "--data-dir", c.dir, "--registry-address", "127.0.0.1:0"}, args...)
	if c.output, err = coracle(args...); err != nil {
		return err
	}
	if c.state, err = c.layout.ReadState(); err != nil {
		return err
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", c.layout.Kubeconfig())
	if err != nil {
		return err
	}
	cfg.QPS, cfg.Burst = 200, 400
	c.client, err = kubernetes.NewForConfig(cfg)
	return err
}

// down stops a cluster. Nothing of it is left then but its files.
func down(dir string) error { return lab.ClusterDown(binDir(), dir, up.Layout{Root: dir}.ID()) }

// newCluster is a cluster of the test's own, stopped with it.
func newCluster(t *testing.T, args ...string) *cluster {
	t.Helper()
	dir, err := os.MkdirTemp("", "coracle-e2e")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return newClusterIn(t, dir, args...)
}

func newClusterIn(t *testing.T, dir string, args ...string) *cluster {
	t.Helper()
	c, err := startCluster(dir, args...)
	t.Cleanup(func() {
		if t.Failed() {
			logs(os.Stderr, dir)
		}
		if err := down(dir); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func readable(file string) bool {
	f, err := os.Open(file)
	if err == nil {
		f.Close()
	}
	return err == nil
}

// logs shows the end of each process's log.
func logs(out *os.File, dir string) { lab.ClusterLogs(out, dir) }

// kubectl runs the machine's kubectl, or our own where there is none.
func (c *cluster) kubectl(stdin string, args ...string) (string, error) {
	return lab.Kubectl(binDir(), c.layout.Kubeconfig(), stdin, args...)
}

// must runs kubectl and fails the test if it fails.
func (c *cluster) must(t *testing.T, args ...string) string {
	t.Helper()
	out, err := c.kubectl("", args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// apply applies a manifest in the namespace.
func (c *cluster) apply(t *testing.T, namespace, manifest string) string {
	t.Helper()
	out, err := c.kubectl(manifest, "apply", "-n", namespace, "-f", "-")
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// namespace makes one for the test, with its service account.
func (c *cluster) namespace(t *testing.T) string {
	t.Helper()
	ns := strings.ToLower(strings.NewReplacer("/", "-", "_", "-").Replace(t.Name()))
	if len(ns) > 60 {
		ns = ns[:60]
	}
	c.must(t, "create", "namespace", ns)
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := c.kubectl("", "get", "pods,events", "-n", ns, "-o", "wide")
			t.Log(out)
		}
		_, _ = c.kubectl("", "delete", "namespace", ns, "--wait=false")
	})
	c.must(t, "wait", "-n", ns, "--for=create", "serviceaccount/default", "--timeout=30s")
	return ns
}

// eventually repeats f until it returns nil.
func eventually(t *testing.T, within time.Duration, f func() error) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %v", within, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// shows repeats a kubectl command until its output has all the words.
func (c *cluster) shows(t *testing.T, within time.Duration, words []string, args ...string) string {
	t.Helper()
	var out string
	eventually(t, within, func() error {
		var err error
		if out, err = c.kubectl("", args...); err != nil {
			return err
		}
		for _, w := range words {
			if !strings.Contains(out, w) {
				return fmt.Errorf("kubectl %s does not show %q:\n%s", strings.Join(args, " "), w, out)
			}
		}
		return nil
	})
	return out
}

// pid of a process of the cluster: controlplane, board-1, containerd-board-1 ...
func (c *cluster) pid(t *testing.T, process string) int {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(c.dir, "run", process+".pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.Fields(string(raw))[0])
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// kill ends a process with SIGKILL and waits until `coracle up` has started
// another in its place.
func (c *cluster) kill(t *testing.T, process string) {
	t.Helper()
	old := c.pid(t, process)
	if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, func() error {
		raw, err := os.ReadFile(filepath.Join(c.dir, "run", process+".pid"))
		if err != nil {
			return err
		}
		if strings.HasPrefix(string(raw), strconv.Itoa(old)+" ") {
			return fmt.Errorf("%s was not started again", process)
		}
		return nil
	})
}

// onNode is a command where the node's processes are.
func (c *cluster) onNode(node string, args ...string) *exec.Cmd {
	raw, err := os.ReadFile(filepath.Join(c.dir, "run", "namespaces-"+node+".pid"))
	if err != nil { // it shares ours
		return exec.Command(args[0], args[1:]...)
	}
	return exec.Command("nsenter", append([]string{"--target", strings.Fields(string(raw))[0], "--net", "--mount", "--pid", "--uts", "--"}, args...)...)
}

// guests lists the processes that run Wasm containers of this cluster, by pid:
// those that hold a pipe of a container below its data folder open.
func (c *cluster) guests(t *testing.T) map[int]bool {
	t.Helper()
	names, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	pids := map[int]bool{}
	for _, name := range names {
		cmdline, _ := os.ReadFile(name)
		if !strings.HasPrefix(string(cmdline), "wasmrunner\x00guest\x00") {
			continue
		}
		dir := filepath.Dir(name)
		fds, _ := filepath.Glob(filepath.Join(dir, "fd", "*"))
		for _, fd := range fds {
			if target, _ := os.Readlink(fd); strings.HasPrefix(target, c.dir+"/nodes/") {
				pid, _ := strconv.Atoi(filepath.Base(dir))
				pids[pid] = true
				break
			}
		}
	}
	return pids
}
