package volumes

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-edge/coracle/edgelet/pods/kubeobj"
)

// noMounts is a node where the agent may not mount.
type noMounts struct{}

func (noMounts) Tmpfs(string, int64) error                    { return fs.ErrPermission }
func (noMounts) Mount(string, string, string, []string) error { return fs.ErrPermission }
func (noMounts) BindFD(int, string) error                     { return fs.ErrPermission }
func (noMounts) IsMountPoint(string) (bool, error)            { return false, nil }
func (noMounts) UnmountBelow(string) error                    { return nil }

type objects map[string][]byte

func (o objects) Object(kind, ns, name string) ([]byte, bool, error) {
	raw, ok := o[kind+"/"+ns+"/"+name]
	return raw, ok, nil
}

func newManager(t *testing.T, o objects) *Manager {
	return New(Config{Dir: t.TempDir(), Objects: o, Mounts: noMounts{}})
}

// podWith is a pod with a container that mounts all of the volumes.
func podWith(volumes ...v1.Volume) *v1.Pod {
	c := v1.Container{Name: "c"}
	for _, v := range volumes {
		c.VolumeMounts = append(c.VolumeMounts, v1.VolumeMount{Name: v.Name, MountPath: "/" + v.Name})
	}
	return &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "n", UID: "uid-1", Labels: map[string]string{"a": "b"}},
		Spec: v1.PodSpec{NodeName: "board", ServiceAccountName: "sa", Volumes: volumes, Containers: []v1.Container{c}}}
}

// withDevice has the pod use its first volume as a device.
func withDevice(pod *v1.Pod) *v1.Pod {
	c := &pod.Spec.Containers[0]
	c.VolumeMounts, c.VolumeDevices = nil, []v1.VolumeDevice{{Name: pod.Spec.Volumes[0].Name, DevicePath: "/dev/x"}}
	return pod
}

// A volume that no container uses is not made, and doesn't keep the pod from starting;
// an ephemeral container may be the first to use it.
func TestUnusedVolumesAreLeftAlone(t *testing.T) {
	m := newManager(t, objects{})
	pod := podWith(v1.Volume{Name: "missing", VolumeSource: v1.VolumeSource{Secret: &v1.SecretVolumeSource{SecretName: "none"}}},
		v1.Volume{Name: "scratch", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}},
		v1.Volume{Name: "image", VolumeSource: v1.VolumeSource{Image: &v1.ImageVolumeSource{Reference: "example.org/x:1"}}})
	mounts := pod.Spec.Containers[0].VolumeMounts
	pod.Spec.Containers[0].VolumeMounts = nil
	got, err := m.SetUp(t.Context(), pod)
	if err != nil || len(got.Paths) != 1 || got.Images["image"] == nil {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := os.Stat(m.path(pod, "empty-dir", "scratch")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the emptyDir was made: %v", err)
	}
	pod.Spec.EphemeralContainers = []v1.EphemeralContainer{{EphemeralContainerCommon: v1.EphemeralContainerCommon{Name: "debug", VolumeMounts: mounts[1:2]}}}
	if got, err = m.SetUp(t.Context(), pod); err != nil || got.Paths["scratch"] == "" {
		t.Errorf("used by an ephemeral container: %+v, %v", got, err)
	}
	pod.Spec.InitContainers = []v1.Container{{Name: "i", VolumeMounts: mounts[:1]}}
	if _, err = m.SetUp(t.Context(), pod); err == nil {
		t.Error("a missing secret that is used by an init container was not missed")
	}
}

func configMap(t *testing.T, name string, kv ...string) []byte {
	cm := &v1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{}}
	for i := 0; i < len(kv); i += 2 {
		cm.Data[kv[i]] = kv[i+1]
	}
	raw, err := kubeobj.EncodeConfigMap(cm)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestConfigMapVolumeFollowsItsObject(t *testing.T) {
	o := objects{"ConfigMap/n/cm": configMap(t, "cm", "k", "v1", "other", "x")}
	m := newManager(t, o)
	mode := int32(0o600)
	pod := podWith(v1.Volume{Name: "v", VolumeSource: v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{
		LocalObjectReference: v1.LocalObjectReference{Name: "cm"},
		Items:                []v1.KeyToPath{{Key: "k", Path: "dir/key", Mode: &mode}}}}})
	for _, want := range []string{"v1", "v2"} {
		o["ConfigMap/n/cm"] = configMap(t, "cm", "k", want)
		got, err := m.SetUp(t.Context(), pod)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(got.Paths["v"], "dir/key")
		b, err := os.ReadFile(path)
		if err != nil || string(b) != want {
			t.Errorf("%q, %v", b, err)
		}
		if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
			t.Errorf("mode %v", info.Mode())
		}
		if !got.ReadOnly["v"] {
			t.Error("a configMap volume must be read-only")
		}
	}
	if err := m.TearDown("uid-1"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(m.PodDir("uid-1")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("not removed")
	}
	if err := m.TearDown("uid-1"); err != nil {
		t.Error("TearDown is not idempotent:", err)
	}
}

func TestWhatIsMissingIsNamed(t *testing.T) {
	yes := true
	t.Setenv("PATH", t.TempDir()) // no mount.nfs, whatever this machine has
	for name, c := range map[string]struct {
		source v1.VolumeSource
		want   error
		says   string
	}{
		"configMap": {v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{LocalObjectReference: v1.LocalObjectReference{Name: "gone"}}},
			ErrNotFound, `MountVolume.SetUp failed for volume "v" : configmap "gone" not found`},
		"key": {v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{LocalObjectReference: v1.LocalObjectReference{Name: "cm"},
			Items: []v1.KeyToPath{{Key: "nokey", Path: "x"}}}}, ErrNotFound, "cm references non-existent configmap key: nokey"},
		"secret":           {v1.VolumeSource{Secret: &v1.SecretVolumeSource{SecretName: "gone"}}, ErrNotFound, `secret "gone" not found`},
		"optional secret":  {v1.VolumeSource{Secret: &v1.SecretVolumeSource{SecretName: "gone", Optional: &yes}}, nil, ""},
		"unsupported":      {v1.VolumeSource{NFS: &v1.NFSVolumeSource{Server: "s", Path: "/p"}}, ErrUnsupported, "mount.nfs is not on this node"},
		"iscsi":            {v1.VolumeSource{ISCSI: &v1.ISCSIVolumeSource{}}, ErrUnsupported, "iscsi (install a CSI driver for it"},
		"csi without root": {v1.VolumeSource{CSI: &v1.CSIVolumeSource{Driver: "d"}}, ErrUnsupported, "csi"},
		"pvc":              {v1.VolumeSource{PersistentVolumeClaim: &v1.PersistentVolumeClaimVolumeSource{ClaimName: "c"}}, ErrClaim, `error processing PVC n/c: failed to fetch PVC from API server: persistentvolumeclaims "c" not found`},
		"hostPath":         {v1.VolumeSource{HostPath: &v1.HostPathVolumeSource{Path: "/etc", Type: ptr(v1.HostPathFile)}}, ErrHostPath, "hostPath type check failed: /etc is not a file"},
		"hostPath escape":  {v1.VolumeSource{HostPath: &v1.HostPathVolumeSource{Path: "/tmp/../etc"}}, ErrInvalid, ".."},
		"token without an identity": {v1.VolumeSource{Projected: &v1.ProjectedVolumeSource{Sources: []v1.VolumeProjection{
			{ServiceAccountToken: &v1.ServiceAccountTokenProjection{Path: "t"}}}}}, ErrUnsupported, "join it to a cluster"},
	} {
		t.Run(name, func(t *testing.T) {
			m := newManager(t, objects{"ConfigMap/n/cm": configMap(t, "cm", "k", "v")})
			_, err := m.SetUp(t.Context(), podWith(v1.Volume{Name: "v", VolumeSource: c.source}))
			if !errors.Is(err, c.want) || (c.want != nil && !strings.Contains(err.Error(), c.says)) {
				t.Errorf("SetUp: %v, want %v saying %q", err, c.want, c.says)
			}
			var e *Error
			if c.want != nil && (!errors.As(err, &e) || e.Volume != "v") {
				t.Errorf("%v doesn't name its volume", err)
			}
		})
	}
}

func ptr[T any](v T) *T { return &v }

func TestProjectedTokenIsRenewedInTime(t *testing.T) {
	asked := 0
	now := time.Unix(1_700_000_000, 0)
	m := newManager(t, objects{"ConfigMap/n/kube-root-ca.crt": configMap(t, "kube-root-ca.crt", "ca.crt", "PEM")})
	m.Now = func() time.Time { return now }
	m.Token = func(_ context.Context, r TokenRequest) (string, time.Time, error) {
		asked++
		if r.ServiceAccount != "sa" || r.PodUID != "uid-1" || r.Namespace != "n" {
			t.Errorf("asked for %+v", r)
		}
		exp := now.Add(r.Lifetime)
		payload := base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, `{"iat":%d,"exp":%d}`, now.Unix(), exp.Unix()))
		return "h." + payload + ".s", exp, nil
	}
	pod := podWith(v1.Volume{Name: "kube-api-access", VolumeSource: v1.VolumeSource{Projected: &v1.ProjectedVolumeSource{Sources: []v1.VolumeProjection{
		{ServiceAccountToken: &v1.ServiceAccountTokenProjection{Path: "token", ExpirationSeconds: ptr(int64(1000))}},
		{ConfigMap: &v1.ConfigMapProjection{LocalObjectReference: v1.LocalObjectReference{Name: "kube-root-ca.crt"}, Items: []v1.KeyToPath{{Key: "ca.crt", Path: "ca.crt"}}}},
		{DownwardAPI: &v1.DownwardAPIProjection{Items: []v1.DownwardAPIVolumeFile{{Path: "namespace", FieldRef: &v1.ObjectFieldSelector{FieldPath: "metadata.namespace"}}}}},
	}}}})
	for _, step := range []struct {
		after time.Duration
		asked int
	}{{0, 1}, {time.Second, 1}, {700 * time.Second, 1}, {100 * time.Second, 2}, {-2000 * time.Second, 3}} {
		now = now.Add(step.after)
		got, err := m.SetUp(t.Context(), pod)
		if err != nil {
			t.Fatal(err)
		}
		if asked != step.asked {
			t.Errorf("after %v: asked %d times, want %d", step.after, asked, step.asked)
		}
		if !got.Refresh.After(now) || got.Refresh.After(now.Add(801*time.Second)) {
			t.Errorf("refresh in %v", got.Refresh.Sub(now))
		}
		for name, want := range map[string]string{"ca.crt": "PEM", "namespace": "n"} {
			if b, err := os.ReadFile(filepath.Join(got.Paths["kube-api-access"], name)); err != nil || string(b) != want {
				t.Errorf("%s = %q, %v", name, b, err)
			}
		}
	}
}

// A token that can't be renewed is kept as long as it is good, with nothing said, and
// after that as it is, which is said; a volume that has none yet isn't made.
func TestTokenThatCanNotBeRenewed(t *testing.T) {
	now, down := time.Unix(1_700_000_000, 0), errors.New("nobody answers")
	var refused error
	m := newManager(t, objects{"ConfigMap/n/cm": configMap(t, "cm", "a", "first")})
	m.Now = func() time.Time { return now }
	m.Token = func(_ context.Context, r TokenRequest) (string, time.Time, error) {
		exp := now.Add(r.Lifetime)
		return "h." + base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, `{"iat":%d,"exp":%d}`, now.Unix(), exp.Unix())) + ".s", exp, refused
	}
	pod := podWith(v1.Volume{Name: "v", VolumeSource: v1.VolumeSource{Projected: &v1.ProjectedVolumeSource{Sources: []v1.VolumeProjection{
		{ServiceAccountToken: &v1.ServiceAccountTokenProjection{Path: "token", ExpirationSeconds: ptr(int64(1000))}},
		{ConfigMap: &v1.ConfigMapProjection{LocalObjectReference: v1.LocalObjectReference{Name: "cm"}}},
	}}}})
	refused = down
	if _, err := m.SetUp(t.Context(), pod); !errors.Is(err, down) {
		t.Fatalf("without any token: %v", err)
	}
	refused = nil
	got, err := m.SetUp(t.Context(), pod)
	if err != nil || got.Stale != nil {
		t.Fatal(err, got.Stale)
	}
	read := func(name string) string {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(got.Paths["v"], name))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	first := read("token")
	refused = down
	// While it is good, the rest of the volume follows.
	m.Objects.(objects)["ConfigMap/n/cm"] = configMap(t, "cm", "a", "second")
	now = now.Add(900 * time.Second)
	if got, err = m.SetUp(t.Context(), pod); err != nil || got.Stale != nil || read("token") != first || read("a") != "second" {
		t.Errorf("a token that is good for 100 s: %v, %v, %s", err, got.Stale, read("a"))
	}
	if again := got.Refresh.Sub(now); again <= 0 || again > 2*minTokenRefresh {
		t.Errorf("tried again in %s", again)
	}
	now = now.Add(200 * time.Second)
	if got, err = m.SetUp(t.Context(), pod); err != nil || !errors.Is(got.Stale, down) || read("token") != first {
		t.Errorf("a token that is over: %v, %v", err, got.Stale)
	}
	refused = nil
	if got, err = m.SetUp(t.Context(), pod); err != nil || got.Stale != nil || read("token") == first {
		t.Errorf("when somebody answers: %v, %v, %s", err, got.Stale, read("token"))
	}
}

// What was shown is shown on when the object goes, and said; another pod waits.
func TestVolumesOutliveTheirObjects(t *testing.T) {
	have := objects{"ConfigMap/n/cm": configMap(t, "cm", "a", "first"), "ConfigMap/n/other": configMap(t, "other", "b", "kept")}
	m := newManager(t, have)
	volume := func(name string) v1.Volume {
		return v1.Volume{Name: name, VolumeSource: v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{LocalObjectReference: v1.LocalObjectReference{Name: name}}}}
	}
	pod := podWith(volume("cm"), volume("other"))
	if got, err := m.SetUp(t.Context(), pod); err != nil || got.Stale != nil || !got.Refresh.IsZero() {
		t.Fatalf("%v %+v", err, got)
	}
	delete(have, "ConfigMap/n/cm")
	have["ConfigMap/n/other"] = configMap(t, "other", "b", "changed")
	m = New(m.Config) // as an agent that was started again
	got, err := m.SetUp(t.Context(), pod)
	if err != nil || !errors.Is(got.Stale, ErrNotFound) || !got.ReadOnly["cm"] || got.Refresh.IsZero() {
		t.Fatalf("%v %+v", err, got)
	}
	if want := `MountVolume.SetUp failed for volume "cm" : configmap "cm" not found`; got.Stale.Error() != want {
		t.Errorf("%v, want %s", got.Stale, want)
	}
	for file, want := range map[string]string{filepath.Join(got.Paths["cm"], "a"): "first", filepath.Join(got.Paths["other"], "b"): "changed"} {
		if b, err := os.ReadFile(file); err != nil || string(b) != want {
			t.Errorf("%s: %q %v", file, b, err)
		}
	}
	pod.UID = "uid-2"
	if _, err := m.SetUp(t.Context(), pod); !errors.Is(err, ErrNotFound) {
		t.Errorf("another pod: %v", err)
	}
}

func TestSubPathStaysInTheVolume(t *testing.T) {
	m := newManager(t, nil)
	volume, outside := t.TempDir(), t.TempDir()
	os.WriteFile(filepath.Join(outside, "secret"), []byte("s"), 0o600)
	os.Symlink(outside, filepath.Join(volume, "out"))
	os.Symlink("../../../../../../../../etc", filepath.Join(volume, "up"))
	os.Mkdir(filepath.Join(volume, "real"), 0o755)
	os.Symlink("real", filepath.Join(volume, "inside"))
	for sub, ok := range map[string]bool{"real": true, "inside": true, "new/deep": true, ".": true,
		"out": false, "out/secret": false, "up/passwd": false, "../x": false, "/etc": false, "real/../../x": false} {
		got, err := m.SubPath("uid-1", "c", 0, volume, sub)
		if ok != (err == nil) {
			t.Errorf("%s: %q, %v", sub, got, err)
		}
		if err == nil && !strings.HasPrefix(got, volume) {
			t.Errorf("%s leads to %s", sub, got)
		}
		if err != nil && !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v is not ErrInvalid", sub, err)
		}
	}
	if entries, _ := os.ReadDir(outside); len(entries) != 1 {
		t.Error("something was made outside")
	}
}

// Kernels without openat2 get the same answers.
func TestWalkingStaysInTheVolume(t *testing.T) {
	volume := t.TempDir()
	os.MkdirAll(filepath.Join(volume, "a", "b"), 0o755)
	for name, target := range map[string]string{"abs": "/etc", "up": "../../etc", "back": "a/../a/b", "loop": "loop", "a/out": "../../x", "inside": volume + "/a/", "beside": volume + "x", "tricky": volume + "/../x"} {
		os.Symlink(target, filepath.Join(volume, name))
	}
	root, err := unix.Open(volume, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(root)
	for path, want := range map[string]string{"a/b": "a/b", "back": "a/b", "new/x/y": "new/x/y", ".": "", "a/./b/..": "a",
		"inside/b": "a/b", "beside": "no", "tricky": "no", "abs": "no", "up": "no", "loop": "no", "a/out": "no", "..": "no", "a/../../x": "no"} {
		fd, err := walkBeneath(root, volume, path)
		if (err != nil) != (want == "no") {
			t.Errorf("%s: %v", path, err)
			continue
		}
		if err == nil {
			got, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
			if got != filepath.Join(volume, want) {
				t.Errorf("%s is %s", path, got)
			}
			unix.Close(fd)
		}
	}
	if entries, _ := os.ReadDir("/proc/self/fd"); len(entries) > 64 {
		t.Errorf("%d descriptors are open", len(entries))
	}
}

func TestMemoryVolumesOnRealTmpfs(t *testing.T) {
	probe := t.TempDir()
	if err := (Kernel{}).Tmpfs(probe, 0); err != nil {
		t.Skip("this user can't mount a tmpfs:", err)
	}
	(Kernel{}).UnmountBelow(probe)
	raw, _ := kubeobj.EncodeSecret(&v1.Secret{Data: map[string][]byte{"k": []byte("v")}})
	m := New(Config{Dir: t.TempDir(), Objects: objects{"Secret/n/s": raw}})
	pod := podWith(
		v1.Volume{Name: "s", VolumeSource: v1.VolumeSource{Secret: &v1.SecretVolumeSource{SecretName: "s"}}},
		v1.Volume{Name: "e", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{Medium: v1.StorageMediumMemory}}})
	defer m.TearDown("uid-1")
	for range 2 { // the second finds what the first made
		got, err := m.SetUp(t.Context(), pod)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range []string{"s", "e"} {
			if on, err := m.Mounts.IsMountPoint(got.Paths[v]); err != nil || !on {
				t.Errorf("%s is not on a tmpfs: %v", v, err)
			}
		}
		// A mounted subPath is torn down with the rest, its content is not touched.
		os.MkdirAll(filepath.Join(got.Paths["e"], "sub"), 0o755)
		if _, err := m.SubPath("uid-1", "c", 1, got.Paths["e"], "sub"); err != nil {
			t.Error(err)
		}
	}
	host := t.TempDir()
	os.WriteFile(filepath.Join(host, "precious"), nil, 0o600)
	if _, err := m.SubPath("uid-1", "c", 2, host, "."); err != nil {
		t.Fatal(err)
	}
	if err := m.TearDown("uid-1"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(host, "precious")); err != nil {
		t.Error("TearDown removed what was mounted from outside:", err)
	}
}

// A folder that is made for a subPath has the mode of its volume's root, with all of
// its bits, and its group (upstream: the e2e "nonexistent volume subPath should have
// the correct mode and owner using FSGroup").
func TestFoldersOfSubPathsTakeAfterTheirVolume(t *testing.T) {
	needMounts(t)
	defer unix.Umask(unix.Umask(0o027))
	m := New(Config{Dir: t.TempDir(), Objects: objects{}})
	pod := podWith(
		v1.Volume{Name: "memory", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{Medium: v1.StorageMediumMemory}}},
		v1.Volume{Name: "disk", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}})
	group := int64(123)
	pod.Spec.SecurityContext = &v1.PodSecurityContext{FSGroup: &group}
	defer m.TearDown("uid-1")
	got, err := m.SetUp(t.Context(), pod)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range map[int]struct{ volume, mode string }{0: {"memory", "dgtrwxrwxrwx"}, 1: {"disk", "dgrwxrwxrwx"}} {
		sub, err := m.SubPath("uid-1", "c", i, got.Paths[want.volume], "made/for/it")
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{got.Paths[want.volume], filepath.Join(got.Paths[want.volume], "made"), sub} {
			st, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if owner := st.Sys().(*syscall.Stat_t); st.Mode().String() != want.mode || owner.Uid != 0 || int64(owner.Gid) != group {
				t.Errorf("%s: %s of %d:%d, want %s of 0:%d", path, st.Mode(), owner.Uid, owner.Gid, want.mode, group)
			}
		}
	}
}

func TestMountInfo(t *testing.T) {
	const info = `22 1 0:20 / / rw - ext4 /dev/root rw
30 22 0:21 / /data/pods/u/volumes/a\040b rw - tmpfs tmpfs rw
31 22 0:22 / /data/pods/u/volumes/a\040b/x rw - tmpfs tmpfs rw
32 22 0:23 / /data/pods/u2 rw - tmpfs tmpfs rw
garbage
`
	got, err := mountsBelow(strings.NewReader(info), "/data/pods/u")
	if err != nil || strings.Join(got, "|") != "/data/pods/u/volumes/a b/x|/data/pods/u/volumes/a b" {
		t.Errorf("%q, %v", got, err)
	}
}
