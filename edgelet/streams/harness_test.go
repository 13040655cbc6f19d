package streams

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/crishim"
	"github.com/coracle-edge/coracle/crishim/streaming"
	"github.com/coracle-edge/coracle/edgelet/pods/remote"
	"github.com/coracle-edge/coracle/test/lab"
)

func TestMain(m *testing.M) {
	code := lab.Main(m)
	lab.Cleanup()
	os.Exit(code)
}

// board is a crishim with one pod, "guest", and the streams to it.
type board struct {
	t       testing.TB
	shim    *crishim.Service
	sandbox string
	config  *runtimeapi.PodSandboxConfig
	image   string
	port    int
	pod     *v1.Pod
}

// newShim is a board whose runtime has the containerd at socket behind it, none if that
// is empty. It has no pod yet.
func newShim(t testing.TB, socket string) (b *board, dir string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "str")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	b = &board{t: t, pod: guest()}
	b.shim, err = crishim.New(t.Context(), crishim.Config{StateDir: filepath.Join(dir, "state"), RunnerPath: lab.Program(t, "wasmrunner"),
		CgroupParent: "/coracle-test-" + filepath.Base(dir), ContainerdSocket: socket})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
		defer cancel()
		if _, err := b.shim.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: b.sandbox}); err != nil {
			t.Error(err)
		}
		if err := b.shim.Close(); err != nil {
			t.Error(err)
		}
		parents, _ := filepath.Glob("/sys/fs/cgroup/*/coracle-test-" + filepath.Base(dir))
		for _, p := range parents {
			_ = os.Remove(p)
		}
	})
	return b, dir
}

// start makes the board's pod of the image in archive.
func (b *board) start(dir string, archive []byte, ref string, annotations map[string]string) {
	b.t.Helper()
	names, err := b.shim.Import(b.t.Context(), bytes.NewReader(archive), ref)
	if err != nil {
		b.t.Fatal(err)
	}
	b.image = names[0]
	b.config = &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "guest", Namespace: "default", Uid: "uid-guest"},
		LogDirectory: filepath.Join(dir, "logs"), Annotations: annotations, Labels: labels(""),
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE}}}}
	resp, err := b.shim.RunPodSandbox(b.t.Context(), &runtimeapi.RunPodSandboxRequest{Config: b.config})
	if err != nil {
		b.t.Fatal(err)
	}
	b.sandbox = resp.GetPodSandboxId()
}

func newBoard(t testing.TB) *board {
	t.Helper()
	b, dir := newShim(t, "")
	b.port = freePort(t)
	b.start(dir, lab.Archive(lab.Compat(lab.Probe(t), "compat", lab.File{Path: "bin/tool", Mode: 0o755, Hard: "probe.wasm"}), ""),
		"example.org/streams:1", map[string]string{crishim.AnnotationSandbox: "wasm"})
	return b
}

// guest is the pod of a board.
func guest() *v1.Pod {
	return &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "guest", UID: "uid-guest"},
		Spec: v1.PodSpec{HostNetwork: true, Containers: []v1.Container{{Name: "server"}, {Name: "copy"}, {Name: "tools"}},
			EphemeralContainers: []v1.EphemeralContainer{{EphemeralContainerCommon: v1.EphemeralContainerCommon{Name: "debugger", TTY: true}}}}}
}

func labels(container string) map[string]string {
	l := map[string]string{labelPodName: "guest", labelPodNamespace: "default", labelPodUID: "uid-guest"}
	if container != "" {
		l[labelContainerName] = container
	}
	return l
}

func freePort(t testing.TB) int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// container starts one of the probe.
func (b *board) container(name string, change func(*runtimeapi.ContainerConfig), args ...string) string {
	b.t.Helper()
	c := &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: name}, Image: &runtimeapi.ImageSpec{Image: b.image},
		Args: args, LogPath: name + ".log", Labels: labels(name), Linux: &runtimeapi.LinuxContainerConfig{}}
	if change != nil {
		change(c)
	}
	resp, err := b.shim.CreateContainer(b.t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: b.sandbox, Config: c, SandboxConfig: b.config})
	if err != nil {
		b.t.Fatal(err)
	}
	if _, err := b.shim.StartContainer(b.t.Context(), &runtimeapi.StartContainerRequest{ContainerId: resp.GetContainerId()}); err != nil {
		b.t.Fatal(err)
	}
	return resp.GetContainerId()
}

func (b *board) lookup(namespace, name, uid string) (*v1.Pod, error) {
	if namespace != b.pod.Namespace || name != b.pod.Name || uid != "" && types.UID(uid) != b.pod.UID {
		return nil, fmt.Errorf("%w: %s/%s", ErrNoPod, namespace, name)
	}
	return b.pod, nil
}

// serve serves the paths over HTTP. behind says that the runtime is behind a socket,
// so that its streams have URLs.
func (b *board) serve(behind bool, change func(*Config)) (*Server, *rest.Config) {
	b.t.Helper()
	c := Config{Pod: b.lookup, Runtime: b.shim, InProcess: b.shim}
	if behind {
		c.Runtime, c.InProcess = b.remote(), nil
	}
	if change != nil {
		change(&c)
	}
	s, err := New(c)
	if err != nil {
		b.t.Fatal(err)
	}
	mux := http.NewServeMux()
	for pattern, handler := range s.Paths() {
		mux.Handle(pattern, handler)
	}
	server := httptest.NewServer(mux)
	b.t.Cleanup(server.Close)
	return s, &rest.Config{Host: server.URL}
}

// remote is the same crishim, as a program of its own serves it.
func (b *board) remote() *remote.Runtime {
	b.t.Helper()
	sock := filepath.Join(b.t.TempDir(), "cri.sock")
	l, err := crishim.ListenUnix("unix://" + sock)
	if err != nil {
		b.t.Fatal(err)
	}
	sl, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.t.Fatal(err)
	}
	urls, err := streaming.New(sl, b.shim)
	if err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(b.t.Context()))
	done := make(chan error, 2)
	go func() { done <- b.shim.Serve(ctx, l, urls) }()
	go func() { done <- urls.Run(ctx) }()
	rt, err := remote.Dial("unix://" + sock)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() {
		if err := rt.Close(); err != nil {
			b.t.Error(err)
		}
		cancel()
		for range 2 {
			if err := <-done; err != nil {
				b.t.Error(err)
			}
		}
	})
	return rt
}
