package stats

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Defaults of [Config], and bounds.
const (
	// DefaultFresh is how old an answer may be: as often as cAdvisor looks.
	DefaultFresh = 10 * time.Second
	// DefaultFreshFiles is the same for the sizes of folders, which cost reading
	// the disk: as often as a kubelet counts them.
	DefaultFreshFiles = time.Minute
	// rateOldest is how old the earlier of two looks may be for a rate of CPU, and
	// rateShortest how long they must lie apart. Is there none, one is made.
	rateOldest   = 2 * time.Minute
	rateShortest = 900 * time.Millisecond
	rateWait     = time.Second
	callTimeout  = 10 * time.Second
	filesTimeout = time.Minute
)

// Runtime is what is asked of the container runtime: what it alone knows.
type Runtime interface {
	ListContainerStats(context.Context, *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error)
	PodSandboxStats(context.Context, *runtimeapi.PodSandboxStatsRequest) (*runtimeapi.PodSandboxStatsResponse, error)
	ListPodSandbox(context.Context, *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error)
	ImageFsInfo(context.Context, *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error)
}

// Pod is one pod of this node.
type Pod struct {
	Namespace, Name, UID string
	// Cgroup is the pod's, as a path; empty if the runtime chooses.
	Cgroup string
	Status v1.PodStatus
	// Dir holds its volumes and LogDir its logs.
	Dir, LogDir string
	// Spec decodes the pod; it is called only where a field is needed.
	Spec func() (*v1.Pod, error)
	// Driven asks the drivers of volumes that lie elsewhere; may be nil.
	Driven func(context.Context) []DrivenVolume
}

// DrivenVolume is a volume whose driver says how full it is.
type DrivenVolume struct {
	// Name is the pod's; empty if only the PersistentVolume's name is known.
	Name, PersistentVolume string
	Space
}

// Config of a [Collector]. Pods and Runtime are required.
type Config struct {
	NodeName string
	Pods     func() []Pod
	Runtime  Runtime
	// DataDir is on the file system that pods' volumes and logs are on.
	DataDir string
	// PodsCgroup returns the cgroup of all pods, such as "/kubepods"; may be nil, and
	// may return nothing.
	PodsCgroup func() string
	// Proc and CgroupRoot are /proc and /sys/fs/cgroup if empty.
	Proc, CgroupRoot string
	// Fresh and FreshFiles bound the age of an answer.
	Fresh, FreshFiles time.Duration
	Log               *slog.Logger
	// Now is the wall clock of time stamps; time.Now if nil. Ages are measured on
	// the monotonic clock.
	Now func() time.Time
}

// Collector measures when it is asked. Safe for concurrent use.
type Collector struct {
	Config
	cgroups *Cgroups

	mu     sync.Mutex
	sample *Sample
	rates  map[string]point // by cgroup or container

	filesMu sync.Mutex
	files   *Files
}

// point is a look at a counter of CPU time.
type point struct {
	at    time.Time
	nanos uint64
	rate  *uint64
	width time.Duration
}

// New returns a Collector that has measured nothing yet.
func New(c Config) *Collector {
	if c.Proc == "" {
		c.Proc = "/proc"
	}
	if c.CgroupRoot == "" {
		c.CgroupRoot = "/sys/fs/cgroup"
	}
	if c.Fresh == 0 {
		c.Fresh = DefaultFresh
	}
	if c.FreshFiles == 0 {
		c.FreshFiles = DefaultFreshFiles
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.PodsCgroup == nil {
		c.PodsCgroup = func() string { return "" }
	}
	return &Collector{Config: c, cgroups: OpenCgroups(c.CgroupRoot), rates: map[string]point{}}
}

// Sample is the node at one time.
type Sample struct {
	// At is the wall clock.
	At         time.Time
	Node       Machine
	NodeRate   *uint64 // nanocores
	Interfaces []Interface
	System     []System
	Pods       []PodSample

	taken time.Time // monotonic
}

// System is a cgroup of the node's own: "pods" or "kubelet".
type System struct {
	Name   string
	Cgroup string
	Usage  *CgroupUsage
	Rate   *uint64
}

// PodSample is one pod.
type PodSample struct {
	Pod
	Usage      *CgroupUsage // nil without a cgroup of its own
	Rate       *uint64      // nanocores
	Window     time.Duration
	Interfaces []Interface // nil on the host's network, and if they can't be told
	Containers []ContainerSample
}

// ContainerSample is one running container.
type ContainerSample struct {
	Name, ID, Image string
	Started         time.Time
	Init            bool
	Cgroup          string // empty if it isn't found
	Usage           *CgroupUsage
	Rate            *uint64
	Window          time.Duration
	PIDs            []int // its processes; nil without a cgroup
}

// Sample measures, unless that was done within Fresh. The first time after a
// pause it takes a second longer, because a rate takes two looks.
func (c *Collector) Sample(ctx context.Context) (*Sample, error) {
	return c.sampleWithin(ctx, c.Fresh, true)
}

// Measure measures now, and never waits: rates may be missing.
func (c *Collector) Measure(ctx context.Context) (*Sample, error) {
	return c.sampleWithin(ctx, 0, false)
}

// sampleWithin measures unless it was done within age. Without rates it never waits.
func (c *Collector) sampleWithin(ctx context.Context, age time.Duration, rates bool) (*Sample, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.sample; s != nil && time.Since(s.taken) < age {
		return s, nil
	}
	s, complete := c.look(ctx)
	if !complete && rates {
		t := time.NewTimer(rateWait)
		defer t.Stop()
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-t.C:
		}
		s, _ = c.look(ctx)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	c.sample = s
	return s, nil
}

// look measures; complete says that all rates could be told. It needs c.mu.
func (c *Collector) look(ctx context.Context) (*Sample, bool) {
	s := &Sample{At: c.Now(), taken: time.Now(), Node: ReadMachine(c.Proc)}
	r := &rater{points: c.rates, used: map[string]bool{}, complete: true}
	s.NodeRate, _ = r.rate("/", &s.Node.CPUNanos)
	s.Interfaces = parseNetDev(readBounded(filepath.Join(c.Proc, "self/net/dev"), 1<<20))
	for _, sys := range []struct{ name, cgroup string }{{"pods", c.PodsCgroup()}, {"kubelet", c.ownCgroup()}} {
		if sys.cgroup == "" {
			continue
		}
		u, err := c.cgroups.Read(sys.cgroup)
		if err != nil {
			continue
		}
		one := System{Name: sys.name, Cgroup: sys.cgroup, Usage: u}
		one.Rate, _ = r.rate("system "+sys.name, u.CPUNanos)
		s.System = append(s.System, one)
	}
	told := c.runtimeStats(ctx)
	own := c.netns("self")
	for _, pod := range c.Pods() {
		if pod.Status.Phase == v1.PodSucceeded || pod.Status.Phase == v1.PodFailed {
			continue
		}
		p := c.pod(pod, told, r)
		c.network(ctx, &p, own)
		s.Pods = append(s.Pods, p)
	}
	r.forget()
	return s, r.complete
}

// pod measures one pod.
func (c *Collector) pod(pod Pod, told map[string]*runtimeapi.ContainerStats, r *rater) PodSample {
	p := PodSample{Pod: pod}
	var children []string
	if pod.Cgroup != "" {
		if u, err := c.cgroups.Read(pod.Cgroup); err == nil {
			p.Usage = u
			p.Rate, p.Window = r.rate(pod.UID, u.CPUNanos)
			children = c.cgroups.Children(pod.Cgroup)
		}
	}
	for i, list := range [][]v1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses, pod.Status.EphemeralContainerStatuses} {
		for j := range list {
			st := &list[j]
			if st.State.Running == nil {
				continue
			}
			_, id, ok := strings.Cut(st.ContainerID, "://")
			if !ok {
				continue
			}
			one := ContainerSample{Name: st.Name, ID: id, Image: st.Image, Started: st.State.Running.StartedAt.Time, Init: i == 0}
			c.container(&one, pod.Cgroup, children, told[id])
			if one.Usage != nil {
				one.Rate, one.Window = r.rate(id, one.Usage.CPUNanos)
			}
			p.Containers = append(p.Containers, one)
		}
	}
	if p.Usage == nil {
		p.Usage, p.Rate, p.Window = sum(p.Containers)
	}
	return p
}

// container reads its cgroup; what the runtime knows without one is taken from it.
func (c *Collector) container(one *ContainerSample, podCgroup string, children []string, told *runtimeapi.ContainerStats) {
	for _, child := range children {
		// cgroupfs: the id; systemd: cri-containerd-ID.scope and the like.
		if !strings.Contains(child, one.ID) {
			continue
		}
		one.Cgroup = podCgroup + "/" + child
		if u, err := c.cgroups.Read(one.Cgroup); err == nil {
			one.Usage = u
			one.PIDs = c.cgroups.PIDs(one.Cgroup)
			return
		}
	}
	if told == nil {
		return
	}
	u := &CgroupUsage{}
	number := func(v *runtimeapi.UInt64Value) *uint64 {
		if v == nil {
			return nil
		}
		return &v.Value
	}
	if cpu := told.GetCpu(); cpu != nil {
		u.CPUNanos = number(cpu.GetUsageCoreNanoSeconds())
	}
	if m := told.GetMemory(); m != nil {
		u.Memory, u.WorkingSet, u.RSS = number(m.GetUsageBytes()), number(m.GetWorkingSetBytes()), number(m.GetRssBytes())
		u.PageFaults, u.MajorPageFaults = number(m.GetPageFaults()), number(m.GetMajorPageFaults())
	}
	one.Usage = u
}

// sum is a pod that has no cgroup.
func sum(containers []ContainerSample) (*CgroupUsage, *uint64, time.Duration) {
	if len(containers) == 0 {
		return nil, nil, 0
	}
	total, window := &CgroupUsage{}, time.Duration(0)
	var rate *uint64
	add := func(to **uint64, n *uint64) {
		if n == nil {
			return
		}
		if *to == nil {
			*to = new(uint64)
		}
		**to += *n
	}
	for i := range containers {
		u := containers[i].Usage
		if u == nil {
			continue
		}
		add(&total.CPUNanos, u.CPUNanos)
		add(&total.Memory, u.Memory)
		add(&total.WorkingSet, u.WorkingSet)
		add(&total.RSS, u.RSS)
		add(&total.PageFaults, u.PageFaults)
		add(&total.MajorPageFaults, u.MajorPageFaults)
		add(&rate, containers[i].Rate)
		window = max(window, containers[i].Window)
	}
	return total, rate, window
}

// runtimeStats asks the runtime only if there are containers without cgroups.
func (c *Collector) runtimeStats(ctx context.Context) map[string]*runtimeapi.ContainerStats {
	if root := c.PodsCgroup(); root != "" && c.cgroups.Exists(root) {
		return nil
	}
	return c.askStats(ctx)
}

func (c *Collector) askStats(ctx context.Context) map[string]*runtimeapi.ContainerStats {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := c.Runtime.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{})
	if err != nil {
		c.Log.Info("the runtime doesn't say what its containers use", "err", err)
		return nil
	}
	out := make(map[string]*runtimeapi.ContainerStats, len(resp.GetStats()))
	for _, st := range resp.GetStats() {
		out[st.GetAttributes().GetId()] = st
	}
	return out
}

// ownCgroup is the agent's, in the hierarchy of memory; empty for the root, which
// says nothing of the agent.
func (c *Collector) ownCgroup() string {
	raw := readBounded(filepath.Join(c.Proc, "self/cgroup"), 16<<10)
	for line := range strings.Lines(string(raw)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 || f[2] == "/" {
			continue
		}
		if f[1] == "memory" || c.cgroups.V2() && f[0] == "0" {
			return f[2]
		}
	}
	return ""
}

// netns names the network namespace of a process; empty if it can't be told.
func (c *Collector) netns(pid string) string {
	name, err := os.Readlink(filepath.Join(c.Proc, pid, "ns/net"))
	if err != nil {
		return ""
	}
	return name
}

// network reads the pod's interfaces through one of its processes. Where none of
// them is in the pod's own namespace, as with Wasm guests, the runtime is asked.
func (c *Collector) network(ctx context.Context, p *PodSample, own string) {
	for i := range p.Containers {
		for _, pid := range p.Containers[i].PIDs {
			name := fmt.Sprint(pid)
			if ns := c.netns(name); ns == "" || ns == own {
				continue
			}
			p.Interfaces = parseNetDev(readBounded(filepath.Join(c.Proc, name, "net/dev"), 64<<10))
			return
		}
	}
	if p.Status.PodIP == "" || p.Status.PodIP == p.Status.HostIP {
		return // it is the host's
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	list, err := c.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{
		LabelSelector: map[string]string{"io.kubernetes.pod.uid": p.UID},
		State:         &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY}}})
	if err != nil || len(list.GetItems()) == 0 {
		return
	}
	resp, err := c.Runtime.PodSandboxStats(ctx, &runtimeapi.PodSandboxStatsRequest{PodSandboxId: list.Items[0].GetId()})
	if err != nil {
		return
	}
	n := resp.GetStats().GetLinux().GetNetwork()
	all := n.GetInterfaces()
	if d := n.GetDefaultInterface(); d != nil {
		all = append([]*runtimeapi.NetworkInterfaceUsage{d}, all...)
	}
	for _, i := range all {
		p.Interfaces = append(p.Interfaces, Interface{Name: i.GetName(),
			RxBytes: i.GetRxBytes().GetValue(), RxErrors: i.GetRxErrors().GetValue(),
			TxBytes: i.GetTxBytes().GetValue(), TxErrors: i.GetTxErrors().GetValue()})
	}
}

// rater makes rates of counters of CPU time out of this look and an earlier one.
type rater struct {
	points   map[string]point
	used     map[string]bool
	complete bool
}

func (r *rater) rate(key string, nanos *uint64) (*uint64, time.Duration) {
	if nanos == nil {
		return nil, 0
	}
	r.used[key] = true
	now := time.Now()
	before, ok := r.points[key]
	apart := now.Sub(before.at)
	switch {
	case !ok || apart > rateOldest || *nanos < before.nanos:
		r.points[key] = point{at: now, nanos: *nanos}
		r.complete = false
		return nil, 0
	case apart < rateShortest:
		if before.rate == nil {
			r.complete = false
		}
		return before.rate, before.width
	}
	rate := uint64(float64(*nanos-before.nanos) / apart.Seconds())
	r.points[key] = point{at: now, nanos: *nanos, rate: &rate, width: apart}
	return &rate, apart
}

// forget drops what no longer is.
func (r *rater) forget() {
	for key := range r.points {
		if !r.used[key] {
			delete(r.points, key)
		}
	}
}
