package pods

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/edgelet/images"
	"github.com/coracle-edge/coracle/edgelet/pods/kubeobj"
	"github.com/coracle-edge/coracle/edgelet/probes"
	"github.com/coracle-edge/coracle/edgelet/userns"
	"github.com/coracle-edge/coracle/edgelet/volumes"
)

// Node is what pods need to know of the node they run on.
type Node interface {
	Name() string
	Labels() map[string]string
	Allocatable() v1.ResourceList
	MemoryCapacity() int64
	// DeclaredFeatures are what a pod may require of the node by name.
	DeclaredFeatures() []string
	// HostIPs are the node's addresses, the first one being its own; empty if it
	// has none now.
	HostIPs() []string
}

// Defaults of [Config].
const (
	DefaultRelist      = time.Minute
	fallbackRelist     = time.Second // without events, as a kubelet
	DefaultLogMaxSize  = 1 << 20
	DefaultLogMaxFiles = 3
	// DefaultSeccompDir is a kubelet's.
	DefaultSeccompDir = "/var/lib/kubelet/seccomp"
)

// Config configures a [Manager]. Runtime, Store, Images, Volumes, Node and
// LogsDir are required.
type Config struct {
	Runtime Runtime
	Store   Store
	Images  *images.Puller
	Volumes *volumes.Manager
	Node    Node
	// LogsDir is where container logs lie, laid out as /var/log/pods.
	LogsDir string
	// ShownLogs is where collectors of logs look; empty: nowhere.
	ShownLogs ShownLogs

	// ResolvConf is the node's; /etc/resolv.conf if empty.
	ResolvConf    string
	ClusterDomain string   // cluster.local if empty
	ClusterDNS    []string // none: pods use the node's resolver
	// Services returns the raw Services this node has; may be nil.
	Services func() [][]byte

	// CgroupRoot is the cgroup below which pods get theirs, such as "/kubepods".
	// Empty leaves it to the runtime, as it must be without root.
	CgroupRoot string
	// PodMaxPIDs bounds the processes of one pod; 0 doesn't.
	PodMaxPIDs int64
	// PodLimits is what all pods together may have: the node's capacity without what
	// is reserved. nil bounds nothing.
	PodLimits func() v1.ResourceList

	// Relist is how often the runtime is asked for everything although it reports
	// events: [DefaultRelist] if 0.
	Relist time.Duration
	// Parallel is how many pods are started at the same time; if 0, twice the
	// number of CPUs, but two at least.
	Parallel int
	// LogMaxSize in bytes and LogMaxFiles bound the logs of one container.
	LogMaxSize  int64
	LogMaxFiles int

	// UnsafeSysctls are patterns of sysctls, such as net.core.*, that pods may set
	// beside those that are safe; see [CheckSysctls].
	UnsafeSysctls []string
	// SeccompDir is where profiles of type Localhost lie: [DefaultSeccompDir] if
	// empty.
	SeccompDir string
	// appArmorEnabled is the kernel's file that says so.
	appArmorEnabled string

	// NoMemoryLimits says why no container can be limited in memory on this machine,
	// and what to do about it; empty if they can.
	NoMemoryLimits string

	// UserNamespaces gives pods their ids; those of [userns.Node], recorded in the
	// pods' folders, if nil.
	UserNamespaces *userns.Ranges

	// Devices gives containers devices; nil: the node has none.
	Devices Devices
	// Processors gives containers processors and memory of their own; nil: all share
	// all.
	Processors Processors

	// Claims has the devices of resource claims prepared; nil: pods with claims are refused.
	Claims Claims

	// Gates are asked before a pod is taken, in order; a reason other than empty
	// refuses it.
	Gates []Gate

	// NodeEvent tells of the node itself; may be nil.
	NodeEvent func(eventType, reason, message string)

	Log *slog.Logger
	// Now is the wall clock, for time stamps only; time.Now if nil. Durations are
	// measured on the monotonic clock.
	Now func() time.Time
	// Uptime is the kernel's if nil.
	Uptime Uptime
}

// Gate says why a pod that is new to the node can't be taken now, with a reason
// and a message as a kubelet words them; an empty reason lets it in.
type Gate func(pod *v1.Pod) (reason, message string)

// Manager runs the pods of one node.
type Manager struct {
	cfg      Config
	log      *slog.Logger
	cgroups  cgroups
	probes   *probes.Manager
	counters counters
	timings  *Timings
	turns    turns
	slots    [2]chan struct{} // for sandboxes of containerd's, and of Wasm
	ready    chan struct{}

	ownUsers struct{ started, failed atomic.Int64 } // see [Manager.OwnUsers]

	runtimeName string // set before ready is closed

	admission sync.Mutex                // one decision after the other; before mu
	resizes   map[string]*waitingResize // by UID; of admission

	mu        sync.Mutex
	workers   map[string]*worker // by UID
	gone      map[string]bool    // UIDs that ended and are still desired
	static    []Object
	staticOK  bool
	complete  bool            // all orders are known
	unsettled map[string]bool // UIDs, see settled; nil once it was told, or if nobody asks
	kick      chan struct{}
	wg        sync.WaitGroup
	cleaning  atomic.Bool // volumes of pods that are no more
}

// New returns a Manager.
func New(c Config) (*Manager, error) {
	switch {
	case c.Runtime == nil, c.Store == nil, c.Images == nil, c.Volumes == nil, c.Node == nil, c.LogsDir == "":
		return nil, errors.New("pods: Runtime, Store, Images, Volumes, Node and LogsDir are required")
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Uptime == nil {
		c.Uptime = kernelUptime
	}
	if c.ResolvConf == "" {
		c.ResolvConf = "/etc/resolv.conf"
	}
	if c.ClusterDomain == "" {
		c.ClusterDomain = "cluster.local"
	}
	if c.SeccompDir == "" {
		c.SeccompDir = DefaultSeccompDir
	}
	if c.appArmorEnabled == "" {
		c.appArmorEnabled = "/sys/module/apparmor/parameters/enabled"
	}
	if c.UserNamespaces == nil {
		c.UserNamespaces = userns.New(c.Volumes.Dir, userns.Node)
	}
	if c.Relist == 0 {
		c.Relist = DefaultRelist
	}
	if c.Parallel <= 0 {
		c.Parallel = max(2*runtime.NumCPU(), 2)
	}
	if c.LogMaxSize <= 0 {
		c.LogMaxSize = DefaultLogMaxSize
	}
	if c.LogMaxFiles <= 0 {
		c.LogMaxFiles = DefaultLogMaxFiles
	}
	m := &Manager{cfg: c, log: c.Log, counters: newCounters(), timings: newTimings(), slots: [2]chan struct{}{make(chan struct{}, c.Parallel), make(chan struct{}, c.Parallel)}, ready: make(chan struct{}),
		workers: map[string]*worker{}, resizes: map[string]*waitingResize{}, gone: map[string]bool{}, kick: make(chan struct{}, 1)}
	if c.Processors != nil {
		m.cgroups.exclusive, m.unsettled = c.Processors.Exclusive, map[string]bool{}
	}
	m.probes = m.newProbes()
	return m, nil
}

// Ready is closed once the runtime answered and every pod that should run has
// its worker.
func (m *Manager) Ready() <-chan struct{} { return m.ready }

// SetStatic gives the manager the pods of this node's own folder. Until it was
// called, no static pod that runs is stopped.
func (m *Manager) SetStatic(pods []Object) {
	m.mu.Lock()
	m.static, m.staticOK = pods, true
	m.mu.Unlock()
	m.signal()
}

func (m *Manager) signal() {
	select {
	case m.kick <- struct{}{}:
	default:
	}
}

// Run keeps the node's pods as they should be until ctx ends. Containers are
// left as they are then: they outlive the agent.
func (m *Manager) Run(ctx context.Context) error {
	defer m.endTurns()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := m.awaitRuntime(ctx); err != nil {
		return nil // ctx ended
	}
	// Subscribed before anything is started, so that no end is missed.
	relist := make(chan struct{}, 1)
	m.wg.Go(func() { m.watchRuntime(ctx, relist) })
	seen, err := m.listAll(ctx)
	for err != nil {
		m.log.Warn("the runtime doesn't list what it runs, trying again", "err", err)
		if !sleep(ctx, time.Second) {
			return nil
		}
		seen, err = m.listAll(ctx)
	}
	if err := m.reconcile(ctx, seen); err != nil {
		return err
	}
	close(m.ready)
	m.settled("")

	listing, listed := false, make(chan listResult, 1)
	m.wg.Go(func() { m.rotateLogs(ctx) })
	m.wg.Go(func() { _ = m.probes.Run(ctx) })
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-m.cfg.Store.Changed():
			err = m.reconcile(ctx, nil)
			m.settled("")
		case <-m.kick:
			err = m.reconcile(ctx, nil)
			m.settled("")
		case <-relist:
			if !listing { // a runtime that hangs must not hold up what else there is to do
				listing = true
				m.wg.Go(func() {
					began := time.Now()
					now, err := m.listAll(ctx)
					m.timings.relist(began)
					listed <- listResult{now, err}
				})
			}
		case got := <-listed:
			listing = false
			if err = got.err; err == nil {
				m.wakeChanged(seen, got.pods)
				seen = got.pods
				err = m.reconcile(ctx, seen)
			}
		}
		if err != nil && ctx.Err() == nil {
			m.log.Error("reconciling pods failed, trying again", "err", err)
			time.AfterFunc(time.Second, m.signal)
		}
	}
}

func (m *Manager) awaitRuntime(ctx context.Context) error {
	for delay := 50 * time.Millisecond; ; delay = min(2*delay, 5*time.Second) {
		call, cancel := context.WithTimeout(ctx, callTimeout)
		v, err := m.cfg.Runtime.Version(call, &runtimeapi.VersionRequest{})
		if err == nil {
			var driver runtimeapi.CgroupDriver
			if rc, err := m.cfg.Runtime.RuntimeConfig(call, &runtimeapi.RuntimeConfigRequest{}); err == nil {
				driver = rc.GetLinux().GetCgroupDriver()
			} else {
				driver = runtimeapi.CgroupDriver_CGROUPFS
			}
			cancel()
			m.runtimeName = v.RuntimeName
			m.cgroups.root, m.cgroups.maxPIDs = m.cfg.CgroupRoot, m.cfg.PodMaxPIDs
			m.cgroups.systemd = m.cfg.CgroupRoot != "" && driver == runtimeapi.CgroupDriver_SYSTEMD
			m.cgroups.told = m.limited
			m.LimitPods()
			m.checkNode()
			m.log.Info("container runtime", "name", v.RuntimeName, "version", v.RuntimeVersion, "cgroupDriver", driver)
			return nil
		}
		cancel()
		m.log.Warn("the container runtime doesn't answer, trying again", "err", err, "in", delay)
		if !sleep(ctx, delay) {
			return ctx.Err()
		}
	}
}

type listResult struct {
	pods map[string]seenPod
	err  error
}

// seenPod is what a list of the runtime shows of a pod.
type seenPod struct {
	namespace, name string
	grace           int64
	static          bool
	states          uint64 // changes when the state of any of its parts does
}

func (m *Manager) listAll(ctx context.Context) (map[string]seenPod, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	sandboxes, err := m.cfg.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return nil, fmt.Errorf("listing sandboxes: %w", err)
	}
	containers, err := m.cfg.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return nil, fmt.Errorf("listing containers: %w", err)
	}
	out := map[string]seenPod{}
	add := func(labels, annotations map[string]string, id string, state int32) {
		uid := labels[labelPodUID]
		if uid == "" {
			return // not a pod's
		}
		p := out[uid]
		p.namespace, p.name = labels[labelPodNamespace], labels[labelPodName]
		if g := parseGrace(annotations); g > 0 {
			p.grace = g
		}
		p.static = p.static || annotations[annotationSource] == "file"
		h := fnv.New64a()
		fmt.Fprintf(h, "%s %d", id, state)
		p.states += h.Sum64() // a sum: the order of a list says nothing
		out[uid] = p
	}
	for _, s := range sandboxes.Items {
		add(s.Labels, s.Annotations, s.Id, int32(s.State))
	}
	for _, c := range containers.Containers {
		add(c.Labels, c.Annotations, c.Id, int32(c.State))
	}
	return out, nil
}

// wakeChanged wakes the workers of pods that look otherwise than in the list
// before.
func (m *Manager) wakeChanged(before, now map[string]seenPod) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for uid, w := range m.workers {
		if before[uid].states != now[uid].states {
			w.signal()
		}
	}
}

// reconcile gives every pod that should be here, or is, its worker. seen is what
// the runtime has, nil if it wasn't asked.
func (m *Manager) reconcile(ctx context.Context, seen map[string]seenPod) error {
	desired, complete, err := m.cfg.Store.Desired()
	if err != nil {
		return fmt.Errorf("reading the desired pods: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.complete = complete
	want := make(map[string]bool, len(desired)+len(m.static))
	for _, list := range [][]Object{desired, m.static} {
		for i := range list {
			want[list[i].UID] = true
			m.updateLocked(ctx, &list[i], seen)
		}
	}
	for uid := range m.gone {
		if !want[uid] {
			delete(m.gone, uid)
		}
	}
	for uid, w := range m.workers {
		if want[uid] {
			continue
		}
		if static := w.isStatic(); (static && m.staticOK) || (!static && complete) {
			w.remove()
		}
	}
	// What runs and belongs to no pod that should be here is an orphan.
	for uid, p := range seen {
		if want[uid] || m.workers[uid] != nil || !complete && !p.static || !m.staticOK {
			continue
		}
		m.log.Info("stopping a pod that should not be here any more", "pod", p.namespace+"/"+p.name, "uid", uid)
		w := newWorker(m, p.namespace, p.name, uid)
		w.orphanGrace = p.grace
		w.remove()
		m.startLocked(ctx, w)
	}
	m.checkRefsLocked()
	// Only with a list of the runtime: then it is known what still runs.
	if seen != nil && complete && m.staticOK {
		m.cleanVolumes(ctx, m.keepLocked(want, seen))
	}
	return nil
}

func (m *Manager) updateLocked(ctx context.Context, o *Object, seen map[string]seenPod) {
	if m.gone[o.UID] {
		return
	}
	w := m.workers[o.UID]
	if w != nil {
		w.update(o)
		return
	}
	w = newWorker(m, o.Namespace, o.Name, o.UID)
	_, there := seen[o.UID]
	w.fresh = !there && (seen != nil || m.isReady())
	if !m.isReady() {
		w.claimAsRecorded(o)
	}
	w.update(o)
	m.startLocked(ctx, w)
}

// isReady: after the start, a pod whose UID nobody here has seen has nothing in
// the runtime.
func (m *Manager) isReady() bool {
	select {
	case <-m.ready:
		return true
	default:
		return false
	}
}

func (m *Manager) startLocked(ctx context.Context, w *worker) {
	m.workers[w.uid] = w
	if m.unsettled != nil {
		m.unsettled[w.uid] = true
	}
	w.sit(func() { m.wg.Go(func() { w.turn(ctx) }) })
}

// leave ends a worker, after its last turn.
func (m *Manager) leave(w *worker) {
	m.probes.Forget(w.uid)
	w.swept()
	m.notWaiting(w.uid)
	m.settled(w.uid)
	defer m.retryDeferred() // they may have waited for this one
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.workers, w.uid)
	if w.finished {
		m.gone[w.uid] = true
	}
	for _, other := range m.workers {
		if other.namespace == w.namespace && other.name == w.name {
			other.signal() // it may have waited for this one, too
		}
	}
}

// nameTaken reports whether another pod of the same name is still here: a new
// pod waits for the old one. Of two that could wait for each other the one that
// is leaving goes first.
func (m *Manager) nameTaken(w *worker) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, other := range m.workers {
		if other != w && other.namespace == w.namespace && other.name == w.name &&
			(other.leaving() || (!other.pending.Load() && w.pending.Load())) {
			return true
		}
	}
	return false
}

// checkRefsLocked wakes pods whose ConfigMaps or Secrets changed.
func (m *Manager) checkRefsLocked() {
	hashes := map[ref]uint64{}
	for _, w := range m.workers {
		if w.refsChanged(hashes) {
			w.dirty.Store(true)
			w.signal()
		}
	}
}

// ref names an object that a pod refers to.
type ref struct{ kind, namespace, name string }

// hashedRef is one with what the object was like.
type hashedRef struct {
	ref
	hash uint64
}

func (m *Manager) hashRef(r ref) uint64 {
	sum := m.hashObject(r)
	if r.kind == "PersistentVolumeClaim" {
		for _, b := range m.cfg.Volumes.Behind(m.cfg.Node.Name(), r.namespace, r.name) {
			sum += m.hashObject(ref{b.Kind, b.Namespace, b.Name})
		}
	}
	return sum
}

func (m *Manager) hashObject(r ref) uint64 {
	raw, found, err := m.cfg.Store.Object(r.kind, r.namespace, r.name)
	if err != nil || !found {
		return 0
	}
	h := fnv.New64a()
	h.Write(raw)
	return h.Sum64() | 1
}

// watchRuntime wakes workers when a container of theirs ends, and asks for a
// relist now and then, often if the runtime has no events.
func (m *Manager) watchRuntime(ctx context.Context, relist chan<- struct{}) {
	ask := func() {
		select {
		case relist <- struct{}{}:
		default:
		}
	}
	period := make(chan time.Duration, 1)
	m.wg.Go(func() {
		ticker := time.NewTicker(m.cfg.Relist)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case d := <-period:
				ticker.Reset(d)
			case <-ticker.C:
				ask()
			}
		}
	})
	setPeriod := func(d time.Duration) {
		select {
		case <-period:
		default:
		}
		period <- d
	}
	for delay := 100 * time.Millisecond; ctx.Err() == nil; delay = min(2*delay, 30*time.Second) {
		started := time.Now()
		stream := &eventStream{ctx: ctx, recv: m.runtimeEvent}
		setPeriod(m.cfg.Relist)
		// Nothing says when a subscription stands: what ended meanwhile is looked for.
		var timers []*time.Timer
		for _, after := range afterSubscribing() {
			timers = append(timers, time.AfterFunc(after, ask))
		}
		err := m.cfg.Runtime.GetContainerEvents(&runtimeapi.GetEventsRequest{}, stream)
		for _, t := range timers {
			t.Stop()
		}
		if ctx.Err() != nil {
			return
		}
		if isUnimplemented(err) {
			m.log.Info("the runtime reports no events, asking it once a second instead")
			setPeriod(fallbackRelist)
			<-ctx.Done()
			return
		}
		m.log.Warn("the runtime's events ended, subscribing again", "err", err)
		if time.Since(started) > time.Minute {
			delay = 100 * time.Millisecond
		}
		setPeriod(fallbackRelist) // until events are back
		if !sleep(ctx, delay) {
			return
		}
	}
}

func afterSubscribing() []time.Duration {
	return []time.Duration{200 * time.Millisecond, time.Second, 5 * time.Second}
}

func (m *Manager) runtimeEvent(e *runtimeapi.ContainerEventResponse) {
	if e.ContainerEventType != runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT {
		return // the others are this manager's own doing
	}
	uid := e.GetPodSandboxStatus().GetMetadata().GetUid()
	if uid == "" {
		for _, c := range e.ContainersStatuses {
			if uid = c.GetLabels()[labelPodUID]; uid != "" {
				break
			}
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if w := m.workers[uid]; w != nil {
		w.signal()
		return
	}
	for _, w := range m.workers { // no word whose it was: everybody looks
		if uid == "" {
			w.signal()
		}
	}
}

func (m *Manager) podDir(uid string) string { return m.cfg.Volumes.PodDir(uid) }

func (m *Manager) allocatable() v1.ResourceList { return m.cfg.Node.Allocatable() }
func (m *Manager) memoryCapacity() int64        { return m.cfg.Node.MemoryCapacity() }

// handler is the runtime handler of a pod's RuntimeClass. A class that did not
// come along is taken to be named as its handler is.
func (m *Manager) handler(pod *v1.Pod) (string, error) {
	name := deref(pod.Spec.RuntimeClassName, "")
	if name == "" {
		return "", nil
	}
	raw, found, err := m.cfg.Store.Object("RuntimeClass", "", name)
	if err != nil || !found {
		return name, err
	}
	return kubeobj.RuntimeClassHandler(raw)
}
