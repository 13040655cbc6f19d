package crishim_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/crishim"
	"github.com/coracle-edge/coracle/test/lab"
)

var probe struct {
	sync.Once
	module []byte
}

func probeModule(t testing.TB) []byte {
	t.Helper()
	probe.Do(func() { probe.module = lab.Probe(t) })
	if probe.module == nil {
		t.Skip("needs clang, lld and wasi-libc for test/lab/probe")
	}
	return probe.module
}

// node is a Service with what tests need around it.
type node struct {
	*crishim.Service
	t    testing.TB
	cfg  crishim.Config
	logs string
	n    int
}

func newNode(t testing.TB, change func(*crishim.Config)) *node {
	t.Helper()
	dir, err := os.MkdirTemp("", "cor-*")
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, logs: filepath.Join(dir, "logs"), cfg: crishim.Config{
		StateDir: filepath.Join(dir, "state"), RunnerPath: lab.Program(t, "wasmrunner"), CgroupParent: "/coracle-test-" + filepath.Base(dir),
		Logger: slog.New(slog.NewTextHandler(&testWriter{t: t}, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}}
	if change != nil {
		change(&n.cfg)
	}
	n.open()
	t.Cleanup(func() {
		n.removeAll()
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		os.RemoveAll(dir)
		for _, cg := range cgroupsNamed(n.cfg.CgroupParent) {
			os.Remove(cg)
		}
	})
	return n
}

// in makes a subtest the one that fails.
func (n *node) in(t testing.TB) {
	outer := n.t
	n.t = t
	t.Cleanup(func() { n.t = outer })
}

func (n *node) open() {
	n.t.Helper()
	s, err := crishim.New(context.Background(), n.cfg)
	if err != nil {
		n.t.Fatal(err)
	}
	n.Service = s
}

// reopen is a restart of the process, as far as that goes in one process.
func (n *node) reopen() {
	n.t.Helper()
	if err := n.Close(); err != nil {
		n.t.Fatal(err)
	}
	n.open()
}

func (n *node) removeAll() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	list, err := n.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		n.t.Error(err)
		return
	}
	for _, s := range list.GetItems() {
		if _, err := n.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: s.GetId()}); err != nil {
			n.t.Errorf("remove sandbox %s: %v", s.GetMetadata().GetName(), err)
		}
	}
}

// testWriter writes to the test's log, and to nowhere after its end.
type testWriter struct {
	t    testing.TB
	mu   sync.Mutex
	done bool
}

func (w *testWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.done && w.t.Context().Err() == nil {
		w.t.Log(strings.TrimSpace(string(p)))
	}
	return len(p), nil
}

// image imports the probe and returns a reference to it.
func (n *node) image(img *lab.Image) string {
	n.t.Helper()
	n.n++
	names, err := n.Import(n.t.Context(), bytes.NewReader(lab.Archive(img, "")), fmt.Sprintf("example.org/test%d:1", n.n))
	if err != nil {
		n.t.Fatal(err)
	}
	return names[0]
}

func (n *node) sandbox(name string, change func(*runtimeapi.PodSandboxConfig)) (string, *runtimeapi.PodSandboxConfig) {
	n.t.Helper()
	cfg := sandboxConfig(name)
	cfg.LogDirectory = filepath.Join(n.logs, name)
	if change != nil {
		change(cfg)
	}
	resp, err := n.RunPodSandbox(n.t.Context(), &runtimeapi.RunPodSandboxRequest{Config: cfg})
	if err != nil {
		n.t.Fatal(err)
	}
	return resp.GetPodSandboxId(), cfg
}

func sandboxConfig(name string) *runtimeapi.PodSandboxConfig {
	return &runtimeapi.PodSandboxConfig{
		Metadata:    &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "default", Uid: "uid-" + name},
		Hostname:    name,
		Annotations: map[string]string{crishim.AnnotationSandbox: "wasm"},
		Labels:      map[string]string{"app": name},
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{},
		}},
	}
}

func hostNetwork(c *runtimeapi.PodSandboxConfig) {
	c.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
}

func containerConfig(image string, args ...string) *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "main"}, Image: &runtimeapi.ImageSpec{Image: image},
		Args: args, LogPath: "main/0.log", Linux: &runtimeapi.LinuxContainerConfig{},
	}
}

func (n *node) create(sandbox string, pod *runtimeapi.PodSandboxConfig, cfg *runtimeapi.ContainerConfig) (string, error) {
	resp, err := n.CreateContainer(n.t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: sandbox, Config: cfg, SandboxConfig: pod})
	return resp.GetContainerId(), err
}

func (n *node) start(sandbox string, pod *runtimeapi.PodSandboxConfig, cfg *runtimeapi.ContainerConfig) string {
	n.t.Helper()
	id, err := n.create(sandbox, pod, cfg)
	if err != nil {
		n.t.Fatal(err)
	}
	if _, err := n.StartContainer(n.t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
		n.t.Fatal(err)
	}
	return id
}

func (n *node) status(id string) *runtimeapi.ContainerStatus {
	n.t.Helper()
	resp, err := n.ContainerStatus(n.t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		n.t.Fatal(err)
	}
	return resp.GetStatus()
}

func (n *node) wait(id string) *runtimeapi.ContainerStatus {
	n.t.Helper()
	var st *runtimeapi.ContainerStatus
	eventually(n.t, func() string {
		st = n.status(id)
		if st.GetState() == runtimeapi.ContainerState_CONTAINER_EXITED {
			return ""
		}
		return "container is " + st.GetState().String()
	})
	return st
}

// run runs a container to its end in a pod of its own.
func (n *node) run(name string, cfg *runtimeapi.ContainerConfig) (*runtimeapi.ContainerStatus, []logLine) {
	n.t.Helper()
	sb, pod := n.sandbox(name, hostNetwork)
	id := n.start(sb, pod, cfg)
	st := n.wait(id)
	return st, readLog(n.t, st.GetLogPath())
}

func eventually(t testing.TB, what func() string) {
	t.Helper()
	within(t, 20*time.Second, what)
}

func within(t testing.TB, limit time.Duration, what func() string) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		why := what()
		if why == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %v: %s", limit, why)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// logLine is a line of a CRI log.
type logLine struct{ stream, tag, text string }

func readLog(t testing.TB, path string) []logLine {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var out []logLine
	for line := range strings.Lines(string(raw)) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
		if len(f) != 4 || !strings.HasSuffix(line, "\n") {
			t.Fatalf("%s: line %q", path, line)
		}
		if _, err := time.Parse(time.RFC3339Nano, f[0]); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		out = append(out, logLine{f[1], f[2], f[3]})
	}
	return out
}

func text(lines []logLine) string {
	var b strings.Builder
	for _, l := range lines {
		b.WriteString(l.text)
		if l.tag == "F" {
			b.WriteByte('\n')
		}
	}
	return b.String()
}

// of keeps one stream: the order of lines of different streams says nothing.
func of(stream string, lines []logLine) (out []logLine) {
	for _, l := range lines {
		if l.stream == stream {
			out = append(out, l)
		}
	}
	return out
}

func cgroupsNamed(parent string) (out []string) {
	for _, pattern := range []string{"/sys/fs/cgroup/*", "/sys/fs/cgroup"} {
		roots, _ := filepath.Glob(pattern)
		for _, r := range roots {
			p := filepath.Join(r, parent)
			if fi, err := os.Stat(p); err == nil && fi.IsDir() {
				kids, _ := filepath.Glob(filepath.Join(p, "*"))
				for _, k := range kids {
					if fi, err := os.Stat(k); err == nil && fi.IsDir() {
						out = append(out, k)
					}
				}
				out = append(out, p)
			}
		}
	}
	return out
}
