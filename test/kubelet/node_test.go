package kubelet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	cadvisorapi "github.com/google/cadvisor/info/v1"
	cadvisorapi2 "github.com/google/cadvisor/info/v2"
	"github.com/google/cadvisor/utils/sysfs"
	"github.com/google/cadvisor/utils/sysinfo"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/klog/v2"
	kubeletapis "k8s.io/kubelet/pkg/apis"
	core "k8s.io/kubernetes/pkg/apis/core"
	corev1 "k8s.io/kubernetes/pkg/apis/core/v1"
	"k8s.io/kubernetes/pkg/apis/core/validation"
	"k8s.io/kubernetes/pkg/kubelet/cadvisor"
	"k8s.io/kubernetes/pkg/kubelet/cm"
	kubecontainer "k8s.io/kubernetes/pkg/kubelet/container"
	"k8s.io/kubernetes/pkg/kubelet/eviction"
	evictionapi "k8s.io/kubernetes/pkg/kubelet/eviction/api"
	"k8s.io/kubernetes/pkg/kubelet/nodestatus"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/boards"
	"github.com/coracle-edge/coracle/edgelet/evict"
	"github.com/coracle-edge/coracle/edgelet/node"
	"github.com/coracle-edge/coracle/internal/version"
)

const (
	name    = "board-7"
	address = "192.0.2.7"
	gib     = 1 << 30
)

// machine is what both look at.
type machine struct {
	root                    fstest.MapFS
	disk, free              uint64 // bytes
	inodes, inodesFree      uint64
	underMemory, underDisk  bool
	underPIDs, runtimeIsOut bool
}

// pressure is what evict says, see eviction_test.go.
func (m *machine) pressure() (out []v1.NodeConditionType) {
	for t, is := range map[v1.NodeConditionType]bool{v1.NodeMemoryPressure: m.underMemory, v1.NodeDiskPressure: m.underDisk, v1.NodePIDPressure: m.underPIDs} {
		if is {
			out = append(out, t)
		}
	}
	return out
}

func file(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }

// pc has everything that a kubelet reports: swap, huge pages of two sizes, a DMI UUID.
func pc() *machine {
	root := fstest.MapFS{
		"proc/meminfo":                   file("MemTotal:  4194304 kB\nMemAvailable: 3000000 kB\nSwapTotal:  1048576 kB\n"),
		"proc/loadavg":                   file("0.00 0.00 0.00 1/100 999\n"),
		"proc/sys/kernel/pid_max":        file("32768\n"),
		"proc/sys/kernel/osrelease":      file("6.8.0-45-generic\n"),
		"proc/sys/kernel/random/boot_id": file("b1946ac9-2492-4d23-9d3c-111111111111\n"),
		"etc/machine-id":                 file("0123456789abcdef0123456789abcdef\n"),
		"etc/os-release":                 file("NAME=Ubuntu\nPRETTY_NAME=\"Ubuntu 24.04.1 LTS\"\n"),
		"sys/class/dmi/id/product_uuid":  file("A1B2C3D4-0000-1111-2222-333344445555\n"),
		"sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages":    file("64\n"),
		"sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages": file("0\n"),
	}
	var cpuinfo strings.Builder
	for i := range 4 {
		fmt.Fprintf(&cpuinfo, "processor\t: %d\nmodel name\t: x\nflags\t\t: lm\n\n", i)
	}
	root["proc/cpuinfo"] = file(cpuinfo.String())
	return &machine{root: root, disk: 64 * gib, free: 32 * gib, inodes: 1e6, inodesFree: 5e5}
}

// cri is the runtime that both ask.
type cri struct{ out bool }

func (c cri) err() error {
	if c.out {
		return errors.New("connection refused")
	}
	return nil
}

func (c cri) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{RuntimeName: "coracle", RuntimeVersion: "0.2.0"}, c.err()
}

func (c cri) Status(context.Context, *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	yes := runtimeapi.RuntimeHandlerFeatures{RecursiveReadOnlyMounts: true, UserNamespaces: true}
	return &runtimeapi.StatusResponse{
		Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
			{Type: runtimeapi.RuntimeReady, Status: true}, {Type: runtimeapi.NetworkReady, Status: true}}},
		RuntimeHandlers: []*runtimeapi.RuntimeHandler{{Name: "", Features: &yes}, {Name: "wasm", Features: &runtimeapi.RuntimeHandlerFeatures{}}},
		Features:        &runtimeapi.RuntimeFeatures{SupplementalGroupsPolicy: true},
	}, c.err()
}

func (c cri) ListImages(context.Context, *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	var out runtimeapi.ListImagesResponse
	for i := range 60 {
		img := &runtimeapi.Image{Id: fmt.Sprint(i), Size: uint64(1000 + i), RepoTags: []string{fmt.Sprintf("example.org/a%d:v1", i)},
			RepoDigests: []string{fmt.Sprintf("example.org/a%d@sha256:%064x", i, i)}}
		if i == 59 {
			for j := range 6 {
				img.RepoTags = append(img.RepoTags, fmt.Sprintf("example.org/a59:w%d", j))
			}
		}
		out.Images = append(out.Images, img)
	}
	return &out, c.err()
}

// ours is the node as edgelet reports it.
func ours(t *testing.T, m *machine) *v1.Node {
	t.Helper()
	thresholds, err := evict.Flags{Hard: evict.DefaultHard(4 * gib)}.Parse()
	if err != nil {
		t.Fatal(err)
	}
	n, err := node.New(node.Config{Name: name, Keeps: func(c v1.ResourceList) v1.ResourceList { return evict.Keeps(thresholds, c) }, Pressure: m.pressure, Runtime: cri{m.runtimeIsOut}, IPs: func() []string { return []string{address} },
		Features: []string{"Wasm", "Sidecars"},
		Machine: boards.Machine{Root: m.root, DataDir: "/var/lib/coracle",
			Space: func(string) (uint64, uint64, error) {
				if m.disk == 0 {
					return 0, 0, errors.New("input/output error")
				}
				return m.free, m.disk, nil
			},
			Inodes: func(string) (uint64, uint64, error) { return m.inodesFree, m.inodes, nil }}})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Look(t.Context()); err != nil {
		t.Fatal(err)
	}
	return n.Object()
}

type runtimeVersion string

func (v runtimeVersion) String() string              { return string(v) }
func (v runtimeVersion) Compare(string) (int, error) { return 0, nil }

// theirs is the node as a kubelet's setters make it, in the order in which it
// calls them (kubelet_node_status.go, defaultNodeStatusFuncs).
func theirs(t *testing.T, m *machine) *v1.Node {
	t.Helper()
	// cadvisor reads huge pages itself, from a folder.
	dir := t.TempDir()
	if err := os.CopyFS(dir, m.root); err != nil {
		t.Fatal(err)
	}
	pages, err := sysinfo.GetHugePagesInfo(sysfs.NewRealSysFs(), dir+"/sys/kernel/mm/hugepages/")
	if err != nil {
		t.Fatal(err)
	}
	text := func(path string) string {
		b, err := fs.ReadFile(m.root, path)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(b))
	}
	info := &cadvisorapi.MachineInfo{NumCores: 4, MemoryCapacity: 4 * gib, SwapCapacity: gib, HugePages: pages,
		MachineID: text("etc/machine-id"), SystemUUID: text("sys/class/dmi/id/product_uuid"), BootID: text("proc/sys/kernel/random/boot_id")}
	disk := func(bool) v1.ResourceList {
		if m.disk == 0 {
			return nil
		}
		return cadvisor.EphemeralStorageCapacityFromFsInfo(cadvisorapi2.FsInfo{Capacity: m.disk})
	}
	reserved := func() v1.ResourceList { return evictionReservation(t, info, disk(true)) }
	noEvent := func(string, string, string) {}
	noLog := func(klog.Logger, string, string) {}
	is := func(b bool) func() bool { return func() bool { return b } }
	noError := func() error { return nil }
	runtimeErrors := noError
	if m.runtimeIsOut {
		runtimeErrors = func() error { return errors.New("container runtime is down") }
	}
	images, _ := cri{}.ListImages(t.Context(), nil)
	handlers, _ := cri{}.Status(t.Context(), nil)

	o := &v1.Node{}
	o.Name = name
	for _, set := range []nodestatus.Setter{
		nodestatus.NodeAddress([]net.IP{net.ParseIP(address)}, func(net.IP) error { return nil }, name, false, nil),
		nodestatus.MachineInfo(name, node.DefaultMaxPods, 0, func() (*cadvisorapi.MachineInfo, error) { return info, nil }, disk,
			func() (v1.ResourceList, v1.ResourceList, []string) { return nil, nil, nil }, reserved, noEvent, true),
		nodestatus.VersionInfo(func() (*cadvisorapi.VersionInfo, error) {
			return &cadvisorapi.VersionInfo{KernelVersion: text("proc/sys/kernel/osrelease"), ContainerOsVersion: "Ubuntu 24.04.1 LTS"}, nil
		}, func() string { return "coracle" }, func(context.Context) (kubecontainer.Version, error) { return runtimeVersion("0.2.0"), nil }),
		nodestatus.DaemonEndpoints(&v1.NodeDaemonEndpoints{KubeletEndpoint: v1.DaemonEndpoint{Port: 10250}}),
		nodestatus.Images(50, func() ([]kubecontainer.Image, error) {
			var out []kubecontainer.Image
			for _, i := range images.Images {
				out = append(out, kubecontainer.Image{ID: i.Id, RepoTags: i.RepoTags, RepoDigests: i.RepoDigests, Size: int64(i.Size)})
			}
			slices.Reverse(out) // the image manager sorts by size
			return out, nil
		}),
		nodestatus.GoRuntime(),
		nodestatus.RuntimeHandlers(func() (out []kubecontainer.RuntimeHandler) {
			for _, h := range handlers.RuntimeHandlers {
				out = append(out, kubecontainer.RuntimeHandler{Name: h.Name, SupportsRecursiveReadOnlyMounts: h.Features.RecursiveReadOnlyMounts,
					SupportsUserNamespaces: h.Features.UserNamespaces})
			}
			return out
		}),
		nodestatus.NodeFeatures(func() *kubecontainer.RuntimeFeatures {
			return &kubecontainer.RuntimeFeatures{SupplementalGroupsPolicy: true}
		}),
		nodestatus.MemoryPressureCondition(time.Now, is(m.underMemory), noLog),
		nodestatus.DiskPressureCondition(time.Now, is(m.underDisk), noLog),
		nodestatus.PIDPressureCondition(time.Now, is(m.underPIDs), noLog),
		nodestatus.ReadyCondition(time.Now, runtimeErrors, noError, noError, func() cm.Status { return cm.Status{} }, noError, noLog, true),
	} {
		if err := set(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	return o
}

// evictionReservation is what a kubelet with its default thresholds keeps from
// pods (pkg/kubelet/cm/helpers.go, hardEvictionReservation).
func evictionReservation(t *testing.T, info *cadvisorapi.MachineInfo, disk v1.ResourceList) v1.ResourceList {
	thresholds, err := eviction.ParseThresholdConfig(nil, eviction.DefaultEvictionHard, nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	out := v1.ResourceList{}
	for _, th := range thresholds {
		switch th.Signal {
		case evictionapi.SignalMemoryAvailable:
			out[v1.ResourceMemory] = *evictionapi.GetThresholdQuantity(th.Value, resource.NewQuantity(int64(info.MemoryCapacity), resource.BinarySI))
		case evictionapi.SignalNodeFsAvailable:
			out[v1.ResourceEphemeralStorage] = *evictionapi.GetThresholdQuantity(th.Value, disk.StorageEphemeral())
		}
	}
	return out
}

func TestNodeIsWhatAKubeletSays(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*machine)
	}{
		{"all well", func(*machine) {}},
		{"memory runs out", func(m *machine) { m.underMemory = true }},
		{"the disk is full", func(m *machine) { m.underDisk = true }},
		{"processes without end", func(m *machine) { m.underPIDs = true }},
		{"the runtime is out", func(m *machine) { m.runtimeIsOut = true }},
		{"the disk doesn't answer", func(m *machine) { m.disk = 0 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := pc()
			c.change(m)
			compare(t, &ours(t, m).Status, &theirs(t, m).Status, m)
		})
	}
}

func compare(t *testing.T, got, want *v1.NodeStatus, m *machine) {
	t.Helper()
	compareAmounts(t, "capacity", got.Capacity, want.Capacity, 0)
	// A kubelet computes a tenth with single precision.
	compareAmounts(t, "allocatable", got.Allocatable, want.Allocatable, 1024)
	same(t, "addresses", got.Addresses, want.Addresses)
	same(t, "daemonEndpoints", got.DaemonEndpoints, want.DaemonEndpoints)
	same(t, "volumes", fmt.Sprint(got.VolumesInUse, got.VolumesAttached), fmt.Sprint(want.VolumesInUse, want.VolumesAttached))

	gotInfo, wantInfo := got.NodeInfo, want.NodeInfo
	if gotInfo.KubeletVersion != version.Node() || !strings.HasPrefix(gotInfo.KubeletVersion, "v1.36.3+coracle-") {
		t.Errorf("kubeletVersion %s", gotInfo.KubeletVersion)
	}
	gotInfo.KubeletVersion, wantInfo.KubeletVersion = "", "" // ours has our build in it
	if !m.runtimeIsOut {
		same(t, "images", got.Images, want.Images)
		same(t, "runtimeHandlers", got.RuntimeHandlers, want.RuntimeHandlers)
		same(t, "features", got.Features, want.Features)
	} else {
		// A kubelet has talked to its runtime before it says anything at all; an edgelet
		// says that it can't, and what it knew before.
		wantInfo.ContainerRuntimeVersion = ""
	}
	same(t, "nodeInfo", gotInfo, wantInfo)

	// Conditions of boards come between; Ready is the last one, which old control
	// planes rely on.
	if last := got.Conditions[len(got.Conditions)-1]; last.Type != v1.NodeReady {
		t.Errorf("the last condition is %s", last.Type)
	}
	for _, w := range want.Conditions {
		i := slices.IndexFunc(got.Conditions, func(c v1.NodeCondition) bool { return c.Type == w.Type })
		if i < 0 {
			t.Errorf("no condition %s", w.Type)
			continue
		}
		g := got.Conditions[i]
		message := g.Message
		if m.runtimeIsOut {
			message, _, _ = strings.Cut(message, ": connection refused") // ours says why, too
		}
		if g.Status != w.Status || g.Reason != w.Reason || message != w.Message || g.LastTransitionTime.IsZero() {
			t.Errorf("condition %s: %+v, want %+v", w.Type, g, w)
		}
	}
}

func compareAmounts(t *testing.T, what string, got, want v1.ResourceList, tolerance int64) {
	t.Helper()
	if g, w := slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)); !slices.Equal(g, w) {
		t.Errorf("%s of %s, want %s", what, g, w)
	}
	for k, w := range want {
		g := got[k]
		if d := g.MilliValue() - w.MilliValue(); d > tolerance*1000 || -d > tolerance*1000 || tolerance == 0 && g.String() != w.String() {
			t.Errorf("%s of %s: %s, want %s", what, k, g.String(), w.String())
		}
	}
}

func same(t *testing.T, what string, got, want any) {
	t.Helper()
	if g, w := fmt.Sprintf("%+v", dereferenced(got)), fmt.Sprintf("%+v", dereferenced(want)); g != w {
		t.Errorf("%s:\ngot  %s\nwant %s", what, g, w)
	}
}

// dereferenced is v for printing: pointers are shown as what they point at.
func dereferenced(v any) any {
	switch v := v.(type) {
	case []v1.NodeRuntimeHandler:
		var out []string
		for _, h := range v {
			out = append(out, fmt.Sprintf("%q %t %t", h.Name, *h.Features.RecursiveReadOnlyMounts, *h.Features.UserNamespaces))
		}
		return out
	case *v1.NodeFeatures:
		if v == nil {
			return nil
		}
		return *v.SupplementalGroupsPolicy
	case v1.NodeSystemInfo:
		swap := int64(0)
		if v.Swap != nil {
			swap = *v.Swap.Capacity
		}
		v.Swap = nil
		return fmt.Sprintf("%+v swap %d", v, swap)
	}
	return v
}

// Labels that initialNode of a kubelet sets.
func TestNodeHasAKubeletsLabels(t *testing.T) {
	l := ours(t, pc()).Labels
	for k, want := range map[string]string{v1.LabelHostname: name, v1.LabelOSStable: runtime.GOOS, v1.LabelArchStable: runtime.GOARCH,
		kubeletapis.LabelOS: runtime.GOOS, kubeletapis.LabelArch: runtime.GOARCH} {
		if l[k] != want {
			t.Errorf("label %s=%q, want %q", k, l[k], want)
		}
	}
	for k := range l {
		namespace, _, _ := strings.Cut(k, "/")
		if (strings.HasSuffix(namespace, "kubernetes.io") || strings.HasSuffix(namespace, "k8s.io")) && !kubeletapis.IsKubeletLabel(k) {
			t.Errorf("label %s is one that NodeRestriction forbids a node to set", k)
		}
	}
}

// The same labels are refused as by a kubelet and by NodeRestriction, which
// would otherwise refuse the node's every report.
func TestLabelsThatANodeMayNotHave(t *testing.T) {
	for label, valid := range map[string]bool{
		"site": true, "example.org/site": true, "topology.kubernetes.io/zone": true, "node.kubernetes.io/x": true, "a.kubelet.kubernetes.io/x": true,
		"kubernetes.io/hostname": true, "beta.kubernetes.io/os": true, "notkubernetes.io/x": true,
		"node-role.kubernetes.io/worker": false, "node-restriction.kubernetes.io/secure": false, "x.node-restriction.kubernetes.io/a": false,
		"kubernetes.io/x": false, "k8s.io/x": false, "a.k8s.io/x": false, "not a label": false, "/x": false, "a/b/c": false, "": false,
	} {
		if namespace, _, ok := strings.Cut(label, "/"); ok && valid {
			isKubernetes := namespace == "kubernetes.io" || strings.HasSuffix(namespace, ".kubernetes.io") || namespace == "k8s.io" || strings.HasSuffix(namespace, ".k8s.io")
			if isKubernetes && !kubeletapis.IsKubeletLabel(label) {
				t.Fatalf("the table is wrong: a kubelet may not set %s", label)
			}
		}
		_, err := node.New(node.Config{Name: name, Runtime: cri{}, Machine: boards.Machine{Root: pc().root}, Labels: map[string]string{label: "v"}})
		if valid != (err == nil) {
			t.Errorf("%q: %v", label, err)
		}
		if err != nil && (!errors.Is(err, node.ErrLabel) || !strings.Contains(err.Error(), label)) {
			t.Errorf("%q: the error doesn't name it: %v", label, err)
		}
	}
	_, err := node.New(node.Config{Name: name, Runtime: cri{}, Machine: boards.Machine{Root: pc().root}, Labels: map[string]string{"site": "north pole"}})
	if !errors.Is(err, node.ErrLabel) || !strings.Contains(err.Error(), "north pole") {
		t.Errorf("a value with a blank: %v", err)
	}
}

// What a node says passes upstream's validation, declaredFeatures included.
func TestNodeIsValid(t *testing.T) {
	for _, m := range []*machine{pc(), func() *machine { m := pc(); m.runtimeIsOut = true; return m }()} {
		o := ours(t, m)
		if len(o.Status.DeclaredFeatures) != 2 {
			t.Errorf("declared %q", o.Status.DeclaredFeatures)
		}
		var internal core.Node
		if err := corev1.Convert_v1_Node_To_core_Node(o, &internal, nil); err != nil {
			t.Fatal(err)
		}
		old := internal.DeepCopy()
		internal.ResourceVersion, old.ResourceVersion = "1", "1"
		for _, err := range append(validation.ValidateNode(&internal), validation.ValidateNodeUpdate(&internal, old)...) {
			t.Error(err)
		}
	}
}
