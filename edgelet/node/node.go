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
	"sort"
	"strings"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/boards"
)

// KubernetesVersion is what this agent implements.
const KubernetesVersion = "v1.36.3"

// Labels of our own.
const (
	LabelOCI  = "coracle.dev/oci"  // present or absent
	LabelWasm = "coracle.dev/wasm" // true
	// LabelRoot says whether the agent is root; without it there are no OCI containers, no pod networks and no tmpfs.
	LabelRoot = "coracle.dev/root"
)

// The runtime's condition that says whether it runs OCI containers, see crishim.
const conditionOCI = "coracle.dev/OCIReady"

// Defaults of [Config].
const (
	DefaultPeriod  = 10 * time.Second
	DefaultMaxPods = 110
	boardPeriod    = 30 * time.Second
	imagePeriod    = 5 * time.Minute
	maxImages      = 50 // as a kubelet reports
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
	// More are conditions of others; may be nil. Call Changed when they do.
	More func() []boards.Condition
	// AgentVersion comes behind the Kubernetes version, as in v1.36.3+coracle-0.1.0.
	AgentVersion string
	// Labels are added to those found.
	Labels map[string]string
	// IPs are the node's addresses; if empty they are looked for.
	IPs func() []string
	// Root says whether the agent may do what needs root.
	Root    bool
	MaxPods int64
	// Reserved is kept from pods, beside what eviction keeps free.
	Reserved v1.ResourceList
	// Features are named in an annotation: a pod that needs another one is not for
	// this node.
	Features []string
	Log      *slog.Logger
	Now      func() time.Time
	Period   time.Duration
}

// Node is this machine. Safe for concurrent use.
type Node struct {
	Config
	board boards.Board

	mu         sync.Mutex
	facts      facts
	object     *v1.Node // as last reported
	reported   []byte
	images     []v1.ContainerImage
	imagesRead time.Time
	readings   []boards.Condition
	boardRead  time.Time
	version    *runtimeapi.VersionResponse
	pressure   map[v1.NodeConditionType]time.Time // when it was last seen
	changed    chan struct{}
}

// AnnotationFeatures lists what this node's agent can do, comma separated.
const AnnotationFeatures = "coracle.dev/features"

// New looks at the machine and returns a Node that knows its capacity.
func New(c Config) (*Node, error) {
	if c.Name == "" || c.Runtime == nil || c.Machine.Root == nil {
		return nil, errors.New("node: Name, Machine and Runtime are required")
	}
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
	n := &Node{Config: c, board: c.Machine.Detect(), pressure: map[v1.NodeConditionType]time.Time{}, changed: make(chan struct{}, 1)}
	n.facts = readFacts(c.Machine.Root, c.Machine.DataDir, c.Machine.Space)
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

// Capacity is what the machine has.
func (n *Node) Capacity() v1.ResourceList {
	return v1.ResourceList{
		v1.ResourceCPU:              *resource.NewQuantity(int64(n.facts.cpus), resource.DecimalSI),
		v1.ResourceMemory:           *resource.NewQuantity(n.facts.memory, resource.BinarySI),
		v1.ResourceEphemeralStorage: *resource.NewQuantity(n.facts.disk, resource.BinarySI),
		v1.ResourcePods:             *resource.NewQuantity(n.MaxPods, resource.DecimalSI),
	}
}

// Allocatable is what pods may have of it.
func (n *Node) Allocatable() v1.ResourceList {
	out := n.Capacity()
	sub := func(name v1.ResourceName, bytes int64) {
		q := out[name]
		q.Sub(*resource.NewQuantity(bytes, resource.BinarySI))
		if q.Sign() < 0 {
			q = *resource.NewQuantity(0, resource.BinarySI)
		}
		out[name] = q
	}
	sub(v1.ResourceMemory, memoryFloor(n.facts.memory))
	sub(v1.ResourceEphemeralStorage, n.facts.disk/100*diskFloorPercent)
	for name, r := range n.Reserved {
		if q, ok := out[name]; ok {
			q.Sub(r)
			out[name] = q
		}
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
	if n.version == nil && runtimeErr == nil {
		n.version, runtimeErr = n.Runtime.Version(call, &runtimeapi.VersionRequest{})
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
	if n.boardRead.IsZero() || now.Sub(n.boardRead) > boardPeriod {
		r := n.Machine.Read(&n.board)
		n.readings, n.boardRead = r.Conditions(), now
	}
	pressure := readPressure(n.Machine.Root, n.Machine.DataDir, n.Machine.Space, n.facts)

	n.mu.Lock()
	defer n.mu.Unlock()
	object := n.build(status, runtimeErr, pressure, now)
	raw, err := object.Marshal()
	if err != nil {
		return err
	}
	n.object = object
	if bytes.Equal(raw, n.reported) || n.Report == nil {
		return nil
	}
	if err := n.Report(raw); err != nil {
		return err
	}
	n.reported = raw
	return nil
}

func (n *Node) build(status *runtimeapi.StatusResponse, runtimeErr error, pressure pressure, now time.Time) *v1.Node {
	oci := false
	for _, c := range status.GetStatus().GetConditions() {
		if c.Type == conditionOCI {
			oci = c.Status
		}
	}
	o := &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.Config.Name, Labels: n.labels(oci), Annotations: map[string]string{}}}
	if len(n.Features) > 0 {
		f := slices.Clone(n.Features)
		sort.Strings(f)
		o.Annotations[AnnotationFeatures] = strings.Join(f, ",")
	}
	s := &o.Status
	s.Capacity, s.Allocatable = n.Capacity(), n.Allocatable()
	for _, ip := range n.IPs() {
		s.Addresses = append(s.Addresses, v1.NodeAddress{Type: v1.NodeInternalIP, Address: ip})
	}
	s.Addresses = append(s.Addresses, v1.NodeAddress{Type: v1.NodeHostName, Address: n.Config.Name})
	s.DaemonEndpoints.KubeletEndpoint.Port = 10250
	s.NodeInfo = v1.NodeSystemInfo{
		MachineID: n.facts.machineID, SystemUUID: n.facts.systemUUID, BootID: n.facts.bootID,
		KernelVersion: n.facts.kernel, OSImage: n.facts.osImage, OperatingSystem: "linux", Architecture: runtime.GOARCH,
		KubeletVersion: KubernetesVersion + "+coracle-" + n.version1(),
	}
	if n.version != nil {
		s.NodeInfo.ContainerRuntimeVersion = n.version.RuntimeName + "://" + n.version.RuntimeVersion
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
	s.Conditions = n.conditions(status, runtimeErr, pressure, now)
	return o
}

func (n *Node) version1() string {
	if n.AgentVersion == "" {
		return "0.0.0"
	}
	return n.AgentVersion
}

func (n *Node) labels(oci bool) map[string]string {
	l := n.board.Labels()
	maps.Copy(l, n.Config.Labels)
	l[v1.LabelHostname] = strings.ToLower(n.Config.Name)
	l[v1.LabelOSStable], l[v1.LabelArchStable] = "linux", runtime.GOARCH
	l["beta.kubernetes.io/os"], l["beta.kubernetes.io/arch"] = "linux", runtime.GOARCH
	l[LabelWasm] = "true"
	l[LabelOCI] = "absent"
	if oci {
		l[LabelOCI] = "present"
	}
	l[LabelRoot] = fmt.Sprintf("%t", n.Root)
	for k, v := range l {
		if v == "" {
			delete(l, k)
		}
	}
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
		names := slices.Concat(img.RepoDigests, img.RepoTags)
		if len(names) == 0 {
			continue
		}
		sort.Strings(names)
		out = append(out, v1.ContainerImage{Names: names[:min(len(names), 5)], SizeBytes: int64(img.Size)})
	}
	return out
}
