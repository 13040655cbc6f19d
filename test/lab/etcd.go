package lab

import (
	"net"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

// Etcd is a real one, outside of this process.
type Etcd struct {
	// URL at which it listens, on loopback.
	URL string

	t       testing.TB
	program string
	dir     string
	cmd     *exec.Cmd
}

// StartEtcd starts an etcd of one member, and ends it with the test.
func StartEtcd(t testing.TB) *Etcd {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	e := &Etcd{URL: "http://" + l.Addr().String(), t: t, program: buildPath(t, "etcdd", "./test/lab/etcdd"), dir: t.TempDir()}
	l.Close()
	t.Cleanup(e.Kill)
	e.Start()
	return e
}

// Start starts it (again), on the same data, and waits until it listens.
func (e *Etcd) Start() {
	e.t.Helper()
	e.cmd = exec.Command(e.program, e.dir, e.URL)
	e.cmd.Stdout, e.cmd.Stderr = os.Stderr, os.Stderr
	e.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := e.cmd.Start(); err != nil {
		e.t.Fatal(err)
	}
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if c, err := net.Dial("tcp", e.URL[len("http://"):]); err == nil {
			c.Close()
			return
		}
	}
	e.t.Fatalf("etcd doesn't listen at %s", e.URL)
}

// Kill ends it with SIGKILL.
func (e *Etcd) Kill() {
	if e.cmd == nil {
		return
	}
	_ = e.cmd.Process.Kill()
	_ = e.cmd.Wait()
	e.cmd = nil
}
