package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/coracle-edge/coracle/test/lab"
)

// TestMain lets the test binary be the program, so that it can be killed.
func TestMain(m *testing.M) {
	if os.Getenv("CORACLE_TEST_CONTROLPLANE") != "" {
		kinds := ownKinds()
		if dir := os.Getenv("CORACLE_TEST_KINDS"); dir != "" {
			kinds = append(kinds, os.DirFS(dir))
		}
		os.Exit(start(os.Args[1:], kinds...))
	}
	code := m.Run()
	lab.Cleanup()
	os.Exit(code)
}

// process is a running control plane.
type process struct {
	cmd    *exec.Cmd
	log    *bytes.Buffer
	dir    string
	run    runFile
	client *kubernetes.Clientset
}

// begin starts a control plane in dir and waits until it is ready.
func begin(t *testing.T, dir string, flags ...string) *process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{dir: dir, log: &bytes.Buffer{}}
	args := append([]string{"--data-dir", dir, "--secure-port", "0", "--mqtt-port", "0", "--fleet-port", "0"}, flags...)
	p.cmd = exec.Command(self, args...)
	p.cmd.Env = append(os.Environ(), "CORACLE_TEST_CONTROLPLANE=1")
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.cmd.Process.Kill(); p.cmd.Wait() })
	path := filepath.Join(dir, "run", "controlplane.json")
	for end := time.Now().Add(40 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		data, err := os.ReadFile(path)
		if err == nil && json.Unmarshal(data, &p.run) == nil && p.run.PID == p.cmd.Process.Pid {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("not ready; its log:\n%s", p.log)
		}
	}
	config, err := clientcmd.BuildConfigFromFlags("", filepath.Join(dir, "kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	config.QPS = -1
	if p.client, err = kubernetes.NewForConfig(config); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *process) end(t *testing.T, s os.Signal) error {
	t.Helper()
	p.cmd.Process.Signal(s)
	done := make(chan error, 1)
	go func() { done <- p.cmd.Wait() }()
	select {
	case err := <-done:
		return err
	case <-time.After(15 * time.Second):
		t.Fatalf("still running 15 s after %v; its log:\n%s", s, p.log)
		return nil
	}
}

const buoys = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: buoys.kinds.test.coracle.dev}
spec:
  group: kinds.test.coracle.dev
  scope: Cluster
  names: {plural: buoys, kind: Buoy}
  versions:
  - {name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object}}}
`

// definition returns the buoys' definition, which must be served.
func (p *process) definition(t *testing.T) *metav1.PartialObjectMetadata {
	t.Helper()
	get := func(path string) []byte {
		data, err := p.client.RESTClient().Get().AbsPath(path).DoRaw(t.Context())
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		return data
	}
	get("/apis/kinds.test.coracle.dev/v1/buoys")
	m := &metav1.PartialObjectMetadata{}
	if err := json.Unmarshal(get("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/buoys.kinds.test.coracle.dev"), m); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestLifeOfAControlPlane(t *testing.T) {
	kinds := t.TempDir()
	if err := os.WriteFile(filepath.Join(kinds, "buoys.yaml"), []byte(buoys), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CORACLE_TEST_KINDS", kinds)
	dir := t.TempDir()
	p := begin(t, dir)
	ctx := t.Context()

	kind := p.definition(t) // is served as soon as the control plane is ready

	if rc, err := p.client.NodeV1().RuntimeClasses().Get(ctx, "wasm", metav1.GetOptions{}); err != nil || rc.Handler != "wasm" || rc.Scheduling == nil ||
		len(rc.Scheduling.Tolerations) != 1 || rc.Scheduling.Tolerations[0].Key != "coracle.dev/containerd-down" {
		t.Errorf("RuntimeClass wasm: %+v, %v", rc, err)
	}
	if _, err := p.client.CoreV1().Namespaces().Get(ctx, "coracle-system", metav1.GetOptions{}); err != nil {
		t.Error(err)
	}
	if v, err := p.client.Discovery().ServerVersion(); err != nil || v.Major == "" {
		t.Errorf("version = %+v, %v", v, err)
	}
	for _, url := range []string{p.run.API, p.run.MQTT, p.run.Fleet} {
		_, address, _ := strings.Cut(url, "://")
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Errorf("nobody listens at %s: %v", url, err)
			continue
		}
		conn.Close()
	}
	// Controllers run: a new namespace gets its service account and root CA.
	ns, err := p.client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "lives"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	wait(t, "service account and root CA", func() error {
		_, err1 := p.client.CoreV1().ServiceAccounts(ns.Name).Get(ctx, "default", metav1.GetOptions{})
		_, err2 := p.client.CoreV1().ConfigMaps(ns.Name).Get(ctx, "kube-root-ca.crt", metav1.GetOptions{})
		return errors.Join(err1, err2)
	})
	// The scheduler runs: a pod that fits nowhere is told so.
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}}
	if _, err := p.client.CoreV1().Pods(ns.Name).Create(ctx, pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	wait(t, "condition PodScheduled=False", func() error {
		pod, err := p.client.CoreV1().Pods(ns.Name).Get(ctx, "p", metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, c := range pod.Status.Conditions {
			if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
				return nil
			}
		}
		return fmt.Errorf("conditions = %+v", pod.Status.Conditions)
	})
	noPartFailed(t, p)

	start := time.Now()
	if err := p.end(t, syscall.SIGTERM); err != nil {
		t.Errorf("SIGTERM: %v; its log:\n%s", err, p.log)
	}
	if d := time.Since(start); d > 6*time.Second {
		t.Errorf("SIGTERM took %v", d)
	}
	if _, err := os.Stat(filepath.Join(dir, "run", "controlplane.json")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("run/controlplane.json of a stopped control plane: %v", err)
	}

	again := begin(t, dir)
	got, err := again.client.CoreV1().Namespaces().Get(ctx, ns.Name, metav1.GetOptions{})
	if err != nil || got.UID != ns.UID {
		t.Errorf("after the restart: %+v, %v", got, err)
	}
	if same := again.definition(t); same.UID != kind.UID || same.Generation != kind.Generation {
		t.Errorf("the definition of a kind of its own after the restart: %+v, before: %+v", same, kind)
	}
	noPartFailed(t, again)
}

func TestKilledWhileWriting(t *testing.T) {
	dir := t.TempDir()
	p := begin(t, dir)
	// Writes go on until the process dies; what was acknowledged must be there afterwards.
	var acknowledged atomic.Int64
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		for i := 0; ; i++ {
			cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("c-", i)}}
			if _, err := p.client.CoreV1().ConfigMaps("default").Create(context.Background(), cm, metav1.CreateOptions{}); err != nil {
				return
			}
			acknowledged.Store(int64(i + 1))
		}
	}()
	time.Sleep(500 * time.Millisecond)
	p.end(t, syscall.SIGKILL)
	<-stopped
	want := acknowledged.Load()
	if want == 0 {
		t.Fatal("nothing was written before the kill")
	}
	p = begin(t, dir)
	for i := range want {
		if _, err := p.client.CoreV1().ConfigMaps("default").Get(t.Context(), fmt.Sprint("c-", i), metav1.GetOptions{}); err != nil {
			t.Fatalf("of %d acknowledged writes: %v", want, err)
		}
	}
}

func TestFullDisk(t *testing.T) {
	disk := t.TempDir()
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=64m"); err != nil {
		t.Skipf("needs root, to mount a small tmpfs: %v", err)
	}
	t.Cleanup(func() { syscall.Unmount(disk, syscall.MNT_DETACH) })
	dir := filepath.Join(disk, "data")
	p := begin(t, dir)
	time.Sleep(2 * time.Second) // what the start writes
	filler := filepath.Join(disk, "filler")
	if err := os.WriteFile(filler, make([]byte, 64<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("fill the disk: %v", err)
	}
	maps := p.client.CoreV1().ConfigMaps("default")
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "c"}}
	_, err := maps.Create(t.Context(), cm, metav1.CreateOptions{})
	if err == nil || !strings.Contains(err.Error(), "no space left for etcd in "+filepath.Join(dir, "etcd")) || !strings.Contains(err.Error(), "free some space") {
		t.Errorf("write to a full disk: %v", err)
	}
	if _, err := maps.List(t.Context(), metav1.ListOptions{}); err != nil {
		t.Errorf("read on a full disk: %v", err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	wait(t, "write after space was freed", func() error {
		_, err := maps.Create(t.Context(), cm, metav1.CreateOptions{})
		return err
	})
}

func TestExternalEtcdKilledAlone(t *testing.T) {
	etcd := lab.StartEtcd(t)
	p := begin(t, t.TempDir(), "--etcd-endpoints", etcd.URL)
	maps := p.client.CoreV1().ConfigMaps("default")
	if _, err := maps.Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "before"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	etcd.Kill()
	short, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	if _, err := maps.Create(short, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "during"}}, metav1.CreateOptions{}); err == nil {
		t.Error("a write was acknowledged without etcd")
	}
	etcd.Start()
	wait(t, "write after etcd came back", func() error {
		_, err := maps.Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "after"}}, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) { // the try before was done, its answer lost
			return nil
		}
		return err
	})
	if _, err := maps.Get(t.Context(), "before", metav1.GetOptions{}); err != nil {
		t.Error(err)
	}
	// Watches go on: controllers see a namespace made afterwards.
	if _, err := p.client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "later"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	wait(t, "controllers after etcd came back", func() error {
		_, err := p.client.CoreV1().ServiceAccounts("later").Get(t.Context(), "default", metav1.GetOptions{})
		return err
	})
}

func noPartFailed(t *testing.T, p *process) {
	t.Helper()
	for line := range strings.Lines(p.log.String()) {
		if strings.Contains(line, "level=ERROR") {
			t.Errorf("its log: %s", line)
		}
	}
}

func wait(t *testing.T, what string, f func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	t.Fatalf("%s: %v", what, err)
}

func TestFlags(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "--data-dir is required"},
		{[]string{"--data-dir", "d", "extra"}, `unknown argument "extra"`},
	} {
		if _, err := parseFlags(c.args); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("parseFlags(%q) = %v, want %q", c.args, err, c.want)
		}
	}
	o, err := parseFlags([]string{"--data-dir", "d", "--etcd-endpoints", "https://a:2379, https://b:2379", "--hosts", "edge.example"})
	if err != nil || len(o.etcdEndpoints) != 2 || o.etcdEndpoints[1] != "https://b:2379" || o.hosts[0] != "edge.example" {
		t.Errorf("options = %+v, %v", o, err)
	}
}

func TestTakenPort(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	port := taken.Addr().(*net.TCPAddr).Port
	o := options{bindAddress: "127.0.0.1"}
	_, err = listen(o, port, "secure-port")
	if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), "--secure-port") || !strings.Contains(err.Error(), fmt.Sprint(port)) {
		t.Errorf("err = %v", err)
	}
	o.portFallback = true
	l, err := listen(o, port, "secure-port")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if l.Addr().(*net.TCPAddr).Port == port {
		t.Error("the taken port")
	}
}

func TestReachable(t *testing.T) {
	o := options{bindAddress: "10.0.0.1", hosts: []string{"edge.example", "10.0.0.1"}}
	if got := strings.Join(o.reachable(), " "); got != "edge.example 10.0.0.1" {
		t.Errorf("reachable() = %s", got)
	}
	l := &listeners{hosts: []string{"edge.example", "::1"}}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	port := tcp.Addr().(*net.TCPAddr).Port
	if got := l.urls("tls", tcp); got[0] != fmt.Sprintf("tls://edge.example:%d", port) || got[1] != fmt.Sprintf("tls://[::1]:%d", port) {
		t.Errorf("urls = %v", got)
	}
}

func TestPartsAreBegunAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		runs := 0
		p := &parts{begin: func(context.Context) {}, duty: &duty{}, logger: slog.New(slog.DiscardHandler), list: []part{{name: "frail", run: func(ctx context.Context) error {
			switch runs++; runs {
			case 1:
				return io.ErrUnexpectedEOF
			case 2:
				panic("frail")
			}
			<-ctx.Done()
			return nil
		}}}}
		time.AfterFunc(time.Minute, cancel)
		p.run(ctx, func(err error) { t.Errorf("a part that isn't fatal ended the process: %v", err) })
		if runs != 3 {
			t.Errorf("%d runs", runs)
		}
	})
}

func TestEndOfAFatalPart(t *testing.T) {
	var told error
	p := &parts{begin: func(context.Context) {}, duty: &duty{}, logger: slog.New(slog.DiscardHandler), list: []part{
		{name: "hub", fatal: true, run: func(context.Context) error { return io.ErrUnexpectedEOF }},
	}}
	p.run(t.Context(), func(err error) { told = err })
	if !errors.Is(told, io.ErrUnexpectedEOF) || !strings.Contains(told.Error(), "hub") {
		t.Errorf("told %v", told)
	}
}
