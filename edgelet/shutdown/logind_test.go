package shutdown

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// realBus is a dbus-daemon of the test's own, and on it a logind that speaks the
// interface through another client than ours.
type realBus struct {
	t         testing.TB
	dir, path string

	mu    sync.Mutex
	delay time.Duration
	down  bool
	locks []*os.File // our ends; reading says when the other side let go
	held  []string   // what, who and mode of each
	conn  *dbus.Conn
}

const busConfig = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path=%s</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/><allow user="*"/></policy></busconfig>`

func newBus(t testing.TB) *realBus {
	daemon, err := exec.LookPath("dbus-daemon")
	if err != nil {
		t.Skip("dbus-daemon is missing here")
	}
	dir, err := os.MkdirTemp("", "bus") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	b := &realBus{t: t, dir: dir, path: dir + "/s", delay: 5 * time.Second}
	if err := os.WriteFile(dir+"/conf", fmt.Appendf(nil, busConfig, b.path), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(daemon, "--config-file="+dir+"/conf", "--nofork", "--nopidfile", "--nosyslog", "--print-address")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal("dbus-daemon:", err)
	}
	b.logind()
	return b
}

// logind puts logind and systemd on the bus.
func (b *realBus) logind() {
	b.conn = b.client()
	for _, name := range []string{logind, "org.freedesktop.systemd1"} {
		if _, err := b.conn.RequestName(name, 0); err != nil {
			b.t.Fatal(err)
		}
	}
	for path, iface := range map[dbus.ObjectPath]map[string]any{
		logindPath: {logindIface: map[string]any{"Inhibit": b.inhibit},
			"org.freedesktop.DBus.Properties": map[string]any{"Get": b.get}},
		"/org/freedesktop/systemd1": {"org.freedesktop.systemd1.Manager": map[string]any{"KillUnit": b.killUnit}},
	} {
		for name, methods := range iface {
			if err := b.conn.ExportMethodTable(methods.(map[string]any), path, name); err != nil {
				b.t.Fatal(err)
			}
		}
	}
}

func (b *realBus) client() *dbus.Conn {
	c, err := dbus.Connect("unix:path=" + b.path)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = c.Close() })
	return c
}

func (b *realBus) inhibit(what, who, why, mode string) (dbus.UnixFD, *dbus.Error) {
	r, w, err := os.Pipe()
	if err != nil {
		return 0, dbus.MakeFailedError(err)
	}
	defer func() { time.AfterFunc(time.Second, func() { _ = w.Close() }) }() // sent by then
	b.mu.Lock()
	defer b.mu.Unlock()
	b.locks, b.held = append(b.locks, r), append(b.held, what+" "+who+" "+mode)
	return dbus.UnixFD(w.Fd()), nil
}

func (b *realBus) get(iface, name string) (dbus.Variant, *dbus.Error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch name {
	case "InhibitDelayMaxUSec":
		return dbus.MakeVariant(uint64(b.delay / time.Microsecond)), nil
	case "PreparingForShutdown":
		return dbus.MakeVariant(b.down), nil
	}
	return dbus.Variant{}, dbus.MakeFailedError(errors.New("no property " + name))
}

// killUnit is SIGHUP to logind, which reads its configuration.
func (b *realBus) killUnit(unit, who string, signal int32) *dbus.Error {
	if unit != "systemd-logind.service" || who != "all" || signal != 1 {
		return dbus.MakeFailedError(fmt.Errorf("%s %s %d", unit, who, signal))
	}
	raw, err := os.ReadFile(filepath.Join(b.dir, "logind.conf.d", confFile))
	if err != nil {
		return dbus.MakeFailedError(err)
	}
	for line := range strings.Lines(string(raw)) {
		var secs int
		if n, _ := fmt.Sscanf(line, "InhibitDelayMaxSec=%d", &secs); n == 1 {
			b.mu.Lock()
			b.delay = time.Duration(secs) * time.Second
			b.mu.Unlock()
		}
	}
	return nil
}

// prepare is the power button, or that it wasn't meant.
func (b *realBus) prepare(down bool) {
	b.mu.Lock()
	b.down = down
	b.mu.Unlock()
	if err := b.conn.Emit(logindPath, logindIface+"."+shutdownSig, down); err != nil {
		b.t.Fatal(err)
	}
}

// lock returns the i-th lock that was taken, once it was.
func (b *realBus) lock(i int) *os.File {
	b.t.Helper()
	await(b.t, fmt.Sprintf("lock %d", i), func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return len(b.locks) > i
	})
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.locks[i]
}

// released waits until a lock was let go.
func (b *realBus) released(i int) {
	b.t.Helper()
	await(b.t, fmt.Sprintf("lock %d to be let go", i), func() bool { return !b.holds(i) })
}

// holds reports whether a lock is still held: the other end of its pipe is open.
func (b *realBus) holds(i int) bool {
	fds := []unix.PollFd{{Fd: int32(b.lock(i).Fd())}}
	for _, err := unix.Poll(fds, 0); err != nil; _, err = unix.Poll(fds, 0) {
		if !errors.Is(err, unix.EINTR) {
			b.t.Fatal(err)
		}
	}
	return fds[0].Revents&unix.POLLHUP == 0
}

func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("timed out waiting for " + what)
		}
	}
}

// dbusSignal is logind's signal, sent by somebody else to one name on the bus.
type dbusSignal struct{ to string }

func (s *dbusSignal) send(t *testing.T, c *dbus.Conn) {
	t.Helper()
	msg := &dbus.Message{Type: dbus.TypeSignal, Headers: map[dbus.HeaderField]dbus.Variant{
		dbus.FieldPath:        dbus.MakeVariant(dbus.ObjectPath(logindPath)),
		dbus.FieldInterface:   dbus.MakeVariant(logindIface),
		dbus.FieldMember:      dbus.MakeVariant(shutdownSig),
		dbus.FieldDestination: dbus.MakeVariant(s.to),
		dbus.FieldSignature:   dbus.MakeVariant(dbus.SignatureOf(true)),
	}, Body: []any{true}}
	if call := c.SendWithContext(t.Context(), msg, nil); call != nil && call.Err != nil {
		t.Fatal(call.Err)
	}
}
