package shutdown

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

const (
	logind      = "org.freedesktop.login1"
	logindPath  = "/org/freedesktop/login1"
	logindIface = "org.freedesktop.login1.Manager"
	shutdownSig = "PrepareForShutdown"

	// DefaultConfDir is where logind reads what administrators and we configure.
	DefaultConfDir = "/etc/systemd/logind.conf.d"
	confFile       = "99-coracle.conf"
)

// ErrDelay is returned when logind doesn't wait as long as it is asked to.
var ErrDelay = errors.New("logind doesn't wait long enough")

// login is logind, on a bus.
type login struct {
	*bus
	owner string // the bus's own name of logind
}

// dialLogin connects and subscribes, before anything is asked, so that no signal
// is missed.
func dialLogin(ctx context.Context, path string) (*login, error) {
	b, err := dialBus(ctx, path)
	if err != nil {
		return nil, err
	}
	l := &login{bus: b}
	rule := fmt.Sprintf("type='signal',sender='%s',interface='%s',member='%s',path='%s'", logind, logindIface, shutdownSig, logindPath)
	if _, err := b.call(ctx, busName, busPath, busName, "AddMatch", "s", func(e *encoder) { e.str(rule) }); err != nil {
		b.close()
		return nil, err
	}
	return l, nil
}

// property asks for one of the manager's.
func (l *login) property(ctx context.Context, name string) (*decoder, error) {
	m, err := l.call(ctx, logind, logindPath, "org.freedesktop.DBus.Properties", "Get", "ss", func(e *encoder) {
		e.str(logindIface)
		e.str(name)
	})
	if err != nil {
		return nil, fmt.Errorf("asking logind for %s: %w", name, err)
	}
	closeFiles(m.files)
	return m.args(), nil
}

// delay is how long logind waits for locks at most.
func (l *login) delay(ctx context.Context) (time.Duration, error) {
	d, err := l.property(ctx, "InhibitDelayMaxUSec")
	if err != nil {
		return 0, err
	}
	d.variant("t")
	usec := d.u64()
	if d.err != nil {
		return 0, fmt.Errorf("InhibitDelayMaxUSec of logind: %w", d.err)
	}
	return time.Duration(min(usec, 1<<40)) * time.Microsecond, nil
}

// preparing reports whether the machine goes down already.
func (l *login) preparing(ctx context.Context) (bool, error) {
	d, err := l.property(ctx, "PreparingForShutdown")
	if err != nil {
		return false, err
	}
	d.variant("b")
	yes := d.u32() == 1
	return yes, d.err
}

// inhibit takes a lock: the machine doesn't go down until the file is closed, or
// logind's delay is over.
func (l *login) inhibit(ctx context.Context) (*os.File, error) {
	m, err := l.call(ctx, logind, logindPath, logindIface, "Inhibit", "ssss", func(e *encoder) {
		e.str("shutdown")
		e.str("edgelet")
		e.str("pods are ended in order before the machine goes down")
		e.str("delay")
	})
	if err != nil {
		return nil, err
	}
	if len(m.files) != 1 {
		closeFiles(m.files)
		return nil, fmt.Errorf("logind's lock: %w: %d descriptors", ErrMessage, len(m.files))
	}
	return os.NewFile(uintptr(m.files[0]), "logind's delay lock"), nil
}

// raiseDelay has logind wait as long as all pods together may take.
func (l *login) raiseDelay(ctx context.Context, dir string, want time.Duration) error {
	have, err := l.delay(ctx)
	if err != nil || have >= want {
		return err
	}
	path := filepath.Join(dir, confFile)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("configuring logind: %w", err)
	}
	text := fmt.Sprintf("# Written by edgelet, for its --shutdown-grace-period.\n[Login]\nInhibitDelayMaxSec=%d\n", int64((want+time.Second-1)/time.Second))
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		return fmt.Errorf("configuring logind: %w", err)
	}
	if _, err := l.call(ctx, "org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager", "KillUnit", "ssi", func(e *encoder) {
		e.str("systemd-logind.service")
		e.str("all")
		e.u32(1) // SIGHUP: read it again
	}); err != nil {
		return fmt.Errorf("having logind read %s: %w", path, err)
	}
	for wait := 100 * time.Millisecond; ; wait *= 2 {
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		case <-t.C:
		}
		if have, err = l.delay(ctx); err != nil || have >= want {
			return err
		}
		if wait > 3*time.Second {
			return fmt.Errorf("%w: %s, and %s was asked for; set InhibitDelayMaxSec=%d in /etc/systemd/logind.conf", ErrDelay, have, want, int64(want/time.Second))
		}
	}
}

// shutdown reads a signal: whether the machine goes down, and whether the signal
// is logind's at all. Anybody on the bus may send one, so it is asked who logind
// is.
func (l *login) shutdown(ctx context.Context, m *message) (down, ok bool) {
	if m.iface != logindIface || m.member != shutdownSig || m.signature != "b" {
		return false, false
	}
	if m.sender != l.owner {
		a, err := l.call(ctx, busName, busPath, busName, "GetNameOwner", "s", func(e *encoder) { e.str(logind) })
		if err != nil {
			return false, false
		}
		d := a.args()
		if l.owner = d.str(); d.err != nil || m.sender != l.owner {
			return false, false
		}
	}
	d := m.args()
	down = d.u32() == 1
	return down, d.err == nil
}
