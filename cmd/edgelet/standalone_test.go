package main

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

	"github.com/coracle-edge/coracle/examples"
	"github.com/coracle-edge/coracle/test/lab"
)

func TestMain(m *testing.M) { os.Exit(lab.Main(m)) }

// machine is a board: a data folder, and an agent that may run on it.
type machine struct {
	t    testing.TB
	dir  string
	args []string
	cmd  *exec.Cmd
	log  syncBuffer
}

// syncBuffer is read while the agent writes.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func newMachine(t testing.TB, args ...string) *machine {
	// The admin socket's path must be short.
	dir, err := os.MkdirTemp("", "ed")
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{t: t, dir: dir, args: args}
	t.Cleanup(func() {
		if m.cmd != nil {
			m.stop(syscall.SIGTERM)
		}
		m.killGuests()
		mounts, _ := lab.MountsBelow(dir)
		for _, p := range mounts {
			_ = syscall.Unmount(p, syscall.MNT_DETACH)
		}
		_ = os.RemoveAll(dir)
		if t.Failed() {
			t.Logf("agent's log:\n%s", m.log.String())
		}
	})
	if err := os.Mkdir(filepath.Join(dir, "static"), 0o755); err != nil {
		t.Fatal(err)
	}
	return m
}

func (m *machine) start() {
	m.t.Helper()
	m.launch("--standalone")
	m.eventually("the admin socket", func() error { _, err := m.status(); return err })
}

// launch starts the agent without waiting for it.
func (m *machine) launch(args ...string) {
	m.t.Helper()
	m.cmd = exec.Command(lab.Program(m.t, "edgelet"), append(append([]string{"--data-dir", m.dir, "--node-name", "board",
		"--static-pods", filepath.Join(m.dir, "static"), "--runner", lab.Program(m.t, "wasmrunner"), "--cni-conf-dir", filepath.Join(m.dir, "none")}, m.args...), args...)...)
	m.cmd.Stderr = &m.log
	if err := m.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) stop(sig syscall.Signal) {
	m.t.Helper()
	_ = m.cmd.Process.Signal(sig)
	err := m.cmd.Wait()
	if sig == syscall.SIGTERM && err != nil {
		m.t.Errorf("edgelet ended with %v", err)
	}
	m.cmd = nil
}

// runners are the processes of the guests of this machine that live, by what
// their bundles say.
func (m *machine) runners() map[int]bool {
	out := map[int]bool{}
	_ = filepath.WalkDir(filepath.Join(m.dir, "crishim"), func(path string, d fs.DirEntry, err error) error {
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

func (m *machine) killGuests() {
	for pid := range m.runners() {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

func (m *machine) client() *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(m.dir, "run", "edgelet.sock"))
	}}}
}

type status struct {
	Pods        []podView       `json:"pods"`
	Boot        uint64          `json:"boot"`
	Link        json.RawMessage `json:"link"`
	JoinRefused *refusal        `json:"joinRefused"`
	Conditions  []conditionView `json:"conditions"`
}

func (m *machine) status() (*status, error) {
	resp, err := m.client().Get("http://edgelet/v1/status")
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	s := new(status)
	return s, json.NewDecoder(resp.Body).Decode(s)
}

func (m *machine) importImage(module []byte, name string) {
	m.t.Helper()
	m.importArchive(lab.Archive(lab.CNCF(module), name), name)
}

func (m *machine) importArchive(archive []byte, name string) {
	m.t.Helper()
	resp, err := m.client().Post("http://edgelet/v1/images/import?ref="+name, "application/x-tar", bytes.NewReader(archive))
	if err != nil {
		m.t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK {
		m.t.Fatalf("import: %s %s", resp.Status, b)
	}
}

func (m *machine) remove(name string) {
	m.t.Helper()
	if err := os.Remove(filepath.Join(m.dir, "static", name+".yaml")); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) put(name, manifest string) {
	m.t.Helper()
	path := filepath.Join(m.dir, "static", name+".yaml")
	if err := os.WriteFile(path, []byte(manifest), 0o644); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) eventually(what string, f func() error) {
	m.t.Helper()
	var err error
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	m.t.Fatalf("%s: %v\n%s", what, err, m.log.String())
}

func (m *machine) phase(pod, want string) {
	m.t.Helper()
	m.eventually(pod, func() error {
		s, err := m.status()
		if err != nil {
			return err
		}
		for _, p := range s.Pods {
			if p.Name == pod+"-board" {
				if p.Phase == want {
					return nil
				}
				return fmt.Errorf("phase %q, want %q", p.Phase, want)
			}
		}
		return errors.New("not there")
	})
}

func (m *machine) podLog(pod, container string) string {
	files, _ := filepath.Glob(filepath.Join(m.dir, "pods-logs", "default_"+pod+"-board_*", container, "*.log"))
	var out strings.Builder
	for _, f := range files {
		b, _ := os.ReadFile(f)
		out.Write(b)
	}
	return out.String()
}

const helloPod = `apiVersion: v1
kind: Pod
metadata: {name: hello}
spec:
  restartPolicy: Always
  containers:
  - name: hello
    image: ` + examples.HelloImage + `
    imagePullPolicy: IfNotPresent
    env:
    - {name: WHO, value: board}
    - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: NODE_NAME, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    resources:
      limits: {memory: 16Mi}
`

func TestAWasmPodWithoutAControlPlane(t *testing.T) {
	m := newMachine(t)
	m.start()
	m.importImage(examples.HelloModule, examples.HelloImage)
	start := time.Now()
	m.put("hello", helloPod)
	m.phase("hello", "Running")
	t.Logf("running %v after its file was written", time.Since(start))
	m.eventually("its log", func() error {
		if log := m.podLog("hello", "hello"); !strings.Contains(log, "board") || !strings.Contains(log, " stdout F ") {
			return fmt.Errorf("log %q", log)
		}
		return nil
	})
	before := m.runners()
	if len(before) == 0 {
		t.Fatal("no runner process")
	}

	// The agent is killed and comes back: the guest never noticed.
	m.stop(syscall.SIGKILL)
	if got := m.runners(); len(got) != len(before) {
		t.Fatalf("guests died with the agent: %v, before %v", got, before)
	}
	m.start()
	m.phase("hello", "Running")
	time.Sleep(500 * time.Millisecond)
	for pid := range before {
		if !m.runners()[pid] {
			t.Errorf("the guest was restarted: %v, before %v", m.runners(), before)
		}
	}

	// Agent and guests are killed, as by a power cut: it runs again, with nothing
	// but what is on this machine.
	m.stop(syscall.SIGKILL)
	m.killGuests()
	m.start()
	m.phase("hello", "Running")
	m.eventually("a new guest", func() error {
		if len(m.runners()) == 0 {
			return errors.New("no runner")
		}
		return nil
	})

	// The file goes, and the pod with it, traceless.
	m.remove("hello")
	m.eventually("the end", func() error {
		if s, err := m.status(); err != nil || len(s.Pods) != 0 {
			return fmt.Errorf("%+v, %v", s, err)
		}
		return nil
	})
	if r := m.runners(); len(r) != 0 {
		t.Errorf("runners stay: %v", r)
	}
	for _, dir := range []string{"pods", "pods-logs"} {
		if left, _ := os.ReadDir(filepath.Join(m.dir, dir)); len(left) != 0 {
			t.Errorf("%s: %v stay", dir, left)
		}
	}
}

// Wasm needs no root: the agent, its guests and its volumes are one user's.
func TestAWasmPodOfAnOrdinaryUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("this test becomes another user, which needs root; the others run as this one")
	}
	const nobody = 65534
	m := newMachine(t)
	// The programs are where nobody may go; a copy isn't.
	for _, name := range []string{"edgelet", "wasmrunner"} {
		b, err := os.ReadFile(lab.Program(t, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(m.dir, name), b, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := filepath.WalkDir(m.dir, func(path string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Chown(path, nobody, nobody))
	}); err != nil {
		t.Fatal(err)
	}
	m.cmd = exec.Command(filepath.Join(m.dir, "edgelet"), "--standalone", "--data-dir", m.dir, "--node-name", "board",
		"--static-pods", filepath.Join(m.dir, "static"), "--cni-conf-dir", filepath.Join(m.dir, "none"))
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	m.cmd.Dir = m.dir
	m.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + m.dir}
	m.cmd.Stderr = &m.log
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	m.eventually("the admin socket", func() error { _, err := m.status(); return err })
	m.importImage(examples.HelloModule, examples.HelloImage)
	m.put("hello", helloPod+`    volumeMounts: [{name: tmp, mountPath: /tmp}, {name: mem, mountPath: /mem}]
  volumes: [{name: tmp, emptyDir: {}}, {name: mem, emptyDir: {medium: Memory}}]
`)
	m.phase("hello", "Running")
	m.eventually("its log", func() error {
		if log := m.podLog("hello", "hello"); !strings.Contains(log, "board") {
			return fmt.Errorf("log %q", log)
		}
		return nil
	})
	for pid := range m.runners() {
		if st, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err != nil || st.Sys().(*syscall.Stat_t).Uid != nobody {
			t.Errorf("the guest's user is not the agent's: %v, %v", st, err)
		}
	}
}

// --stop-pods is for machines that go down, and for clusters that are thrown
// away: nothing runs and nothing is mounted afterwards.
func TestStopPods(t *testing.T) {
	m := newMachine(t, "--stop-pods")
	m.start()
	m.importImage(examples.HelloModule, examples.HelloImage)
	m.put("hello", helloPod+`    volumeMounts: [{name: mem, mountPath: /mem}]
  volumes: [{name: mem, emptyDir: {medium: Memory}}]
`)
	m.phase("hello", "Running")
	m.stop(syscall.SIGTERM)
	if r := m.runners(); len(r) != 0 {
		t.Errorf("runners stay: %v", r)
	}
	if left, err := lab.MountsBelow(m.dir); err != nil || len(left) != 0 {
		t.Errorf("mounts stay: %v, %v", left, err)
	}
	m.start()
	m.phase("hello", "Running")
	m.eventually("a new guest", func() error {
		if len(m.runners()) != 1 {
			return fmt.Errorf("runners %v", m.runners())
		}
		return nil
	})
}
