package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	v1 "k8s.io/api/core/v1"

	"github.com/coracle-edge/coracle/boards"
	"github.com/coracle-edge/coracle/controlplane/api/enrollment"
	"github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/controlplane/api/localvolumes"
	"github.com/coracle-edge/coracle/crishim"
	"github.com/coracle-edge/coracle/edgelet/affinity"
	"github.com/coracle-edge/coracle/edgelet/budget"
	"github.com/coracle-edge/coracle/edgelet/claims"
	"github.com/coracle-edge/coracle/edgelet/csi"
	"github.com/coracle-edge/coracle/edgelet/devices"
	"github.com/coracle-edge/coracle/edgelet/identity"
	"github.com/coracle-edge/coracle/edgelet/images"
	"github.com/coracle-edge/coracle/edgelet/node"
	"github.com/coracle-edge/coracle/edgelet/oom"
	"github.com/coracle-edge/coracle/edgelet/pods"
	"github.com/coracle-edge/coracle/edgelet/pods/podstate"
	"github.com/coracle-edge/coracle/edgelet/pods/remote"
	"github.com/coracle-edge/coracle/edgelet/proxy"
	"github.com/coracle-edge/coracle/edgelet/shutdown"
	"github.com/coracle-edge/coracle/edgelet/standing"
	"github.com/coracle-edge/coracle/edgelet/state"
	"github.com/coracle-edge/coracle/edgelet/static"
	"github.com/coracle-edge/coracle/edgelet/streams"
	"github.com/coracle-edge/coracle/edgelet/volumes"
	"github.com/coracle-edge/coracle/internal/version"
)

// --stop-pods cuts graces, as `docker stop` does, and ends whatever a runtime
// that hangs leaves.
const (
	stopPodsGrace   = 10 * time.Second
	stopPodsTimeout = 45 * time.Second
)

// agent is the parts of one edgelet.
type agent struct {
	o     *options
	log   *slog.Logger
	state *state.Store
	// id is set once the node has an identity; nil before.
	id       atomic.Pointer[identity.Identity]
	name     string
	shim     *crishim.Service // nil with another runtime
	runtime  containerRuntime
	ops      *operations
	node     *node.Node
	events   *node.Recorder
	csi      *csi.Manager    // nil without root
	claims   *claims.Manager // nil without root
	forGood  bool            // all pods end, and drivers are not asked
	volumes  *volumes.Manager
	abnormal abnormal
	// goneVolumes are the released volumes whose folders are removed.
	goneVolumes atomic.Pointer[[]localvolumes.Gone]
	pods        *pods.Manager
	proxy       *proxy.Proxy // nil where there can be none
	res         resources
	devices     *devices.Manager
	affinity    *affinity.Manager // nil without a policy that gives processors or memory
	// shutdown is nil without grace periods.
	shutdown *shutdown.Manager
	link     atomic.Pointer[linkStatus]
	refused  atomic.Pointer[refusal] // of the join line; nil if it wasn't

	staticPods atomic.Int64  // in the folder; -1 before it was read
	staticRead chan struct{} // closed once it was

	// counters are of all that goes to the control plane and comes from it.
	counters fleet.Counters
	// budget is what of that may be in a day.
	budget *budget.Budget
	// standing is what the cluster last said of this node.
	standing *standing.Keeper
	// wrap changes what pods see of the state; nil changes nothing.
	wrap func(pods.Store) pods.Store
}

// containerRuntime is what all users of the runtime need together.
type containerRuntime interface {
	pods.Runtime
	images.Service
	node.Runtime
	streams.Runtime
	runtimeStats
}

func run(ctx context.Context, o *options, log *slog.Logger) (err error) {
	a := &agent{o: o, log: log, ops: newOperations(), staticRead: make(chan struct{})}
	a.staticPods.Store(-1)
	for _, dir := range []string{"", "pods", podLogsDir, "run"} {
		if err := os.MkdirAll(filepath.Join(o.dataDir, dir), 0o755); err != nil {
			return fmt.Errorf("making the data folder: %w", err)
		}
	}
	if a.state, err = state.Open(filepath.Join(o.dataDir, "state.db"), state.Options{
		Logger: log, Unseal: a.unseal, Disk: boards.This(o.dataDir).DataStorage().String()}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.state.Close()) }()
	a.budget = budget.New(a.state, nil)
	if err := a.loadIdentity(); err != nil {
		return err
	}
	a.standing = standing.New(a.state, log, a.now)
	if a.name, err = a.nodeName(); err != nil {
		return err
	}
	a.events = node.NewRecorder(a.putNodeEvent, log)
	a.events.Event(v1.EventTypeNormal, "Starting", "Starting kubelet.")
	if os.Geteuid() == 0 && volumes.MaySwapSecrets() {
		a.events.Event(v1.EventTypeWarning, "PossibleMemoryBackedVolumesOnDisk", "The tmpfs noswap option is not supported. Memory-backed volumes (e.g. secrets, emptyDirs, etc.) might be swapped to disk and should no longer be considered secure.")
	}
	closeRuntime, err := a.openRuntime(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeRuntime()) }()
	if err := a.buildDevices(); err != nil {
		return err
	}
	if err := a.buildShutdown(); err != nil {
		return err
	}
	if err := a.buildNode(); err != nil {
		return err
	}
	if err := a.buildAffinity(); err != nil {
		return err
	}
	if err := a.buildPods(); err != nil {
		return err
	}
	a.buildProxy()
	if err := a.buildResources(); err != nil {
		return err
	}
	log.Info("edgelet", "version", version.String(), "node", a.name, "data", o.dataDir, "boot", a.state.BootSeq(), "standalone", o.standalone)
	err = a.runParts(ctx)
	if o.stopPods && err == nil {
		// ctx is over; the runtime is not.
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopPodsTimeout)
		defer cancel()
		log.Info("stopping the pods")
		err = a.pods.StopAll(stop, stopPodsGrace)
		if a.proxy != nil {
			err = errors.Join(err, a.proxy.Close())
		}
	}
	return err
}

// runParts runs everything until ctx ends or a part fails.
func (a *agent) runParts(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	orders := a.state.Follow()
	g.Go(func() error { return a.pods.Run(ctx) })
	if a.o.staticPods != "" {
		folder := &static.Folder{Path: a.o.staticPods, NodeName: a.name, Set: a.setStatic, Log: a.log}
		g.Go(func() error { return folder.Run(ctx) })
	} else {
		a.setStatic(nil)
	}
	g.Go(func() error { return a.node.Run(ctx) })
	if os.Geteuid() == 0 {
		g.Go(func() error { return oom.Watch(ctx, oom.DefaultLog, a.systemOOM, a.log) })
	}
	g.Go(func() error { return a.watchPlugins(ctx) })
	g.Go(func() error { return a.sweepVolumes(ctx) })
	if a.proxy != nil {
		g.Go(func() error { return a.proxy.Run(ctx) })
	}
	g.Go(func() error { return a.runResources(ctx) })
	g.Go(func() error { return a.devices.Run(ctx) })
	if a.claims != nil {
		g.Go(func() error { return a.claims.Run(ctx) })
	}
	if s := a.podResources(); s != nil {
		g.Go(func() error { return s.Run(ctx) })
	}
	if a.shutdown != nil {
		g.Go(func() error { return a.shutdown.Run(ctx) })
	}
	g.Go(func() error { return a.budget.Run(ctx) })
	g.Go(func() error { a.tellBudget(ctx); return nil })
	g.Go(func() error { return a.serveAdmin(ctx) })
	g.Go(func() error { return a.settle(ctx, orders) })
	g.Go(func() error {
		select {
		case <-ctx.Done():
			return nil
		case <-a.pods.Ready():
		}
		notifyReady()
		if a.o.standalone {
			<-ctx.Done()
			return nil
		}
		return a.runLink(ctx)
	})
	return g.Wait()
}

// unseal opens what was sealed to this node.
func (a *agent) unseal(uid string, hash fleet.Hash, sealed []byte) ([]byte, error) {
	id := a.id.Load()
	if id == nil {
		return nil, fleet.ErrSealed
	}
	return fleet.Unseal(id.SealingKey, id.NodeName, uid, hash, sealed)
}

func (a *agent) identityOptions() identity.Options {
	return identity.Options{Dir: filepath.Join(a.o.dataDir, "identity"), Floor: a.state, Logger: a.log}
}

// loadIdentity takes what is on the disk. Without one the node starts all the
// same and joins later.
func (a *agent) loadIdentity() error {
	id, err := identity.Load(a.identityOptions())
	switch {
	case err == nil:
		a.id.Store(id)
	case errors.Is(err, identity.ErrNotJoined):
		if !a.o.standalone && a.o.join == "" {
			return fmt.Errorf("%w: run edgelet once with --join and the line that `coracle token create` prints, or with --standalone", err)
		}
	case a.o.standalone:
		a.log.Error("going on without the node's identity", "err", err)
	default:
		return err
	}
	return nil
}

func (a *agent) nodeName() (string, error) {
	name := a.o.nodeName
	if id := a.id.Load(); name == "" && id != nil {
		name = id.NodeName
	}
	if name == "" && a.o.join != "" {
		line, err := enrollment.ParseLine(a.o.join)
		if err != nil {
			return "", fmt.Errorf("--join: %w", err)
		}
		name = line.Node
	}
	if name == "" {
		host, err := os.Hostname()
		if err != nil {
			return "", fmt.Errorf("the host has no name (%w); give one with --node-name", err)
		}
		name = strings.ToLower(host)
	}
	if err := enrollment.CheckNodeName(name); err != nil {
		return "", fmt.Errorf("%w; choose one with --node-name", err)
	}
	return name, nil
}

// now is the later of the clock and the time floor: a board may wake up in 1970.
func (a *agent) now() time.Time {
	t := time.Now()
	if floor := a.state.TimeFloor(); t.Before(floor) {
		return floor.Add(a.state.Uptime())
	}
	return t
}

func (a *agent) openRuntime(ctx context.Context) (func() error, error) {
	if a.o.runtimeEndpoint != "" {
		rt, err := remote.Dial(a.o.runtimeEndpoint)
		if err != nil {
			return nil, err
		}
		a.runtime = rt
		return rt.Close, nil
	}
	shim, err := crishim.New(ctx, crishim.Config{
		StateDir: filepath.Join(a.o.dataDir, "crishim"), RunnerPath: a.o.runner, ContainerdSocket: a.o.containerd,
		CNIConfDir: a.o.cniConfDir, CNIBinDirs: split(a.o.cniBinDir), RegistryHosts: a.o.registryHosts,
		WasmCacheBytes: a.o.wasmCache, WasmArtifacts: a.o.wasmArtifacts, WasmTrustedKeys: a.o.wasmTrusted,
		Version: version.Semantic(), Logger: a.log, Now: a.now,
	})
	if err != nil {
		return nil, err
	}
	a.shim, a.runtime = shim, shim
	return shim.Close, nil
}

func (a *agent) buildPods() (err error) {
	reserved, err := a.o.resources.reserved()
	if err != nil {
		return err
	}
	if err := pods.CheckSysctls(split(a.o.unsafeSysctls)); err != nil {
		return fmt.Errorf("--allowed-unsafe-sysctls: %w", err)
	}
	store := podstate.New(a.state)
	cgroupRoot := a.o.cgroupRoot
	if os.Geteuid() != 0 {
		cgroupRoot = ""
	}
	if err := a.buildVolumes(store); err != nil {
		return err
	}
	var seen pods.Store = store
	if a.wrap != nil {
		seen = a.wrap(store)
	}
	gates := []pods.Gate{a.gate}
	if a.shutdown != nil {
		gates = append(gates, a.shutdown.Admit)
	}
	runtime := countedRuntime{a.runtime, a.ops}
	var prepared pods.Claims // nil stays nil
	if a.claims != nil {
		prepared = a.claims
	}
	a.pods, err = pods.New(pods.Config{
		Devices: a.devices, Claims: prepared, Processors: a.processors(), Gates: gates, NoMemoryLimits: a.node.NoMemoryLimits(),
		Runtime: runtime, Store: seen, Images: a.puller(runtime), Volumes: a.volumes, Node: a.node,
		LogsDir: filepath.Join(a.o.dataDir, podLogsDir), ShownLogs: a.showLogs(), ResolvConf: a.o.resolvConf, ClusterDNS: split(a.o.clusterDNS),
		UnsafeSysctls: split(a.o.unsafeSysctls), SeccompDir: a.o.seccompDir,
		ClusterDomain: a.o.clusterDomain, Services: store.Services, CgroupRoot: cgroupRoot,
		PodMaxPIDs: max(a.o.resources.podMaxPIDs, 0), PodLimits: func() v1.ResourceList { return a.podLimits(reserved) },
		LogMaxSize: a.o.logMaxSize, LogMaxFiles: a.o.logMaxFiles, Log: a.log, Now: a.now, NodeEvent: a.events.Event,
	})
	return err
}

// buildProxy lets pods reach the API by its Service, where rules can be made for
// that: not for the pods of an ordinary user, which have the machine's network.
func (a *agent) buildProxy() {
	if os.Geteuid() != 0 || a.o.standalone {
		return
	}
	var err error
	a.proxy, err = proxy.New(proxy.Config{
		Service: func() []byte {
			o, _, err := a.state.Get(state.KindService, v1.NamespaceDefault, "kubernetes")
			if err != nil {
				a.log.Warn("the kubernetes Service can't be read", "err", err)
			}
			return o.Raw
		},
		Changed: a.state.Follow(),
		API: func() []string {
			if id := a.id.Load(); id != nil {
				return id.Cluster().API
			}
			return nil
		},
		Log: a.log,
	})
	if err != nil {
		a.log.Warn(err.Error())
	}
}

// learn takes other addresses of control planes over.
func (a *agent) learn(id *identity.Identity, addresses *fleet.Addresses) error {
	err := id.Learn(addresses)
	if err == nil && a.proxy != nil {
		a.proxy.AddressesChanged()
	}
	return err
}

// defaultTokenSeconds is what the API server's ServiceAccount admission asks for
// where nobody asked: upstream extends such tokens to a year.
const defaultTokenSeconds = 3607

// podToken signs a token for a pod on the node itself, without the network; one for
// another audience than the API's is the control plane's to give (D11).
func (a *agent) podToken(ctx context.Context, r volumes.TokenRequest) (string, time.Time, error) {
	id := a.id.Load()
	if id == nil {
		return "", time.Time{}, fmt.Errorf("%w: serviceAccountToken: %w", volumes.ErrUnsupported, identity.ErrNotJoined)
	}
	ask := identity.PodTokenRequest{Namespace: r.Namespace, PodName: r.Pod, PodUID: r.PodUID,
		ServiceAccount: r.ServiceAccount, Audience: r.Audience, Life: r.Lifetime}
	if ask.Life == defaultTokenSeconds*time.Second {
		ask.Life = 0 // the identity's own default
	}
	token, expires, err := id.PodToken(ask)
	if !errors.Is(err, identity.ErrAudience) {
		return token, expires, err
	}
	ask.Life = r.Lifetime
	return id.AskPodToken(a.metered(ctx), ask)
}
