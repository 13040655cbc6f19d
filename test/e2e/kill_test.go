package e2e

import (
	"context"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-edge/coracle/test/lab"
)

const twenty = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: twenty}
spec:
  replicas: 20
  selector: {matchLabels: {app: twenty}}
  template:
    metadata: {labels: {app: twenty}}
    spec:
      runtimeClassName: wasm
      terminationGracePeriodSeconds: 1
      containers:
      - {name: main, image: %q}
`

// onOCI is a deployment of containers for containerd, where one runs.
const onOCI = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: oci}
spec:
  replicas: 4
  selector: {matchLabels: {app: oci}}
  template:
    metadata: {labels: {app: oci}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - {name: main, image: "example.org/busybox:1", imagePullPolicy: Never, command: [sleep, "3600"]}
`

// running waits until the deployment's pods all run, and returns the container
// of each by the pod's name.
func (c *cluster) running(t *testing.T, app string, want int) map[string]string {
	t.Helper()
	var ids map[string]string
	eventually(t, 90*time.Second, func() error {
		l, err := c.client.CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{LabelSelector: "app=" + app})
		if err != nil {
			return err
		}
		ids = map[string]string{}
		for _, p := range l.Items {
			if p.Status.Phase != corev1.PodRunning || len(p.Status.ContainerStatuses) != 1 || !p.Status.ContainerStatuses[0].Ready {
				return fmt.Errorf("pod %s is %s", p.Name, p.Status.Phase)
			}
			if s := p.Status.ContainerStatuses[0]; s.RestartCount != 0 {
				return fmt.Errorf("pod %s was restarted", p.Name)
			}
			ids[p.Name] = p.Status.ContainerStatuses[0].ContainerID
		}
		if len(ids) != want {
			return fmt.Errorf("%d pods, want %d", len(ids), want)
		}
		return nil
	})
	return ids
}

// writer creates ConfigMaps one after another until stop, and returns the names
// of those that the API server acknowledged.
func (c *cluster) writer(ctx context.Context, prefix string) (stop func() []string) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	var stored []string
	wg.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			name := fmt.Sprintf("%s-%d", prefix, i)
			_, err := c.client.CoreV1().ConfigMaps("default").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
			if err == nil {
				stored = append(stored, name)
			}
			time.Sleep(5 * time.Millisecond)
		}
	})
	return func() []string { cancel(); wg.Wait(); return stored }
}

// importBusybox gives the nodes an image for containerd; false where none runs.
func (c *cluster) importBusybox(t *testing.T) bool {
	t.Helper()
	archive := filepath.Join(t.TempDir(), "busybox.tar")
	if err := os.WriteFile(archive, lab.Archive(lab.Busybox(t), "example.org/busybox:1"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, node := range c.state.Nodes {
		if !readable(filepath.Join(c.dir, "run", "containerd-"+node+".pid")) {
			return false
		}
		if out, err := coracle("image", "import", "--node-dir", c.layout.Node(node), archive); err != nil {
			t.Fatal(err, out)
		}
	}
	return true
}

// Killing any process of the cluster, while pods run, writes are under way and a
// deployment is being rolled out, loses nothing that was acknowledged and
// restarts nothing.
func TestKill(t *testing.T) {
	c := newCluster(t, "--nodes=2")
	image := push(t, c, cModule(t, "ticker"), "ticker")
	c.apply(t, "default", fmt.Sprintf(twenty, image))
	oci := c.importBusybox(t)
	all := func() map[string]string {
		ids := c.running(t, "twenty", 20)
		if oci {
			maps.Copy(ids, c.running(t, "oci", 4))
		}
		return ids
	}
	if oci {
		c.apply(t, "default", onOCI)
	}
	before, guests := all(), c.guests(t)
	for _, victim := range []string{"controlplane", "board-1", "containerd-board-1"} {
		t.Run(victim, func(t *testing.T) {
			if !readable(filepath.Join(c.dir, "run", victim+".pid")) {
				t.Skipf("%s does not run here", victim)
			}
			stop := c.writer(t.Context(), victim)
			c.apply(t, "default", strings.NewReplacer("twenty", "more", "replicas: 20", "replicas: 5").Replace(fmt.Sprintf(twenty, image)))
			time.Sleep(100 * time.Millisecond)
			c.kill(t, victim)
			c.settle(t, stop())
			more := c.running(t, "more", 5)
			if after := all(); !maps.Equal(before, after) {
				t.Errorf("containers were replaced: %v, before %v", after, before)
			}
			now := c.guests(t)
			for pid := range guests {
				if !now[pid] {
					t.Errorf("guest %d is gone", pid)
				}
			}
			if len(now) != len(guests)+len(more) {
				t.Errorf("%d guests, %d before the kill and %d new pods", len(now), len(guests), len(more))
			}
			c.must(t, "delete", "deployment", "more", "--timeout=60s")
			c.must(t, "wait", "pods", "-l", "app=more", "--for=delete", "--timeout=60s")
		})
	}
}

// An external etcd, killed alone and started again: nothing stops, nothing is
// lost, and the cluster settles.
func TestKillOfAnExternalEtcd(t *testing.T) {
	etcd := lab.StartEtcd(t)
	c := newCluster(t, "--nodes=2", "--controlplane-arg=--etcd-endpoints="+etcd.URL)
	c.apply(t, "default", fmt.Sprintf(twenty, push(t, c, cModule(t, "ticker"), "ticker")))
	before, guests := c.running(t, "twenty", 20), c.guests(t)
	stop := c.writer(t.Context(), "etcd")
	time.Sleep(200 * time.Millisecond)
	etcd.Kill()
	time.Sleep(3 * time.Second) // the API has no answer meanwhile
	etcd.Start()
	c.settle(t, stop())
	if after := c.running(t, "twenty", 20); !maps.Equal(before, after) {
		t.Errorf("containers were replaced: %v, before %v", after, before)
	}
	if now := c.guests(t); !maps.Equal(guests, now) {
		t.Errorf("guests were restarted: %v, before %v", now, guests)
	}
}

// The same with an external broker, set up as an operator would.
func TestKillOfAnExternalBroker(t *testing.T) {
	program, err := exec.LookPath("mosquitto")
	if err != nil {
		if program = "/usr/sbin/mosquitto"; !readable(program) {
			t.Skip("no mosquitto on this machine (apt-get install mosquitto)")
		}
	}
	dir, err := os.MkdirTemp("", "coracle-e2e")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil { // mosquitto becomes a user of its own
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	l.Close()
	data, conf := filepath.Join(dir, "data"), filepath.Join(dir, "mosquitto")
	if out, err := coracle("broker", "mosquitto", conf, "--data-dir", data, "--listen", "127.0.0.1", "--port", port); err != nil || !strings.Contains(out, "--mqtt-url=mqtts://127.0.0.1:"+port) {
		t.Fatal(err, out)
	}
	var broker *exec.Cmd
	start := func() {
		broker = exec.Command(program, "-c", filepath.Join(conf, "mosquitto.conf"))
		broker.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := broker.Start(); err != nil {
			t.Fatal(err)
		}
	}
	kill := func() {
		_ = broker.Process.Kill()
		_ = broker.Wait()
	}
	start()
	t.Cleanup(func() { kill() })
	// The broker is on loopback, where isolated nodes don't reach it.
	c := newClusterIn(t, data, "--nodes=2", "--isolate=never", "--controlplane-arg=--mqtt-url=mqtts://127.0.0.1:"+port)
	c.apply(t, "default", fmt.Sprintf(twenty, push(t, c, cModule(t, "ticker"), "ticker")))
	before, guests := c.running(t, "twenty", 20), c.guests(t)

	stop := c.writer(t.Context(), "broker")
	kill()
	// An apply while there is no way to any node.
	c.apply(t, "default", wasmPod("meanwhile", "localhost:5443/test/ticker:v1"))
	time.Sleep(3 * time.Second)
	for _, node := range c.state.Nodes {
		if got := c.must(t, "get", "node", node, "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`); got != "True" {
			t.Errorf("%s was called away with the broker: Ready is %s", node, got)
		}
	}
	start()
	c.settle(t, stop())
	c.must(t, "wait", "--for=jsonpath={.status.phase}=Running", "pod/meanwhile", "--timeout=60s")
	c.must(t, "delete", "pod", "meanwhile", "--timeout=60s")
	if after := c.running(t, "twenty", 20); !maps.Equal(before, after) {
		t.Errorf("containers were replaced: %v, before %v", after, before)
	}
	if now := c.guests(t); !maps.Equal(guests, now) {
		t.Errorf("guests were restarted: %v, before %v", now, guests)
	}
}

// settle checks that what was acknowledged is there, that the nodes are ready
// and that a new pod runs on each.
func (c *cluster) settle(t *testing.T, stored []string) {
	t.Helper()
	if len(stored) == 0 {
		t.Fatal("no write was acknowledged before the kill")
	}
	eventually(t, 60*time.Second, func() error {
		_, err := c.client.CoreV1().Namespaces().Get(t.Context(), "default", metav1.GetOptions{})
		return err
	})
	for _, name := range stored {
		if _, err := c.client.CoreV1().ConfigMaps("default").Get(t.Context(), name, metav1.GetOptions{}); err != nil {
			t.Errorf("acknowledged, and lost: %v", err)
		}
	}
	for _, node := range c.state.Nodes {
		c.must(t, "wait", "--for=condition=Ready", "node/"+node, "--timeout=60s")
		name := fmt.Sprintf("after-%s-%d", node, time.Now().UnixNano())
		pod := wasmPod(name, "localhost:5443/test/ticker:v1") + "  nodeName: " + node + "\n"
		c.apply(t, "default", pod)
		c.must(t, "wait", "--for=jsonpath={.status.phase}=Running", "pod/"+name, "--timeout=60s")
		c.must(t, "delete", "pod", name, "--timeout=60s")
	}
}

// With the control plane gone, an edgelet that is started anew, its guests dead
// as after a power cut, runs every pod again out of what is on its disk.
func TestBootWithoutAControlPlane(t *testing.T) {
	c := newCluster(t, "--no-example", "--isolate=never") // the agent is started by hand
	c.must(t, "wait", "--for=create", "serviceaccount/default", "--timeout=30s")
	c.apply(t, "default", fmt.Sprintf(twenty, push(t, c, cModule(t, "ticker"), "ticker")))
	pods := slices.Sorted(maps.Keys(c.running(t, "twenty", 20)))
	args := c.commandLine(t, "board-1")

	// As a power cut: the supervisor first, so that it starts nothing again.
	for _, process := range []int{c.state.PID, c.pid(t, "controlplane"), c.pid(t, "board-1")} {
		if err := syscall.Kill(process, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	for pid := range c.guests(t) {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	eventually(t, 5*time.Second, func() error {
		if n := len(c.guests(t)); n > 0 {
			return fmt.Errorf("%d guests still run", n)
		}
		return nil
	})

	cmd := exec.Command(args[0], args[1:]...)
	log, err := os.Create(filepath.Join(c.dir, "logs", "alone.log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	eventually(t, 30*time.Second, func() error {
		if n := len(c.guests(t)); n != 20 {
			return fmt.Errorf("%d of 20 guests run", n)
		}
		return nil
	})
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ended:
	case <-time.After(30 * time.Second):
		t.Fatal("edgelet did not stop on SIGTERM")
	}

	// And when the control plane is back, nothing was lost or replaced.
	before := c.state.PID
	if err := c.up("--no-example"); err != nil {
		t.Fatal(err)
	}
	if c.state.PID == before {
		t.Fatal("the state is the old one")
	}
	l, err := c.client.CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{LabelSelector: "app=twenty"})
	if err != nil {
		t.Fatal(err)
	}
	var now []string
	for _, p := range l.Items {
		now = append(now, p.Name)
	}
	if slices.Sort(now); !slices.Equal(pods, now) {
		t.Fatalf("pods %v, before %v", now, pods)
	}
	eventually(t, 90*time.Second, func() error {
		if n := len(c.guests(t)); n != 20 {
			return fmt.Errorf("%d of 20 guests run", n)
		}
		return nil
	})
}

// commandLine is how a process of the cluster was started.
func (c *cluster) commandLine(t *testing.T, process string) []string {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", c.pid(t, process)))
	if err != nil {
		t.Fatal(err)
	}
	var args []string
	for len(raw) > 0 {
		i := 0
		for i < len(raw) && raw[i] != 0 {
			i++
		}
		args = append(args, string(raw[:i]))
		raw = raw[min(i+1, len(raw)):]
	}
	return args
}

// Stopped and started again, it is the same cluster.
func TestDownAndUpFindTheSameCluster(t *testing.T) {
	c := newCluster(t)
	c.must(t, "create", "configmap", "kept", "--from-literal=a=b")
	uid := c.must(t, "get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}")
	node := c.must(t, "get", "node", "board-1", "-o", "jsonpath={.metadata.uid}")
	out, err := coracle("down", "--data-dir", c.dir)
	if err != nil {
		t.Fatal(err)
	}
	if want := "The data is in " + c.dir; !strings.Contains(out, want) {
		t.Errorf("down printed %q, want %q in it", out, want)
	}
	if n := len(c.guests(t)); n > 0 {
		t.Errorf("%d guests run on after `coracle down`", n)
	}
	if err := c.up(); err != nil {
		t.Fatal(err)
	}
	c.must(t, "get", "configmap", "kept")
	if again := c.must(t, "get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}"); again != uid {
		t.Errorf("kube-system is %s, was %s", again, uid)
	}
	if again := c.must(t, "get", "node", "board-1", "-o", "jsonpath={.metadata.uid}"); again != node {
		t.Errorf("board-1 is %s, was %s", again, node)
	}
}
