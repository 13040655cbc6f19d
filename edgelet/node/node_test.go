package node

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/boards"
)

type fakeRuntime struct {
	down   error
	oci    bool
	images []*runtimeapi.Image
}

func (f *fakeRuntime) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{RuntimeName: "coracle", RuntimeVersion: "0.1"}, f.down
}

func (f *fakeRuntime) Status(context.Context, *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	if f.down != nil {
		return nil, f.down
	}
	return &runtimeapi.StatusResponse{Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
		{Type: runtimeapi.RuntimeReady, Status: true}, {Type: runtimeapi.NetworkReady, Status: true}, {Type: conditionOCI, Status: f.oci}}},
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
	n, err := New(Config{Name: "board", Runtime: rt, IPs: func() []string { return []string{"192.0.2.1"} }, Features: []string{"b", "a"},
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

func cond(o *v1.Node, t v1.NodeConditionType) v1.NodeCondition {
	for _, c := range o.Status.Conditions {
		if c.Type == t {
			return c
		}
	}
	return v1.NodeCondition{}
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
	if i.KubeletVersion != "v1.36.3+coracle-0.0.0" || i.ContainerRuntimeVersion != "coracle://0.1" || i.OSImage != "Raspberry Pi OS" ||
		i.BootID != "boot-1" || i.SystemUUID != "0000abcd" || i.KernelVersion != "6.6.51-v8" {
		t.Errorf("%+v", i)
	}
	if o.Status.Images[0].Names[0] != "y:1" || o.Annotations[AnnotationFeatures] != "a,b" || o.Status.Addresses[0].Address != "192.0.2.1" {
		t.Errorf("%+v %+v", o.Status.Images, o.Annotations)
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
		root["proc/meminfo"] = file("MemTotal:  524288 kB\nMemAvailable: 3000 kB\n")
		look(2, "memory pressure")
		if c := cond((*reports)[1], v1.NodeMemoryPressure); c.Status != v1.ConditionTrue || c.Reason != "KubeletHasInsufficientMemory" {
			t.Errorf("%+v", c)
		}
		root["proc/meminfo"] = file("MemTotal:  524288 kB\nMemAvailable: 300000 kB\n")
		look(2, "pressure just over")
		time.Sleep(pressureTransition)
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
	})
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
