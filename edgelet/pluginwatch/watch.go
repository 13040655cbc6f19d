package pluginwatch

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// Types of plugins, as upstream names them.
const (
	TypeCSI    = "CSIPlugin"
	TypeDevice = "DevicePlugin"
	TypeDRA    = "DRAPlugin"
)

const (
	callTimeout = 10 * time.Second
	retryMin    = 500 * time.Millisecond
	retryMax    = 2 * time.Minute
	// maxSockets and maxDepth bound what a folder that others write can cost.
	maxSockets = 256
	maxDepth   = 3
	// maxCalls bounds how many plugins are asked or told something at once: one that
	// doesn't answer must not keep others waiting.
	maxCalls = 32
)

// Plugin is what a plugin says of itself.
type Plugin struct {
	Type, Name string
	// Endpoint is the socket of the plugin's own service; that of the registration
	// if the plugin names none.
	Endpoint string
	Versions []string
	Socket   string // of the registration
}

// Handler takes plugins of one type. Its methods are called one at a time.
type Handler interface {
	// Register takes a plugin, also one that it has already. The error is told to
	// the plugin, and registration is tried again later.
	Register(context.Context, Plugin) error
	// Deregister is called when the plugin's registration socket went.
	Deregister(Plugin)
}

// Config configures a [Watcher]. Dir and Handlers are required.
type Config struct {
	Dir      string
	Handlers map[string]Handler // by type
	Log      *slog.Logger
}

// Watcher watches one folder.
type Watcher struct {
	Config
	known   map[string]*entry // by socket
	answers chan answer
	slots   chan struct{}
	wg      sync.WaitGroup
}

// answer is what came of a call of a plugin.
type answer struct {
	socket string
	e      *entry
	plugin Plugin
	told   bool // what became of its registration; else it was asked what it is
	err    error
}

// entry is a socket that is there.
type entry struct {
	id         socketID
	busy       bool // it is being asked or told
	taken      bool // by its handler
	registered bool // and the plugin knows it
	plugin     Plugin
	delay      time.Duration
	retry      time.Time
}

// socketID tells a socket from the next one of its name.
type socketID struct {
	ino   uint64
	ctime int64
}

// New returns a Watcher; Run watches.
func New(c Config) *Watcher {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Watcher{Config: c, known: map[string]*entry{}, answers: make(chan answer), slots: make(chan struct{}, maxCalls)}
}

// Run makes the folder and watches it until ctx ends. A node that may not make
// it has no plugins, which is said once and is no error.
func (w *Watcher) Run(ctx context.Context) error {
	if err := os.MkdirAll(w.Dir, 0o750); err != nil {
		w.Log.Info("no plugins: their folder can't be made", "dir", w.Dir, "err", err)
		return nil
	}
	events, err := newNotify()
	if err != nil {
		return fmt.Errorf("watching %s for plugins: %w", w.Dir, err)
	}
	defer events.close()
	ctx, cancel := context.WithCancel(ctx)
	defer w.wg.Wait()
	defer cancel()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		next, err := w.look(ctx, events.add)
		if err != nil && ctx.Err() == nil {
			w.Log.Warn("the plugins' folder can't be read", "dir", w.Dir, "err", err)
			next = time.Now().Add(retryMax)
		}
		timer.Stop()
		if !next.IsZero() {
			timer.Reset(max(time.Until(next), time.Millisecond))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-events.changed:
		case <-timer.C:
		case a := <-w.answers:
			w.take(ctx, a)
		}
	}
}

// look compares the folder with what is known, and returns when to look again
// although nothing happens; zero if never.
func (w *Watcher) look(ctx context.Context, watch func(dir string) error) (next time.Time, err error) {
	found, err := sockets(w.Dir, watch)
	if err != nil {
		return time.Time{}, err
	}
	for path, e := range w.known {
		if id, there := found[path]; !there || id != e.id {
			delete(w.known, path)
			if e.taken && !w.elsewhere(e.plugin) {
				w.Log.Info("plugin went", "type", e.plugin.Type, "name", e.plugin.Name)
				w.Handlers[e.plugin.Type].Deregister(e.plugin)
			}
		}
	}
	for path, id := range found {
		e := w.known[path]
		if e == nil {
			e = &entry{id: id}
			w.known[path] = e
		}
		if e.registered || e.busy {
			continue
		}
		if e.retry.Before(time.Now()) {
			w.call(ctx, e, func(ctx context.Context) answer {
				p, err := getInfo(ctx, path)
				return answer{socket: path, e: e, plugin: p, err: err}
			})
		} else if next.IsZero() || e.retry.Before(next) {
			next = e.retry
		}
	}
	return next, nil
}

// elsewhere reports that a plugin is registered by another socket as well. Another
// endpoint is another instance, such as the one that a rolling update brought.
func (w *Watcher) elsewhere(p Plugin) bool {
	for _, e := range w.known {
		if e.taken && e.plugin.Type == p.Type && e.plugin.Name == p.Name && e.plugin.Endpoint == p.Endpoint {
			return true
		}
	}
	return false
}

// call has a plugin asked or told something in a goroutine that Run waits for.
func (w *Watcher) call(ctx context.Context, e *entry, do func(context.Context) answer) {
	e.busy = true
	w.wg.Go(func() {
		select {
		case w.slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		a := do(ctx)
		<-w.slots
		select {
		case w.answers <- a:
		case <-ctx.Done():
		}
	})
}

// take goes on with a plugin that has answered.
func (w *Watcher) take(ctx context.Context, a answer) {
	e := a.e
	e.busy = false
	switch {
	case w.known[a.socket] != e: // it went, and what was taken of it with it
	case a.told && a.err == nil:
		e.registered, e.delay = true, 0
		w.Log.Info("plugin registered", "type", a.plugin.Type, "name", a.plugin.Name, "endpoint", a.plugin.Endpoint)
	case a.told, a.err != nil:
		e.delay = min(max(2*e.delay, retryMin), retryMax)
		e.retry = time.Now().Add(e.delay)
		w.Log.Warn("a plugin was not registered", "socket", a.socket, "err", a.err, "again", e.delay)
	default:
		w.register(ctx, a.socket, e, a.plugin)
	}
}

// register hands a plugin to its handler and has it told what came of that.
func (w *Watcher) register(ctx context.Context, socket string, e *entry, p Plugin) {
	var err error
	if h := w.Handlers[p.Type]; h == nil {
		err = fmt.Errorf("no handler registered for plugin type: %s at socket %s", p.Type, socket)
	} else {
		err = h.Register(ctx, p)
	}
	if err == nil {
		e.taken, e.plugin = true, p
	}
	w.call(ctx, e, func(ctx context.Context) answer {
		told := notify(ctx, socket, err)
		if err != nil {
			told = err
		}
		return answer{socket: socket, e: e, plugin: p, told: true, err: told}
	})
}

// sockets finds the sockets at and below dir, and has every folder watched.
// Names that start with a dot are nobody's, as upstream says.
func sockets(dir string, watch func(string) error) (map[string]socketID, error) {
	found := map[string]socketID{}
	var walk func(dir string, depth int) error
	walk = func(dir string, depth int) error {
		// Watched before it is read, so that what comes meanwhile is an event.
		if err := watch(dir); err != nil {
			return err
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, d := range entries {
			path := filepath.Join(dir, d.Name())
			switch {
			case strings.HasPrefix(d.Name(), "."):
			case d.IsDir() && depth < maxDepth:
				if err := walk(path, depth+1); err != nil && !errors.Is(err, fs.ErrNotExist) {
					return err
				}
			case d.Type()&fs.ModeSocket != 0 && len(found) < maxSockets:
				if id, ok := identify(path); ok {
					found[path] = id
				}
			}
		}
		return nil
	}
	return found, walk(dir, 0)
}
