package volumes

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

func TestThatGivingAVolumeToAGroupTakesLongIsTold(t *testing.T) {
	group := int64(os.Getgid())
	pod := podWith()
	pod.Spec.SecurityContext = &v1.PodSecurityContext{FSGroup: &group}
	const slow = "Warning VolumePermissionChangeInProgress Setting volume ownership for uid-1/volumes/x is taking longer than expected, consider using OnRootMismatch - https://kubernetes.io/docs/tasks/configure-pod-container/security-context/#configure-volume-permission-and-ownership-change-policy-for-pods"
	t.Run("again and again", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			told := &notices{}
			m := New(Config{Notice: told.add})
			o := m.ownershipOf(pod, "/var/lib/pods/uid-1/volumes/x")
			if o.after != 30*time.Second {
				t.Errorf("told after %v", o.after)
			}
			stop := make(chan struct{})
			go o.watch(stop)
			synctest.Wait()
			o.files.Add(7)
			time.Sleep(time.Minute)
			synctest.Wait()
			close(stop)
			time.Sleep(time.Hour)
			if n := told.take(); !slices.Equal(n, []string{slow, "Warning VolumePermissionChangeInProgress Setting volume ownership for uid-1/volumes/x, processed 7 files."}) {
				t.Errorf("%q", n)
			}
		})
	})
	t.Run("while it is done", func(t *testing.T) {
		root := filepath.Join(t.TempDir(), "uid-1/volumes/x")
		for i := range 200 {
			if err := os.MkdirAll(filepath.Join(root, fmt.Sprint(i)), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		var mu sync.Mutex
		told := &notices{}
		m := New(Config{Notice: func(n Notice) { mu.Lock(); told.add(n); mu.Unlock() }})
		for end := time.Now().Add(time.Minute); ; {
			o := m.ownershipOf(pod, root)
			o.after = time.Nanosecond
			if err := o.apply(root); err != nil {
				t.Fatal(err)
			}
			mu.Lock()
			n := told.take()
			mu.Unlock()
			if len(n) > 0 {
				if n[0] != slow {
					t.Errorf("%q", n)
				}
				return
			}
			if time.Now().After(end) {
				t.Fatal("not told")
			}
		}
	})
}

// Two pods with different groups on one local volume: the second is told.
func TestAVolumeThatIsSharedByTwoGroups(t *testing.T) {
	dir := needMounts(t)
	source := filepath.Join(dir, "disk")
	if err := os.Mkdir(source, 0o755); err != nil {
		t.Fatal(err)
	}
	o, told := objects{}, &notices{}
	bound(t, o, func(_ *v1.PersistentVolumeClaim, pv *v1.PersistentVolume) {
		pv.Spec.Local = &v1.LocalVolumeSource{Path: source}
	})
	m := New(Config{Dir: filepath.Join(dir, "pods"), Objects: o, Notice: told.add})
	for i, c := range []struct {
		group int64
		told  bool
	}{{100, false}, {100, false}, {200, true}} {
		pod := podWith(claimVolume(false))
		pod.UID += types.UID(fmt.Sprint("-", i))
		pod.Spec.SecurityContext = &v1.PodSecurityContext{FSGroup: &c.group}
		if _, err := m.SetUp(t.Context(), pod); err != nil {
			t.Fatal(err)
		}
		n := told.take()
		if c.told != (len(n) > 0) || c.told && n[0] != "Warning AlreadyMountedVolume The requested fsGroup is 200, but the volume pv has GID 100. The volume may not be shareable." {
			t.Errorf("pod %d: %q", i, n)
		}
	}
}

// A device that a container was to have is another reason than a folder.
func TestAMissingDeviceIsNamedAsAMap(t *testing.T) {
	o := objects{}
	mode := v1.PersistentVolumeBlock
	bound(t, o, func(_ *v1.PersistentVolumeClaim, pv *v1.PersistentVolume) {
		pv.Spec.Local, pv.Spec.VolumeMode = &v1.LocalVolumeSource{Path: "/dev/none"}, &mode
	})
	pod := withDevice(podWith(claimVolume(false)))
	_, err := newManager(t, o).SetUp(t.Context(), pod)
	var failed *Error
	if !errors.As(err, &failed) || !failed.Block || err.Error() != `MapVolume.SetUpDevice failed for volume "v" : path "/dev/none" does not exist` {
		t.Errorf("%v", err)
	}
}

// What is in memory is not to be on a disk, where the kernel can promise that.
func TestMemoryIsNotSwapped(t *testing.T) {
	dir := needMounts(t)
	at := filepath.Join(dir, "secret")
	if err := os.Mkdir(at, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := (Kernel{}).Tmpfs(at, 1<<20); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		if strings.Contains(line, " "+at+" ") {
			if !noSwap() || !ownSwap(t) {
				t.Skip("this kernel swaps a tmpfs, or has no swap")
			}
			if !strings.Contains(line, "noswap") {
				t.Error(line)
			}
			return
		}
	}
	t.Fatal("not mounted")
}

// ownSwap says whether a tmpfs may be mounted with noswap here.
func ownSwap(t *testing.T) bool {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "noswap"); err != nil {
		return false
	}
	return unix.Unmount(dir, 0) == nil
}

// A device that has another file system than the volume says is named so, at the volume.
func TestAnotherFileSystemThanTheVolumeSays(t *testing.T) {
	dir := needMounts(t)
	device := loopDevice(t, filepath.Join(dir, "disk"), 16<<20)
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", device).CombinedOutput(); err != nil {
		t.Skipf("%v: %s", err, out)
	}
	says := "xfs"
	o, told := objects{}, &notices{}
	bound(t, o, func(_ *v1.PersistentVolumeClaim, pv *v1.PersistentVolume) {
		pv.UID = "pv-uid"
		pv.Spec.Local = &v1.LocalVolumeSource{Path: device, FSType: &says}
	})
	m := New(Config{Dir: filepath.Join(dir, "pods"), Objects: o, Notice: told.add})
	_, err := m.SetUp(t.Context(), podWith(claimVolume(false)))
	if err == nil || !strings.Contains(err.Error(), `the device has a file system of the type "ext4"`) {
		t.Errorf("%v", err)
	}
	if _, again := m.SetUp(t.Context(), podWith(claimVolume(false))); again == nil {
		t.Error("mounted all the same")
	}
	if n := told.got; len(n) != 1 || n[0].PodUID != "" || n[0].Volume != "pv" || n[0].VolumeUID != "pv-uid" || n[0].Reason != "FailedMountOnFilesystemMismatch" ||
		!strings.HasPrefix(n[0].Message, `MountVolume failed for volume "pv" local: failed to mount device `) {
		t.Errorf("%+v", n)
	}
}
