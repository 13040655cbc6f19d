package wasmpods

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"

	"github.com/coracle-edge/coracle/cmd/coracle/up"
	"github.com/coracle-edge/coracle/test/lab"
)

// guestImage has the guest as /probe.wasm, in a root file system.
const guestImage = "wasmpods.example/guest:1"

// patience is how long anything is waited for: CI's machines are busy.
const patience = 2 * time.Minute

var (
	importOnce sync.Once
	importErr  error
)

var cluster struct {
	layout up.Layout
	client kubernetes.Interface
}

func TestMain(m *testing.M) {
	flag.Parse()
	// They wait most of the time, and for one another never.
	if err := flag.Set("test.parallel", "12"); err != nil {
		panic(err)
	}
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "coracle-wasm")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		defer lab.Cleanup()
		// Guests of other users reach what is in it.
		if err := os.Chmod(dir, 0o755); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		cluster.layout = up.Layout{Root: dir}
		err = start(dir)
		code := 1
		if err == nil {
			code = m.Run()
		}
		if code != 0 {
			lab.ClusterLogs(os.Stderr, dir)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		if err := lab.ClusterDown(bin(), dir, cluster.layout.ID()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return code
	}())
}

func bin() string {
	dir, err := filepath.Abs("../../bin")
	if err != nil {
		panic(err)
	}
	return dir
}

func start(dir string) error {
	if _, err := lab.Coracle(bin(), "up", "--detach", "--no-example", "--no-outbound", "--data-dir", dir, "--registry-address", "127.0.0.1:0"); err != nil {
		return err
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", cluster.layout.Kubeconfig())
	if err != nil {
		return err
	}
	cfg.QPS, cfg.Burst = 200, 400
	cluster.client, err = kubernetes.NewForConfig(cfg)
	return err
}

// node returns the name of the cluster's only one, after it has the guest's image.
func node(t *testing.T) string {
	t.Helper()
	const name = "board-1"
	importOnce.Do(func() {
		module := lab.Wasm(t, filepath.Join("guest", "guest.c"))
		archive := lab.Archive(lab.Compat(module, "compat", lab.File{Path: "usr/share/motd", Mode: 0o644, Data: []byte("from the image\n")}), "")
		for deadline := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) { // edgelet may have just begun
			if importErr = importImage(name, archive, guestImage); importErr == nil || time.Now().After(deadline) {
				return
			}
		}
	})
	if importErr != nil {
		t.Fatal(importErr)
	}
	return name
}

func importImage(node string, archive []byte, ref string) error {
	socket := filepath.Join(cluster.layout.Node(node), "run", "edgelet.sock")
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	resp, err := client.Post("http://edgelet/v1/images/import?ref="+ref, "application/x-tar", bytes.NewReader(archive))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if said, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK {
		return fmt.Errorf("importing %s: %s %s %w", ref, resp.Status, said, err)
	}
	return nil
}

// bed is a namespace in which a test makes its pods.
type bed struct {
	*testing.T
	ns string
}

// newBed is called first by each test; tests run side by side.
func newBed(t *testing.T) *bed {
	t.Helper()
	t.Parallel()
	return bedAlone(t)
}

// bedAlone is for a test beside which no other runs.
func bedAlone(t *testing.T) *bed {
	t.Helper()
	node(t)
	ns, err := cluster.client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: strings.ToLower(t.Name()[4:min(len(t.Name()), 40)]) + "-"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	b := &bed{t, ns.Name}
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := b.try("", "get", "pods", "-o", "wide")
			t.Log(out)
			for line := range strings.Lines(out) {
				if name := strings.Fields(line)[0]; name != "NAME" {
					said, _ := b.try("", "logs", name, "--all-containers", "--prefix", "--tail=20")
					t.Log(said)
				}
			}
		}
		_ = cluster.client.CoreV1().Namespaces().Delete(context.Background(), b.ns, metav1.DeleteOptions{})
	})
	b.eventually("the namespace's service account", func() error {
		_, err := cluster.client.CoreV1().ServiceAccounts(b.ns).Get(t.Context(), "default", metav1.GetOptions{})
		return err
	})
	return b
}

// eventually repeats ok until it returns nil.
func (b *bed) eventually(what string, ok func() error) {
	b.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			b.Fatalf("%s: not within %s: %v", what, patience, err)
		}
	}
}

// never fails the test if it happens within three seconds.
func (b *bed) never(what string, happened func() bool) {
	b.Helper()
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if happened() {
			b.Fatal(what)
		}
	}
}

// try runs kubectl in the namespace.
func (b *bed) try(stdin string, args ...string) (string, error) {
	return lab.Kubectl(bin(), cluster.layout.Kubeconfig(), stdin, append([]string{"-n", b.ns}, args...)...)
}

// onBoard is a command in the board's namespaces, where it has any.
func (b *bed) onBoard(args ...string) *exec.Cmd {
	raw, err := os.ReadFile(filepath.Join(cluster.layout.Root, "run", "namespaces-board-1.pid"))
	if err == nil {
		args = append([]string{"nsenter", "--target", strings.Fields(string(raw))[0], "--net", "--mount", "--pid", "--"}, args...)
	}
	return exec.Command(args[0], args[1:]...)
}

func (b *bed) kubectl(args ...string) string {
	b.Helper()
	out, err := b.try("", args...)
	if err != nil {
		b.Fatal(err, out)
	}
	return out
}

// pod makes a pod of a spec in YAML, to which it adds what all have: the class, no
// long grace, and for each container a name (c0, c1 ...), the guest's image and no pull.
func (b *bed) pod(name, spec string) *corev1.Pod {
	b.Helper()
	return b.podAs(name, map[string]string{"note": "a note"}, spec)
}

// podAs is pod with annotations.
func (b *bed) podAs(name string, annotations map[string]string, spec string) *corev1.Pod {
	b.Helper()
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": name, "colour": "blue"}, Annotations: annotations}}
	if err := yaml.UnmarshalStrict([]byte(spec), &p.Spec); err != nil {
		b.Fatalf("pod %s: %v\n%s", name, err, spec)
	}
	complete(&p.Spec)
	made, err := cluster.client.CoreV1().Pods(b.ns).Create(b.Context(), p, metav1.CreateOptions{})
	if err != nil {
		b.Fatal(err)
	}
	return made
}

func complete(s *corev1.PodSpec) {
	class, grace := "wasm", int64(2)
	s.RuntimeClassName = &class
	if s.TerminationGracePeriodSeconds == nil {
		s.TerminationGracePeriodSeconds = &grace
	}
	for kind, list := range map[string][]corev1.Container{"i": s.InitContainers, "c": s.Containers} {
		for i := range list {
			c := &list[i]
			if c.Name == "" {
				c.Name = fmt.Sprint(kind, i)
			}
			if c.Image == "" {
				c.Image = guestImage
			}
			if c.ImagePullPolicy == "" {
				c.ImagePullPolicy = corev1.PullNever
			}
		}
	}
}

// become waits until a pod is as ok wants it.
func (b *bed) become(name, what string, ok func(*corev1.Pod) bool) *corev1.Pod {
	b.Helper()
	var last *corev1.Pod
	b.eventually("pod "+name+": "+what, func() error {
		p, err := cluster.client.CoreV1().Pods(b.ns).Get(b.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if last = p; !ok(p) {
			raw, _ := yaml.Marshal(p.Status)
			return fmt.Errorf("%s", raw)
		}
		return nil
	})
	return last
}

func (b *bed) phase(name string, phase corev1.PodPhase) *corev1.Pod {
	b.Helper()
	return b.become(name, "is "+string(phase), func(p *corev1.Pod) bool { return p.Status.Phase == phase })
}

func (b *bed) ready(name string, ready bool) *corev1.Pod {
	b.Helper()
	return b.become(name, fmt.Sprint("is ready: ", ready), func(p *corev1.Pod) bool {
		for _, c := range p.Status.Conditions {
			if c.Type == corev1.PodReady {
				return (c.Status == corev1.ConditionTrue) == ready && p.Status.Phase == corev1.PodRunning
			}
		}
		return false
	})
}

// logs waits until a container's log has all the words, in this order.
func (b *bed) logs(pod, container string, words ...string) string {
	b.Helper()
	var out string
	b.eventually("log of "+pod+"/"+container, func() error {
		raw, err := cluster.client.CoreV1().Pods(b.ns).GetLogs(pod, &corev1.PodLogOptions{Container: container}).DoRaw(b.Context())
		if err != nil {
			return err
		}
		out = string(raw)
		rest := out
		for _, w := range words {
			_, after, ok := strings.Cut(rest, w)
			if !ok {
				return fmt.Errorf("%q isn't in %q", w, out)
			}
			rest = after
		}
		return nil
	})
	return out
}

// status of a container; the zero one while it has none.
func status(p *corev1.Pod, container string) corev1.ContainerStatus {
	for _, list := range [][]corev1.ContainerStatus{p.Status.ContainerStatuses, p.Status.InitContainerStatuses, p.Status.EphemeralContainerStatuses} {
		for _, s := range list {
			if s.Name == container {
				return s
			}
		}
	}
	return corev1.ContainerStatus{}
}

func waits(p *corev1.Pod, container, reason string) bool {
	w := status(p, container).State.Waiting
	return w != nil && w.Reason == reason
}

// refused waits until a container can't be made, with a message that has the word.
// (Events would say so too, but the hub stores a few of each node only.)
func (b *bed) refused(pod, container, reason, word string) {
	b.Helper()
	b.become(pod, "is refused for "+word, func(p *corev1.Pod) bool {
		return waits(p, container, reason) && strings.Contains(status(p, container).State.Waiting.Message, word)
	})
}

// ended is how a container ended, now or before its last restart; nil if it didn't.
func ended(p *corev1.Pod, container string) *corev1.ContainerStateTerminated {
	s := status(p, container)
	if s.State.Terminated != nil {
		return s.State.Terminated
	}
	return s.LastTerminationState.Terminated
}
