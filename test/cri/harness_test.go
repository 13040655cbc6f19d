package cri

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/coracle-edge/coracle/crishim/oci"
	"github.com/coracle-edge/coracle/test/lab"
)

// shim is a crishim program with a containerd behind it.
type shim struct {
	t          testing.TB
	dir        string
	socket     string // unix://...
	ctd        *oci.Private
	oci, wasm  string // images
	cniConfDir string
}

// newShim starts containerd and crishim until the test ends. Without network
// there is no CNI configuration to begin with: it is in networkFile.
func newShim(t testing.TB) *shim {
	t.Helper()
	lab.NeedNamespaces(t)
	reg := lab.StartRegistry(t)
	dir, err := os.MkdirTemp("", "cor-cri-*")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	ctdDir := filepath.Join(dir, "ctd")
	s := &shim{t: t, dir: dir, socket: "unix://" + filepath.Join(dir, "cri.sock")}
	s.ctd = lab.StartContainerdIn(t, ctdDir, reg.HostsDir, true)
	s.cniConfDir = s.ctd.CNIConfDir()
	s.oci = reg.Push(t, "busybox:1", lab.Busybox(t))
	s.wasm = reg.Push(t, "probe:1", lab.CNCF(lab.Probe(t)))
	s.start("crishim", lab.Program(t, "crishim"), "--listen", s.socket, "--containerd", "unix://"+s.ctd.Socket(),
		"--state-dir", filepath.Join(dir, "state"), "--runner", lab.Program(t, "wasmrunner"), "--registry-hosts", reg.HostsDir,
		"--cni-conf-dir", s.cniConfDir, "--cni-bin-dir", s.ctd.CNIBinDir(), "--cgroup-parent", "/coracle-test-cri", "-v")
	t.Cleanup(func() { removeCgroups("/coracle-test-cri") })
	return s
}

// tool is a program of bin/tools.
func tool(t testing.TB, name string) string {
	t.Helper()
	path := filepath.Join(lab.Root(t), "bin", "tools", name)
	if _, err := os.Stat(path); err != nil {
		t.Skipf("needs bin/tools/%[1]s: make bin/tools/%[1]s", name)
	}
	return path
}

// start runs a program until the test ends; its output is shown if that fails.
func (s *shim) start(name, program string, args ...string) *exec.Cmd {
	s.t.Helper()
	cmd := exec.Command(program, args...)
	log, err := os.Create(filepath.Join(s.dir, name+".log"))
	if err != nil {
		s.t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	log.Close()
	s.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		killed := time.AfterFunc(20*time.Second, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait()
		if !killed.Stop() {
			s.t.Errorf("%s had to be killed", name)
		}
		if s.t.Failed() {
			b, _ := os.ReadFile(log.Name())
			s.t.Logf("%s said at last:\n%s", name, b[max(0, len(b)-8000):])
		}
	})
	return cmd
}

// command is crictl with its arguments.
func (s *shim) command(ctx context.Context, args ...string) *exec.Cmd {
	s.t.Helper()
	path := tool(s.t, "crictl")
	conf := filepath.Join(s.dir, "crictl.yaml")
	if err := os.WriteFile(conf, []byte("runtime-endpoint: "+s.socket+"\nimage-endpoint: "+s.socket+"\ntimeout: 30\n"), 0o600); err != nil {
		s.t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, path, append([]string{"--config", conf}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// try runs crictl and returns what it printed on both streams.
func (s *shim) try(args ...string) (string, error) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	out, err := s.command(ctx, args...).CombinedOutput()
	return string(out), err
}

// crictl runs crictl, which must succeed.
func (s *shim) crictl(args ...string) string {
	s.t.Helper()
	out, err := s.try(args...)
	if err != nil {
		s.t.Fatalf("crictl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(out)
}

// refuses runs crictl, which must fail and say why.
func (s *shim) refuses(why string, args ...string) {
	s.t.Helper()
	if out, err := s.try(args...); err == nil || !strings.Contains(out, why) {
		s.t.Errorf("crictl %s: %v, want an error with %q:\n%s", strings.Join(args, " "), err, why, out)
	}
}

// says checks what crictl prints.
func (s *shim) says(want []string, args ...string) {
	s.t.Helper()
	out := s.crictl(args...)
	for _, w := range want {
		if !strings.Contains(out, w) {
			s.t.Errorf("crictl %s doesn't say %q:\n%s", strings.Join(args, " "), w, out)
		}
	}
}

// eventually waits until what is empty.
func (s *shim) eventually(limit time.Duration, what func() string) {
	s.t.Helper()
	deadline := time.Now().Add(limit)
	for {
		why := what()
		if why == "" {
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("after %v: %s", limit, why)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// attach sends a line to a container and waits for the answer.
func (s *shim) attach(id, line, want string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	cmd := s.command(ctx, "attach", "-i", id)
	in, err := cmd.StdinPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	var out output
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	fmt.Fprintln(in, line)
	s.eventually(20*time.Second, func() string {
		if strings.Contains(out.String(), want) {
			return ""
		}
		return fmt.Sprintf("attached: %q, want %q", out.String(), want)
	})
	in.Close()
	if err := cmd.Wait(); err != nil {
		s.t.Errorf("attach: %v: %s", err, out.String())
	}
}

var forwarding = regexp.MustCompile(`Forwarding from (127\.0\.0\.1:\d+)`)

// forward asks a pod's port 8080 through crictl's port-forward.
func (s *shim) forward(pod, want string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	cmd := s.command(ctx, "port-forward", pod, "0:8080")
	out, err := cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	var errs output
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	var addr string
	for r := bufio.NewScanner(out); addr == "" && r.Scan(); {
		if m := forwarding.FindStringSubmatch(r.Text()); m != nil {
			addr = m[1]
		}
	}
	if addr == "" {
		s.t.Fatalf("port-forward: %s", errs.String())
	}
	for range 2 { // more than one connection
		if got := ask(addr); !strings.Contains(got, want) {
			s.t.Errorf("through port-forward: %q, want %q; crictl: %s", got, want, errs.String())
		}
	}
}

// ask makes an HTTP request and returns all that comes, or the error.
func ask(addr string) string {
	conn, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	fmt.Fprint(conn, "GET /index.html HTTP/1.0\r\n\r\n")
	b, err := io.ReadAll(conn)
	if len(b) == 0 && err != nil {
		return err.Error()
	}
	return string(b)
}

// output is written by a program and read meanwhile.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

func removeCgroups(parent string) {
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		dirs, _ := filepath.Glob(filepath.Join(root, parent))
		for _, d := range dirs {
			var all []string
			_ = filepath.WalkDir(d, func(p string, e os.DirEntry, err error) error {
				if err == nil && e.IsDir() {
					all = append(all, p)
				}
				return nil
			})
			for i := len(all) - 1; i >= 0; i-- {
				_ = os.Remove(all[i])
			}
		}
	}
}
