package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/edgelet/affinity"
	"github.com/coracle-edge/coracle/edgelet/evict"
	"github.com/coracle-edge/coracle/edgelet/images"
	"github.com/coracle-edge/coracle/edgelet/metrics"
	"github.com/coracle-edge/coracle/edgelet/pods"
	"github.com/coracle-edge/coracle/edgelet/static"
	"github.com/coracle-edge/coracle/edgelet/stats"
)

// resourceFlags are a kubelet's flags about what the node has and keeps.
type resourceFlags struct {
	kubeReserved, systemReserved string
	reservedCPUs                 string
	eviction                     evict.Flags
	transition                   time.Duration
	maxGrace                     int64
	gcHigh, gcLow                int
	minImageAge, maxImageAge     time.Duration
	podMaxPIDs                   int64
}

func (r *resourceFlags) define(fs *flag.FlagSet) {
	fs.StringVar(&r.kubeReserved, "kube-reserved", "", "comma list of NAME=AMOUNT that is kept from pods for this agent and the container runtime: cpu, memory, ephemeral-storage, pid")
	fs.StringVar(&r.systemReserved, "system-reserved", "", "the same for the rest of the system")
	fs.StringVar(&r.reservedCPUs, "reserved-cpus", "", "list of processors, such as 0-1, that are kept from pods: as many instead of the cpu of the two above, and just those with --cpu-manager-policy static (a kubelet's reservedSystemCPUs)")
	fs.StringVar(&r.eviction.Hard, "eviction-hard", "default", "comma list of SIGNAL<VALUE below which pods are evicted at once; default: memory.available<100Mi (a tenth of a board with less than 1000Mi), "+
		"nodefs.available<10%,nodefs.inodesFree<5%,imagefs.available<10%,imagefs.inodesFree<5%,pid.available<5%")
	fs.StringVar(&r.eviction.Soft, "eviction-soft", "", "comma list of SIGNAL<VALUE below which pods are evicted after a grace period")
	fs.StringVar(&r.eviction.SoftGrace, "eviction-soft-grace-period", "", "comma list of SIGNAL=DURATION, one for each of --eviction-soft")
	fs.StringVar(&r.eviction.MinReclaim, "eviction-minimum-reclaim", "", "comma list of SIGNAL=VALUE that is freed beyond a threshold")
	fs.DurationVar(&r.transition, "eviction-pressure-transition-period", evict.DefaultTransition, "how long the node says that it runs short after it was last so")
	fs.Int64Var(&r.maxGrace, "eviction-max-pod-grace-period", 0, "seconds that a pod has at most to end under a soft threshold")
	fs.IntVar(&r.gcHigh, "image-gc-high-threshold", images.DefaultHighPercent, "percentage of the disk used from which on unused images are removed; 100: never")
	fs.IntVar(&r.gcLow, "image-gc-low-threshold", images.DefaultLowPercent, "percentage of the disk used down to which they are")
	fs.DurationVar(&r.minImageAge, "minimum-image-ttl-duration", images.DefaultMinAge, "how long an image is here at least before it is removed")
	fs.DurationVar(&r.minImageAge, "minimum-image-ttl", images.DefaultMinAge, "the same as --minimum-image-ttl-duration")
	fs.DurationVar(&r.maxImageAge, "maximum-image-ttl-duration", 0, "how long an unused image stays at most; 0: as long as there is room")
	fs.Int64Var(&r.podMaxPIDs, "pod-max-pids", -1, "how many processes and threads one pod may have, so that one that forks for ever takes nobody else's; -1: as many as all pods together")
}

// reserved is what the flags keep from pods.
func (r *resourceFlags) reserved() (v1.ResourceList, error) {
	out := v1.ResourceList{}
	for flag, text := range map[string]string{"--kube-reserved": r.kubeReserved, "--system-reserved": r.systemReserved} {
		for _, one := range split(text) {
			name, value, ok := strings.Cut(one, "=")
			switch v1.ResourceName(name) {
			case v1.ResourceCPU, v1.ResourceMemory, v1.ResourceEphemeralStorage, "pid":
			default:
				return nil, fmt.Errorf("%s: %q isn't NAME=AMOUNT with cpu, memory, ephemeral-storage or pid", flag, one)
			}
			q, err := resource.ParseQuantity(value)
			if !ok || err != nil || q.Sign() < 0 {
				return nil, fmt.Errorf("%s: %q is no amount of %s", flag, value, name)
			}
			sum := out[v1.ResourceName(name)]
			sum.Add(q)
			out[v1.ResourceName(name)] = sum
		}
	}
	cpus, err := affinity.ParseSet(r.reservedCPUs)
	if err != nil {
		return nil, fmt.Errorf("--reserved-cpus: %w", err)
	}
	if len(cpus) > 0 {
		out[v1.ResourceCPU] = *resource.NewQuantity(int64(len(cpus)), resource.DecimalSI)
	}
	return out, nil
}

// thresholds reads the flags of eviction for a machine with so much memory.
func (r *resourceFlags) thresholds(memory int64) ([]evict.Threshold, error) {
	f := r.eviction
	if f.Hard == "default" {
		f.Hard = evict.DefaultHard(memory)
	}
	return f.Parse()
}

// resources keeps what the node has in order: figures, eviction, garbage.
type resources struct {
	stats     *stats.Collector
	evict     *evict.Manager
	collector *images.Collector
	wake      chan struct{}
}

// runtimeStats is what figures and garbage collection need of a runtime.
type runtimeStats interface {
	stats.Runtime
	images.Store
}

// buildResources makes them; the pods' manager and the node are there already.
func (a *agent) buildResources() error {
	r := &a.o.resources
	memory := int64(stats.ReadMemory("/proc").MemoryTotal)
	thresholds, err := r.thresholds(memory)
	if err != nil {
		return err
	}
	rt := a.runtime
	a.res.wake = make(chan struct{}, 1)
	podsCgroup := ""
	if os.Geteuid() == 0 && a.o.cgroupRoot != "" {
		podsCgroup = a.o.cgroupRoot
	}
	a.res.stats = stats.New(stats.Config{NodeName: a.name, Pods: a.statsPods, Runtime: rt, DataDir: a.o.dataDir,
		PodsCgroup: func() string { return a.pods.PodsCgroup() }, Log: a.log, Now: a.now})
	cgroups := stats.OpenCgroups("/sys/fs/cgroup")
	a.res.collector, err = images.NewCollector(images.CollectorConfig{Store: rt, Use: a.pods.ImageUse,
		Space: func(path string) (uint64, uint64, error) {
			s, err := stats.FileSystem(path)
			return s.Capacity, s.Available, err
		},
		HighPercent: r.gcHigh, LowPercent: r.gcLow, MinAge: r.minImageAge, MaxAge: r.maxImageAge,
		Memory: filepath.Join(a.o.dataDir, "images.json"), Log: a.log, Removed: a.node.Changed, Event: a.events.Event})
	if err != nil {
		return fmt.Errorf("--%w", err)
	}
	a.res.evict = evict.New(evict.Config{Thresholds: thresholds, Pods: evictPods{a}, Collector: collector{a},
		Transition: r.transition, MaxGrace: r.maxGrace, Changed: a.node.Changed, Event: a.events.Event, Wake: a.res.wake, Log: a.log,
		Sources: evict.Sources{
			Memory:  func() stats.Machine { return stats.ReadMemory("/proc") },
			Tasks:   func() (uint64, uint64) { return stats.ReadTasks("/proc") },
			NodeDir: a.o.dataDir,
			NodeFs:  func() (stats.Space, error) { return stats.FileSystem(a.o.dataDir) },
			Space:   stats.FileSystem,
			Stores:  func(ctx context.Context) (string, string) { return stores(ctx, rt) },
			Pods: func() (workingSet, limit uint64, ok bool) {
				if podsCgroup == "" {
					return 0, 0, false
				}
				at := a.pods.PodsCgroup()
				most := cgroups.MemoryLimit(at)
				if most == nil || *most >= uint64(memory) {
					return 0, 0, false // no more than the machine has anyway
				}
				_, ws, ok := cgroups.MemoryUsage(at)
				return ws, *most, ok
			},
		}})
	return nil
}

// stores asks where the runtime keeps images and layers.
func stores(ctx context.Context, rt images.Store) (imageDir, layerDir string) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	info, err := rt.ImageFsInfo(ctx, &runtimeapi.ImageFsInfoRequest{})
	if err != nil {
		return "", ""
	}
	// Of several stores the one on a disk of its own is what images are about.
	for _, fs := range info.GetImageFilesystems() {
		imageDir = fs.GetFsId().GetMountpoint()
	}
	for _, fs := range info.GetContainerFilesystems() {
		layerDir = fs.GetFsId().GetMountpoint()
	}
	return imageDir, layerDir
}

// runResources watches until ctx ends, from when the pods run.
func (a *agent) runResources(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-a.pods.Ready():
	}
	if err := a.pods.DeleteOrphans(); err != nil {
		a.log.Warn("what pods that are gone left is still there", "err", err)
		a.events.Event(v1.EventTypeWarning, reasonContainerGC, err.Error())
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.res.evict.Run(ctx) })
	g.Go(func() error { return a.res.collector.Run(ctx) })
	g.Go(func() error { return evict.WatchMemory(ctx, "/proc/pressure/memory", a.res.wake, a.log) })
	return g.Wait()
}

// reasonContainerGC is a kubelet's for what it could not remove of pods that are over.
const reasonContainerGC = "ContainerGCFailed"

// collector frees what nobody uses.
type collector struct{ a *agent }

// DeleteDeadContainers implements evict.Collector.
func (c collector) DeleteDeadContainers(ctx context.Context) error {
	err := c.a.pods.DeleteDeadContainers(ctx)
	if err != nil && ctx.Err() == nil {
		c.a.events.Event(v1.EventTypeWarning, reasonContainerGC, err.Error())
	}
	return err
}

// DeleteUnusedImages implements evict.Collector.
func (c collector) DeleteUnusedImages(ctx context.Context) error {
	return c.a.res.collector.DeleteUnusedImages(ctx)
}

// statsPods are the pods, as figures are made of them.
func (a *agent) statsPods() []stats.Pod {
	facts := a.pods.Facts()
	out := make([]stats.Pod, len(facts))
	for i, f := range facts {
		out[i] = stats.Pod{Namespace: f.Namespace, Name: f.Name, UID: f.UID, Cgroup: f.Cgroup, Status: f.Status, Dir: f.Dir, LogDir: f.LogDir,
			Spec:   func() (*v1.Pod, error) { return a.pods.Spec(f.UID) },
			Driven: func(ctx context.Context) []stats.DrivenVolume { return a.drivenVolumes(ctx, f.UID) }}
	}
	return out
}

// evictPods is what eviction does with pods.
type evictPods struct{ a *agent }

// Running implements evict.Pods.
func (e evictPods) Running() []evict.Pod {
	var out []evict.Pod
	for _, p := range e.a.pods.Pods() {
		if p.Status.Phase == v1.PodRunning || p.Status.Phase == v1.PodPending {
			out = append(out, evict.Pod{Namespace: p.Namespace, Name: p.Name, UID: p.UID, Static: p.Static,
				Spec: func() (*v1.Pod, error) { return e.a.pods.Spec(p.UID) }})
		}
	}
	return out
}

// End implements evict.Pods.
func (e evictPods) End(ctx context.Context, uid string, v evict.Verdict) error {
	e.a.pods.Event(uid, v1.EventTypeWarning, v.Reason, v.Message)
	err := e.a.pods.End(ctx, uid, pods.Verdict{Reason: v.Reason, Message: v.Message, Disruption: v.Disruption, Grace: &v.Grace})
	if errors.Is(err, context.DeadlineExceeded) {
		e.a.pods.Event(uid, v1.EventTypeWarning, "ExceededGracePeriod", "Container runtime did not kill the pod within specified grace period.")
	}
	return err
}

// Measure implements evict.Pods.
func (e evictPods) Measure(ctx context.Context, counted bool, only func(string) bool) ([]*evict.Candidate, error) {
	s, err := e.a.res.stats.Measure(ctx)
	if err != nil {
		return nil, err
	}
	var files *stats.Files
	if counted {
		if files, err = e.a.res.stats.FilesOf(ctx, only); err != nil {
			return nil, err
		}
	}
	var out []*evict.Candidate
	for _, p := range e.Running() {
		if only != nil && !only(p.UID) {
			continue
		}
		spec, err := p.Spec()
		if err != nil {
			continue // it is leaving
		}
		c := &evict.Candidate{Namespace: p.Namespace, Name: p.Name, UID: p.UID, Static: p.Static, Pod: spec}
		fillCandidate(c, s, files)
		out = append(out, c)
	}
	return out, nil
}

// fillCandidate puts in what was measured of a pod.
func fillCandidate(c *evict.Candidate, s *stats.Sample, files *stats.Files) {
	for i := range s.Pods {
		p := &s.Pods[i]
		if p.UID != c.UID {
			continue
		}
		c.Measured = true
		if p.Usage != nil {
			c.Memory = whole(p.Usage.WorkingSet)
		}
		for _, one := range p.Containers {
			c.Processes += int64(len(one.PIDs))
			use := evict.ContainerUse{Name: one.Name}
			if one.Usage != nil {
				use.Memory = whole(one.Usage.WorkingSet)
			}
			c.Containers = append(c.Containers, use)
		}
	}
	if files == nil {
		return
	}
	taken, ok := files.Pods[c.UID]
	if !ok {
		return
	}
	c.Ephemeral, c.EmptyDirs = int64(taken.Ephemeral.Bytes), map[string]int64{}
	add := func(to *evict.Disk, bytes, inodes uint64) { to.Bytes += int64(bytes); to.Inodes += int64(inodes) }
	for name, f := range taken.Containers {
		log := int64(f.Logs.Bytes)
		add(&c.Logs, f.Logs.Bytes, f.Logs.Inodes)
		var layer *int64
		if f.Rootfs != nil {
			layer = whole(&f.Rootfs.Bytes)
			add(&c.Layers, f.Rootfs.Bytes, f.Rootfs.Inodes)
		}
		for i := range c.Containers {
			if c.Containers[i].Name == name {
				c.Containers[i].Log, c.Containers[i].Layer = &log, layer
			}
		}
	}
	for _, v := range taken.Volumes {
		if v.Local {
			add(&c.Volumes, v.Used, v.InodesUse)
		}
		c.EmptyDirs[v.Name] = int64(v.Used)
	}
}

func whole(n *uint64) *int64 {
	if n == nil {
		return nil
	}
	v := int64(*n)
	return &v
}

// podLimits is what all pods together may have: the capacity without what is
// reserved. What eviction keeps free is theirs for a moment.
func (a *agent) podLimits(reserved v1.ResourceList) v1.ResourceList {
	out := a.node.Capacity()
	if _, most := stats.ReadTasks("/proc"); most > 0 {
		out["pid"] = *resource.NewQuantity(int64(most), resource.DecimalSI)
	}
	for name, r := range reserved {
		q, has := out[name]
		if !has {
			continue
		}
		if q.Sub(r); q.Sign() < 0 {
			q.Set(0)
		}
		out[name] = q
	}
	if _, has := reserved["pid"]; !has {
		delete(out, "pid")
	}
	return out
}

// gate refuses pods while the node runs short.
func (a *agent) gate(pod *v1.Pod) (reason, message string) {
	if a.res.evict == nil {
		return "", ""
	}
	own := pod.Annotations[static.AnnotationSource] == "file"
	return a.res.evict.Gate(pod, own, pods.QOSClass(pod))
}

// pressure are the node's conditions; before the first look there are none.
func (a *agent) pressure() []v1.NodeConditionType {
	if a.res.evict == nil {
		return nil
	}
	return a.res.evict.Conditions()
}

// resourcePaths are the kubelet's paths of figures.
func (a *agent) resourcePaths() map[string]http.Handler {
	out := maps.Clone(a.res.stats.Paths())
	out["GET /metrics"] = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", metrics.ContentType)
		_ = metrics.Stream(w, func(p *metrics.Page) {
			a.fillMetrics(p)
			a.fillKubelet(r.Context(), p)
		})
	})
	out["GET /metrics/probes"] = metrics.Handler(a.fillProbes)
	return out
}
