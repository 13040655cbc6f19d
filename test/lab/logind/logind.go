// Package logind is a bus of dbus-daemon's, and a logind on it that speaks the
// interface through another client than edgelet's, for tests.
package logind

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

const (
	name      = "org.freedesktop.login1"
	path      = "/org/freedesktop/login1"
	iface     = "org.freedesktop.login1.Manager"
	signal    = "PrepareForShutdown"
	confFiles = "*.conf"
)

// Bus is a bus with a logind.
type Bus struct {
	// Path is the bus's socket, ConfDir what logind reads.
	Path, ConfDir string

	t     testing.TB
	mu    sync.Mutex
	delay time.Duration
	down  bool
	locks []*os.File // our ends: they hang up when the other side lets go
	held  []string   // what, who and mode of each
	conn  *dbus.Conn
}

const busConfig = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path=%s</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/><allow user="*"/></policy></busconfig>`

// Start starts both; logind waits five seconds for locks.
func Start(t testing.TB) *Bus {
	daemon, err := exec.LookPath("dbus-daemon")
	if err != nil {
		t.Skip("dbus-daemon is missing here")
	}
	dir, err := os.MkdirTemp("", "bus") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	b := &Bus{t: t, Path: dir + "/s", ConfDir: dir + "/logind.conf.d", delay: 5 * time.Second}
	if err := os.WriteFile(dir+"/conf", fmt.Appendf(nil, busConfig, b.Path), 0o600); err != nil {
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
	b.serve()
	return b
}

// serve puts logind and systemd on the bus.
func (b *Bus) serve() {
	b.conn = b.Client()
	for _, name := range []string{name, "org.freedesktop.systemd1"} {
		if _, err := b.conn.RequestName(name, 0); err != nil {
			b.t.Fatal(err)
		}
	}
	for path, iface := range map[dbus.ObjectPath]map[string]any{
		path: {iface: map[string]any{"Inhibit": b.inhibit},
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

// Client is somebody else on the bus.
func (b *Bus) Client() *dbus.Conn {
	c, err := dbus.Connect("unix:path=" + b.Path)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = c.Close() })
	return c
}

func (b *Bus) inhibit(what, who, _, mode string) (dbus.UnixFD, *dbus.Error) {
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

func (b *Bus) get(_, name string) (dbus.Variant, *dbus.Error) {
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
func (b *Bus) killUnit(unit, who string, signal int32) *dbus.Error {
	if unit != "systemd-logind.service" || who != "all" || signal != 1 {
		return dbus.MakeFailedError(fmt.Errorf("%s %s %d", unit, who, signal))
	}
	files, err := filepath.Glob(filepath.Join(b.ConfDir, confFiles))
	if err != nil || len(files) != 1 {
		return dbus.MakeFailedError(fmt.Errorf("%q, %w", files, err))
	}
	raw, err := os.ReadFile(files[0])
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

// Prepare is the power button, or that it wasn't meant.
func (b *Bus) Prepare(down bool) {
	b.mu.Lock()
	b.down = down
	b.mu.Unlock()
	if err := b.conn.Emit(path, iface+"."+signal, down); err != nil {
		b.t.Fatal(err)
	}
}

// Lock returns the i-th lock that was taken, once it was.
func (b *Bus) Lock(i int) *os.File {
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

// Released waits until a lock was let go.
func (b *Bus) Released(i int) {
	b.t.Helper()
	await(b.t, fmt.Sprintf("lock %d to be let go", i), func() bool { return !b.Holds(i) })
}

// Holds reports whether a lock is still held: the other end of its pipe is open.
func (b *Bus) Holds(i int) bool {
	fds := []unix.PollFd{{Fd: int32(b.Lock(i).Fd())}}
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

// Forge sends logind's signal from somebody else to everybody on the bus.
func (b *Bus) Forge() {
	b.t.Helper()
	stranger := b.Client()
	var names []string
	if err := stranger.BusObject().Call("org.freedesktop.DBus.ListNames", 0).Store(&names); err != nil {
		b.t.Fatal(err)
	}
	for _, to := range names {
		if !strings.HasPrefix(to, ":") {
			continue
		}
		msg := &dbus.Message{Type: dbus.TypeSignal, Headers: map[dbus.HeaderField]dbus.Variant{
			dbus.FieldPath:        dbus.MakeVariant(dbus.ObjectPath(path)),
			dbus.FieldInterface:   dbus.MakeVariant(iface),
			dbus.FieldMember:      dbus.MakeVariant(signal),
			dbus.FieldDestination: dbus.MakeVariant(to),
			dbus.FieldSignature:   dbus.MakeVariant(dbus.SignatureOf(true)),
		}, Body: []any{true}}
		if call := stranger.SendWithContext(b.t.Context(), msg, nil); call != nil && call.Err != nil {
			b.t.Fatal(call.Err)
		}
	}
}

// Delay is how long logind waits for locks.
func (b *Bus) Delay() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.delay
}

// Held is what a lock is for: what, who and mode.
func (b *Bus) Held(i int) string {
	b.Lock(i)
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.held[i]
}

// Began says that the machine went down before anybody asked.
func (b *Bus) Began() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.down = true
}
