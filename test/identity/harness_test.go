package identity

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
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
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/coracle-edge/coracle/controlplane/join"
	"github.com/coracle-edge/coracle/edgelet/standing"
	"github.com/coracle-edge/coracle/examples"
	"github.com/coracle-edge/coracle/test/lab"
)

func TestMain(m *testing.M) {
	code := lab.Main(m)
	lab.Cleanup()
	os.Exit(code)
}

// process is a program that runs, and what it says.
type process struct {
	cmd *exec.Cmd
	log *lockedBuffer
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func run(t testing.TB, log *lockedBuffer, program string, args ...string) *process {
	t.Helper()
	p := &process{cmd: exec.Command(program, args...), log: log}
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *process) end(s syscall.Signal) {
	if p == nil {
		return
	}
	_ = p.cmd.Process.Signal(s)
	_ = p.cmd.Wait()
}

// plane is a control plane on a data folder of its own; it comes back on the same ports.
type plane struct {
	t      *testing.T
	dir    string
	flags  []string
	proc   *process
	log    *lockedBuffer
	client *kubernetes.Clientset
	config *rest.Config
	run    struct {
		API, MQTT, Fleet string
		PID              int
	}
}

func newPlane(t *testing.T, flags ...string) *plane {
	t.Helper()
	p := &plane{t: t, dir: t.TempDir(), flags: flags, log: &lockedBuffer{}}
	t.Cleanup(func() {
		p.stop()
		if t.Failed() {
			t.Logf("the control plane's log:\n%s", tail(p.log.String(), 60))
		}
	})
	p.start()
	return p
}

func (p *plane) kubeconfig() string { return filepath.Join(p.dir, "kubeconfig") }
func (p *plane) pki() string        { return filepath.Join(p.dir, "pki") }

func (p *plane) start() {
	p.t.Helper()
	args := append([]string{"--data-dir", p.dir, "--secure-port", "0", "--mqtt-port", "0", "--fleet-port", "0", "--port-fallback", "--node-keepalive", "5s"}, p.flags...)
	p.proc = run(p.t, p.log, lab.Program(p.t, "controlplane"), args...)
	eventually(p.t, time.Minute, "the control plane is ready", func() error {
		data, err := os.ReadFile(filepath.Join(p.dir, "run", "controlplane.json"))
		if err != nil {
			return err
		}
		if err := json.Unmarshal(data, &p.run); err != nil || p.run.PID != p.proc.cmd.Process.Pid {
			return fmt.Errorf("run file of pid %d, %v", p.run.PID, err)
		}
		return nil
	})
	var err error
	if p.config, err = clientcmd.BuildConfigFromFlags("", p.kubeconfig()); err != nil {
		p.t.Fatal(err)
	}
	p.config.QPS = -1
	if p.client, err = kubernetes.NewForConfig(p.config); err != nil {
		p.t.Fatal(err)
	}
}

func (p *plane) stop() {
	p.proc.end(syscall.SIGTERM)
	p.proc = nil
}

// coracle runs the operator's tool and returns what it printed.
func (p *plane) coracle(args ...string) (string, error) {
	cmd := exec.Command(lab.Program(p.t, "coracle"), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+p.kubeconfig())
	cmd.Dir = p.dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("coracle %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return string(out), err
}

func (p *plane) must(args ...string) string {
	p.t.Helper()
	out, err := p.coracle(args...)
	if err != nil {
		p.t.Fatal(err)
	}
	return out
}

func (p *plane) line(node string, replace bool) string {
	p.t.Helper()
	var line string
	// The control plane publishes its endpoint when it has begun.
	eventually(p.t, 20*time.Second, "a join line", func() error {
		l, err := join.CreateToken(p.t.Context(), p.client, join.TokenOptions{Node: node, Replace: replace})
		line = l.String()
		return err
	})
	return line
}

// node returns the Node object, nil if there is none.
func (p *plane) node(name string) *corev1.Node {
	n, err := p.client.CoreV1().Nodes().Get(p.t.Context(), name, metav1.GetOptions{})
	if err != nil {
		return nil
	}
	return n
}

func condition(n *corev1.Node, kind corev1.NodeConditionType) *corev1.NodeCondition {
	if n == nil {
		return nil
	}
	for i := range n.Status.Conditions {
		if n.Status.Conditions[i].Type == kind {
			return &n.Status.Conditions[i]
		}
	}
	return nil
}

func (p *plane) ready(name string, want corev1.ConditionStatus) {
	p.t.Helper()
	eventually(p.t, 40*time.Second, fmt.Sprintf("node %s has Ready=%s", name, want), func() error {
		c := condition(p.node(name), corev1.NodeReady)
		if c == nil || c.Status != want {
			return fmt.Errorf("it is %+v", c)
		}
		return nil
	})
}

// hello runs the example pod on a node.
func (p *plane) hello(name, node string) *corev1.Pod {
	p.t.Helper()
	no := int64(1)
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"}, Spec: corev1.PodSpec{
		NodeName: node, TerminationGracePeriodSeconds: &no,
		Containers: []corev1.Container{{Name: "hello", Image: examples.HelloImage, ImagePullPolicy: corev1.PullIfNotPresent}},
	}}
	eventually(p.t, 30*time.Second, "pod "+name+" is created", func() error {
		made, err := p.client.CoreV1().Pods("default").Create(p.t.Context(), pod, metav1.CreateOptions{})
		if err == nil {
			pod = made
		}
		return err
	})
	eventually(p.t, 60*time.Second, "pod "+name+" runs", func() error {
		now, err := p.client.CoreV1().Pods("default").Get(p.t.Context(), name, metav1.GetOptions{})
		if err == nil && now.Status.Phase != corev1.PodRunning {
			err = fmt.Errorf("it is %s %+v", now.Status.Phase, now.Status.ContainerStatuses)
		}
		return err
	})
	return pod
}

// board is a machine with an agent.
type board struct {
	t    *testing.T
	name string
	dir  string
	proc *process
	log  *lockedBuffer
}

func newBoard(t *testing.T, name string) *board {
	t.Helper()
	dir, err := os.MkdirTemp("", "id") // the admin socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	return boardIn(t, name, dir)
}

func boardIn(t *testing.T, name, dir string) *board {
	t.Helper()
	b := &board{t: t, name: name, dir: dir, log: &lockedBuffer{}}
	t.Cleanup(func() {
		b.stop(syscall.SIGTERM)
		for pid := range b.guests() {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		mounts, _ := lab.MountsBelow(dir)
		for _, p := range mounts {
			_ = syscall.Unmount(p, syscall.MNT_DETACH)
		}
		_ = os.RemoveAll(dir)
		if t.Failed() {
			t.Logf("%s's log:\n%s", dir, tail(b.log.String(), 60))
		}
	})
	return b
}

// join starts the agent for the first time.
func (b *board) join(line string) {
	b.t.Helper()
	b.start("--join", line)
	b.importImage(examples.HelloModule, examples.HelloImage)
}

func (b *board) args(more ...string) []string {
	return append([]string{"--data-dir", b.dir, "--runner", lab.Program(b.t, "wasmrunner"), "--cni-conf-dir", filepath.Join(b.dir, "none")}, more...)
}

func (b *board) start(more ...string) {
	b.t.Helper()
	b.proc = run(b.t, b.log, lab.Program(b.t, "edgelet"), b.args(more...)...)
	eventually(b.t, 30*time.Second, "the admin socket of "+b.dir, func() error { _, err := b.status(); return err })
}

func (b *board) stop(s syscall.Signal) {
	b.proc.end(s)
	b.proc = nil
}

// restart is a crash of the agent.
func (b *board) restart() {
	b.t.Helper()
	b.stop(syscall.SIGKILL)
	b.start()
}

func (b *board) http() *http.Client {
	return &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(b.dir, "run", "edgelet.sock"))
	}}}
}

type status struct {
	Node     string            `json:"node"`
	Boot     uint64            `json:"boot"`
	Standing standing.Standing `json:"standing"`
	Pods     []struct {
		Name, Phase string
	} `json:"pods"`
	Link struct{ Live, Connected bool } `json:"link"`
}

func (b *board) status() (*status, error) {
	resp, err := b.http().Get("http://edgelet/v1/status")
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	s := new(status)
	return s, json.NewDecoder(resp.Body).Decode(s)
}

// stands waits until the board says that it has this standing.
func (b *board) stands(state string) standing.Standing {
	b.t.Helper()
	var s standing.Standing
	eventually(b.t, 60*time.Second, fmt.Sprintf("the board in %s is %s", b.dir, state), func() error {
		now, err := b.status()
		if err != nil {
			return err
		}
		if s = now.Standing; s.State != state {
			return fmt.Errorf("it is %+v", s)
		}
		return nil
	})
	return s
}

func (b *board) live() {
	b.t.Helper()
	eventually(b.t, 40*time.Second, "the link of "+b.dir+" is live", func() error {
		s, err := b.status()
		if err == nil && !s.Link.Live {
			err = errors.New("it isn't")
		}
		return err
	})
}

func (b *board) importImage(module []byte, name string) {
	b.t.Helper()
	resp, err := b.http().Post("http://edgelet/v1/images/import?ref="+name, "application/x-tar", bytes.NewReader(lab.Archive(lab.CNCF(module), name)))
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK {
		b.t.Fatalf("import: %s %s", resp.Status, body)
	}
}

// guests are the processes of the board's Wasm containers.
func (b *board) guests() map[int]bool {
	out := map[int]bool{}
	_ = filepath.WalkDir(filepath.Join(b.dir, "crishim"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() != "state.json" {
			return nil
		}
		var state struct {
			PID int `json:"pid"`
		}
		if raw, err := os.ReadFile(path); err != nil || json.Unmarshal(raw, &state) != nil || state.PID == 0 {
			return nil
		}
		if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", state.PID)); err == nil && strings.Contains(exe, "wasmrunner") {
			out[state.PID] = true
		}
		return nil
	})
	return out
}

func eventually(t testing.TB, within time.Duration, what string, f func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(within); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	t.Fatalf("not within %s: %s: %v", within, what, err)
}

func tail(text string, lines int) string {
	all := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// reset runs `edgelet reset` on the board, whose agent must not run.
func (b *board) reset(t *testing.T) string {
	t.Helper()
	out, err := exec.Command(lab.Program(t, "edgelet"), append([]string{"reset"}, b.args()...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("reset: %v\n%s", err, out)
	}
	return string(out)
}
