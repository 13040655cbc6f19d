package volumes

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/coracle-edge/coracle/controlplane/api/localvolumes"
)

// folderRecords is edgelet/state's part, in memory.
type folderRecords map[string][]byte

func (r folderRecords) LocalVolumes() (map[string][]byte, error) { return r, nil }
func (r folderRecords) PutLocalVolume(uid string, folder []byte) error {
	if r[uid] = folder; folder == nil {
		delete(r, uid)
	}
	return nil
}

// provisioned is a claim's volume as the control plane makes it.
func provisioned(t *testing.T, o objects, path string) *v1.PersistentVolume {
	t.Helper()
	var out *v1.PersistentVolume
	bound(t, o, func(_ *v1.PersistentVolumeClaim, pv *v1.PersistentVolume) {
		pv.UID = "pv-uid"
		pv.Spec.Local = &v1.LocalVolumeSource{Path: path}
		pv.Spec.PersistentVolumeReclaimPolicy = v1.PersistentVolumeReclaimDelete
		localvolumes.Mark(pv, "board")
		out = pv
	})
	return out
}

func TestFoldersOfTheNode(t *testing.T) {
	dir := needMounts(t)
	root := filepath.Join(dir, "data", "local-volumes")
	path := filepath.Join(root, "pv_n_c")
	o, records := objects{}, folderRecords{}
	pv := provisioned(t, o, path)
	fresh := func() *Manager {
		return New(Config{Dir: filepath.Join(dir, "pods"), Objects: o, Folders: &Folders{Dir: root, Records: records}})
	}
	m, pod := fresh(), podWith(claimVolume(false))
	got, err := m.SetUp(t.Context(), pod)
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil || st.Mode&0o7777 != 0o777 {
		t.Errorf("any user of a container writes there: %o %v", st.Mode, err)
	}
	if err := unix.Stat(root, &st); err != nil || st.Mode&0o7777 != 0o700 {
		t.Errorf("no user of the node comes by: %o %v", st.Mode, err)
	}
	if err := os.WriteFile(filepath.Join(got.Paths["v"], "file"), []byte("kept"), 0o644); err != nil {
		t.Fatal(err)
	}

	// Claimed, and then in use.
	if gone, err := m.RemoveReleased(t.Context(), []*v1.PersistentVolume{pv}); len(gone) > 0 || err != nil {
		t.Errorf("a claimed volume: %v %v", gone, err)
	}
	released := pv.DeepCopy()
	released.Status.Phase = v1.VolumeReleased
	if gone, err := m.RemoveReleased(t.Context(), []*v1.PersistentVolume{released}); len(gone) > 0 || !errors.Is(err, ErrMounted) || !strings.Contains(err.Error(), "PersistentVolume pv") {
		t.Errorf("a volume that a pod still has: %v %v", gone, err)
	}
	if err := m.TearDown(string(pod.UID)); err != nil {
		t.Fatal(err)
	}

	// The agent starts anew: the folder is the one it was.
	m = fresh()
	if got, err = m.SetUp(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	if raw, err := os.ReadFile(filepath.Join(got.Paths["v"], "file")); err != nil || string(raw) != "kept" {
		t.Errorf("%q %v", raw, err)
	}
	if err := m.TearDown(string(pod.UID)); err != nil {
		t.Fatal(err)
	}

	// What the class keeps stays.
	retained := released.DeepCopy()
	retained.Spec.PersistentVolumeReclaimPolicy = v1.PersistentVolumeReclaimRetain
	if gone, err := m.RemoveReleased(t.Context(), []*v1.PersistentVolume{retained}); len(gone) > 0 || err != nil {
		t.Errorf("a volume that is to be retained: %v %v", gone, err)
	}

	// Somebody mounts something in it.
	inside := filepath.Join(path, "mnt")
	if err := os.Mkdir(inside, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := (Kernel{}).Tmpfs(inside, 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(inside, "theirs"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if gone, err := m.RemoveReleased(t.Context(), []*v1.PersistentVolume{released}); len(gone) > 0 || !errors.Is(err, ErrMounted) {
		t.Errorf("through a mount: %v %v", gone, err)
	}
	if _, err := os.Stat(filepath.Join(inside, "theirs")); err != nil {
		t.Error(err)
	}
	if err := (Kernel{}).UnmountBelow(inside); err != nil {
		t.Fatal(err)
	}

	for range 2 { // the second time after an agent that was killed before it had said so
		gone, err := m.RemoveReleased(t.Context(), []*v1.PersistentVolume{released})
		if err != nil || len(gone) != 1 || gone[0] != (localvolumes.Gone{Name: "pv", UID: "pv-uid"}) {
			t.Errorf("%v %v", gone, err)
		}
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) || records["pv-uid"] != nil {
			t.Errorf("left: %v %v", err, records)
		}
	}
	// A pod that was told of the volume before doesn't have it made again.
	if _, err := m.SetUp(t.Context(), pod); err == nil || !strings.Contains(err.Error(), "was released, and its folder removed") {
		t.Errorf("%v", err)
	}
}

// An agent that was killed at any line goes on, and any user can write there.
func TestFoldersHalfMade(t *testing.T) {
	dir := needMounts(t)
	root := filepath.Join(dir, "local-volumes")
	path := filepath.Join(root, "pv")
	for name, half := range map[string]string{"made": filepath.Join(root, ".new-pv-uid"), "in its place": path} {
		o, records := objects{}, folderRecords{}
		provisioned(t, o, path)
		if err := os.MkdirAll(half, 0o700); err != nil {
			t.Fatal(err)
		}
		if half == path {
			if err := os.Chmod(half, 0o777); err != nil {
				t.Fatal(err)
			}
		}
		m := New(Config{Dir: filepath.Join(dir, "pods"), Objects: o, Folders: &Folders{Dir: root, Records: records}})
		if _, err := m.SetUp(t.Context(), podWith(claimVolume(false))); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil || st.Mode&0o7777 != 0o777 || string(records["pv-uid"]) != path {
			t.Errorf("%s: %o %v %v", name, st.Mode, err, records)
		}
		if err := m.TearDown("uid-1"); err != nil {
			t.Fatal(err)
		}
		if entries, err := os.ReadDir(root); err != nil || len(entries) != 2 { // and the mark
			t.Errorf("%s: %v %v", name, entries, err)
		}
		if err := os.RemoveAll(root); err != nil {
			t.Fatal(err)
		}
	}
}

// An empty folder where data was, or somebody else's folder removed, would be worse
// than a pod that waits.
func TestFoldersThatAreNotThere(t *testing.T) {
	dir := needMounts(t)
	disk := filepath.Join(dir, "ssd")
	root := filepath.Join(disk, "volumes")
	o, records := objects{}, folderRecords{}
	pv := provisioned(t, o, filepath.Join(root, "pv"))
	var told []Notice
	m := New(Config{Dir: filepath.Join(dir, "pods"), Objects: o, Folders: &Folders{Dir: root, Given: true, Records: records},
		Notice: func(n Notice) { told = append(told, n) }})
	pod := podWith(claimVolume(false))
	setUp := func(want error, says string) {
		t.Helper()
		if _, err := m.SetUp(t.Context(), pod); !errors.Is(err, want) || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want %v that says %q", err, want, says)
		}
	}
	setUp(os.ErrNotExist, "(--local-volumes-dir) is not there: mount its disk, or make it")
	if err := os.MkdirAll(root, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := m.SetUp(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	if err := m.TearDown(string(pod.UID)); err != nil {
		t.Fatal(err)
	}
	away := disk + "-away"
	if err := os.Rename(disk, away); err != nil {
		t.Fatal(err)
	}
	released := pv.DeepCopy()
	released.Status.Phase = v1.VolumeReleased
	remove := func(want error) {
		t.Helper()
		before := len(told)
		for range 2 {
			if gone, err := m.RemoveReleased(t.Context(), []*v1.PersistentVolume{released}); len(gone) > 0 || !errors.Is(err, want) {
				t.Errorf("%v %v, want %v", gone, err, want)
			}
		}
		if now := told[before:]; len(now) != 1 || now[0].Reason != "VolumeFailedDelete" || now[0].Volume != "pv" {
			t.Errorf("told %+v", now)
		}
	}
	for _, there := range []string{dir, disk, root} { // what the disk was mounted on, at any depth
		if err := os.MkdirAll(there, 0o700); err != nil {
			t.Fatal(err)
		}
		setUp(ErrFolderGone, "is its disk mounted?")
		for _, name := range []string{"another", "pv"} { // nor is one said to be gone that may be on the disk
			released.UID, released.Spec.Local.Path = types.UID(name+"-uid"), filepath.Join(root, name)
			clear(m.unremoved)
			remove(ErrFolderGone)
		}
	}
	provisioned(t, o, filepath.Join(root, "second"))
	kept := records["pv-uid"]
	delete(records, "pv-uid")
	setUp(ErrFolderGone, "with volumes (file .coracle-volumes in it) was on this node before")
	records["pv-uid"] = kept
	if err := os.RemoveAll(disk); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(away, disk); err != nil {
		t.Fatal(err)
	}

	// Only what is where volumes are made is made, or removed.
	theirs := filepath.Join(disk, "theirs")
	if err := os.Mkdir(theirs, 0o755); err != nil {
		t.Fatal(err)
	}
	for i, path := range []string{theirs, root + "/../theirs", root, filepath.Join(root, FolderMark), filepath.Join(root, "pv")} {
		released.UID, released.Spec.Local.Path = types.UID(rune('a'+i)), path
		remove(ErrInvalid)
	}
	released.UID, released.Spec.Local.Path = "pv-uid", theirs
	clear(m.unremoved)
	remove(ErrInvalid)
	// Of those that somebody made an object for by hand nothing is noted.
	for _, path := range []string{theirs, filepath.Join(root, "pv")} {
		copied := provisioned(t, o, path)
		copied.UID = "copied"
		put(t, o, "PersistentVolume", "", "pv", copied)
		if _, err := m.SetUp(t.Context(), pod); err != nil || records["copied"] != nil {
			t.Errorf("%v %v", err, records)
		}
		if err := m.TearDown(string(pod.UID)); err != nil {
			t.Fatal(err)
		}
		copied.Status.Phase = v1.VolumeReleased
		if gone, err := m.RemoveReleased(t.Context(), []*v1.PersistentVolume{copied}); len(gone) > 0 || !errors.Is(err, ErrInvalid) {
			t.Errorf("%v %v", gone, err)
		}
	}
	for _, path := range []string{theirs, filepath.Join(root, "pv")} {
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
	}
	provisioned(t, o, filepath.Join(disk, "elsewhere"))
	kept = records["pv-uid"]
	delete(records, "pv-uid")
	setUp(ErrInvalid, "this node makes volumes in "+root+" (--local-volumes-dir)")

	// The operator has moved to a new disk: what was made on the former is used, and
	// removed, there.
	records["pv-uid"] = kept
	pv = provisioned(t, o, filepath.Join(root, "pv"))
	m.Folders.Dir = filepath.Join(dir, "new")
	if _, err := m.SetUp(t.Context(), pod); err != nil {
		t.Error(err)
	}
	if err := m.TearDown(string(pod.UID)); err != nil {
		t.Fatal(err)
	}
	pv.Status.Phase = v1.VolumeReleased
	if gone, err := m.RemoveReleased(t.Context(), []*v1.PersistentVolume{pv}); len(gone) != 1 || err != nil {
		t.Errorf("%v %v", gone, err)
	}

	m.Folders = nil
	setUp(ErrUnsupported, "edgelet runs without root")
}
