package wasm

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/crishim/images"
	"github.com/coracle-edge/coracle/internal/fdwatch"
	"github.com/coracle-edge/coracle/wasmruntime"
)

// Runtime is what the package needs of wasmruntime.Runtime.
type Runtime interface {
	Compile(ctx context.Context, modulePath, digest string) error
	Start(ctx context.Context, spec wasmruntime.Spec) (*wasmruntime.Process, error)
	Attach(dir string) (*wasmruntime.Process, error)
}

// ForeignSandbox is a sandbox of another runtime that a Wasm container joins.
type ForeignSandbox struct {
	ID     string // in full
	Config *runtimeapi.PodSandboxConfig
	// NetNS is the path of its network namespace; empty means the host's.
	NetNS string
	// CgroupParent under which its containers' cgroups are.
	CgroupParent string
	Ready        bool
}

// Network attaches pods to a network. network.CNI implements it.
type Network interface {
	// Configured says whether there is a network to attach to.
	Configured() bool
	// Check says why pods can't be attached, nil if they can.
	Check() error
	// Attach returns the pod's addresses, the first of them its primary one.
	Attach(ctx context.Context, id, netns string, cfg *runtimeapi.PodSandboxConfig) ([]string, error)
	// Detach can be repeated; an empty netns is one that is gone.
	Detach(ctx context.Context, id, netns string, cfg *runtimeapi.PodSandboxConfig) error
}

// Options configure a Manager. Dir and Runtime are required.
type Options struct {
	// Dir holds the records and the containers' bundles.
	Dir string
	// NetNSDir holds the bind mounts of network namespaces, and is this
	// manager's alone: others' namespaces in it are removed. Empty: Dir/netns.
	NetNSDir string
	Runtime  Runtime
	// Image finds a Wasm image by what CreateContainer names.
	Image func(ref string) (*images.Image, error)
	// ForeignSandbox finds another runtime's sandbox; nil if there is none.
	ForeignSandbox func(ctx context.Context, id string) (*ForeignSandbox, error)
	// Network attaches pods; nil means that all pods use the host's network.
	Network Network
	// RequireNetwork refuses pods that ask for a network of their own while there
	// is none; else they use the host's.
	RequireNetwork bool
	// CgroupParent for pods that name none. Empty: /coracle.
	CgroupParent string
	// CgroupRoot is /sys/fs/cgroup if empty.
	CgroupRoot string
	// BootIDFile is /proc/sys/kernel/random/boot_id if empty.
	BootIDFile string
	// Emit is told of every change of a sandbox or container, in order per
	// object. It must not block or call back. May be nil.
	Emit   func(*runtimeapi.ContainerEventResponse)
	Logger *slog.Logger
	// Now is the wall clock; nil means time.Now.
	Now func() time.Time
}

// Manager owns all Wasm sandboxes and containers of one state directory. It is
// safe for concurrent use.
//
// Lock order: container.op, then Manager.mu, then container.mu or sandbox.mu.
type Manager struct {
	opts    Options
	log     *slog.Logger
	bootID  string
	cgroups bool // may be made here
	scratch logScratch
	watcher fdwatch.Watcher // of what guests write
	wg      sync.WaitGroup  // of what is done at containers' ends
	closing chan struct{}

	mu         sync.Mutex
	closed     bool // Close was called: the wait group gets no more
	sandboxes  map[string]*sandbox
	containers map[string]*container
	names      map[string]string // reserved name -> ID
}

// New opens the state directory and recovers what is in it: live guests are
// taken over, dead ones marked, half-made things cleaned away.
func New(ctx context.Context, opts Options) (*Manager, error) {
	if opts.NetNSDir == "" {
		opts.NetNSDir = filepath.Join(opts.Dir, "netns")
	}
	if opts.CgroupParent == "" {
		opts.CgroupParent = "/coracle"
	}
	if opts.CgroupRoot == "" {
		opts.CgroupRoot = "/sys/fs/cgroup"
	}
	if opts.BootIDFile == "" {
		opts.BootIDFile = "/proc/sys/kernel/random/boot_id"
	}
	if opts.Emit == nil {
		opts.Emit = func(*runtimeapi.ContainerEventResponse) {}
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	m := &Manager{
		opts: opts, log: opts.Logger, closing: make(chan struct{}),
		sandboxes: map[string]*sandbox{}, containers: map[string]*container{}, names: map[string]string{},
	}
	for _, dir := range []string{opts.Dir, m.sandboxDir(""), m.containerDir("")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("wasm state: %w", err)
		}
	}
	boot, err := os.ReadFile(opts.BootIDFile)
	if err != nil {
		return nil, fmt.Errorf("wasm state: boot ID: %w", err)
	}
	m.bootID = strings.TrimSpace(string(boot))
	if m.cgroups = m.canMakeCgroups(); !m.cgroups {
		m.log.Info("this user can't make cgroups: guests have no limits but that of their linear memory")
	}
	if err := m.scratch.open(); err != nil {
		return nil, fmt.Errorf("wasm state: %w", err)
	}
	flight, pending, err := openInflight(filepath.Join(opts.Dir, "inflight"), m.bootID)
	if err != nil {
		m.log.Warn("if this process is killed, lines of logs may be doubled", "err", err)
	} else {
		m.scratch.inflight = *flight
		m.landFlight(pending)
	}
	if err := m.recover(ctx); err != nil {
		m.scratch.close()
		return nil, fmt.Errorf("wasm state: %w", err)
	}
	return m, nil
}

// Close stops watching. Guests run on, their output waits in their FIFOs; the
// next Manager of this directory takes them over.
func (m *Manager) Close() error {
	close(m.closing)
	m.mu.Lock()
	m.closed = true
	all := slices.Collect(maps.Values(m.containers))
	m.mu.Unlock()
	running := func(do func(*logPump)) {
		for _, c := range all {
			c.mu.Lock()
			logs := c.logs
			c.mu.Unlock()
			if logs != nil {
				do(logs)
			}
		}
	}
	running((*logPump).stop)
	m.wg.Wait()
	running((*logPump).wait) // the others' were waited for
	m.scratch.close()
	return nil
}

func (m *Manager) sandboxDir(id string) string   { return filepath.Join(m.opts.Dir, "sandboxes", id) }
func (m *Manager) containerDir(id string) string { return filepath.Join(m.opts.Dir, "containers", id) }

// HasSandbox and HasContainer say whether an ID is one of this manager's.
func (m *Manager) HasSandbox(id string) bool   { _, err := m.sandbox(id); return err == nil }
func (m *Manager) HasContainer(id string) bool { _, err := m.container(id); return err == nil }

// NetworkConfigured says whether pods get a network of their own.
func (m *Manager) NetworkConfigured() bool {
	return m.opts.Network != nil && m.opts.Network.Configured()
}

// NetworkCheck says why pods can't have a network of their own, nil if they can.
func (m *Manager) NetworkCheck() error {
	if m.opts.Network == nil {
		return errors.New("no network can be made here: that takes root and a CNI configuration")
	}
	return m.opts.Network.Check()
}

// UsesImage says whether a container was made from an image.
func (m *Manager) UsesImage(id string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.containers {
		if c.rec.ImageID == id || slices.Contains(c.rec.VolumeImages, id) {
			return true
		}
	}
	return false
}

// UsesModule says whether a container, running or not, is of a module.
func (m *Manager) UsesModule(digest string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.containers {
		if c.rec.Spec.Digest == digest {
			return true
		}
	}
	return false
}

// sandbox finds one by ID, or by a prefix of it that only one has.
func (m *Manager) sandbox(id string) (*sandbox, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return byID(m.sandboxes, "pod sandbox", id)
}

func (m *Manager) container(id string) (*container, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return byID(m.containers, "container", id)
}

func byID[T any](all map[string]*T, what, id string) (*T, error) {
	if v, ok := all[id]; ok {
		return v, nil
	}
	var found *T
	if len(id) >= 8 {
		for full, v := range all {
			if strings.HasPrefix(full, id) {
				if found != nil {
					return nil, fmt.Errorf("%s %q: %w: more than one ID begins so", what, id, ErrInvalid)
				}
				found = v
			}
		}
	}
	if found == nil {
		return nil, fmt.Errorf("%s %q: %w", what, id, ErrNotFound)
	}
	return found, nil
}

// reserve takes a name, so that a repeated request doesn't make a second one.
func (m *Manager) reserve(name, id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if owner, ok := m.names[name]; ok && owner != id {
		return fmt.Errorf("%w: name %q is reserved for %s", ErrExists, name, owner)
	}
	m.names[name] = id
	return nil
}

func (m *Manager) release(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.names, name)
}

func newID() string {
	b := make([]byte, 32)
	rand.Read(b) // never fails
	return hex.EncodeToString(b)
}
