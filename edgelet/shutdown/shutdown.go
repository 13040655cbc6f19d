package shutdown

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/coracle-edge/coracle/edgelet/pods"
)

// A kubelet's words.
const (
	reasonTerminated  = "Terminated"
	messageTerminated = "Pod was terminated in response to imminent node shutdown."
	reasonRefused     = "NodeShutdown"
	messageRefused    = "Pod was rejected as the node is shutting down."
	reasonShutdown    = "Shutdown"
	messageShutdown   = "Shutdown manager detected shutdown event"
	messageCancelled  = "Shutdown manager detected shutdown cancellation"
)

// reconnect is the pause before the bus is dialed again.
const reconnect = time.Second

// Pods are the node's. [pods.Manager] has these methods.
type Pods interface {
	Active() []pods.Active
	End(ctx context.Context, uid string, v pods.Verdict) error
	Resume()
}

// Config configures a [Manager]. Pods and Periods are required.
type Config struct {
	Pods    func() Pods
	Periods []Period
	// Resume: pods that restart whatever happens are stopped in order but aren't
	// over: they run again after the machine's next start, without anybody who orders
	// others in their place. The node's own pods always do.
	Resume bool
	// Changed is called when the node begins to go down, or doesn't after all; may
	// be nil.
	Changed func()
	// Event is told what a kubelet tells of its node; may be nil.
	Event func(eventType, reason, message string)
	// Flush is called before the machine may go, to tell the control plane what is
	// left to tell; may be nil. It has FlushTimeout.
	Flush func(context.Context)
	// Bus is the system's, [DefaultBus] if empty; ConfDir logind's configuration,
	// [DefaultConfDir] if empty.
	Bus, ConfDir string
	Log          *slog.Logger
}

// FlushTimeout is how long the machine's going down waits for the control plane.
const FlushTimeout = 2 * time.Second

// Manager ends pods when the machine goes down. Safe for concurrent use.
type Manager struct {
	cfg  Config
	log  *slog.Logger
	down atomic.Bool
}

// New returns a Manager.
func New(c Config) (*Manager, error) {
	if c.Pods == nil || len(c.Periods) == 0 {
		return nil, errors.New("shutdown: Pods and Periods are required")
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Changed == nil {
		c.Changed = func() {}
	}
	if c.Event == nil {
		c.Event = func(string, string, string) {}
	}
	if c.Flush == nil {
		c.Flush = func(context.Context) {}
	}
	if c.Bus == "" {
		c.Bus = DefaultBus
	}
	if c.ConfDir == "" {
		c.ConfDir = DefaultConfDir
	}
	return &Manager{cfg: c, log: c.Log}, nil
}

// ShuttingDown reports whether the machine goes down.
func (m *Manager) ShuttingDown() bool { return m.down.Load() }

// Admit is a [pods.Gate]: no pod begins while the machine goes down.
func (m *Manager) Admit(*v1.Pod) (reason, message string) {
	if m.down.Load() {
		return reasonRefused, messageRefused
	}
	return "", ""
}

// Run holds logind's lock until ctx ends. A bus that isn't there is dialed again;
// a machine without logind ends as it would without this, and that is logged once.
func (m *Manager) Run(ctx context.Context) error {
	var said string
	for pause := reconnect; ; pause = min(2*pause, time.Minute) {
		err := m.session(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err.Error() != said {
			said = err.Error()
			m.log.Warn("a shutdown of this machine isn't noticed, trying again", "err", err)
		}
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-t.C:
		}
	}
}

// session is one connection to the bus.
func (m *Manager) session(ctx context.Context) error {
	l, err := dialLogin(ctx, m.cfg.Bus)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = l.conn.Close() })
	defer func() { stop(); l.close() }()
	if err := l.raiseDelay(ctx, m.cfg.ConfDir, total(m.cfg.Periods)+FlushTimeout); err != nil {
		// A short wait is more than none.
		m.log.Warn("pods may be cut short when the machine goes down", "err", err)
	}
	lock, err := l.inhibit(ctx)
	if err != nil {
		return err
	}
	// Every way out lets the machine go down.
	held := &lockHolder{file: lock}
	defer held.release()
	m.log.Info("pods will be ended in order when the machine goes down", "within", total(m.cfg.Periods))

	var work sync.WaitGroup
	defer work.Wait()
	var cancel context.CancelFunc = func() {}
	defer func() { cancel() }()
	begin := func() {
		m.down.Store(true)
		m.cfg.Changed()
		m.log.Warn("the machine goes down: ending the pods")
		m.cfg.Event(v1.EventTypeNormal, reasonShutdown, messageShutdown)
		var ending context.Context
		// A bus that breaks now ends nothing: the machine goes down all the same.
		ending, cancel = context.WithCancel(ctx)
		work.Go(func() {
			defer held.release()
			m.end(ending)
		})
	}
	goOn := func() {
		m.log.Info("the machine doesn't go down after all")
		m.cfg.Event(v1.EventTypeNormal, reasonShutdown, messageCancelled)
		m.down.Store(false)
		m.cfg.Changed()
		m.cfg.Pods().Resume()
	}
	down, err := l.preparing(ctx)
	switch {
	case err != nil:
		return err
	case down:
		begin()
	case m.down.Load(): // that was said while nobody listened
		goOn()
	}
	for {
		select {
		case <-l.done:
			if m.down.Load() {
				work.Wait()
			}
			return l.err
		case s := <-l.signals:
			down, ok := l.shutdown(ctx, s)
			switch {
			case !ok:
				m.log.Warn("somebody who isn't logind says that the machine goes down", "sender", s.sender)
			case down && !m.down.Load():
				begin()
			case !down && m.down.Load():
				cancel()
				work.Wait()
				if lock, err = l.inhibit(ctx); err != nil {
					return err
				}
				held.replace(lock)
				goOn()
			}
		}
	}
}

// end ends the pods, group after group, and tells the control plane.
func (m *Manager) end(ctx context.Context) {
	all := m.cfg.Pods()
	for i, list := range group(m.cfg.Periods, all.Active()) {
		if len(list) == 0 {
			continue
		}
		period := m.cfg.Periods[i]
		call, cancel := context.WithTimeout(ctx, period.Grace)
		var wg sync.WaitGroup
		for _, p := range list {
			grace := min(p.Grace, int64(period.Grace/time.Second))
			v := pods.Verdict{Reason: reasonTerminated, Message: messageTerminated, Disruption: messageTerminated, Grace: &grace,
				Resume: p.Static || m.cfg.Resume && p.RestartPolicy == v1.RestartPolicyAlways}
			wg.Go(func() {
				if err := all.End(call, p.UID, v); err != nil {
					m.log.Warn("going on without the end of a pod", "pod", p.Namespace+"/"+p.Name, "err", err)
				}
			})
		}
		wg.Wait()
		cancel()
		m.log.Info("pods ended", "priority", fmt.Sprintf("from %d", period.Priority), "pods", len(list))
		if ctx.Err() != nil {
			return
		}
	}
	flush, cancel := context.WithTimeout(ctx, FlushTimeout)
	defer cancel()
	m.cfg.Flush(flush)
}

// lockHolder lets a lock go once.
type lockHolder struct {
	mu   sync.Mutex
	file *os.File
}

func (h *lockHolder) release() { h.replace(nil) }

func (h *lockHolder) replace(f *os.File) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.file != nil {
		_ = h.file.Close()
	}
	h.file = f
}
