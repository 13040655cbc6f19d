package brokertest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/coracle-edge/coracle/controlplane/broker"
)

// NATS is a real nats-server in this process, on a port of its own on loopback.
type NATS struct {
	t      testing.TB
	conf   string
	write  func(nodes []string)
	nodes  []string
	server *server.Server
	log    *natsLog
	Addr   string
}

// StartNATS starts nats-server with a configuration as this package writes it,
// for these nodes, and ends it with the test.
func StartNATS(t testing.TB, pki *PKI, nodes ...string) *NATS {
	t.Helper()
	dir := t.TempDir()
	ca, cert, key := pki.Write(dir, "broker")
	port := FreePort(t)
	conf := filepath.Join(dir, "nats.conf")
	n := ServeNATS(t, conf, fmt.Sprintf("127.0.0.1:%d", port))
	n.write = func(nodes []string) {
		t.Helper()
		text, err := broker.NATSConf("127.0.0.1", port, broker.NATSFiles{CA: ca, Cert: cert, Key: key, Store: filepath.Join(dir, "jetstream")}, nodes)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	n.nodes = nodes
	n.write(nodes)
	n.Start()
	return n
}

// ServeNATS is nats-server with a configuration that stands, or will stand, in a
// file and has it listen on addr; it ends with the test. Start starts it.
func ServeNATS(t testing.TB, conf, addr string) *NATS {
	n := &NATS{t: t, conf: conf, Addr: addr, log: &natsLog{}}
	t.Cleanup(func() {
		n.Kill()
		if t.Failed() {
			t.Logf("nats-server's log:\n%s", n.log)
		}
	})
	return n
}

// Start starts it (again), and waits until it accepts connections.
func (n *NATS) Start() {
	n.t.Helper()
	opts, err := server.ProcessConfigFile(n.conf)
	if err != nil {
		n.t.Fatalf("nats-server: %v", err)
	}
	opts.NoSigs = true
	if n.server, err = server.NewServer(opts); err != nil {
		n.t.Fatalf("nats-server: %v", err)
	}
	n.server.SetLogger(n.log, os.Getenv("FLEET_LOG") != "", false)
	n.server.Start()
	if !n.server.ReadyForConnections(20 * time.Second) {
		n.t.Fatalf("nats-server doesn't listen on %s:\n%s", n.Addr, n.log)
	}
}

// Admit adds a node to the configuration and has the server read it again, as an
// operator does. It must not run beside itself.
func (n *NATS) Admit(node string) {
	n.t.Helper()
	for _, have := range n.nodes {
		if have == node {
			return
		}
	}
	n.nodes = append(n.nodes, node)
	n.write(n.nodes)
	if n.server == nil {
		return
	}
	if err := n.server.Reload(); err != nil {
		n.t.Fatalf("nats-server: reload: %v", err)
	}
}

// Kill ends it: connections break without a word of MQTT.
func (n *NATS) Kill() {
	if n.server == nil {
		return
	}
	n.server.Shutdown()
	n.server.WaitForShutdown()
	n.server = nil
}

// natsLog keeps the last lines that the server said.
type natsLog struct {
	mu    sync.Mutex
	lines []string
}

func (l *natsLog) add(level, format string, v []any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.lines) >= 500 {
		l.lines = l.lines[1:]
	}
	l.lines = append(l.lines, level+" "+fmt.Sprintf(format, v...))
}

func (l *natsLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.lines, "\n")
}

func (l *natsLog) Noticef(format string, v ...any) { l.add("notice", format, v) }
func (l *natsLog) Warnf(format string, v ...any)   { l.add("warning", format, v) }
func (l *natsLog) Fatalf(format string, v ...any)  { l.add("fatal", format, v) }
func (l *natsLog) Errorf(format string, v ...any)  { l.add("error", format, v) }
func (l *natsLog) Debugf(format string, v ...any)  { l.add("debug", format, v) }
func (l *natsLog) Tracef(format string, v ...any)  { l.add("trace", format, v) }
