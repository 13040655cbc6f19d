package volumes

import (
	"context"
	"encoding/json"
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
	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-edge/coracle/edgelet/csi"
	"github.com/coracle-edge/coracle/edgelet/pluginwatch"
	"github.com/coracle-edge/coracle/edgelet/pods/kubeobj"
	"github.com/coracle-edge/coracle/test/csidriver"
)

// put encodes an object as the hub does.
func put(t *testing.T, o objects, kind, namespace, name string, from interface{ Marshal() ([]byte, error) }) {
	t.Helper()
	payload, err := from.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	o[kind+"/"+namespace+"/"+name] = kubeobj.Join(kubeobj.Header{APIVersion: "v1", Kind: kind}, payload)
}

// bound puts a claim "c" in namespace n and its volume "pv" there.
func bound(t *testing.T, o objects, change func(*v1.PersistentVolumeClaim, *v1.PersistentVolume)) {
	t.Helper()
	claim := &v1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: "c", Namespace: "n", UID: "claim-uid"},
		Spec:   v1.PersistentVolumeClaimSpec{VolumeName: "pv"},
		Status: v1.PersistentVolumeClaimStatus{Phase: v1.ClaimBound, Capacity: v1.ResourceList{v1.ResourceStorage: resource.MustParse("1Gi")}}}
	pv := &v1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv"}, Spec: v1.PersistentVolumeSpec{
		AccessModes: []v1.PersistentVolumeAccessMode{v1.ReadWriteOnce}, Capacity: v1.ResourceList{v1.ResourceStorage: resource.MustParse("1Gi")},
		ClaimRef: &v1.ObjectReference{Namespace: "n", Name: "c", UID: "claim-uid"}}}
	if change != nil {
		change(claim, pv)
	}
	put(t, o, "PersistentVolumeClaim", "n", "c", claim)
	put(t, o, "PersistentVolume", "", "pv", pv)
}

func claimVolume(readOnly bool) v1.Volume {
	return v1.Volume{Name: "v", VolumeSource: v1.VolumeSource{PersistentVolumeClaim: &v1.PersistentVolumeClaimVolumeSource{ClaimName: "c", ReadOnly: readOnly}}}
}

// needMounts skips without the right to mount, and unmounts at the end.
func needMounts(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := (Kernel{}).Tmpfs(dir, 0); err != nil {
		t.Skip("this user can't mount:", err)
	}
	t.Cleanup(func() {
		if err := (Kernel{}).UnmountBelow(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestClaimsThatCanNotBeUsed(t *testing.T) {
	path := func(p string) func(*v1.PersistentVolumeClaim, *v1.PersistentVolume) {
		return func(_ *v1.PersistentVolumeClaim, pv *v1.PersistentVolume) {
			pv.Spec.Local = &v1.LocalVolumeSource{Path: p}
		}
	}
	for name, c := range map[string]struct {
		change func(*v1.PersistentVolumeClaim, *v1.PersistentVolume)
		want   error
		says   string
	}{
		"unbound": {func(c *v1.PersistentVolumeClaim, _ *v1.PersistentVolume) { c.Status.Phase = v1.ClaimPending }, ErrClaim, "error processing PVC n/c: PVC is not bound"},
		"another's": {func(_ *v1.PersistentVolumeClaim, pv *v1.PersistentVolume) { pv.Spec.ClaimRef.UID = "other" }, ErrClaim,
			"its pv.Spec.ClaimRef.UID other does not point to claim.UID claim-uid"},
		"no volume": {func(c *v1.PersistentVolumeClaim, _ *v1.PersistentVolume) { c.Spec.VolumeName = "gone" }, ErrNotFound, "failed to fetch PV gone"},
		"a device": {func(_ *v1.PersistentVolumeClaim, pv *v1.PersistentVolume) {
			mode := v1.PersistentVolumeBlock
			pv.Spec.VolumeMode = &mode
		}, ErrClaim, "volume v has volumeMode Block, but is specified in volumeMounts"},
		"iscsi": {func(_ *v1.PersistentVolumeClaim, pv *v1.PersistentVolume) {
			pv.Spec.ISCSI = &v1.ISCSIPersistentVolumeSource{}
		}, ErrUnsupported,
			"PersistentVolume pv: volume type is not supported on this node: iscsi"},
		"no path":   {path("/does/not/exist"), nil, `MountVolume.SetUp failed for volume "v" : path "/does/not/exist" does not exist`},
		"path back": {path("/tmp/../etc"), ErrInvalid, "'..'"},
		"a file":    {path("/etc/hostname"), ErrInvalid, "only directory and block device are supported"},
	} {
		t.Run(name, func(t *testing.T) {
			o := objects{}
			bound(t, o, c.change)
			pod := podWith(claimVolume(false))
			pod.Spec.Containers[0].VolumeMounts = []v1.VolumeMount{{Name: "v", MountPath: "/v"}}
			_, err := newManager(t, o).SetUp(t.Context(), pod)
			if err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want %v saying %q", err, c.want, c.says)
			}
		})
	}
	// A claim of that name that somebody else made is not the pod's own volume.
	o := objects{}
	bound(t, o, func(c *v1.PersistentVolumeClaim, _ *v1.PersistentVolume) { c.Name = "p-v" })
	o["PersistentVolumeClaim/n/p-v"] = o["PersistentVolumeClaim/n/c"]
	_, err := newManager(t, o).SetUp(t.Context(), podWith(v1.Volume{Name: "v", VolumeSource: v1.VolumeSource{Ephemeral: &v1.EphemeralVolumeSource{}}}))
	if err == nil || !strings.Contains(err.Error(), "pod is not owner") {
		t.Error(err)
	}
}

func TestLocalVolumesAreBound(t *testing.T) {
	dir := needMounts(t)
	source := filepath.Join(dir, "source")
	if err := os.MkdirAll(filepath.Join(source, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	o := objects{}
	bound(t, o, func(_ *v1.PersistentVolumeClaim, pv *v1.PersistentVolume) {
		pv.Spec.Local = &v1.LocalVolumeSource{Path: source}
		pv.Spec.AccessModes = []v1.PersistentVolumeAccessMode{v1.ReadWriteOncePod}
		pv.Annotations = map[string]string{"pv.beta.kubernetes.io/gid": "777"}
	})
	m := New(Config{Dir: filepath.Join(dir, "pods"), Objects: o})
	pod := podWith(claimVolume(false))
	pod.Spec.SecurityContext = &v1.PodSecurityContext{FSGroup: ptr(int64(4321))}
	got, err := m.SetUp(t.Context(), pod)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got.Groups, []int64{777}) {
		t.Errorf("groups %v", got.Groups)
	}
	if err := os.WriteFile(filepath.Join(got.Paths["v"], "file"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(source, "sub"), &st); err != nil || st.Gid != 4321 || st.Mode&0o7777 != 0o2775 {
		t.Errorf("gid %d, mode %o, %v", st.Gid, st.Mode, err)
	}
	other := podWith(claimVolume(true))
	other.UID = "uid-2"
	if _, err := m.SetUp(t.Context(), other); !errors.Is(err, ErrInUse) {
		t.Errorf("a second pod with ReadWriteOncePod: %v", err)
	}
	if err := m.TearDown("uid-1"); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(source, "file")); err != nil || string(b) != "x" {
		t.Errorf("tearing down took the volume's content: %q, %v", b, err)
	}
	got, err = m.SetUp(t.Context(), other)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(got.Paths["v"], "file"), nil, 0o644); !errors.Is(err, unix.EROFS) || !got.ReadOnly["v"] {
		t.Errorf("a claim used read-only: %v", err)
	}
	if err := m.TearDown("uid-2"); err != nil {
		t.Fatal(err)
	}
}

// loopDevice makes a device of so many bytes out of a file.
func loopDevice(t *testing.T, image string, bytes int64) string {
	t.Helper()
	f, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(bytes), f.Close()); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", image).CombinedOutput()
	if err != nil {
		t.Skipf("no loop device: %v: %s", err, out)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() { _ = exec.Command("losetup", "--detach", device).Run() })
	return device
}

// A local volume that is a disk gets a file system the first time, one that has
// one is left alone; two pods share its mount.
func TestLocalVolumesOnDevices(t *testing.T) {
	dir := needMounts(t)
	device := loopDevice(t, filepath.Join(dir, "disk"), 16<<20)
	o := objects{}
	bound(t, o, func(_ *v1.PersistentVolumeClaim, pv *v1.PersistentVolume) {
		pv.Spec.Local = &v1.LocalVolumeSource{Path: device}
	})
	m := New(Config{Dir: filepath.Join(dir, "pods"), Objects: o})
	a, b := podWith(claimVolume(false)), podWith(claimVolume(true))
	b.UID = "uid-2"
	got, err := m.SetUp(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(got.Paths["v"], "file"), []byte("kept"), 0o644); err != nil {
		t.Fatal(err)
	}
	shared, err := m.SetUp(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.TearDown("uid-1"); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(shared.Paths["v"], "file")); err != nil || string(got) != "kept" {
		t.Errorf("after the first pod went the second reads %q, %v", got, err)
	}
	if err := m.TearDown("uid-2"); err != nil {
		t.Fatal(err)
	}
	if points, err := MountsBelow(filepath.Join(dir, devicesDir)); err != nil || len(points) > 0 {
		t.Errorf("without a pod, mounted are %v, %v", points, err)
	}
	if got, err = m.SetUp(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(got.Paths["v"], "file")); err != nil || string(b) != "kept" {
		t.Errorf("formatted again: %q, %v", b, err)
	}
	if err := m.TearDown("uid-1"); err != nil {
		t.Fatal(err)
	}
	mode := v1.PersistentVolumeBlock
	bound(t, o, func(_ *v1.PersistentVolumeClaim, pv *v1.PersistentVolume) {
		pv.Spec.Local, pv.Spec.VolumeMode = &v1.LocalVolumeSource{Path: device}, &mode
	})
	if got, err = m.SetUp(t.Context(), withDevice(a)); err != nil || got.Devices["v"] != device {
		t.Errorf("as a device: %v, %v", got.Devices, err)
	}
}

func TestCSIVolumesOfPods(t *testing.T) {
	dir := needMounts(t)
	driver := &csidriver.Driver{Name: "d.example.com", NodeID: "me", Dir: filepath.Join(dir, "volumes"),
		Capabilities: []spec.NodeServiceCapability_RPC_Type{spec.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME, spec.NodeServiceCapability_RPC_EXPAND_VOLUME}}
	if err := os.MkdirAll(driver.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	stop, err := driver.Serve(filepath.Join(dir, "d.sock"), filepath.Join(dir, "r.sock"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	o := objects{}
	bound(t, o, func(_ *v1.PersistentVolumeClaim, pv *v1.PersistentVolume) {
		pv.Spec.CSI = &v1.CSIPersistentVolumeSource{Driver: driver.Name, VolumeHandle: "h", FSType: "ext4", VolumeAttributes: map[string]string{"a": "1"},
			NodeStageSecretRef: &v1.SecretReference{Namespace: "other", Name: "s"}}
		pv.Spec.Capacity[v1.ResourceStorage] = resource.MustParse("2Gi")
	})
	yes := true
	put(t, o, "CSIDriver", "", driver.Name, &storagev1.CSIDriver{Spec: storagev1.CSIDriverSpec{PodInfoOnMount: &yes, RequiresRepublish: &yes,
		TokenRequests: []storagev1.TokenRequest{{Audience: "bank"}}, VolumeLifecycleModes: []storagev1.VolumeLifecycleMode{"Persistent", "Ephemeral"}}})
	m := New(Config{Dir: filepath.Join(dir, "pods"), Objects: o, Token: func(_ context.Context, r TokenRequest) (string, time.Time, error) {
		return "token for " + r.Audience, time.Unix(2e9, 0), nil
	}, CSI: csi.New(csi.Config{KubeletDir: filepath.Join(dir, "kubelet"), RecordDir: filepath.Join(dir, "records"), Boot: "b", IsMountPoint: Kernel{}.IsMountPoint})})
	pod := podWith(claimVolume(false), v1.Volume{Name: "inline", VolumeSource: v1.VolumeSource{CSI: &v1.CSIVolumeSource{Driver: driver.Name}}})
	pod.Spec.SecurityContext = &v1.PodSecurityContext{FSGroup: ptr(int64(4321))}

	fails := func(want error, says string) {
		t.Helper()
		if _, err := m.SetUp(t.Context(), pod); !errors.Is(err, want) || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want %v saying %q", err, want, says)
		}
	}
	fails(ErrNotAttached, `AttachVolume.Attach failed for volume "v" : volume is not attached to this node yet: waiting for VolumeAttachment csi-`)
	attachment := &storagev1.VolumeAttachment{Status: storagev1.VolumeAttachmentStatus{AttachError: &storagev1.VolumeError{Message: "no room"}}}
	name := attachmentName("h", driver.Name, "board")
	put(t, o, "VolumeAttachment", "", name, attachment)
	fails(ErrNotAttached, "no room")
	attachment.Status = storagev1.VolumeAttachmentStatus{Attached: true, AttachmentMetadata: map[string]string{"lun": "7"}}
	put(t, o, "VolumeAttachment", "", name, attachment)
	fails(ErrNotFound, `fetching NodeStageSecretRef other/s failed: secret "s" not found`)
	put(t, o, "Secret", "other", "s", &v1.Secret{Data: map[string][]byte{"k": []byte("v")}})
	fails(csi.ErrNoDriver, "driver name d.example.com not found in the list of registered CSI drivers")
	if err := m.CSI.Register(t.Context(), pluginwatch.Plugin{Name: driver.Name, Endpoint: filepath.Join(dir, "d.sock"), Versions: []string{"1.0.0"}}); err != nil {
		t.Fatal(err)
	}
	got, err := m.SetUp(t.Context(), pod)
	if err != nil {
		t.Fatal(err)
	}
	if got.Refresh.IsZero() {
		t.Error("a driver that wants to publish again is not asked again")
	}
	asked := driver.Asked()
	stage, publish, expand, inline := asked[0].(*spec.NodeStageVolumeRequest), asked[1].(*spec.NodePublishVolumeRequest), asked[2].(*spec.NodeExpandVolumeRequest), asked[3].(*spec.NodePublishVolumeRequest)
	if stage.Secrets["k"] != "v" || stage.PublishContext["lun"] != "7" || stage.VolumeContext["a"] != "1" || len(stage.VolumeContext) != 1 {
		t.Errorf("%v", stage)
	}
	var tokens map[string]struct {
		Token   string    `json:"token"`
		Expires time.Time `json:"expirationTimestamp"`
	}
	if err := json.Unmarshal([]byte(publish.VolumeContext[tokensKey]), &tokens); err != nil || tokens["bank"].Token != "token for bank" || tokens["bank"].Expires.Unix() != 2e9 {
		t.Errorf("%v, %v", tokens, err)
	}
	for k, v := range map[string]string{"pod.name": "p", "pod.namespace": "n", "pod.uid": "uid-1", "serviceAccount.name": "sa", "ephemeral": "false"} {
		if publish.VolumeContext["csi.storage.k8s.io/"+k] != v {
			t.Errorf("%s is %q, want %q", k, publish.VolumeContext["csi.storage.k8s.io/"+k], v)
		}
	}
	if inline.VolumeContext["csi.storage.k8s.io/ephemeral"] != "true" || inline.StagingTargetPath != "" {
		t.Errorf("%v", inline)
	}
	if expand.CapacityRange.RequiredBytes != 2<<30 {
		t.Errorf("%v", expand)
	}
	if e := m.Expanded(); len(e) != 1 || e[0] != (Expanded{Namespace: "n", Claim: "c", UID: "claim-uid", Bytes: 2 << 30}) {
		t.Errorf("%+v", e)
	}
	var st unix.Stat_t
	if err := unix.Stat(got.Paths["v"], &st); err != nil || st.Gid != 4321 || st.Mode&unix.S_ISGID == 0 {
		t.Errorf("fsGroup: gid %d, mode %o, %v", st.Gid, st.Mode, err)
	}
	if names := m.CSI.InUse(); !slices.Equal(names, []string{"kubernetes.io/csi/d.example.com^h"}) {
		t.Errorf("in use: %v", names)
	}
	if _, err := m.SetUp(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	if asked = driver.Asked(); len(asked) != 2 { // published again, both; not staged, not grown
		t.Errorf("%d requests: %v", len(asked), asked)
	}
	sub, err := m.SubPath("uid-1", "c", 0, got.Paths["v"], "sub")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(sub, "file"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if uids, err := m.Pods(); err != nil || !slices.Equal(uids, []string{"uid-1"}) {
		t.Errorf("%v, %v", uids, err)
	}
	if err := m.TearDown("uid-1"); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(driver.Dir, "h/sub/file")); err != nil || string(b) != "x" {
		t.Errorf("content of the volume: %q, %v", b, err)
	}
	if points, err := MountsBelow(filepath.Join(dir, "kubelet")); err != nil || len(points) > 0 || len(m.CSI.InUse()) > 0 {
		t.Errorf("left mounted: %v, %v", points, err)
	}
}

// A driver that doesn't say that it can isn't asked for a volume of the pod's own.
func TestInlineVolumesNeedADriverThatSaysSo(t *testing.T) {
	o := objects{}
	put(t, o, "CSIDriver", "", "d", &storagev1.CSIDriver{})
	m := newManager(t, o)
	m.CSI = csi.New(csi.Config{})
	_, err := m.SetUp(t.Context(), podWith(v1.Volume{Name: "v", VolumeSource: v1.VolumeSource{CSI: &v1.CSIVolumeSource{Driver: "d"}}}))
	if err == nil || !strings.Contains(err.Error(), `volume mode "Ephemeral" not supported by driver d (only supports ["Persistent"])`) {
		t.Error(err)
	}
	_, err = m.SetUp(t.Context(), podWith(v1.Volume{Name: "v", VolumeSource: v1.VolumeSource{CSI: &v1.CSIVolumeSource{Driver: "isn't there"}}}))
	if err == nil || !strings.Contains(err.Error(), `volume mode "Ephemeral" not supported by driver isn't there (no CSIDriver object)`) {
		t.Error(err)
	}
}
