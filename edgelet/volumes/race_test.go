package volumes

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
)

// envAttack makes the test binary another process that does to a volume whatever
// a pod with the rights of root could: it holds the folder's path.
const (
	envAttack = "CORACLE_TEST_ATTACK"
	envFast   = "CORACLE_TEST_ATTACK_FAST" // two pairs of names only, as fast as it goes
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(envAttack); dir != "" {
		attack(dir)
		return
	}
	os.Exit(m.Run())
}

// attack swaps folders, links that lead out and mounts, until it is killed.
func attack(volume string) {
	in := func(name string) string { return filepath.Join(volume, name) }
	if os.Getenv(envFast) != "" {
		_ = os.Symlink("../outside/secret", in("file.link"))
		_ = os.Symlink("../outside", in("link"))
		for {
			_ = unix.Renameat2(unix.AT_FDCWD, in("file"), unix.AT_FDCWD, in("file.link"), unix.RENAME_EXCHANGE)
			_ = unix.Renameat2(unix.AT_FDCWD, in("a"), unix.AT_FDCWD, in("link"), unix.RENAME_EXCHANGE)
		}
	}
	links := []string{"../outside", filepath.Join(filepath.Dir(volume), "outside"), "/proc/self/root" + filepath.Join(filepath.Dir(volume), "outside"), "..", "a/../../outside"}
	for i := 0; ; i++ {
		_ = os.Remove(in("link"))
		_ = os.Symlink(links[i%len(links)], in("link"))
		// The folder is a link at one moment and a folder at the next; so is its child.
		_ = unix.Renameat2(unix.AT_FDCWD, in("a"), unix.AT_FDCWD, in("link"), unix.RENAME_EXCHANGE)
		_ = unix.Renameat2(unix.AT_FDCWD, in("a"), unix.AT_FDCWD, in("link"), unix.RENAME_EXCHANGE)
		_ = os.Symlink("../../outside", in("a/b/link"))
		_ = unix.Renameat2(unix.AT_FDCWD, in("a/b/c"), unix.AT_FDCWD, in("a/b/link"), unix.RENAME_EXCHANGE)
		_ = unix.Renameat2(unix.AT_FDCWD, in("a/b/c"), unix.AT_FDCWD, in("a/b/link"), unix.RENAME_EXCHANGE)
		_ = os.Remove(in("file.link"))
		_ = os.Symlink("../outside/secret", in("file.link"))
		_ = unix.Renameat2(unix.AT_FDCWD, in("file"), unix.AT_FDCWD, in("file.link"), unix.RENAME_EXCHANGE)
		_ = unix.Renameat2(unix.AT_FDCWD, in("file"), unix.AT_FDCWD, in("file.link"), unix.RENAME_EXCHANGE)
		// Something moves out of the way of "..", and something is mounted over it.
		_ = os.Rename(in("deep/down"), in("down"))
		_ = os.Rename(in("down"), in("deep/down"))
		if i%16 == 0 && unix.Mount("tmpfs", in("m"), "tmpfs", 0, "size=64k") == nil {
			_ = unix.Unmount(in("m"), unix.MNT_DETACH)
		}
		for j := range 4 { // what SubPath is to make anew
			_ = os.Remove(in(fmt.Sprintf("new/%d", j)))
			_ = os.Remove(in("new"))
			_ = os.Symlink("../outside", in("new"))
			_ = os.Remove(in("new"))
		}
	}
}

const attackFor = 4 * time.Second

// While another process swaps symlinks and mounts in a volume, subPaths of it are
// prepared. What a container would get is then never outside: neither the bind
// mount that a runtime is told (OCI), nor what a Wasm runner opens there, and
// nothing is made outside.
func TestSubPathsWhileAnotherProcessSwaps(t *testing.T) {
	dir := needMounts(t)
	volume, outside := filepath.Join(dir, "volume"), filepath.Join(dir, "outside")
	for _, d := range []string{"a/b/c", "deep/down/here", "m"} {
		if err := os.MkdirAll(filepath.Join(volume, d), 0o777); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Mkdir(outside, 0o755), os.WriteFile(filepath.Join(outside, "secret"), []byte("secret"), 0o600),
		os.MkdirAll(filepath.Join(outside, "b/c"), 0o755), os.WriteFile(filepath.Join(volume, "file"), []byte("mine"), 0o644)); err != nil {
		t.Fatal(err)
	}
	before := tree(t, outside)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), envAttack+"="+volume)
	if err := cmd.Start(); errors.Is(err, syscall.ENOEXEC) {
		t.Skip("this machine can't start its own test again (an emulated processor)")
	} else if err != nil {
		t.Fatal(err)
	}
	killed := false
	kill := func() {
		if !killed {
			killed = true
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	}
	defer kill()

	bad := map[fileID]string{}
	for _, p := range before {
		bad[identityOf(t, p)] = p
	}
	bad[identityOf(t, dir)] = dir // what ".." of the volume is
	m := New(Config{Dir: filepath.Join(dir, "pods")})
	subs := []string{"a", "a/b", "a/b/c", "file", "deep/down/here", "link", "new/0/x", "new/1", "m", "m/n"}
	good, refused := 0, 0
	for stop := time.Now().Add(attackFor); time.Now().Before(stop); {
		for i, sub := range subs {
			target, err := m.SubPath("uid", "c", i, volume, sub)
			if err != nil {
				refused++
				continue
			}
			good++
			// As a runtime mounts it, and as a Wasm runner opens it: what is found there
			// is what SubPath bound.
			fd, err := unix.Open(target, unix.O_PATH|unix.O_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			var st unix.Stat_t
			if err := unix.Fstat(fd, &st); err != nil {
				t.Fatal(err)
			}
			unix.Close(fd)
			if where := bad[fileID{st.Dev, st.Ino}]; where != "" {
				t.Fatalf("subPath %s led to %s", sub, where)
			}
		}
	}
	kill()
	t.Logf("%d subPaths prepared, %d refused", good, refused)
	if good < 50 || refused < 5 {
		t.Errorf("%d prepared and %d refused: nothing was raced", good, refused)
	}
	if after := tree(t, outside); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("outside there is now %v, before %v", after, before)
	}
	if err := m.TearDown("uid"); err != nil {
		t.Fatal(err)
	}
	if after := tree(t, outside); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("tearing down removed from outside: %v, before %v", after, before)
	}
}

type fileID struct {
	dev, ino uint64
}

func identityOf(t *testing.T, path string) fileID {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return fileID{st.Dev, st.Ino}
}

func tree(t *testing.T, dir string) (paths []string) {
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		paths = append(paths, path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

// fsGroup walks a volume that a pod may be changing: it gives nothing away that is
// outside.
func TestOwnershipWhileAnotherProcessSwaps(t *testing.T) {
	dir := needMounts(t)
	volume, outside := filepath.Join(dir, "volume"), filepath.Join(dir, "outside")
	for _, d := range []string{"a/b/c", "deep/down/here", "m"} {
		if err := os.MkdirAll(filepath.Join(volume, d), 0o777); err != nil {
			t.Fatal(err)
		}
	}
	secret := filepath.Join(outside, "secret")
	if err := errors.Join(os.Mkdir(outside, 0o755), os.WriteFile(secret, nil, 0o600), os.MkdirAll(filepath.Join(outside, "b/c"), 0o755),
		os.WriteFile(filepath.Join(volume, "file"), nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), envAttack+"="+volume, envFast+"=1")
	if err := cmd.Start(); errors.Is(err, syscall.ENOEXEC) {
		t.Skip("this machine can't start its own test again (an emulated processor)")
	} else if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	done := 0
	for stop := time.Now().Add(attackFor / 2); time.Now().Before(stop); {
		if err := (ownership{group: ptr(int64(4321))}).apply(volume); err == nil {
			done++
		}
	}
	if done < 10 {
		t.Errorf("applied %d times only", done)
	}
	for _, p := range tree(t, outside) {
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil || st.Gid == 4321 {
			t.Errorf("%s was given away (%v)", p, err)
		}
	}
}

// Nothing is deleted through a mount, even if it can't be unmounted, nor through
// a symlink.
func TestNothingIsDeletedThroughAMount(t *testing.T) {
	dir := needMounts(t)
	precious := filepath.Join(dir, "precious")
	if err := errors.Join(os.Mkdir(precious, 0o755), os.WriteFile(filepath.Join(precious, "data"), []byte("x"), 0o644)); err != nil {
		t.Fatal(err)
	}
	m := New(Config{Dir: filepath.Join(dir, "pods"), Mounts: unmountsNothing{}})
	got, err := m.SetUp(t.Context(), podWith(v1.Volume{Name: "v", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}}))
	if err != nil {
		t.Fatal(err)
	}
	at := filepath.Join(got.Paths["v"], "at")
	file := filepath.Join(got.Paths["v"], "file")
	if err := errors.Join(os.Mkdir(at, 0o755), os.WriteFile(file, nil, 0o644), os.Symlink(precious, filepath.Join(got.Paths["v"], "link")),
		(Kernel{}).Mount(precious, at, "", nil), (Kernel{}).Mount(filepath.Join(precious, "data"), file, "", nil)); err != nil {
		t.Fatal(err)
	}
	if err := m.TearDown("uid-1"); !errors.Is(err, ErrMounted) {
		t.Errorf("with something mounted: %v", err)
	}
	if _, err := os.Stat(filepath.Join(precious, "data")); err != nil {
		t.Fatal("deleted through a mount:", err)
	}
	m.Mounts = Kernel{}
	if err := m.TearDown("uid-1"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(precious, "data")); err != nil {
		t.Error("deleted through a symlink:", err)
	}
	if _, err := os.Stat(m.PodDir("uid-1")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("not removed:", err)
	}
}

// unmountsNothing is a kernel where all is busy.
type unmountsNothing struct{ Kernel }

func (unmountsNothing) UnmountBelow(string) error { return nil }

// A full file system is named, with the volume; what was half made is gone, and
// it goes on when there is room.
func TestFullDiskIsNamed(t *testing.T) {
	dir := t.TempDir()
	if err := (Kernel{}).Tmpfs(dir, 1<<20); err != nil {
		t.Skip("this user can't mount:", err)
	}
	defer (Kernel{}).UnmountBelow(dir)
	m := New(Config{Dir: filepath.Join(dir, "pods"), Mounts: noMounts{}, Objects: objects{"ConfigMap/n/cm": configMap(t, "cm", "small", "s", "large", string(make([]byte, 600<<10)))}})
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 700<<10), 0o644); err != nil {
		t.Fatal(err)
	}
	pod := podWith(v1.Volume{Name: "config", VolumeSource: v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{LocalObjectReference: v1.LocalObjectReference{Name: "cm"}}}})
	_, err := m.SetUp(t.Context(), pod)
	want := fmt.Sprintf(`MountVolume.SetUp failed for volume "config" : no space left on the node: the file system at %s (tmpfs) is full: `, dir)
	if !errors.Is(err, ErrFull) || len(err.Error()) < len(want) || err.Error()[:len(want)] != want {
		t.Errorf("%v\nwant %s...", err, want)
	}
	if got := tree(t, m.path(pod, "configmap", "config")); len(got) != 1 {
		t.Errorf("half a volume is left: %v", got)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if _, err := m.SetUp(t.Context(), pod); err != nil {
		t.Error("with room again:", err)
	}
}
