package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/boards"
	"github.com/coracle-edge/coracle/controlplane/api/features"
	"github.com/coracle-edge/coracle/internal/version"
)

// Labels of our own.
const (
	LabelOCI  = "coracle.dev/oci"  // present or absent
	LabelWasm = "coracle.dev/wasm" // true
	// LabelEngine says how modules run: compiler, or interpreter on boards that the
	// engine has no compiler for. The label isn't there while the runtime doesn't say.
	LabelEngine = "coracle.dev/wasm-engine"
	// LabelRoot says whether the agent is root; without it there are no OCI containers, no pod networks and no tmpfs.
	LabelRoot = "coracle.dev/root"
)

// The runtime's condition that says whether it runs OCI containers, see crishim.
const conditionOCI = "coracle.dev/OCIReady"

// The runtime's condition that says whether it has a compiler for modules.
const conditionCompiler = "coracle.dev/WasmCompiler"

// Defaults of [Config].
const (
	DefaultPeriod  = 10 * time.Second
	DefaultMaxPods = 110
	boardPeriod    = 30 * time.Second
	imagePeriod    = 5 * time.Minute
	maxImages      = 50 // as a kubelet reports
	maxNames       = 5  // of an image, as a kubelet reports
	callTimeout    = 10 * time.Second
)

// Runtime is what is asked of the container runtime.
type Runtime interface {
	Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error)
	Status(context.Context, *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error)
	ListImages(context.Context, *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error)
}

// Config configures a [Node]. Name, Machine and Runtime are required.
type Config struct {
	Name    string
	Machine boards.Machine
	Runtime Runtime
	// Report is handed the protobuf of a v1.Node when it changed; may be nil.
	Report func(raw []byte) error
	// Before is what Report was last handed before the agent was restarted; nil if it
	// never was. Events are of what changed since, reboots among it.
	Before []byte
	// Event is told what changed; may be nil. See [Recorder].
	Event func(eventType, reason, message string)
	// More are conditions of others; may be nil. Call Changed when they do.
	More func() []boards.Condition
	// Labels are added to those found, and count more than they do.
	Labels map[string]string
	// IPs are the node's addresses; if empty they are looked for.
	IPs func() []string
	// Root says whether the agent may do what needs root.
	Root    bool
	MaxPods int64
	// Reserved is kept from pods, beside what eviction keeps free.
	Reserved v1.ResourceList
	// Keeps is what eviction keeps free of a capacity; may be nil.
	Keeps func(capacity v1.ResourceList) v1.ResourceList
	// Pressure are the conditions, of MemoryPressure, DiskPressure and PIDPressure,
	// that hold; nil: none. Call Changed when they change.
	Pressure func() []v1.NodeConditionType
	// Devices are what plugins have: all of it, and what pods may have of it; may be
	// nil. Call Changed when it does.
	Devices func() (capacity, allocatable v1.ResourceList)
	// Storage is what the cluster is told of volumes; may be nil. Call Changed when it
	// changes.
	Storage func() Storage
	// ShuttingDown says that the machine goes down, which makes the node unready; may
	// be nil. Call Changed when it does.
	ShuttingDown func() bool
	// Taints and Unschedulable are what the node has when it registers; later the
	// control plane says.
	Taints        []v1.Taint
	Unschedulable bool
	// Features are declared in the status: a pod that needs another one is not for
	// this node. See [features.Valid] for their form.
	Features []string
	Log      *slog.Logger
	Now      func() time.Time
	Period   time.Duration
}

// Storage is the part of a Node that volumes have.
type Storage struct {
	Labels, Annotations map[string]string
	InUse               []v1.UniqueVolumeName
}

// Node is this machine. Safe for concurrent use.
type Node struct {
	Config
	board boards.Board
	// memoryLimits is the condition that says whether there are any.
	memoryLimits boards.Condition

	facts facts

	mu             sync.Mutex
	amounts        amounts
	object         *v1.Node // as last reported
	reported       []byte
	told           before // up to where events tell
	images         []v1.ContainerImage
	imagesRead     time.Time
	readings       []boards.Condition
	boardRead      time.Time
	runtimeVersion *runtimeapi.VersionResponse
	changed        chan struct{}
}

// New looks at the machine and returns a Node that knows its capacity.
func New(c Config) (*Node, error) {
	if c.Name == "" || c.Runtime == nil || c.Machine.Root == nil {
		return nil, errors.New("node: Name, Machine and Runtime are required")
	}
	for _, f := range c.Features {
		if !features.Valid(f) {
			return nil, fmt.Errorf("node: feature %q: the API server takes names such as Wasm or Coracle/wasm only", f)
		}
	}
	if err := checkLabels(c.Labels); err != nil {
		return nil, err
	}
	c.Features = features.Declare(c.Features...)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Period == 0 {
		c.Period = DefaultPeriod
	}
	if c.MaxPods == 0 {
		c.MaxPods = DefaultMaxPods
	}
	n := &Node{Config: c, board: c.Machine.Detect(), changed: make(chan struct{}, 1)}
	if len(c.Before) > 0 {
		var err error
		if n.told, err = readBefore(c.Before); err != nil {
			c.Log.Warn(err.Error())
		}
		n.Before = nil
	}
	n.memoryLimits = c.Machine.MemoryLimits(&n.board)
	n.facts = readFacts(c.Machine.Root, n.board.CPU.Cores)
	n.amounts = readAmounts(&n.Machine, amounts{})
	if c.IPs == nil {
		n.IPs = func() []string { return hostIPs(c.Machine.Root) }
	}
	return n, nil
}

// Name of the node.
func (n *Node) Name() string { return n.Config.Name }

// MemoryCapacity is the machine's memory in bytes.
func (n *Node) MemoryCapacity() int64 { return n.facts.memory }

// HostIPs are the node's addresses, IPv4 first.
func (n *Node) HostIPs() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.object != nil {
		var ips []string
		for _, a := range n.object.Status.Addresses {
			if a.Type == v1.NodeInternalIP {
				ips = append(ips, a.Address)
			}
		}
		return ips
	}
	return n.IPs()
}

// Labels of the node.
func (n *Node) Labels() map[string]string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.object != nil {
		return maps.Clone(n.object.Labels)
	}
	return n.labels(false)
}

// DeclaredFeatures are what this node can do by name, sorted.
func (n *Node) DeclaredFeatures() []string { return n.Features }

// Describe tells people which machine this is, in a few words: its serial number,
// or what it has instead, and its first address.
func (n *Node) Describe() string {
	what := "machine " + n.facts.systemUUID
	if n.board.Serial != "" {
		what = "serial " + n.board.Serial
	}
	if ips := n.HostIPs(); len(ips) > 0 {
		what += " at " + ips[0]
	}
	return what
}

// Capacity is what the machine has. What can't be told isn't in it.
func (n *Node) Capacity() v1.ResourceList {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.capacity()
}

// NoMemoryLimits says why pods can't be limited in memory here and what to do about
// it; empty if they can.
func (n *Node) NoMemoryLimits() string {
	if !n.memoryLimits.Status {
		return ""
	}
	return n.memoryLimits.Message
}

// Allocatable is what pods may have of it.
func (n *Node) Allocatable() v1.ResourceList {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.allocatable()
}

// capacity needs n.mu.
func (n *Node) capacity() v1.ResourceList {
	out := v1.ResourceList{
		v1.ResourceCPU:    *resource.NewQuantity(int64(n.facts.cpus), resource.DecimalSI),
		v1.ResourceMemory: *resource.NewQuantity(n.facts.memory, resource.BinarySI),
		v1.ResourcePods:   *resource.NewQuantity(n.MaxPods, resource.DecimalSI),
	}
	if n.amounts.disk > 0 {
		out[v1.ResourceEphemeralStorage] = *resource.NewQuantity(n.amounts.disk, resource.BinarySI)
	}
	for size, bytes := range n.amounts.hugepages {
		out[hugepageResource(size)] = *resource.NewQuantity(bytes, resource.BinarySI)
	}
	if n.Devices != nil {
		all, _ := n.Devices()
		maps.Copy(out, all)
	}
	return out
}

// allocatable needs n.mu.
func (n *Node) allocatable() v1.ResourceList {
	out := n.capacity()
	sub := func(name v1.ResourceName, by resource.Quantity) {
		q, has := out[name]
		if !has {
			return
		}
		if q.Sub(by); q.Sign() < 0 {
			q.Set(0)
		}
		out[name] = q
	}
	if n.Devices != nil {
		_, well := n.Devices()
		maps.Copy(out, well)
	}
	if n.Keeps != nil {
		for name, q := range n.Keeps(n.capacity()) {
			sub(name, q)
		}
	}
	for name, r := range n.Reserved {
		sub(name, r)
	}
	// What lies in the pools of huge pages is nobody's ordinary memory.
	for _, bytes := range n.amounts.hugepages {
		sub(v1.ResourceMemory, *resource.NewQuantity(bytes, resource.BinarySI))
	}
	return out
}

// Run keeps looking until ctx ends.
func (n *Node) Run(ctx context.Context) error {
	ticker := time.NewTicker(n.Period)
	defer ticker.Stop()
	for {
		if err := n.Look(ctx); err != nil && ctx.Err() == nil {
			n.Log.Warn("the node's state was not reported", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		case <-n.changed:
		}
	}
}

// Changed has the node looked at again soon, images included.
func (n *Node) Changed() {
	n.mu.Lock()
	n.imagesRead = time.Time{}
	n.mu.Unlock()
	select {
	case n.changed <- struct{}{}:
	default:
	}
}

// Object returns the node as last looked at, nil before.
func (n *Node) Object() *v1.Node {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.object.DeepCopy()
}

// Look looks once and reports if something changed that matters.
func (n *Node) Look(ctx context.Context) error {
	now := time.Now()
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	status, runtimeErr := n.Runtime.Status(call, &runtimeapi.StatusRequest{})
	if n.runtimeVersion == nil && runtimeErr == nil {
		n.runtimeVersion, runtimeErr = n.Runtime.Version(call, &runtimeapi.VersionRequest{})
	}
	n.mu.Lock()
	readImages := n.imagesRead.IsZero() || now.Sub(n.imagesRead) > imagePeriod
	n.mu.Unlock()
	if readImages && runtimeErr == nil {
		if resp, err := n.Runtime.ListImages(call, &runtimeapi.ListImagesRequest{}); err == nil {
			n.mu.Lock()
			n.images, n.imagesRead = nodeImages(resp.Images), now
			n.mu.Unlock()
		}
	}
	amounts := n.amounts
	if n.boardRead.IsZero() || now.Sub(n.boardRead) > boardPeriod {
		r := n.Machine.Read(&n.board)
		n.readings, n.boardRead = r.Conditions(), now
		amounts = readAmounts(&n.Machine, amounts)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.amounts = amounts
	object := n.build(status, runtimeErr)
	raw, err := object.Marshal()
	if err != nil {
		return err
	}
	n.object = object
	n.tell(object)
	if bytes.Equal(raw, n.reported) || n.Report == nil {
		return nil
	}
	if err := n.Report(raw); err != nil {
		return err
	}
	n.reported = raw
	return nil
}

// tell needs n.mu.
func (n *Node) tell(object *v1.Node) {
	now := beforeOf(object)
	if n.Event != nil {
		for _, e := range transitions(n.Config.Name, n.told, now) {
			n.Event(e.Type, e.Reason, e.Message)
		}
	}
	n.told = now
}

func (n *Node) build(status *runtimeapi.StatusResponse, runtimeErr error) *v1.Node {
	oci, engine := false, ""
	for _, c := range status.GetStatus().GetConditions() {
		switch {
		case c.Type == conditionOCI:
			oci = c.Status
		case c.Type == conditionCompiler && c.Status:
			engine = "compiler"
		case c.Type == conditionCompiler && c.Reason == "NoCompiler":
			engine = "interpreter"
		}
	}
	o := &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.Config.Name, Labels: n.labels(oci)}}
	if engine != "" {
		o.Labels[LabelEngine] = engine
	}
	o.Spec.Taints, o.Spec.Unschedulable = n.Taints, n.Unschedulable
	s := &o.Status
	if n.Storage != nil {
		storage := n.Storage()
		maps.Copy(o.Labels, storage.Labels)
		o.Annotations, s.VolumesInUse = storage.Annotations, storage.InUse
	}
	s.Capacity, s.Allocatable = n.capacity(), n.allocatable()
	s.DeclaredFeatures = n.Features
	for _, ip := range n.IPs() {
		s.Addresses = append(s.Addresses, v1.NodeAddress{Type: v1.NodeInternalIP, Address: ip})
	}
	s.Addresses = append(s.Addresses, v1.NodeAddress{Type: v1.NodeHostName, Address: n.Config.Name})
	s.DaemonEndpoints.KubeletEndpoint.Port = 10250
	s.NodeInfo = v1.NodeSystemInfo{
		MachineID: n.facts.machineID, SystemUUID: n.facts.systemUUID, BootID: n.facts.bootID,
		KernelVersion: n.facts.kernel, OSImage: n.facts.osImage, OperatingSystem: "linux", Architecture: runtime.GOARCH,
		KubeletVersion: version.Node(),
	}
	if n.runtimeVersion != nil {
		s.NodeInfo.ContainerRuntimeVersion = n.runtimeVersion.RuntimeName + "://" + n.runtimeVersion.RuntimeVersion
	}
	if n.amounts.swap > 0 {
		s.NodeInfo.Swap = &v1.NodeSwapStatus{Capacity: ptr(n.amounts.swap)}
	}
	s.Images = n.images
	for _, h := range status.GetRuntimeHandlers() {
		s.RuntimeHandlers = append(s.RuntimeHandlers, v1.NodeRuntimeHandler{Name: h.Name, Features: &v1.NodeRuntimeHandlerFeatures{
			RecursiveReadOnlyMounts: ptr(h.GetFeatures().GetRecursiveReadOnlyMounts()),
			UserNamespaces:          ptr(h.GetFeatures().GetUserNamespaces())}})
	}
	if f := status.GetFeatures(); f != nil {
		s.Features = &v1.NodeFeatures{SupplementalGroupsPolicy: ptr(f.SupplementalGroupsPolicy)}
	}
	s.Conditions = n.conditions(status, runtimeErr)
	return o
}

func (n *Node) labels(oci bool) map[string]string {
	l := n.board.Labels()
	l[v1.LabelHostname] = strings.ToLower(n.Config.Name)
	maps.DeleteFunc(l, func(_, v string) bool { return v == "" }) // a label that says nothing
	maps.Copy(l, n.Config.Labels)
	// These are facts, whatever an administrator says.
	l[v1.LabelOSStable], l[v1.LabelArchStable] = "linux", runtime.GOARCH
	l[labelBetaOS], l[labelBetaArch] = "linux", runtime.GOARCH
	l[LabelWasm] = "true"
	l[LabelOCI] = "absent"
	if oci {
		l[LabelOCI] = "present"
	}
	l[LabelRoot] = fmt.Sprintf("%t", n.Root)
	return l
}

func ptr[T any](v T) *T { return &v }

// nodeImages are the largest images, as a kubelet reports them.
func nodeImages(list []*runtimeapi.Image) []v1.ContainerImage {
	slices.SortFunc(list, func(a, b *runtimeapi.Image) int {
		if a.Size != b.Size {
			if a.Size > b.Size {
				return -1
			}
			return 1
		}
		return strings.Compare(a.Id, b.Id)
	})
	var out []v1.ContainerImage
	for _, img := range list[:min(len(list), maxImages)] {
		// Each kind sorted, because a runtime may list them otherwise every time.
		names := slices.Concat(slices.Sorted(slices.Values(img.RepoDigests)), slices.Sorted(slices.Values(img.RepoTags)))
		if len(names) == 0 {
			continue
		}
		out = append(out, v1.ContainerImage{Names: names[:min(len(names), maxNames)], SizeBytes: int64(img.Size)})
	}
	return out
}
