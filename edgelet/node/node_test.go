package node

import (
	"context"
	"errors"
	"io/fs"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/boards"
	"github.com/coracle-edge/coracle/internal/version"
)

type fakeRuntime struct {
	down     error
	oci      bool
	compiler *runtimeapi.RuntimeCondition
	images   []*runtimeapi.Image
}

func (f *fakeRuntime) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{RuntimeName: "coracle", RuntimeVersion: "0.1"}, f.down
}

func (f *fakeRuntime) Status(context.Context, *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	if f.down != nil {
		return nil, f.down
	}
	conditions := []*runtimeapi.RuntimeCondition{
		{Type: runtimeapi.RuntimeReady, Status: true}, {Type: runtimeapi.NetworkReady, Status: true}, {Type: conditionOCI, Status: f.oci}}
	if f.compiler != nil {
		conditions = append(conditions, f.compiler)
	}
	return &runtimeapi.StatusResponse{Status: &runtimeapi.RuntimeStatus{Conditions: conditions},
		RuntimeHandlers: []*runtimeapi.RuntimeHandler{{Name: "wasm"}}}, nil
}

func (f *fakeRuntime) ListImages(context.Context, *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	return &runtimeapi.ListImagesResponse{Images: f.images}, nil
}

func file(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }

// pi is a small board.
func pi() fstest.MapFS {
	return fstest.MapFS{
		"proc/meminfo":                   file("MemTotal:  524288 kB\nMemFree: 1 kB\nMemAvailable: 400000 kB\n"),
		"proc/loadavg":                   file("0.00 0.00 0.00 1/100 999\n"),
		"proc/sys/kernel/pid_max":        file("32768\n"),
		"proc/sys/kernel/osrelease":      file("6.6.51-v8\n"),
		"proc/sys/kernel/random/boot_id": file("boot-1\n"),
		"etc/machine-id":                 file("machine\n"),
		"etc/os-release":                 file("NAME=x\nPRETTY_NAME=\"Raspberry Pi OS\"\n"),
		"proc/device-tree/model":         file("Raspberry Pi Zero 2 W Rev 1.0\x00"),
		"sys/class/thermal/.keep":        file(""),
		"proc/device-tree/serial-number": file("0000abcd\x00"),
		"proc/device-tree/compatible":    file("raspberrypi,model-zero-2-w\x00brcm,bcm2837\x00"),
		"proc/net/route":                 file("Iface Destination Gateway Flags RefCnt Use Metric Mask\nwlan0 00000000 0101 3 0 0 600 00000000\neth0 00000000 0101 3 0 0 100 00000000\n"),
	}
}

func testNode(t *testing.T, rt Runtime, root fstest.MapFS) (*Node, *[]*v1.Node) {
	t.Helper()
	var reports []*v1.Node
	free := uint64(8 << 30)
	n, err := New(Config{Name: "board", Runtime: rt, Keeps: tenth, IPs: func() []string { return []string{"192.0.2.1"} }, Features: []string{"Wasm", "Sidecars", "Wasm"},
		Machine: boards.Machine{Root: root, DataDir: "/data", Space: func(string) (uint64, uint64, error) { return free, 10 << 30, nil }},
		Report: func(raw []byte) error {
			o := new(v1.Node)
			if err := o.Unmarshal(raw); err != nil {
				return err
			}
			reports = append(reports, o)
			return nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	return n, &reports
}

// tenth is kept of memory and disk.
func tenth(capacity v1.ResourceList) v1.ResourceList {
	out := v1.ResourceList{}
	for _, name := range []v1.ResourceName{v1.ResourceMemory, v1.ResourceEphemeralStorage} {
		q := capacity[name]
		out[name] = *resource.NewQuantity(q.Value()/10, resource.BinarySI)
	}
	return out
}

func cond(o *v1.Node, t v1.NodeConditionType) v1.NodeCondition {
	for _, c := range o.Status.Conditions {
		if c.Type == t {
			return c
		}
	}
	return v1.NodeCondition{}
}

// The label says what modules run by, as far as the runtime knows.
func TestTheLabelSaysWhetherModulesAreInterpreted(t *testing.T) {
	for want, c := range map[string]*runtimeapi.RuntimeCondition{
		"compiler":    {Type: conditionCompiler, Status: true},
		"interpreter": {Type: conditionCompiler, Reason: "NoCompiler"},
		"":            {Type: conditionCompiler, Reason: "Unknown"},
	} {
		n, reports := testNode(t, &fakeRuntime{compiler: c}, pi())
		if err := n.Look(t.Context()); err != nil {
			t.Fatal(err)
		}
		if have := (*reports)[0].Labels[LabelEngine]; have != want {
			t.Errorf("%v: label %q, want %q", c, have, want)
		}
	}
}

func TestNodeLooksAsAKubeletsDoes(t *testing.T) {
	n, reports := testNode(t, &fakeRuntime{images: []*runtimeapi.Image{{Id: "a", RepoTags: []string{"x:1"}, Size: 5}, {Id: "b", RepoTags: []string{"y:1"}, Size: 9}}}, pi())
	if err := n.Look(t.Context()); err != nil {
		t.Fatal(err)
	}
	o := (*reports)[0]
	for k, want := range map[string]string{v1.LabelHostname: "board", v1.LabelOSStable: "linux", LabelWasm: "true", LabelOCI: "absent", LabelRoot: "false",
		"node.kubernetes.io/instance-type": "raspberry-pi-zero-2-w"} {
		if o.Labels[k] != want {
			t.Errorf("label %s = %q, want %q", k, o.Labels[k], want)
		}
	}
	for typ, want := range map[v1.NodeConditionType]string{v1.NodeReady: "True KubeletReady kubelet is posting ready status",
		v1.NodeMemoryPressure: "False KubeletHasSufficientMemory kubelet has sufficient memory available",
		v1.NodeDiskPressure:   "False KubeletHasNoDiskPressure kubelet has no disk pressure",
		v1.NodePIDPressure:    "False KubeletHasSufficientPID kubelet has sufficient PID available"} {
		if c := cond(o, typ); string(c.Status)+" "+c.Reason+" "+c.Message != want {
			t.Errorf("%s: %+v", typ, c)
		}
	}
	if mem, alloc := o.Status.Capacity.Memory().Value(), o.Status.Allocatable.Memory().Value(); mem != 512<<20 || alloc >= mem || alloc < 400<<20 {
		t.Errorf("memory %d, allocatable %d", mem, alloc)
	}
	i := o.Status.NodeInfo
	if i.KubeletVersion != "v1.36.3+coracle-"+version.String() || i.ContainerRuntimeVersion != "coracle://0.1" || i.OSImage != "Raspberry Pi OS" ||
		i.BootID != "boot-1" || i.SystemUUID != "0000abcd" || i.KernelVersion != "6.6.51-v8" {
		t.Errorf("%+v", i)
	}
	if o.Status.Images[0].Names[0] != "y:1" || o.Status.Addresses[0].Address != "192.0.2.1" {
		t.Errorf("%+v %+v", o.Status.Images, o.Status.Addresses)
	}
}

func TestOnlyWhatMattersIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := &fakeRuntime{}
		root := pi()
		n, reports := testNode(t, rt, root)
		look := func(want int, what string) {
			t.Helper()
			time.Sleep(time.Minute)
			if err := n.Look(t.Context()); err != nil {
				t.Fatal(err)
			}
			if len(*reports) != want {
				t.Errorf("%s: %d reports, want %d", what, len(*reports), want)
			}
		}
		look(1, "first")
		look(1, "nothing")
		root["proc/meminfo"] = file("MemTotal:  524288 kB\nMemAvailable: 300000 kB\n")
		root["proc/loadavg"] = file("5.00 0.00 0.00 1/200 999\n")
		look(1, "figures")
		n.Pressure = func() []v1.NodeConditionType { return []v1.NodeConditionType{v1.NodeMemoryPressure} }
		look(2, "memory pressure")
		if c := cond((*reports)[1], v1.NodeMemoryPressure); c.Status != v1.ConditionTrue || c.Reason != "KubeletHasInsufficientMemory" {
			t.Errorf("%+v", c)
		}
		n.Pressure = nil
		look(3, "pressure over")
		rt.down = errors.New("no answer")
		look(4, "runtime down")
		if c := cond((*reports)[3], v1.NodeReady); c.Status != v1.ConditionFalse || c.Reason != "KubeletNotReady" || !strings.Contains(c.Message, "container runtime is down") {
			t.Errorf("%+v", c)
		}
		rt.down = nil
		rt.oci = true
		look(5, "containerd came")
		if (*reports)[4].Labels[LabelOCI] != "present" {
			t.Error("label")
		}
		n.ShuttingDown = func() bool { return true }
		look(6, "the machine goes down")
		if c := cond((*reports)[5], v1.NodeReady); c.Status != v1.ConditionFalse || c.Reason != "KubeletNotReady" || c.Message != "node is shutting down" {
			t.Errorf("%+v", c)
		}
	})
}

// What a pod may require by name is where the scheduler looks for it, in the form
// that the API server takes.
func TestFeaturesAreDeclared(t *testing.T) {
	n, reports := testNode(t, &fakeRuntime{}, pi())
	if err := n.Look(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := []string{"Sidecars", "Wasm"}
	if got := (*reports)[0].Status.DeclaredFeatures; !slices.Equal(got, want) {
		t.Errorf("declared %q, want %q", got, want)
	}
	if got := n.DeclaredFeatures(); !slices.Equal(got, want) {
		t.Errorf("told to admission: %q, want %q", got, want)
	}
	_, err := New(Config{Name: "board", Runtime: &fakeRuntime{}, Machine: boards.Machine{Root: pi()}, Features: []string{"static-pods"}})
	if err == nil || !strings.Contains(err.Error(), `"static-pods"`) {
		t.Errorf("a name that the API server refuses: %v", err)
	}
}

func TestHugepages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const dir = "sys/kernel/mm/hugepages/"
		root := pi()
		root[dir+"hugepages-2048kB/nr_hugepages"] = file("16\n")
		root[dir+"hugepages-64kB/nr_hugepages"] = file("0\n")
		root[dir+"hugepages-1048576kB/nr_hugepages"] = file("what\n")
		root[dir+"hugepages-kB/nr_hugepages"] = file("1\n")
		n, _ := testNode(t, &fakeRuntime{}, root)
		check := func(name v1.ResourceName, capacity, allocatable string) {
			t.Helper()
			for list, want := range map[*v1.ResourceList]string{ptr(n.Capacity()): capacity, ptr(n.Allocatable()): allocatable} {
				q, has := (*list)[name]
				if got := q.String(); has && got != want || !has && want != "" {
					t.Errorf("%s: %q (%t), want %q", name, got, has, want)
				}
			}
		}
		check("hugepages-2Mi", "32Mi", "32Mi")
		check("hugepages-64Ki", "0", "0")
		check("hugepages-1Gi", "", "")
		// The pool is no ordinary memory any more: 512 MiB less a tenth, less it.
		check("memory", "512Mi", "449629389")
		// An administrator reserves more while the node runs.
		root[dir+"hugepages-2048kB/nr_hugepages"] = file("32\n")
		for range 2 {
			time.Sleep(time.Minute)
			if err := n.Look(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		check("hugepages-2Mi", "64Mi", "64Mi")
		// Without the whole of it there is nothing left, not less than nothing.
		root[dir+"hugepages-2048kB/nr_hugepages"] = file("256\n")
		time.Sleep(time.Minute)
		if err := n.Look(t.Context()); err != nil {
			t.Fatal(err)
		}
		check("memory", "512Mi", "0")
	})
}

func FuzzHugepages(f *testing.F) {
	f.Add("hugepages-2048kB", "16\n")
	f.Add("hugepages-9223372036854775807kB", "9223372036854775807")
	f.Add("hugepages--4kB", "-1")
	f.Fuzz(func(t *testing.T, name, n string) {
		path := "sys/kernel/mm/hugepages/" + name + "/nr_hugepages"
		if !fs.ValidPath(path) {
			return
		}
		for size, bytes := range hugepages(fstest.MapFS{path: file(n)}) {
			if size <= 0 || bytes < 0 || bytes > maxHugepages {
				t.Errorf("%q %q: %d bytes of %d", name, n, bytes, size)
			}
			if _, err := resource.ParseQuantity(strings.TrimPrefix(string(hugepageResource(size)), v1.ResourceHugePagesPrefix)); err != nil {
				t.Errorf("%q: %v", name, err)
			}
		}
	})
}

// An administrator's labels count more than what was found, but for what can't
// be otherwise.
func TestLabelsOfAnAdministrator(t *testing.T) {
	n, err := New(Config{Name: "Board", Runtime: &fakeRuntime{}, Machine: boards.Machine{Root: pi()},
		Labels: map[string]string{v1.LabelHostname: "other", "site": "north", "spare": "", v1.LabelArchStable: "pdp11", v1.LabelOSStable: "unix", LabelWasm: "false",
			"node.kubernetes.io/instance-type": "mine"}})
	if err != nil {
		t.Fatal(err)
	}
	l := n.Labels()
	for k, want := range map[string]string{v1.LabelHostname: "other", "site": "north", v1.LabelArchStable: runtime.GOARCH, v1.LabelOSStable: "linux",
		"beta.kubernetes.io/os": "linux", "beta.kubernetes.io/arch": runtime.GOARCH, LabelWasm: "true", "node.kubernetes.io/instance-type": "mine"} {
		if l[k] != want {
			t.Errorf("label %s = %q, want %q", k, l[k], want)
		}
	}
	if _, has := l["spare"]; !has {
		t.Error("a label without a value is a label")
	}
}

func TestReservedIsNeverLessThanNothing(t *testing.T) {
	n, err := New(Config{Name: "board", Runtime: &fakeRuntime{}, Machine: boards.Machine{Root: pi()},
		Reserved: v1.ResourceList{"memory": resource.MustParse("1Ti"), "cpu": resource.MustParse("100m"), "ephemeral-storage": resource.MustParse("1Gi")}})
	if err != nil {
		t.Fatal(err)
	}
	a, c := n.Allocatable(), n.Capacity()
	if got := a.Memory().Value(); got != 0 {
		t.Errorf("memory %d", got)
	}
	if got := c.Cpu().MilliValue() - a.Cpu().MilliValue(); got != 100 {
		t.Errorf("%d thousandths of a processor reserved", got)
	}
	if _, has := a[v1.ResourceEphemeralStorage]; has {
		t.Error("a disk of unknown size has something to give")
	}
}

func TestDefaultRoute(t *testing.T) {
	if got := defaultInterface(pi()); got != "eth0" {
		t.Errorf("%q", got)
	}
	if len(hostIPs(fstest.MapFS{})) == 0 {
		t.Error("a node must have an address")
	}
}

func FuzzRoute(f *testing.F) {
	f.Add([]byte("eth0 00000000 0101 3 0 0 100 00000000"))
	f.Fuzz(func(t *testing.T, b []byte) { parseRoute(b) })
}
