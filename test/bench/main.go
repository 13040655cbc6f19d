package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/containerd/log"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/coracle-edge/coracle/cmd/coracle/image"
	"github.com/coracle-edge/coracle/cmd/coracle/up"
	"github.com/coracle-edge/coracle/examples"
	"github.com/coracle-edge/coracle/test/bench/proc"
	"github.com/coracle-edge/coracle/test/bench/report"
	"github.com/coracle-edge/coracle/test/bench/rig"
)

func main() {
	var b bench
	flag.StringVar(&b.bin, "bin", "bin", "where the programs are")
	flag.StringVar(&b.out, "out", ".coracle/bench/bench.jsonl", "where the rows go")
	flag.StringVar(&b.goTool, "go", "go", "the Go command, for the sizes of programs for boards")
	flag.IntVar(&b.starts, "starts", 100, "how many pods are started for the latency")
	flag.IntVar(&b.pods, "pods", 10, "how many pods for the memory of a pod")
	flag.IntVar(&b.nodes, "nodes", 1, "how many nodes there are while the idle control plane is watched")
	flag.DurationVar(&b.window, "window", 5*time.Minute, "how long idle processes are watched")
	flag.Parse()
	if b.window < minWindow {
		fmt.Fprintf(os.Stderr, "bench: --window %s: an idle node speaks once a minute, so at least %s\n", b.window, minWindow)
		os.Exit(2)
	}
	_ = log.SetLevel("error") // the registry client warns of media types that it doesn't know
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := b.run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type bench struct {
	bin, out     string
	goTool       string
	starts, pods int
	nodes        int
	window       time.Duration

	report report.Report
	layout up.Layout
	client kubernetes.Interface
}

// minWindow has two keepalives of a node in it.
const minWindow = 2 * time.Minute

// settle is how long a process is left alone before its memory is read.
const settle = 15 * time.Second

func (b *bench) run(ctx context.Context) (err error) {
	if b.bin, err = filepath.Abs(b.bin); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "coracle-bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b.layout = up.Layout{Root: dir}
	// Pages of a program that was just built are dirty, and count as private.
	syscall.Sync()
	if err := rig.Coracle(ctx, b.bin, "up", "--detach", "--no-example", "--data-dir", dir, "--registry-address", "127.0.0.1:0", "--nodes", strconv.Itoa(b.nodes)); err != nil {
		return err
	}
	defer func() {
		if downErr := rig.Coracle(context.WithoutCancel(ctx), b.bin, "down", "--data-dir", dir); err == nil {
			err = downErr
		}
	}()
	if err := b.connect(ctx); err != nil {
		return err
	}
	for _, step := range []func(context.Context) error{b.readiness, b.idle, b.latency, b.podMemory, b.sizes} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	if err := b.report.Print(os.Stdout); err != nil {
		return err
	}
	return b.report.Write(b.out)
}

func (b *bench) connect(ctx context.Context) error {
	client, err := rig.Client(b.layout.Kubeconfig())
	if err != nil {
		return err
	}
	b.client = client
	state, err := b.layout.ReadState()
	if err != nil {
		return err
	}
	a, err := image.New(examples.HelloModule, time.Time{})
	if err != nil {
		return err
	}
	if _, err := image.Push(ctx, a, examples.HelloImage, state.HostsDir); err != nil {
		return err
	}
	return rig.Until(ctx, time.Minute, "the node is ready and the default service account there", func() bool {
		n, err := b.client.CoreV1().Nodes().Get(ctx, state.Nodes[0], metav1.GetOptions{})
		if err != nil {
			return false
		}
		_, err = b.client.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{})
		return err == nil && slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
			return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
		})
	})
}

// readiness starts the control plane once more, on its existing data, and reads
// how long it takes from its start to its word that it is ready.
func (b *bench) readiness(ctx context.Context) error {
	pid, err := rig.PID(b.layout.Root, "controlplane")
	if err != nil {
		return err
	}
	info := filepath.Join(b.layout.ControlPlane(), "run", "controlplane.json")
	if err := os.Remove(info); err != nil {
		return err
	}
	p, err := os.FindProcess(pid)
	if err != nil {
		return err
	}
	if err := p.Kill(); err != nil {
		return err
	}
	var ready time.Time
	if err := rig.Until(ctx, time.Minute, "the control plane is ready again", func() bool {
		i, err := os.Stat(info)
		if err == nil {
			ready = i.ModTime()
		}
		return err == nil
	}); err != nil {
		return err
	}
	if pid, err = rig.PID(b.layout.Root, "controlplane"); err != nil {
		return err
	}
	started, err := proc.StartOf(pid)
	if err != nil {
		return err
	}
	b.report.AddMarked("control plane: start to ready", ready.Sub(started).Seconds(), "s", "upstream prototype 1.5-2.2", 3)
	return nil
}

// idle watches the processes while nothing happens.
func (b *bench) idle(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(2 * settle):
	}
	type sample struct {
		pid     int
		written float64
		wire    proc.Wire
	}
	names := []string{"controlplane", "board-1"}
	before := map[string]sample{}
	for _, n := range names {
		pid, err := rig.PID(b.layout.Root, n)
		if err != nil {
			return err
		}
		m, err := proc.MemoryOf(pid)
		if err != nil {
			return err
		}
		if n == "controlplane" {
			b.report.AddMarked("control plane: RSS, idle", m.RSS, "MiB", "upstream 491; k3s server 1413 on a Pi 4B", 165)
			b.report.AddMarked("control plane: private, idle", m.Private, "MiB", "prototype of the API server 41-50", 65)
			b.report.Add("control plane: anonymous, idle", m.Anonymous, "MiB", "-")
		} else {
			b.report.AddMarked("edgelet: RSS, no pods", m.RSS, "MiB", "k3s agent 268 on a Pi 4B; edgecore 70; kubelet 82", 26)
			b.report.AddMarked("edgelet: private, no pods", m.Private, "MiB", "nucleus-lite < 15 (no pods)", 10)
			b.report.Add("edgelet: anonymous, no pods", m.Anonymous, "MiB", "-")
		}
		s := sample{pid: pid}
		if s.written, err = proc.Written(pid); err != nil {
			return err
		}
		if s.wire, err = proc.WireOf(pid); err != nil {
			return err
		}
		before[n] = s
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(b.window):
	}
	hour := float64(time.Hour) / float64(b.window)
	for _, n := range names {
		s := before[n]
		now, err := proc.Written(s.pid)
		if err != nil {
			return err
		}
		w, err := proc.WireOf(s.pid)
		if err != nil {
			return err
		}
		perHour := (now - s.written) * hour
		onWire := (w.Sent + w.Received - s.wire.Sent - s.wire.Received) * hour
		if n == "controlplane" {
			b.report.AddMarked(fmt.Sprintf("control plane: written to disk, idle, nodes: %d", b.nodes), perHour/1e6, "MB/h", "upstream 190; k3s 21-37", 1)
			b.report.Add("control plane: on its sockets, idle", onWire/1e3, "KB/h", "-")
		} else {
			if w.Segments == s.wire.Segments {
				return fmt.Errorf("%s said nothing in %s: it has lost its connection", n, b.window)
			}
			b.report.AddMarked("edgelet: written to disk, idle", perHour, "B/h", "k3s 21-37 MB/h", 0)
			b.report.AddMarked("edgelet: on the wire, idle, TLS included", onWire*24/1e3, "KB/day", "kubelet and kube-proxy 14500; KubeEdge 150000", 350)
			b.report.Add("edgelet: TCP segments, idle", (w.Segments-s.wire.Segments)*hour*24, "per day", "-")
		}
	}
	return nil
}

func hello(name string) *corev1.Pod {
	class := "wasm"
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"},
		Spec: corev1.PodSpec{
			RuntimeClassName:              &class,
			TerminationGracePeriodSeconds: new(int64),
			Containers:                    []corev1.Container{{Name: "hello", Image: examples.HelloImage, ImagePullPolicy: corev1.PullIfNotPresent}},
		},
	}
}

// latency starts pods one after another and reads from the call that creates
// one to a watch's word that it runs.
func (b *bench) latency(ctx context.Context) error {
	pods := b.client.CoreV1().Pods("default")
	w, err := pods.Watch(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	defer w.Stop()
	var took []time.Duration
	for i := range b.starts + 1 { // the first one pulls the image and is not counted
		pod := hello(fmt.Sprintf("start-%d", i))
		start := time.Now()
		if _, err := pods.Create(ctx, pod, metav1.CreateOptions{}); err != nil {
			return err
		}
		timeout := time.After(30 * time.Second)
	watch:
		for {
			select {
			case <-timeout:
				return fmt.Errorf("pod %s did not run within 30 s", pod.Name)
			case e, ok := <-w.ResultChan():
				if !ok {
					return fmt.Errorf("the watch ended")
				}
				if p, isPod := e.Object.(*corev1.Pod); isPod && p.Name == pod.Name && p.Status.Phase == corev1.PodRunning {
					break watch
				}
			}
		}
		if i > 0 {
			took = append(took, time.Since(start))
		}
		if err := pods.Delete(ctx, pod.Name, metav1.DeleteOptions{}); err != nil {
			return err
		}
	}
	slices.Sort(took)
	ms := func(p float64) float64 {
		return float64(took[min(len(took)-1, int(p*float64(len(took))))].Microseconds()) / 1000
	}
	b.report.AddMarked("pod, create to Running, p50", ms(0.50), "ms", "upstream 950", 100)
	b.report.Add("pod, create to Running, p99", ms(0.99), "ms", "KubeEdge 4090 (at 100k nodes)")
	return rig.Until(ctx, time.Minute, "all pods are gone", func() bool {
		l, err := pods.List(ctx, metav1.ListOptions{})
		return err == nil && len(l.Items) == 0
	})
}

// podMemory reads what a running pod adds: to edgelet, and its runner.
func (b *bench) podMemory(ctx context.Context) error {
	pid, err := rig.PID(b.layout.Root, "board-1")
	if err != nil {
		return err
	}
	plane, err := rig.PID(b.layout.Root, "controlplane")
	if err != nil {
		return err
	}
	time.Sleep(settle)
	before, err := proc.MemoryOf(pid)
	if err != nil {
		return err
	}
	pods := b.client.CoreV1().Pods("default")
	for i := range b.pods {
		if _, err := pods.Create(ctx, hello(fmt.Sprintf("many-%d", i)), metav1.CreateOptions{}); err != nil {
			return err
		}
	}
	if err := rig.Until(ctx, time.Minute, "all pods run", func() bool {
		l, err := pods.List(ctx, metav1.ListOptions{FieldSelector: "status.phase=Running"})
		return err == nil && len(l.Items) == b.pods
	}); err != nil {
		return err
	}
	time.Sleep(settle)
	after, err := proc.MemoryOf(pid)
	if err != nil {
		return err
	}
	planeAfter, err := proc.MemoryOf(plane)
	if err != nil {
		return err
	}
	runners, err := proc.PidsOf(filepath.Join(b.bin, "wasmrunner"))
	if err != nil {
		return err
	}
	if len(runners) != b.pods {
		return fmt.Errorf("%d runners for %d pods", len(runners), b.pods)
	}
	var pss float64
	for _, r := range runners {
		m, err := proc.MemoryOf(r)
		if err != nil {
			return err
		}
		pss += m.PSS
	}
	n := float64(b.pods)
	b.report.Add(fmt.Sprintf("edgelet: RSS, %d Wasm pods", b.pods), after.RSS, "MiB", "kubelet and kube-proxy with 10 pods 168")
	b.report.Add(fmt.Sprintf("edgelet: private, %d Wasm pods", b.pods), after.Private, "MiB", "-")
	b.report.Add(fmt.Sprintf("edgelet: anonymous, %d Wasm pods", b.pods), after.Anonymous, "MiB", "-")
	b.report.Add(fmt.Sprintf("control plane: RSS, %d Wasm pods", b.pods), planeAfter.RSS, "MiB", "-")
	b.report.Add(fmt.Sprintf("control plane: anonymous, %d Wasm pods", b.pods), planeAfter.Anonymous, "MiB", "-")
	b.report.AddMarked("a Wasm pod: PSS, its runner and edgelet's share", (pss+after.PSS-before.PSS)/n, "MiB", "runwasi shims 16-67; containerd shim 5.7", 2)
	b.report.Add("a Wasm pod: PSS, its runner alone", pss/n, "MiB", "-")
	return nil
}

// sizes builds edgelet for boards and reads the files' sizes.
func (b *bench) sizes(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "coracle-size")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	for _, t := range []struct{ name, arch, arm string }{{"arm64", "arm64", ""}, {"armv6", "arm", "6"}} {
		for _, program := range []string{"edgelet", "wasmrunner"} {
			file := filepath.Join(dir, program+"-"+t.name)
			cmd := exec.CommandContext(ctx, b.goTool, "build", "-trimpath", "-tags=grpcnotrace", "-buildvcs=false", "-ldflags", "-s -w", "-o", file, "./cmd/"+program)
			cmd.Env = append(os.Environ(), "GOOS=linux", "CGO_ENABLED=0", "GOARCH="+t.arch, "GOARM="+t.arm)
			if text, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("build %s for %s: %w\n%s", program, t.name, err, text)
			}
			info, err := os.Stat(file)
			if err != nil {
				return err
			}
			b.report.Add(program+": size, "+t.name, float64(info.Size())/(1<<20), "MiB", "k3s 70 (one binary)")
		}
	}
	return nil
}
