package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	testLease     = 10 * time.Second
	testKeepalive = 20 * time.Second
)

// second is another control plane on the cluster's etcd, started again when it ends
// as an init system would.
type second struct {
	dir  string
	args []string

	mu    sync.Mutex
	cmd   *exec.Cmd
	ended bool
}

// startSecond starts it with the keys of the first, and waits until it serves.
func startSecond(t *testing.T, c *cluster, endpoints []string) *second {
	t.Helper()
	dir := t.TempDir()
	keys := filepath.Join(dir, "pki")
	if err := os.Mkdir(keys, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"ca.crt", "ca.key", "front-proxy-ca.crt", "front-proxy-ca.key", "sa.key", "sa.pub"} {
		raw, err := os.ReadFile(filepath.Join(c.dir, "controlplane", "pki", name))
		if err == nil {
			err = os.WriteFile(filepath.Join(keys, name), raw, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	s := &second{dir: dir, args: []string{"--data-dir", dir, "--port-fallback", "--secure-port", "0", "--mqtt-port", "0", "--fleet-port", "0",
		"--etcd-endpoints", strings.Join(endpoints, ","), "--lease-duration", testLease.String(), "--node-keepalive", testKeepalive.String()}}
	var done sync.WaitGroup
	done.Go(s.keep)
	t.Cleanup(func() {
		s.mu.Lock()
		s.ended = true
		_ = s.cmd.Process.Signal(syscall.SIGCONT)
		_ = s.cmd.Process.Kill()
		s.mu.Unlock()
		done.Wait()
		if t.Failed() {
			raw, _ := os.ReadFile(filepath.Join(dir, "log"))
			lines := strings.Split(string(raw), "\n")
			fmt.Fprintf(os.Stderr, "=== second control plane\n%s\n", strings.Join(lines[max(0, len(lines)-60):], "\n"))
		}
	})
	eventually(t, 60*time.Second, func() error {
		_, err := os.Stat(filepath.Join(dir, "run", "controlplane.json"))
		return err
	})
	return s
}

func (s *second) keep() {
	for {
		s.mu.Lock()
		if s.ended {
			s.mu.Unlock()
			return
		}
		log, err := os.OpenFile(filepath.Join(s.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			panic(err)
		}
		s.cmd = exec.Command(filepath.Join(binDir(), "controlplane"), s.args...)
		s.cmd.Stdout, s.cmd.Stderr = log, log
		s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := s.cmd.Start(); err != nil {
			panic(err)
		}
		cmd := s.cmd
		s.mu.Unlock()
		_ = cmd.Wait()
		log.Close()
		time.Sleep(500 * time.Millisecond)
	}
}

func (s *second) pid() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cmd.Process.Pid
}

func (s *second) log() string {
	raw, _ := os.ReadFile(filepath.Join(s.dir, "log"))
	return string(raw)
}

// plane is one of the two, as its clients see it.
type plane struct {
	name       string
	kubeconfig string
	client     kubernetes.Interface
}

func planeAt(t *testing.T, name, kubeconfig string) *plane {
	t.Helper()
	cfg, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	cfg.QPS, cfg.Burst, cfg.Timeout = 200, 400, 20*time.Second
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return &plane{name, kubeconfig, client}
}

// logs are the last line of a pod's, through this API server.
func (p *plane) logs(ctx context.Context, pod string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	one := int64(1)
	raw, err := p.client.CoreV1().Pods("default").GetLogs(pod, &corev1.PodLogOptions{TailLines: &one}).DoRaw(ctx)
	if err == nil && len(raw) == 0 {
		err = fmt.Errorf("no logs of %s", pod)
	}
	return string(raw), err
}

// follow reads new lines of a pod's log, through this API server, until it has some.
func (p *plane) follow(t *testing.T, pod string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	one := int64(1)
	stream, err := p.client.CoreV1().Pods("default").GetLogs(pod, &corev1.PodLogOptions{Follow: true, TailLines: &one}).Stream(ctx)
	if err != nil {
		t.Fatalf("logs -f through %s: %v", p.name, err)
	}
	defer stream.Close()
	lines := bufio.NewScanner(stream)
	for i := range 3 {
		if !lines.Scan() {
			t.Fatalf("logs -f through %s ended after %d lines: %v", p.name, i, lines.Err())
		}
	}
}

// fleetWatch notes every moment in which a node isn't ready, as any API server says.
type fleetWatch struct {
	mu   sync.Mutex
	said []string
}

func (w *fleetWatch) run(ctx context.Context, planes ...*plane) {
	for ctx.Err() == nil {
		for _, p := range planes {
			short, cancel := context.WithTimeout(ctx, time.Second)
			nodes, err := p.client.CoreV1().Nodes().List(short, metav1.ListOptions{})
			cancel()
			if err != nil {
				continue
			}
			for _, n := range nodes.Items {
				for _, cond := range n.Status.Conditions {
					if cond.Type == corev1.NodeReady && cond.Status != corev1.ConditionTrue {
						w.mu.Lock()
						w.said = append(w.said, fmt.Sprintf("%s says %s is %s: %s", p.name, n.Name, cond.Status, cond.Message))
						w.mu.Unlock()
					}
				}
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// Two control planes on an external etcd of three members: whatever becomes of the
// active one, the other takes over, and neither nodes nor pods notice.
func TestTakeover(t *testing.T) {
	etcd := startEtcd(t)
	way := newCuttable(t, etcd)
	// The other control planes are on loopback, where isolated nodes don't reach them.
	c := newCluster(t, "--nodes=3", "--no-example", "--isolate=never", "--controlplane-arg=--etcd-endpoints="+strings.Join(way.endpoints, ","),
		"--controlplane-arg=--lease-duration="+testLease.String(), "--controlplane-arg=--node-keepalive="+testKeepalive.String())
	first := planeAt(t, "the first", c.layout.Kubeconfig())
	image := push(t, c, cModule(t, "ticker"), "ticker")
	c.must(t, "wait", "--for=create", "serviceaccount/default", "--timeout=30s")
	for _, node := range c.state.Nodes {
		c.must(t, "wait", "--for=create", "node/"+node, "--timeout=30s")
		c.must(t, "wait", "--for=condition=Ready", "node/"+node, "--timeout=30s")
	}
	c.apply(t, "default", fmt.Sprintf(twenty, image))
	before := c.running(t, "twenty", 20)
	guests := c.guests(t)

	t.Run("other keys are refused", func(t *testing.T) {
		cmd := exec.Command(filepath.Join(binDir(), "controlplane"), "--data-dir", t.TempDir(), "--secure-port", "0", "--mqtt-port", "0", "--fleet-port", "0",
			"--etcd-endpoints", "http://"+etcd[0])
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), "another root certificate") || !strings.Contains(string(out), "--pki-dir") {
			t.Errorf("%v: %s", err, out)
		}
	})

	b := startSecond(t, c, []string{"http://" + etcd[0], "http://" + etcd[1], "http://" + etcd[2]})
	other := planeAt(t, "the second", filepath.Join(b.dir, "kubeconfig"))
	c.knowBoth(t, b)
	pods := map[string]string{} // one of each node
	list, err := c.client.CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{LabelSelector: "app=twenty"})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range list.Items {
		pods[p.Spec.NodeName] = p.Name
	}
	watch := &fleetWatch{}
	watching, stop := context.WithCancel(t.Context())
	var watcher sync.WaitGroup
	watcher.Go(func() { watch.run(watching, first, other) })
	defer func() { stop(); watcher.Wait() }()

	// check waits until logs of each node come through p, which takes as long as the
	// takeover does, and compares what runs.
	check := func(t *testing.T, what string, p *plane) {
		t.Helper()
		began := time.Now()
		for node, pod := range pods {
			eventually(t, 90*time.Second, func() error {
				_, err := p.logs(t.Context(), pod)
				if err != nil {
					err = fmt.Errorf("of %s, on %s, through %s: %w", pod, node, p.name, err)
				}
				return err
			})
		}
		logs := time.Since(began)
		p.follow(t, pods["board-1"])
		if now := c.guests(t); !maps.Equal(guests, now) {
			t.Errorf("%s: guests %v, before %v", what, now, guests)
		}
		l, err := p.client.CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{LabelSelector: "app=twenty"})
		if err != nil {
			t.Fatal(err)
		}
		after := map[string]string{}
		for _, pod := range l.Items {
			for _, s := range pod.Status.ContainerStatuses {
				after[pod.Name] = s.ContainerID
			}
		}
		if !maps.Equal(before, after) {
			t.Errorf("%s: containers %v, before %v", what, after, before)
		}
		// It gives orders: a pod comes and goes.
		name := fmt.Sprintf("after-%d", time.Now().UnixNano())
		manifest := filepath.Join(t.TempDir(), "pod.yaml")
		if err := os.WriteFile(manifest, []byte(wasmPod(name, image)), 0o600); err != nil {
			t.Fatal(err)
		}
		kubectl := func(args ...string) {
			t.Helper()
			if out, err := coracle(append([]string{"kubectl", "--kubeconfig", p.kubeconfig}, args...)...); err != nil {
				t.Fatal(err, out)
			}
		}
		kubectl("apply", "-f", manifest)
		kubectl("wait", "--for=jsonpath={.status.phase}=Running", "pod/"+name, "--timeout=60s")
		t.Logf("%s: through %s, logs of all nodes after %.1f s, a new pod runs after %.1f s (lease %v, keepalive %v)",
			what, p.name, logs.Seconds(), time.Since(began).Seconds(), testLease, testKeepalive)
		kubectl("delete", "pod", name, "--timeout=60s")
		if now := c.guests(t); !maps.Equal(guests, now) {
			t.Errorf("%s, after a pod came and went: guests %v, before %v", what, now, guests)
		}
		watch.mu.Lock()
		if len(watch.said) > 0 {
			t.Errorf("%s: nodes were called away: %v", what, watch.said)
			watch.said = nil
		}
		watch.mu.Unlock()
	}

	check(t, "both there", first)
	for _, pod := range pods {
		if _, err := other.logs(t.Context(), pod); err != nil {
			t.Errorf("logs through the one that waits: %v", err)
		}
	}
	other.follow(t, pods["board-2"])
	if out, err := coracle("restore", "status", "--kubeconfig", other.kubeconfig); err == nil || !strings.Contains(out, "isn't the active one: ask https://") {
		t.Errorf("the one that waits settles restores: %v: %s", err, out)
	}

	t.Run("killed", func(t *testing.T) {
		// The supervisor doesn't bring it back.
		if err := syscall.Kill(c.state.PID, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		defer syscall.Kill(c.state.PID, syscall.SIGCONT)
		if err := syscall.Kill(c.pid(t, "controlplane"), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		check(t, "killed", other)
	})
	// It comes back, and waits.
	eventually(t, 60*time.Second, func() error { _, err := first.logs(t.Context(), pods["board-1"]); return err })

	t.Run("frozen", func(t *testing.T) {
		frozen := b.pid()
		if err := syscall.Kill(frozen, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		check(t, "frozen", first)
		// What it would order now is of another time.
		c.must(t, "delete", "pod", "-l", "app=twenty", "--field-selector=spec.nodeName=board-3", "--wait=false")
		before = c.running(t, "twenty", 20)
		eventually(t, 60*time.Second, func() error {
			if n := len(c.guests(t)); n != 20 {
				return fmt.Errorf("%d guests", n)
			}
			return nil
		})
		guests = c.guests(t)
		list, err := c.client.CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{LabelSelector: "app=twenty"})
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range list.Items {
			pods[p.Spec.NodeName] = p.Name
		}
		if err := syscall.Kill(frozen, syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		eventually(t, 30*time.Second, func() error {
			if b.pid() == frozen {
				return fmt.Errorf("the deposed control plane still runs")
			}
			return nil
		})
		if log := b.log(); !strings.Contains(log, "lost its lease") {
			t.Errorf("it doesn't say why it ended:\n%s", log)
		}
		check(t, "deposed and awake", first)
	})
	eventually(t, 60*time.Second, func() error { _, err := other.logs(t.Context(), pods["board-1"]); return err })

	t.Run("cut from etcd", func(t *testing.T) {
		old := c.pid(t, "controlplane")
		way.set(true)
		defer way.set(false)
		check(t, "cut from etcd", other)
		eventually(t, 60*time.Second, func() error {
			if raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", old)); err == nil && len(raw) > 0 {
				return fmt.Errorf("the control plane without etcd still runs")
			}
			return nil
		})
		way.set(false)
		eventually(t, 90*time.Second, func() error { _, err := first.logs(t.Context(), pods["board-1"]); return err })
	})

	t.Run("stopped", func(t *testing.T) {
		// A clean end hands the lease over. It doesn't come back meanwhile: it could be
		// the faster one to ask for it.
		pid := b.pid()
		b.mu.Lock()
		defer b.mu.Unlock()
		if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		check(t, "stopped", first)
	})

	eventually(t, 60*time.Second, func() error { _, err := other.logs(t.Context(), pods["board-1"]); return err })

	t.Run("cut from the nodes", func(t *testing.T) {
		if os.Geteuid() != 0 {
			t.Skip("needs root: iptables")
		}
		old := c.pid(t, "controlplane")
		raw, err := os.ReadFile(filepath.Join(c.layout.ControlPlane(), "run", "controlplane.json"))
		if err != nil {
			t.Fatal(err)
		}
		var at struct{ MQTT, Fleet string }
		if err := json.Unmarshal(raw, &at); err != nil {
			t.Fatal(err)
		}
		// Their packets are lost on the way, as by a firewall; all else works.
		for _, address := range []string{at.MQTT, at.Fleet} {
			u, err := url.Parse(address)
			if err != nil {
				t.Fatal(err)
			}
			rule := []string{"INPUT", "-p", "tcp", "--dport", u.Port(), "-j", "DROP"}
			run(t, append([]string{"iptables", "-w", "5", "-I"}, rule...)...)
			defer run(t, append([]string{"iptables", "-w", "5", "-D"}, rule...)...)
		}
		check(t, "cut from the nodes", other)
		if log, err := os.ReadFile(c.layout.Log("controlplane")); err != nil || !strings.Contains(string(log), "nodes come to another control plane") {
			t.Errorf("it doesn't say why it ended: %v\n%s", err, log)
		}
		if c.pid(t, "controlplane") == old {
			t.Error("the control plane that nodes can't reach still runs")
		}
	})

	// No node was ever given an order of the past.
	for _, node := range c.state.Nodes {
		raw, err := os.ReadFile(c.layout.Log(node))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(raw)) {
			if strings.Contains(line, "order not carried out") {
				t.Errorf("%s: %s", node, line)
			}
		}
	}
}

// knowBoth waits until every node has learned the addresses of both.
func (c *cluster) knowBoth(t *testing.T, b *second) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(b.dir, "run", "controlplane.json"))
	if err != nil {
		t.Fatal(err)
	}
	var run struct{ MQTT, Fleet, API string }
	if err := json.Unmarshal(raw, &run); err != nil {
		t.Fatal(err)
	}
	for _, node := range c.state.Nodes {
		eventually(t, 30*time.Second, func() error {
			raw, err := os.ReadFile(filepath.Join(c.layout.Node(node), "identity", "identity.json"))
			if err != nil {
				return err
			}
			for _, url := range []string{run.MQTT, run.Fleet, run.API} {
				if !strings.Contains(string(raw), url) {
					return fmt.Errorf("%s doesn't know %s", node, url)
				}
			}
			return nil
		})
	}
	out, err := c.operate("token", "create", "newcomer")
	if err != nil {
		t.Fatal(err)
	}
	if line := strings.TrimSpace(strings.TrimPrefix(out, "edgelet --join ")); !strings.HasPrefix(line, "coracle1.") {
		t.Errorf("join line %q", line)
	}
}
