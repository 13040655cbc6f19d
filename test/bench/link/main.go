package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/log"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/coracle-edge/coracle/cmd/coracle/image"
	"github.com/coracle-edge/coracle/cmd/coracle/up"
	"github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/examples"
	"github.com/coracle-edge/coracle/test/bench/report"
	"github.com/coracle-edge/coracle/test/bench/rig"
)

func main() {
	b := bench{board: "board-1"}
	var classes string
	var be bool
	flag.StringVar(&b.bin, "bin", "bin", "where the programs are")
	flag.StringVar(&b.out, "out", ".coracle/bench/bench-link.jsonl", "where the rows go")
	flag.StringVar(&classes, "classes", "lan,wifi,lte,satellite", "link classes to be watched while idle; the first must have a keepalive shorter than a third of the window")
	flag.IntVar(&b.pods, "pods", 20, "how many pods the node runs")
	flag.IntVar(&b.starts, "starts", 5, "how many pods are started and stopped per class")
	flag.DurationVar(&b.window, "window", 3*time.Minute, "how long an idle node is watched per class")
	flag.DurationVar(&b.pause, "pause", time.Minute, "how long the node is gone for a reconnect")
	flag.DurationVar(&b.longPause, "long-pause", 5*time.Minute, "how long for a later one")
	flag.StringVar(&b.upstreamBin, "upstream", "", "folder of upstream's kubelet, kube-proxy, kube-apiserver and etcd, to be measured at the same time (make bench-link builds them)")
	flag.DurationVar(&b.upstreamWindow, "upstream-window", 10*time.Minute, "how long upstream's node is watched: a kubelet tells its status every five minutes")
	flag.BoolVar(&be, "be-upstream", false, "be upstream's cluster, in namespaces of its own (the bench starts it)")
	flag.Parse()
	_ = log.SetLevel("error") // the registry client warns of media types that it doesn't know
	b.classes = strings.Split(classes, ",")
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if be {
		if err := beUpstream(ctx, b.bin, b.upstreamBin, b.pods, b.upstreamWindow); err != nil {
			fmt.Fprintln(os.Stderr, "bench-link:", err)
			stop()
			os.Exit(1)
		}
		return
	}
	if err := b.run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench-link:", err)
		os.Exit(1)
	}
}

// kubelet is what upstream's kubelet and kube-proxy exchange with their API
// server, idle, as it was measured once with containerd; what they
// exchange in this run takes its place, see addUpstream.
const kubelet = "kubelet and kube-proxy 14500; KubeEdge 150000"

type bench struct {
	bin, out, board  string
	classes          []string
	pods, starts     int
	window           time.Duration
	pause, longPause time.Duration
	upstreamBin      string
	upstreamWindow   time.Duration

	report report.Report
	layout up.Layout
	client kubernetes.Interface
	ping   float64 // bytes of a keepalive and its answer, on the socket
}

func (b *bench) run(ctx context.Context) (err error) {
	for _, class := range b.classes {
		if err := fleet.CheckClass(class); err != nil {
			return err
		}
	}
	if b.bin, err = filepath.Abs(b.bin); err != nil {
		return err
	}
	if b.upstreamBin != "" {
		if b.upstreamBin, err = filepath.Abs(b.upstreamBin); err != nil {
			return err
		}
	}
	reference, err := b.startUpstream()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench-link: upstream's node isn't measured:", err)
	} else {
		defer reference.stop()
	}
	dir, err := os.MkdirTemp("", "coracle-link")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b.layout = up.Layout{Root: dir}
	if err := rig.Coracle(ctx, b.bin, "up", "--detach", "--no-example", "--data-dir", dir, "--registry-address", "127.0.0.1:0"); err != nil {
		return err
	}
	defer func() {
		if downErr := rig.Coracle(context.WithoutCancel(ctx), b.bin, "down", "--data-dir", dir); err == nil {
			err = downErr
		}
	}()
	if err := b.populate(ctx); err != nil {
		return err
	}
	for _, class := range b.classes {
		if err := b.idle(ctx, class); err != nil {
			return fmt.Errorf("idle, class %s: %w", class, err)
		}
	}
	for _, class := range []string{"lan", "satellite"} {
		if err := b.startAndStop(ctx, class); err != nil {
			return fmt.Errorf("start and stop, class %s: %w", class, err)
		}
	}
	if err := b.reconnects(ctx); err != nil {
		return fmt.Errorf("reconnect: %w", err)
	}
	if reference != nil {
		if err := b.addUpstream(reference); err != nil {
			fmt.Fprintln(os.Stderr, "bench-link: upstream's node wasn't measured:", err) // ours was
		}
	}
	if err := b.report.Print(os.Stdout); err != nil {
		return err
	}
	return b.report.Write(b.out)
}

// populate runs ordinary pods: of a Deployment, with a service account's token
// and a ConfigMap.
func (b *bench) populate(ctx context.Context) error {
	client, err := rig.Client(b.layout.Kubeconfig())
	if err != nil {
		return err
	}
	b.client = client
	state, err := b.layout.ReadState()
	if err != nil {
		return err
	}
	artifact, err := image.New(examples.HelloModule, time.Time{})
	if err != nil {
		return err
	}
	if _, err := image.Push(ctx, artifact, examples.HelloImage, state.HostsDir); err != nil {
		return err
	}
	if err := rig.Until(ctx, time.Minute, "the default service account is there", func() bool {
		_, err := b.client.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{})
		return err == nil
	}); err != nil {
		return err
	}
	if _, err := b.client.CoreV1().ConfigMaps("default").Create(ctx, settingsMap(), metav1.CreateOptions{}); err != nil {
		return err
	}
	replicas, labels := int32(b.pods), map[string]string{"app": "ordinary"}
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "ordinary"}, Spec: appsv1.DeploymentSpec{
		Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: labels},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: hello("ordinary").Spec},
	}}
	if _, err := b.client.AppsV1().Deployments("default").Create(ctx, d, metav1.CreateOptions{}); err != nil {
		return err
	}
	if err := rig.Until(ctx, 3*time.Minute, "all pods run", func() bool {
		d, err := b.client.AppsV1().Deployments("default").Get(ctx, "ordinary", metav1.GetOptions{})
		return err == nil && int(d.Status.AvailableReplicas) == b.pods
	}); err != nil {
		return err
	}
	// It looks every five minutes, and would tell in the midst of something else.
	return rig.Until(ctx, 6*time.Minute, "the node has told of its new image", func() bool {
		n, err := b.client.CoreV1().Nodes().Get(ctx, b.board, metav1.GetOptions{})
		return err == nil && slices.ContainsFunc(n.Status.Images, func(i corev1.ContainerImage) bool { return slices.Contains(i.Names, examples.HelloImage) })
	})
}

// settingsMap is what the pods' environment is of.
func settingsMap() *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "settings"}, Data: map[string]string{"LEVEL": "info", "INTERVAL": "30s"}}
}

func hello(name string) *corev1.Pod {
	class := "wasm"
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", Labels: map[string]string{"app": name}},
		Spec: corev1.PodSpec{
			RuntimeClassName:              &class,
			TerminationGracePeriodSeconds: new(int64),
			Containers: []corev1.Container{{
				Name: "hello", Image: examples.HelloImage, ImagePullPolicy: corev1.PullIfNotPresent,
				EnvFrom: []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "settings"}}}},
			}},
		},
	}
}

// use has the node go by a class and waits until it does and is quiet.
func (b *bench) use(ctx context.Context, class string) error {
	patch := fmt.Sprintf(`{"metadata":{"labels":{%q:%q}}}`, fleet.LabelLinkClass, class)
	if _, err := b.client.CoreV1().Nodes().Patch(ctx, b.board, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		return err
	}
	want := fleet.DefaultClasses()[class]
	if err := rig.Until(ctx, time.Minute, "the node's link is of class "+class, func() bool {
		s, err := b.status(ctx)
		return err == nil && s.Link.Live && s.Link.Class == class && s.Link.Keepalive == want.Keepalive
	}); err != nil {
		return err
	}
	_, err := b.quiet(ctx, class)
	return err
}

// idle watches a class.
func (b *bench) idle(ctx context.Context, class string) error {
	if err := b.use(ctx, class); err != nil {
		return err
	}
	keepalive := fleet.DefaultClasses()[class].Keepalive
	before, err := b.status(ctx)
	if err != nil {
		return err
	}
	if err := rig.Sleep(ctx, b.window); err != nil {
		return err
	}
	after, err := b.status(ctx)
	if err != nil {
		return err
	}
	if after.Link.Connections != before.Link.Connections {
		return fmt.Errorf("the node connected anew meanwhile: this is not idle")
	}
	socket, plain := after.cost(before)
	// A keepalive and its answer are two bytes each.
	pings := plain / 4
	hours := float64(b.window) / float64(time.Hour)
	onSocket, above, how := socket/hours, plain/hours, ""
	if keepalive*3 > b.window {
		if b.ping == 0 {
			return fmt.Errorf("the cost of a keepalive isn't known: watch a class of less than %s first, or longer", b.window/3)
		}
		how = ", keepalives computed"
		perHour := float64(time.Hour) / float64(keepalive)
		seen := float64(int(pings))
		onSocket = max(socket-seen*b.ping, 0)/hours + perHour*b.ping
		above = max(plain-seen*4, 0)/hours + perHour*4
	} else if pings >= 1 && b.ping == 0 {
		b.ping = socket / pings
		b.report.Add("a keepalive and its answer, on the socket", b.ping, "B", "with TCP's and IP's headers some 120 more")
	}
	mark := 350.0
	if class == "satellite" {
		mark = 30
	}
	name := fmt.Sprintf("%s (%s), %d pods, idle", class, keepalive, b.pods)
	b.report.AddMarked(name+": on the socket"+how, onSocket*24/1e3, "KB/day", kubelet, mark)
	b.report.Add(name+": on the socket"+how, onSocket, "B/h", "-")
	b.report.Add(name+": above TLS"+how, above, "B/h", "-")
	return nil
}

// startAndStop runs one more pod, some times.
func (b *bench) startAndStop(ctx context.Context, class string) error {
	if err := b.use(ctx, class); err != nil {
		return err
	}
	pods := b.client.CoreV1().Pods("default")
	var start, stop, startPlain, stopPlain []float64
	for i := range b.starts {
		name := fmt.Sprintf("more-%s-%d", class, i)
		before, err := b.quiet(ctx, class)
		if err != nil {
			return err
		}
		if _, err := pods.Create(ctx, hello(name), metav1.CreateOptions{}); err != nil {
			return err
		}
		if err := rig.Until(ctx, time.Minute, "pod "+name+" runs", func() bool {
			p, err := pods.Get(ctx, name, metav1.GetOptions{})
			return err == nil && p.Status.Phase == corev1.PodRunning
		}); err != nil {
			return err
		}
		running, err := b.quiet(ctx, class)
		if err != nil {
			return err
		}
		if err := pods.Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
			return err
		}
		if err := rig.Until(ctx, time.Minute, "pod "+name+" is gone", func() bool {
			_, err := pods.Get(ctx, name, metav1.GetOptions{})
			return err != nil
		}); err != nil {
			return err
		}
		gone, err := b.quiet(ctx, class)
		if err != nil {
			return err
		}
		s, p := running.cost(before)
		start, startPlain = append(start, s), append(startPlain, p)
		s, p = gone.cost(running)
		stop, stopPlain = append(stop, s), append(stopPlain, p)
	}
	for _, x := range []struct {
		what          string
		socket, plain []float64
	}{{"start", start, startPlain}, {"stop", stop, stopPlain}} {
		b.report.AddMarked(fmt.Sprintf("%s, a pod's %s, both ways: on the socket, worst of %d", class, x.what, b.starts), slices.Max(x.socket), "B", "-", 4000)
		b.report.Add(fmt.Sprintf("%s, a pod's %s, both ways: above TLS, worst of %d", class, x.what, b.starts), slices.Max(x.plain), "B", "-")
	}
	return nil
}

// reconnects lets the node be gone for some time, as it would behind a tunnel:
// it is stopped, so the broker gives up on it, and goes on where it was.
func (b *bench) reconnects(ctx context.Context) error {
	if err := b.use(ctx, "lan"); err != nil {
		return err
	}
	for _, pause := range []time.Duration{b.pause, b.longPause} {
		before, err := b.quiet(ctx, "lan")
		if err != nil {
			return err
		}
		pid, err := rig.PID(b.layout.Root, b.board)
		if err != nil {
			return err
		}
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			return err
		}
		err = rig.Sleep(ctx, pause)
		if contErr := syscall.Kill(pid, syscall.SIGCONT); err == nil {
			err = contErr
		}
		if err != nil {
			return err
		}
		if err := b.reconnected(ctx, before, fmt.Sprintf("a reconnect after %s without changes, %d pods", pause, b.pods), true); err != nil {
			return err
		}
	}
	// A control plane that was started anew knows no TLS session.
	before, err := b.quiet(ctx, "lan")
	if err != nil {
		return err
	}
	pid, err := rig.PID(b.layout.Root, "controlplane")
	if err != nil {
		return err
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return err
	}
	return b.reconnected(ctx, before, fmt.Sprintf("a reconnect to a control plane that was killed, %d pods", b.pods), false)
}

// reconnected adds what it took until the node is live and quiet again.
func (b *bench) reconnected(ctx context.Context, before status, name string, resumed bool) error {
	if err := rig.Until(ctx, 2*time.Minute, "the node is connected again", func() bool {
		s, err := b.status(ctx)
		return err == nil && s.Link.Live && s.Link.Connections > before.Link.Connections
	}); err != nil {
		return err
	}
	after, err := b.quiet(ctx, "lan")
	if err != nil {
		return err
	}
	if n := after.Link.Connections - before.Link.Connections; n != 1 {
		return fmt.Errorf("%s: the node connected %d times", name, n)
	}
	socket, plain := after.cost(before)
	if !resumed {
		b.report.Add(name+", full TLS handshake: on the socket", socket, "B", "-")
		b.report.Add(name+": above TLS", plain, "B", "-")
		return nil
	}
	if !after.Link.Resumed {
		return fmt.Errorf("%s: the TLS session was not resumed", name)
	}
	b.report.AddMarked(name+", TLS resumed: on the socket", socket, "B", "-", 4000)
	b.report.Add(name+": above TLS", plain, "B", "-")
	return nil
}
