package brokertest

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/coracle-edge/coracle/controlplane/broker"
)

// Mosquitto is a real one, on a port of its own on loopback.
type Mosquitto struct {
	t    testing.TB
	bin  string
	conf string
	log  string
	Addr string
	cmd  *exec.Cmd
}

// StartMosquitto starts mosquitto with configuration and ACL as this package
// writes them, and ends it with the test. The test is skipped where there is
// none.
func StartMosquitto(t testing.TB, pki *PKI) *Mosquitto {
	t.Helper()
	bin, err := exec.LookPath("mosquitto")
	if err != nil {
		if bin = "/usr/sbin/mosquitto"; !exists(bin) {
			t.Skip("no mosquitto on this machine (apt-get install mosquitto)")
		}
	}
	dir := t.TempDir()
	// As root mosquitto drops to another user that must be able to read.
	for d := dir; d != "/" && d != "/tmp"; d = filepath.Dir(d) {
		_ = os.Chmod(d, 0o755)
	}
	ca, cert, key := pki.Write(dir, "broker")
	acl := filepath.Join(dir, "acl")
	if err := os.WriteFile(acl, []byte(broker.MosquittoACL()), 0o644); err != nil {
		t.Fatal(err)
	}
	port := FreePort(t)
	m := &Mosquitto{t: t, bin: bin, conf: filepath.Join(dir, "conf"), log: filepath.Join(dir, "log"), Addr: fmt.Sprintf("127.0.0.1:%d", port)}
	if err := os.WriteFile(m.conf, []byte(broker.MosquittoConf("127.0.0.1", port, broker.MosquittoFiles{CA: ca, Cert: cert, Key: key, ACL: acl})), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.Kill()
		if t.Failed() {
			log, _ := os.ReadFile(m.log)
			t.Logf("mosquitto's log:\n%s", log)
		}
	})
	m.Start()
	return m
}

// Start starts it (again), and waits until it accepts connections.
func (m *Mosquitto) Start() {
	m.t.Helper()
	log, err := os.OpenFile(m.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		m.t.Fatal(err)
	}
	defer log.Close()
	m.cmd = exec.Command(m.bin, "-c", m.conf, "-v")
	m.cmd.Stdout, m.cmd.Stderr = log, log
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := m.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	for range 200 {
		if conn, err := net.Dial("tcp", m.Addr); err == nil {
			_ = conn.Close()
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	out, _ := os.ReadFile(m.log)
	m.t.Fatalf("mosquitto doesn't listen on %s:\n%s", m.Addr, out)
}

// Kill ends it with SIGKILL.
func (m *Mosquitto) Kill() {
	if m.cmd == nil {
		return
	}
	_ = m.cmd.Process.Kill()
	_ = m.cmd.Wait()
	m.cmd = nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
