package probes

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
)

// Kind is what a probe is for.
type Kind int

// The kinds of probes.
const (
	Liveness Kind = iota
	Readiness
	Startup
	kinds = 3
)

// String is the kind as events call it.
func (k Kind) String() string { return [...]string{"Liveness", "Readiness", "Startup"}[k] }

// Result is what the runs of a probe came to, its thresholds applied.
type Result int

// Results. Unknown is that of a probe which hasn't come to anything yet.
const (
	Unknown Result = iota
	Success
	Failure
)

// DefaultParallel is how many probes run at the same time at most. Each may hold
// a connection and a few KiB.
const DefaultParallel = 64

// Exec runs a command in a container and returns its output, stdout before
// stderr, and its exit code. It ends by itself after timeout and then returns
// [context.DeadlineExceeded]; timeout 0 is none.
type Exec func(ctx context.Context, containerID string, command []string, timeout time.Duration) (output []byte, exitCode int32, err error)

// Event is something to be told about a container.
type Event struct {
	PodUID, Path          string // Path names the container
	Type, Reason, Message string
}

// Config configures a [Manager]. Exec, Changed and Event are required; they are
// called without any lock held.
type Config struct {
	Exec Exec
	// Changed is called when a result of a pod's changed.
	Changed func(podUID string)
	Event   func(Event)
	// Parallel is how many probes run at the same time: [DefaultParallel] if 0.
	Parallel int
	Log      *slog.Logger
}

// Pod is a pod with the containers of it that run and have probes.
type Pod struct {
	UID string
	// IP is the pod's address, which probes go to; empty is this machine.
	IP string
	// Terminating pods are asked for readiness only.
	Terminating bool
	Containers  []Container
}

// Container is a running container.
type Container struct {
	Name, ID string
	// Path is how events name it, such as spec.containers{main}.
	Path string
	Spec *v1.Container
	// Expand replaces $(NAME) in a command's argument by what the container's own
	// variables say.
	Expand func(string) string
	// Age is how long it has been running.
	Age time.Duration
	// Adopted containers ran before this agent did. Until its probes have run again
	// such a container is taken for what was last reported of it: Started, Ready.
	Adopted, Started, Ready bool
}

// container is what is known of a watched one.
type container struct {
	pod                     *pod
	name, id, path          string
	since                   time.Time     // it runs, on the monotonic clock
	spec                    *v1.Container // its probes and ports only
	expand                  func(string) string
	probes                  [kinds]*probe
	adopted, started, ready bool
}

type pod struct {
	uid, ip     string
	terminating bool
	containers  []*container
}

// Manager probes the containers of one node.
type Manager struct {
	cfg   Config
	log   *slog.Logger
	check checker
	kick  chan struct{}

	mu       sync.Mutex
	pods     map[string]*pod
	byID     map[string]*container
	queue    queue
	parked   []*probe // due, and without a slot
	inFlight int
	slow     int // of inFlight
	unproven int // of inFlight, with the slow ones
}

// New returns a Manager that does nothing before [Manager.Run].
func New(c Config) *Manager {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Parallel <= 0 {
		c.Parallel = DefaultParallel
	}
	return &Manager{cfg: c, log: c.Log, check: newChecker(c.Exec), kick: make(chan struct{}, 1),
		pods: map[string]*pod{}, byID: map[string]*container{}}
}

// Watch says which containers of a pod run now. Those not among them any more are
// forgotten; of those that stay nothing changes but the pod's address.
func (m *Manager) Watch(p Pod) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.pods[p.UID]
	if now == nil {
		if len(p.Containers) == 0 {
			return
		}
		now = &pod{uid: p.UID}
		m.pods[p.UID] = now
	}
	now.ip, now.terminating = p.IP, p.Terminating
	now.containers = slices.DeleteFunc(now.containers, func(c *container) bool {
		stays := slices.ContainsFunc(p.Containers, func(n Container) bool { return n.ID == c.id })
		if !stays {
			m.forgetLocked(c)
		}
		return !stays
	})
	for i := range p.Containers {
		if n := &p.Containers[i]; m.byID[n.ID] == nil {
			now.containers = append(now.containers, m.addLocked(now, n))
		}
	}
	if p.Terminating {
		for _, c := range now.containers {
			// As upstream: an end that was asked for is not to be told as a failure.
			for _, kind := range []Kind{Liveness, Startup} {
				if pr := c.probes[kind]; pr != nil && !pr.stopped {
					pr.stopped, pr.result = true, Success
					m.queue.remove(pr)
				}
			}
		}
	}
	if len(now.containers) == 0 {
		delete(m.pods, p.UID)
	}
	m.wake()
}

// Forget ends the probes of a pod.
func (m *Manager) Forget(podUID string) { m.Watch(Pod{UID: podUID}) }

func (m *Manager) addLocked(p *pod, n *Container) *container {
	c := &container{pod: p, name: n.Name, id: n.ID, path: n.Path, since: time.Now().Add(-max(n.Age, 0)), expand: n.Expand, adopted: n.Adopted, started: n.Started, ready: n.Ready,
		spec: &v1.Container{Name: n.Name, Ports: n.Spec.Ports}}
	m.byID[n.ID] = c
	specs := [kinds]*v1.Probe{Liveness: n.Spec.LivenessProbe, Readiness: n.Spec.ReadinessProbe, Startup: n.Spec.StartupProbe}
	for _, kind := range []Kind{Startup, Readiness, Liveness} { // what the others wait for first
		if specs[kind] == nil {
			continue
		}
		pr := &probe{of: c, kind: kind, spec: specs[kind], index: -1, tokens: eventBurst}
		c.probes[kind] = pr
		if !n.Adopted {
			pr.result = [...]Result{Liveness: Success, Readiness: Failure, Startup: Unknown}[kind]
		} else if kind == Startup && n.Started {
			pr.result, pr.stopped = Success, true
		}
		if kind != Startup && !c.isStarted() {
			continue // scheduled when it has started
		}
		if !pr.stopped {
			m.scheduleFirstLocked(pr)
		}
	}
	return c
}

func (m *Manager) forgetLocked(c *container) {
	delete(m.byID, c.id)
	for _, pr := range c.probes {
		if pr != nil {
			pr.stopped = true
			m.queue.remove(pr)
		}
	}
}

// isStarted: a container is if it has no startup probe, or one that succeeded.
func (c *container) isStarted() bool {
	pr := c.probes[Startup]
	switch {
	case pr == nil:
		return true
	case pr.result == Unknown:
		return c.adopted && c.started
	}
	return pr.result == Success
}

// Started reports whether a running container has started. One that isn't
// watched has no probes, and has.
func (m *Manager) Started(containerID string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.byID[containerID]
	return c == nil || c.isStarted()
}

// Ready reports whether a running container is ready.
func (m *Manager) Ready(containerID string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.byID[containerID]
	if c == nil {
		return true
	}
	if !c.isStarted() {
		return false
	}
	pr := c.probes[Readiness]
	switch {
	case pr == nil:
		return true
	case pr.result == Unknown:
		return c.adopted && c.ready
	}
	return pr.result == Success
}

// Failing reports that a container must be restarted, and which kind of probe
// says so.
func (m *Manager) Failing(containerID string) (Kind, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c := m.byID[containerID]; c != nil {
		for _, kind := range []Kind{Liveness, Startup} {
			if pr := c.probes[kind]; pr != nil && pr.result == Failure {
				return kind, true
			}
		}
	}
	return 0, false
}
