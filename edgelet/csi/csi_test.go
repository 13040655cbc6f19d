package csi_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coracle-edge/coracle/edgelet/csi"
	"github.com/coracle-edge/coracle/edgelet/pluginwatch"
	"github.com/coracle-edge/coracle/edgelet/volumes"
	"github.com/coracle-edge/coracle/test/csidriver"
)

// machine is a node with one driver.
type machine struct {
	*csi.Manager
	t      *testing.T
	dir    string
	driver *csidriver.Driver
}

// stages is a driver that stages volumes.
const stages = spec.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME

func newMachine(t *testing.T, capabilities ...spec.NodeServiceCapability_RPC_Type) *machine {
	t.Helper()
	dir := t.TempDir()
	if err := (volumes.Kernel{}).Tmpfs(dir, 0); err != nil {
		t.Skip("this user can't mount:", err)
	}
	t.Cleanup(func() {
		if err := (volumes.Kernel{}).UnmountBelow(dir); err != nil {
			t.Error(err)
		}
	})
	m := &machine{t: t, dir: dir, driver: &csidriver.Driver{Name: "test.example.com", NodeID: "node-of-the-driver", Dir: filepath.Join(dir, "volumes"),
		Capabilities: capabilities, Topology: map[string]string{"topology.example.com/rack": "r1"}, Limit: 7}}
	for _, sub := range []string{"volumes", "kubelet/plugins_registry"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	m.start("b1")
	m.serve()
	return m
}

// start is a new agent on the machine, which knows what is on the disk only.
func (m *machine) start(boot string) {
	m.Manager = csi.New(csi.Config{KubeletDir: filepath.Join(m.dir, "kubelet"), RecordDir: filepath.Join(m.dir, "records"), Boot: boot,
		IsMountPoint: volumes.Kernel{}.IsMountPoint})
}

func (m *machine) plugin() pluginwatch.Plugin {
	return pluginwatch.Plugin{Type: pluginwatch.TypeCSI, Name: m.driver.Name, Endpoint: filepath.Join(m.dir, "csi.sock"), Versions: []string{"0.3.0", "1.0.0"}}
}

func (m *machine) serve() {
	m.t.Helper()
	stop, err := m.driver.Serve(filepath.Join(m.dir, "csi.sock"), filepath.Join(m.dir, "reg.sock"))
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(stop)
	m.register()
}

func (m *machine) register() {
	m.t.Helper()
	if err := m.Register(m.t.Context(), m.plugin()); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) volume(pod string) *csi.Volume {
	return &csi.Volume{PodUID: pod, Name: "pv-1", PodVolume: "data", Driver: m.driver.Name, Handle: "h1", AccessMode: "ReadWriteOnce", FSType: "ext4",
		MountOptions: []string{"noatime"}, StageSecrets: map[string]string{"k": "stage"}, PublishSecrets: map[string]string{"k": "publish"},
		Attributes: map[string]string{"a": "1", "b": "2"}, StageAttributes: map[string]string{"a": "1"}, PublishContext: map[string]string{"lun": "3"}}
}

func (m *machine) setUp(v *csi.Volume) csi.Published {
	m.t.Helper()
	p, err := m.SetUp(m.t.Context(), v)
	if err != nil {
		m.t.Fatal(err)
	}
	if p.Fresh {
		if err := m.Ready(v); err != nil {
			m.t.Fatal(err)
		}
	}
	return p
}

// asked names the methods the driver was asked since the last call.
func (m *machine) asked() (names []string) {
	for _, r := range m.driver.Asked() {
		switch r.(type) {
		case *spec.NodeStageVolumeRequest:
			names = append(names, "stage")
		case *spec.NodePublishVolumeRequest:
			names = append(names, "publish")
		case *spec.NodeUnpublishVolumeRequest:
			names = append(names, "unpublish")
		case *spec.NodeUnstageVolumeRequest:
			names = append(names, "unstage")
		}
	}
	return names
}

func (m *machine) wasAsked(want ...string) {
	m.t.Helper()
	if got := m.asked(); !slices.Equal(got, want) {
		m.t.Errorf("the driver was asked to %v, want %v", got, want)
	}
}

// nothingIsLeft checks that no mount, no record and no file of a volume is there.
func (m *machine) nothingIsLeft() {
	m.t.Helper()
	points, err := volumes.MountsBelow(filepath.Join(m.dir, "kubelet"))
	if err != nil || len(points) > 0 {
		m.t.Errorf("mounted are %v, %v", points, err)
	}
	for _, dir := range []string{"kubelet/pods", "kubelet/plugins", "records"} {
		err := filepath.WalkDir(filepath.Join(m.dir, dir), func(path string, d fs.DirEntry, err error) error {
			if err == nil && (!d.IsDir() || d.Name() == "globalmount" || d.Name() == "mount" || d.Name() == "pv-1") {
				m.t.Errorf("%s is left", path)
			}
			return nil
		})
		if err != nil {
			m.t.Error(err)
		}
	}
}

func TestPodsShareAStagedVolume(t *testing.T) {
	m := newMachine(t, stages)
	a := m.setUp(m.volume("pod-a"))
	if want := filepath.Join(m.dir, "kubelet/pods/pod-a/volumes/kubernetes.io~csi/pv-1/mount"); a.Path != want {
		t.Errorf("%s, want %s", a.Path, want)
	}
	m.wasAsked("stage", "publish")
	if err := os.WriteFile(filepath.Join(a.Path, "file"), []byte("from a"), 0o644); err != nil {
		t.Fatal(err)
	}
	m.setUp(m.volume("pod-a"))
	m.wasAsked() // it is there
	b := m.setUp(m.volume("pod-b"))
	m.wasAsked("stage", "publish") // staging again is the driver's to see
	if got, err := os.ReadFile(filepath.Join(b.Path, "file")); err != nil || string(got) != "from a" {
		t.Errorf("%q, %v", got, err)
	}
	if err := m.TearDown(t.Context(), "pod-a"); err != nil {
		t.Fatal(err)
	}
	m.wasAsked("unpublish")
	if err := m.TearDown(t.Context(), "pod-b"); err != nil {
		t.Fatal(err)
	}
	m.wasAsked("unpublish", "unstage")
	m.nothingIsLeft()
	if got, err := os.ReadFile(filepath.Join(m.dir, "volumes/h1/file")); err != nil || string(got) != "from a" {
		t.Errorf("the volume's content: %q, %v", got, err)
	}
	if err := m.TearDown(t.Context(), "pod-b"); err != nil {
		t.Error("TearDown is not idempotent:", err)
	}
}

// An agent that is killed at any call to the driver leaves a record, and the next
// one undoes what was done, whether or not the driver did it.
func TestKilledAgentLeavesNothing(t *testing.T) {
	for _, at := range []string{"NodeStageVolume", "NodePublishVolume", "", "NodeUnpublishVolume", "NodeUnstageVolume"} {
		t.Run("at "+at, func(t *testing.T) {
			m := newMachine(t, stages)
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			m.driver.Fail(at, status.Error(codes.Unavailable, "cut"))
			if p, err := m.SetUp(ctx, m.volume("pod-a")); err == nil && p.Fresh {
				err = m.Ready(m.volume("pod-a"))
				if err != nil {
					t.Fatal(err)
				}
			}
			if err := m.TearDown(ctx, "pod-a"); (err != nil) != (at == "NodeUnpublishVolume" || at == "NodeUnstageVolume") {
				t.Fatalf("tearing down: %v", err)
			}
			m.start("b1")
			m.driver.Fail(at, nil)
			m.register()
			if at == "NodeUnpublishVolume" || at == "NodeUnstageVolume" {
				if uids, err := m.Pods(); err != nil || !slices.Equal(uids, []string{"pod-a"}) {
					t.Errorf("pods with volumes: %v, %v", uids, err)
				}
			}
			if err := m.TearDown(ctx, "pod-a"); err != nil {
				t.Fatal(err)
			}
			m.nothingIsLeft()
		})
	}
}

func TestNextAgentAndNextBoot(t *testing.T) {
	m := newMachine(t, stages)
	v := m.volume("pod-a")
	p := m.setUp(v)
	m.asked()
	m.start("b1") // no driver has registered with this agent yet
	if again, err := m.SetUp(t.Context(), v); err != nil || again.Path != p.Path || again.Fresh {
		t.Errorf("what is published needs no driver: %+v, %v", again, err)
	}
	if err := m.TearDown(t.Context(), "pod-a"); !errors.Is(err, csi.ErrNoDriver) {
		t.Errorf("tearing down without the driver: %v", err)
	}
	m.register()
	if err := (volumes.Kernel{}).UnmountBelow(p.Path); err != nil {
		t.Fatal(err)
	}
	m.setUp(v)
	m.wasAsked("stage", "publish") // it was gone
	m.start("b2")
	m.register()
	m.setUp(v)
	m.wasAsked("stage", "publish") // another boot
	v.Republish = true
	if p := m.setUp(v); p.Fresh {
		t.Error("republishing made it fresh")
	}
	m.wasAsked("publish")
	if err := m.TearDown(t.Context(), "pod-a"); err != nil {
		t.Fatal(err)
	}
	m.nothingIsLeft()
}

// What we write by hand is what the specification's code reads.
func TestRequestsAsTheSpecificationReadsThem(t *testing.T) {
	group := int64(2000)
	m := newMachine(t, stages, spec.NodeServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER, spec.NodeServiceCapability_RPC_VOLUME_MOUNT_GROUP,
		spec.NodeServiceCapability_RPC_GET_VOLUME_STATS, spec.NodeServiceCapability_RPC_EXPAND_VOLUME)
	v := m.volume("pod-a")
	v.FSGroup, v.ReadOnly, v.AccessMode = &group, true, "ReadWriteOncePod"
	p := m.setUp(v)
	if !p.GroupDone {
		t.Error("the driver applies the group itself")
	}
	asked := m.driver.Asked()
	stage, publish := asked[0].(*spec.NodeStageVolumeRequest), asked[1].(*spec.NodePublishVolumeRequest)
	if stage.VolumeId != "h1" || stage.Secrets["k"] != "stage" || len(stage.VolumeContext) != 1 || stage.PublishContext["lun"] != "3" ||
		filepath.Base(stage.StagingTargetPath) != "globalmount" {
		t.Errorf("%v", stage)
	}
	mount := publish.VolumeCapability.GetMount()
	if publish.VolumeId != "h1" || !publish.Readonly || publish.Secrets["k"] != "publish" || publish.VolumeContext["b"] != "2" || publish.TargetPath != p.Path ||
		publish.StagingTargetPath != stage.StagingTargetPath || mount.GetFsType() != "ext4" || !slices.Equal(mount.GetMountFlags(), []string{"noatime"}) ||
		mount.GetVolumeMountGroup() != "2000" || publish.VolumeCapability.AccessMode.Mode != spec.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER {
		t.Errorf("%v", publish)
	}
	if err := os.WriteFile(filepath.Join(p.Path, "x"), nil, 0o644); err == nil {
		t.Error("a read-only volume can be written")
	}
	if d := m.Drivers(); len(d) != 1 || d[0].NodeID != "node-of-the-driver" || d[0].Limit != 7 || d[0].Topology["topology.example.com/rack"] != "r1" {
		t.Errorf("%+v", d)
	}
	used, err := m.Usage(t.Context(), "pod-a")
	if err != nil || len(used) != 1 || used[0].Volume != "data" || used[0].Name != "pv-1" || used[0].Total <= 0 || used[0].InodesTotal <= 0 ||
		!used[0].Abnormal || used[0].Message != "a test's" {
		t.Errorf("%+v, %v", used, err)
	}
	if err := m.Expand(t.Context(), v, 5<<30); err != nil {
		t.Error(err)
	}
	expand := m.driver.Asked()[0].(*spec.NodeExpandVolumeRequest)
	if expand.CapacityRange.RequiredBytes != 5<<30 || expand.VolumePath != p.Path || expand.StagingTargetPath != stage.StagingTargetPath {
		t.Errorf("%v", expand)
	}
	if err := m.TearDown(t.Context(), "pod-a"); err != nil {
		t.Fatal(err)
	}
	m.nothingIsLeft()

	m.driver.Asked()

	// A volume of the pod's own, and a device, are not staged at a folder.
	inline := &csi.Volume{PodUID: "pod-b", Name: "mine", Driver: m.driver.Name, Handle: "csi-1", Ephemeral: true, AccessMode: "ReadWriteOnce"}
	m.setUp(inline)
	block := m.volume("pod-b")
	block.Block = true
	if p := m.setUp(block); p.Path != filepath.Join(m.dir, "kubelet/plugins/kubernetes.io/csi/volumeDevices/publish/pv-1/pod-b") {
		t.Error(p.Path)
	}
	asked = m.driver.Asked()
	if r := asked[0].(*spec.NodePublishVolumeRequest); r.StagingTargetPath != "" || r.VolumeCapability.GetMount() == nil {
		t.Errorf("%v", r)
	}
	if r := asked[2].(*spec.NodePublishVolumeRequest); r.VolumeCapability.GetBlock() == nil {
		t.Errorf("%v", r)
	}
	if err := m.TearDown(t.Context(), "pod-b"); err != nil {
		t.Fatal(err)
	}
	m.nothingIsLeft()
}

func TestAbandonedVolumesAreUnmountedWithoutTheirDriver(t *testing.T) {
	m := newMachine(t, stages)
	p := m.setUp(m.volume("pod-a"))
	if err := os.WriteFile(filepath.Join(p.Path, "file"), []byte("kept"), 0o644); err != nil {
		t.Fatal(err)
	}
	m.driver.Asked()
	m.start("b1")
	if err := m.Abandon(volumes.Kernel{}.UnmountBelow); err != nil {
		t.Fatal(err)
	}
	m.wasAsked()
	if points, err := volumes.MountsBelow(filepath.Join(m.dir, "kubelet")); err != nil || len(points) > 0 {
		t.Errorf("mounted are %v, %v", points, err)
	}
	if uids, err := m.Pods(); err != nil || len(uids) > 0 {
		t.Errorf("remembered are %v, %v", uids, err)
	}
	if got, err := os.ReadFile(filepath.Join(m.dir, "volumes/h1/file")); err != nil || string(got) != "kept" {
		t.Errorf("the volume's content: %q, %v", got, err)
	}
}

func TestADriverThatHangsIsNamed(t *testing.T) {
	m := newMachine(t, stages)
	m.driver.Hang(true)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := m.SetUp(ctx, m.volume("pod-a")); err == nil || !strings.Contains(err.Error(), "NodeStageVolume: no answer from CSI driver "+m.driver.Name+" within ") {
		t.Errorf("%v", err)
	}
	m.driver.Hang(false)
	m.setUp(m.volume("pod-a"))
	if err := m.TearDown(t.Context(), "pod-a"); err != nil {
		t.Fatal(err)
	}
}

// A driver that doesn't answer holds up figures once, not at each look.
func TestSilentDriversAreNotAskedAgainAtOnce(t *testing.T) {
	m := newMachine(t, stages, spec.NodeServiceCapability_RPC_GET_VOLUME_STATS)
	m.setUp(m.volume("pod-a"))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	m.driver.Hang(true)
	if used, err := m.Usage(ctx, "pod-a"); err == nil || len(used) > 0 {
		t.Errorf("%+v, %v", used, err)
	}
	if used, err := m.Usage(t.Context(), "pod-a"); err != nil || len(used) > 0 {
		t.Errorf("it was asked again: %+v, %v", used, err)
	}
	m.driver.Hang(false)
	m.register() // another process of the driver
	if used, err := m.Usage(t.Context(), "pod-a"); err != nil || len(used) != 1 {
		t.Errorf("%+v, %v", used, err)
	}
	if err := m.TearDown(t.Context(), "pod-a"); err != nil {
		t.Fatal(err)
	}
}

func TestDriversOfOtherVersionsAreRefused(t *testing.T) {
	m := newMachine(t, stages)
	p := m.plugin()
	p.Versions = []string{"2.0.0", "0.3.0", "x"}
	if err := m.Register(t.Context(), p); err == nil {
		t.Error("a driver without 1.x was taken")
	}
	other := m.plugin()
	other.Endpoint = filepath.Join(m.dir, "reg.sock") // it serves both
	if err := m.Register(t.Context(), other); err == nil {
		t.Error("a second driver of the same name and version was taken")
	}
	other.Versions = []string{"v1.4.0"}
	if err := m.Register(t.Context(), other); err != nil {
		t.Error("a newer one was not taken:", err)
	}
	m.Deregister(m.plugin())
	if len(m.Drivers()) != 1 {
		t.Error("the older one took the newer one along")
	}
	m.Deregister(other)
	if len(m.Drivers()) != 0 {
		t.Error("it stays")
	}
}
