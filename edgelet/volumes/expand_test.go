package volumes

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/coracle-edge/coracle/edgelet/csi"
	"github.com/coracle-edge/coracle/edgelet/pluginwatch"
	"github.com/coracle-edge/coracle/test/csidriver"
)

// notices keeps what is told.
type notices struct{ got []Notice }

func (n *notices) add(one Notice) { n.got = append(n.got, one) }

// take returns the reasons and messages since, and whether they are about the claim.
func (n *notices) take() (out []string) {
	for _, one := range n.got {
		line := one.Type + " " + one.Reason + " " + one.Message
		if one.Claim != "" {
			line += " | " + one.Namespace + "/" + one.Claim
		}
		out = append(out, line)
	}
	n.got = nil
	return out
}

// resized puts a claim of 1Gi there whose volume is to be larger, as a controller says it.
func resized(t *testing.T, o objects, want string, state v1.ClaimResourceStatus, change func(*v1.PersistentVolumeClaim, *v1.PersistentVolume)) {
	t.Helper()
	size := resource.MustParse(want)
	bound(t, o, func(c *v1.PersistentVolumeClaim, pv *v1.PersistentVolume) {
		c.Spec.Resources.Requests = v1.ResourceList{v1.ResourceStorage: size}
		pv.Spec.Capacity[v1.ResourceStorage] = size
		if state != "" {
			c.Status.AllocatedResources = v1.ResourceList{v1.ResourceStorage: size}
			c.Status.AllocatedResourceStatuses = map[v1.ResourceName]v1.ClaimResourceStatus{v1.ResourceStorage: state}
		}
		change(c, pv)
	})
}

// ext4 asks for CAP_SYS_RESOURCE, which not every machine that runs tests has.
func TestALocalDeviceIsGrownUnderItsPod(t *testing.T) {
	for fstype, c := range map[string]struct {
		program, from string
		bytes         int64
	}{"ext4": {"resize2fs", "e2fsprogs", 16 << 20}, "xfs": {"xfs_growfs", "xfsprogs", 300 << 20}, "btrfs": {"btrfs", "btrfs-progs", 128 << 20}} {
		t.Run(fstype, func(t *testing.T) {
			for _, program := range []string{c.program, "mkfs." + fstype} {
				if _, err := exec.LookPath(program); err != nil {
					t.Skip(err)
				}
			}
			if known, err := os.ReadFile(kernelFileSystems); err != nil || !slices.Contains(strings.Fields(string(known)), fstype) {
				t.Skipf("the kernel has no %s, %v", fstype, err)
			}
			if fstype == "ext4" && !mayExceedResources(t) {
				t.Skip("ext4 is grown with CAP_SYS_RESOURCE only, and this machine lacks it")
			}
			testGrownUnderItsPod(t, fstype, c.program, c.from, c.bytes)
		})
	}
}

// mayExceedResources says whether there is a CAP_SYS_RESOURCE.
func mayExceedResources(t *testing.T) bool {
	t.Helper()
	var data [2]unix.CapUserData
	if err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &data[0]); err != nil {
		t.Fatal(err)
	}
	return data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
}

func testGrownUnderItsPod(t *testing.T, fstype, program, from string, bytes int64) {
	dir := needMounts(t)
	image := filepath.Join(dir, "disk")
	device := loopDevice(t, image, bytes)
	local := func(_ *v1.PersistentVolumeClaim, pv *v1.PersistentVolume) {
		pv.Spec.Local = &v1.LocalVolumeSource{Path: device, FSType: &fstype}
	}
	o, told := objects{}, &notices{}
	bound(t, o, local)
	changed := 0
	m := New(Config{Dir: filepath.Join(dir, "pods"), Objects: o, Notice: told.add, Changed: func() { changed++ }})
	pod := podWith(claimVolume(false))
	pod.Spec.NodeName = "board"
	got, err := m.SetUp(t.Context(), pod)
	if err != nil {
		t.Fatal(err)
	}
	blocks := func() uint64 {
		var st unix.Statfs_t
		if err := unix.Statfs(got.Paths["v"], &st); err != nil {
			t.Fatal(err)
		}
		return st.Blocks * uint64(st.Bsize)
	}
	before := blocks()
	if n := told.take(); len(n) > 0 || len(m.Expanded()) > 0 {
		t.Errorf("grown without need: %v", n)
	}

	// The device isn't larger yet, and its tools are not there: the pod goes on.
	if err := os.Truncate(image, 4*bytes); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("losetup", "--set-capacity", device).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	resized(t, o, "2Gi", v1.PersistentVolumeClaimNodeResizePending, local)
	path := os.Getenv("PATH")
	only := t.TempDir()
	blkid, err := exec.LookPath("blkid")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(blkid, filepath.Join(only, "blkid")); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", only)
	again, err := m.SetUp(t.Context(), pod)
	if err != nil || again.Refresh.IsZero() {
		t.Fatalf("a running pod whose volume can't be grown: %v, again at %v", err, again.Refresh)
	}
	if n := told.take(); len(n) != 1 || !strings.HasPrefix(n[0], `Warning VolumeResizeFailed NodeExpandVolume.NodeExpandVolume failed for volume "pv" : `) || !strings.Contains(n[0], "install "+from) || strings.Contains(n[0], "|") {
		t.Errorf("%q", n)
	}
	if e := m.Expanded(); len(e) != 1 || !strings.Contains(e[0].Error, program+" is not on this node") || e[0].Infeasible {
		t.Errorf("%+v", e)
	}
	// Tried again and told once.
	m.Config.Now = func() time.Time { return time.Now().Add(growAgainMin) }
	if _, err = m.SetUp(t.Context(), pod); err != nil || len(told.take()) > 0 {
		t.Errorf("told again: %v", err)
	}
	t.Setenv("PATH", path)
	if _, err = m.SetUp(t.Context(), pod); err != nil || blocks() != before {
		t.Errorf("not waited before it is tried again: %v", err)
	}
	m.Config.Now = func() time.Time { return time.Now().Add(4 * growAgainMin) }
	changed = 0
	if _, err = m.SetUp(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	if now := blocks(); now < 3*before {
		t.Errorf("the file system has %d bytes, before %d", now, before)
	}
	if n := told.take(); !slices.Equal(n, []string{`Normal FileSystemResizeSuccessful MountVolume.NodeExpandVolume succeeded for volume "pv" board | n/c`}) {
		t.Errorf("%q", n)
	}
	want := Expanded{Namespace: "n", Claim: "c", UID: "claim-uid", Bytes: 2 << 30}
	if e := m.Expanded(); len(e) != 1 || e[0] != want || changed != 1 {
		t.Errorf("%+v, the cluster told %d times", e, changed)
	}
	if _, err = m.SetUp(t.Context(), pod); err != nil || len(told.take()) > 0 {
		t.Errorf("grown twice: %v", err)
	}

	// The claim says so: nothing more to tell.
	resized(t, o, "2Gi", "", func(c *v1.PersistentVolumeClaim, pv *v1.PersistentVolume) {
		local(c, pv)
		c.Status.Capacity[v1.ResourceStorage] = resource.MustParse("2Gi")
	})
	if _, err = m.SetUp(t.Context(), pod); err != nil || len(m.Expanded()) > 0 {
		t.Errorf("%v, %+v", err, m.Expanded())
	}
}

// A folder and a device in a container have nothing to grow, and the claim follows all the same.
func TestLocalVolumesWithoutAFileSystemOfTheirOwn(t *testing.T) {
	dir := needMounts(t)
	block := v1.PersistentVolumeBlock
	device := loopDevice(t, filepath.Join(dir, "disk"), 1<<20)
	for name, source := range map[string]func(*v1.PersistentVolume){
		"folder": func(pv *v1.PersistentVolume) { pv.Spec.Local = &v1.LocalVolumeSource{Path: dir} },
		"device": func(pv *v1.PersistentVolume) {
			pv.Spec.Local, pv.Spec.VolumeMode = &v1.LocalVolumeSource{Path: device}, &block
		},
	} {
		t.Run(name, func(t *testing.T) {
			o, told := objects{}, &notices{}
			m := New(Config{Dir: filepath.Join(dir, "pods"), Objects: o, Notice: told.add})
			resized(t, o, "2Gi", v1.PersistentVolumeClaimNodeResizePending, func(_ *v1.PersistentVolumeClaim, pv *v1.PersistentVolume) { source(pv) })
			pod := podWith(claimVolume(false))
			if name == "device" {
				withDevice(pod)
			}
			if _, err := m.SetUp(t.Context(), pod); err != nil {
				t.Fatal(err)
			}
			if e := m.Expanded(); len(e) != 1 || e[0].Bytes != 2<<30 || e[0].Error != "" || len(told.take()) != 1 {
				t.Errorf("%+v", e)
			}
			if err := m.TearDown(string(pod.UID)); err != nil {
				t.Fatal(err)
			}
		})
	}
	t.Run("read only", func(t *testing.T) {
		o, told := objects{}, &notices{}
		m := New(Config{Dir: filepath.Join(dir, "pods"), Objects: o, Notice: told.add})
		resized(t, o, "2Gi", "", func(_ *v1.PersistentVolumeClaim, pv *v1.PersistentVolume) {
			pv.Spec.Local = &v1.LocalVolumeSource{Path: dir}
		})
		pod := podWith(claimVolume(true))
		for range 2 {
			if _, err := m.SetUp(t.Context(), pod); err != nil {
				t.Fatal(err)
			}
		}
		if n := told.take(); !slices.Equal(n, []string{`Warning FileSystemResizeFailed MountVolume.NodeExpandVolume failed for volume "pv" requested read-only file system | n/c`}) {
			t.Errorf("%q", n)
		}
		if err := m.TearDown(string(pod.UID)); err != nil || len(m.growing) > 0 {
			t.Errorf("%v, kept %v", err, m.growing)
		}
	})
}

func TestWhatADriverSaysOfGrowing(t *testing.T) {
	dir := needMounts(t)
	const nobody = "not asked"
	for name, c := range map[string]struct {
		grows  bool
		state  v1.ClaimResourceStatus
		answer error
		used   bool // by the pod before
		// what is told to the cluster; "" nothing, nobody: the driver isn't even asked
		says       string
		infeasible bool
		event      string
		fails      bool
	}{
		"done":                         {grows: true, state: v1.PersistentVolumeClaimNodeResizePending, says: "2147483648", event: "FileSystemResizeSuccessful"},
		"done, by an older controller": {grows: true, says: "2147483648", event: "FileSystemResizeSuccessful"},
		"not this driver":              {state: v1.PersistentVolumeClaimNodeResizePending, says: nobody},
		"not yet":                      {grows: true, state: v1.PersistentVolumeClaimControllerResizeInProgress, says: nobody},
		"given up":                     {grows: true, state: v1.PersistentVolumeClaimNodeResizeInfeasible, says: nobody},
		"fails at mounting":            {grows: true, state: v1.PersistentVolumeClaimNodeResizePending, answer: status.Error(codes.Internal, "broken"), says: "broken", fails: true},
		"fails in use":                 {grows: true, state: v1.PersistentVolumeClaimNodeResizePending, answer: status.Error(codes.Internal, "broken"), used: true, says: "broken", event: "VolumeResizeFailed"},
		"an older controller isn't told of failures": {grows: true, answer: status.Error(codes.Internal, "broken"), used: true, event: "VolumeResizeFailed"},
		"never":     {grows: true, state: v1.PersistentVolumeClaimNodeResizeInProgress, answer: status.Error(codes.OutOfRange, "too large"), used: true, says: "too large", infeasible: true, event: "VolumeResizeFailed"},
		"busy":      {grows: true, state: v1.PersistentVolumeClaimNodeResizePending, answer: status.Error(codes.FailedPrecondition, "in use"), says: "in use"},
		"not known": {grows: true, state: v1.PersistentVolumeClaimNodeResizePending, answer: status.Error(codes.Aborted, "pending"), used: true, event: "VolumeResizeFailed"},
	} {
		t.Run(name, func(t *testing.T) {
			at := filepath.Join(dir, strings.ReplaceAll(name, " ", "-"))
			driver := &csidriver.Driver{Name: "d.example.com", NodeID: "me", Dir: filepath.Join(at, "volumes")}
			if c.grows {
				driver.Capabilities = []spec.NodeServiceCapability_RPC_Type{spec.NodeServiceCapability_RPC_EXPAND_VOLUME}
			}
			if err := os.MkdirAll(driver.Dir, 0o755); err != nil {
				t.Fatal(err)
			}
			stop, err := driver.Serve(filepath.Join(at, "d.sock"), filepath.Join(at, "r.sock"))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(stop)
			node := csi.New(csi.Config{KubeletDir: filepath.Join(at, "kubelet"), RecordDir: filepath.Join(at, "csi"), Boot: "b", IsMountPoint: Kernel{}.IsMountPoint})
			if err := node.Register(t.Context(), pluginwatch.Plugin{Name: driver.Name, Endpoint: filepath.Join(at, "d.sock"), Versions: []string{"1.0.0"}}); err != nil {
				t.Fatal(err)
			}
			o, told := objects{}, &notices{}
			source := func(_ *v1.PersistentVolumeClaim, pv *v1.PersistentVolume) {
				pv.Spec.CSI = &v1.CSIPersistentVolumeSource{Driver: driver.Name, VolumeHandle: "h"}
			}
			no := false
			put(t, o, "CSIDriver", "", driver.Name, &storagev1.CSIDriver{Spec: storagev1.CSIDriverSpec{AttachRequired: &no}})
			m := New(Config{Dir: filepath.Join(at, "pods"), Objects: o, CSI: node, Notice: told.add})
			pod := podWith(claimVolume(false))
			t.Cleanup(func() {
				if err := m.TearDown(string(pod.UID)); err != nil {
					t.Error(err)
				}
			})
			if c.used {
				bound(t, o, source)
				if _, err := m.SetUp(t.Context(), pod); err != nil {
					t.Fatal(err)
				}
			}
			resized(t, o, "2Gi", c.state, source)
			driver.Fail("NodeExpandVolume", c.answer)
			driver.Asked()
			for range 2 { // what failed at mounting fails again, although it is mounted now
				_, err = m.SetUp(t.Context(), pod)
				if (err != nil) != c.fails || err != nil && !strings.Contains(err.Error(), `MountVolume.Setup failed while expanding volume for volume "pv" : Expander.NodeExpand failed to expand the volume : rpc error`) {
					t.Errorf("%v", err)
				}
			}
			asked := slices.ContainsFunc(driver.Asked(), func(r any) bool { _, ok := r.(*spec.NodeExpandVolumeRequest); return ok })
			if asked == (c.says == nobody) {
				t.Errorf("the driver was asked: %t", asked)
			}
			e := m.Expanded()
			switch {
			case c.says == "" || c.says == nobody:
				if len(e) > 0 {
					t.Errorf("told %+v", e)
				}
			case len(e) != 1 || e[0].Infeasible != c.infeasible || (e[0].Error == "") != (c.answer == nil) || c.answer != nil && !strings.Contains(e[0].Error, c.says):
				t.Errorf("told %+v", e)
			}
			n := told.take()
			if c.event == "" && len(n) > 0 || c.event != "" && (len(n) != 1 || !strings.Contains(n[0], " "+c.event+" ")) {
				t.Errorf("events %q", n)
			}
			var missing *Error
			if c.fails && !errors.As(err, &missing) {
				t.Errorf("%v doesn't name the pod's volume", err)
			}
		})
	}
}
