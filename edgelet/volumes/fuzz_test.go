package volumes

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
)

// What a token says of its times: an expiry is after its issue, or there is none.
func FuzzTokenLifetime(f *testing.F) {
	f.Add("a.eyJpYXQiOjEsImV4cCI6Mn0.c")
	f.Add("a.eyJpYXQiOjkyMjMzNzIwMzY4NTQ3NzU4MDcsImV4cCI6LTF9.c")
	f.Fuzz(func(t *testing.T, jwt string) {
		if issued, expires, ok := lifetimeOf(jwt); ok && !expires.After(issued) {
			t.Errorf("%q: from %s to %s", jwt, issued, expires)
		}
	})
}

// Whatever the kernel's table says, nothing is unmounted that isn't of the folder.
func FuzzMountinfo(f *testing.F) {
	f.Add("36 35 98:0 / /pods/a rw - ext4 /dev/root rw\n37 35 0:1 / /pods/a/b\\040c rw - tmpfs t rw\n", "/pods/a")
	f.Add("1 2 3 4 /pods/ab x\n1 2 3 4 \\1 \\9999 \\\n", "/pods/a")
	f.Fuzz(func(t *testing.T, table, dir string) {
		points, err := mountsBelow(strings.NewReader(table), dir)
		if err != nil {
			return
		}
		for i, p := range points {
			if p != dir && !strings.HasPrefix(p, dir+"/") {
				t.Errorf("%q isn't below %q", p, dir)
			}
			if i > 0 && len(points[i-1]) < len(p) {
				t.Errorf("%q before %q", points[i-1], p)
			}
		}
	})
}

// A subPath and the links that are in its way lead nowhere but into the volume, by
// the kernel's resolver and by our own, and make nothing outside of it.
func FuzzSubPath(f *testing.F) {
	for _, link := range []string{"..", "/", "inner", "../outside", "../volume/inner", "link", "/proc/self/root", "inner/../../outside", "missing/../.."} {
		f.Add(link, "link/new")
		f.Add("inner", link)
	}
	base, err := filepath.EvalSymlinks(f.TempDir())
	if err != nil {
		f.Fatal(err)
	}
	volume, outside := filepath.Join(base, "volume"), filepath.Join(base, "outside")
	if err := os.Mkdir(outside, 0o755); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, link, path string) {
		if len(path) > 200 || strings.ContainsRune(path, 0) { // the API takes no such path
			return
		}
		if err := os.RemoveAll(volume); err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Join(volume, "inner"), 0o755); err != nil {
			t.Fatal(err)
		}
		_ = os.Symlink(strings.ReplaceAll(link, "/volume", volume), filepath.Join(volume, "link"))
		root, err := unix.Open(volume, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(root)
		for what, open := range map[string]func(int, string, string) (int, error){"kernel": openBeneath, "walk": walkBeneath} {
			fd, err := open(root, volume, path)
			if err != nil {
				continue
			}
			at, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
			_ = unix.Close(fd)
			if err != nil || at != volume && !strings.HasPrefix(at, volume+"/") {
				t.Errorf("%s: %q with a link to %q leads to %q, %v", what, path, link, at, err)
			}
		}
		for dir, want := range map[string]int{base: 2, outside: 0} {
			if made, err := os.ReadDir(dir); err != nil || len(made) != want {
				t.Errorf("%q with a link to %q: in %s are %v, %v", path, link, dir, made, err)
			}
		}
	})
}

// What an order says of huge pages, and what a PV's annotation says of its group.
func FuzzPageSize(f *testing.F) {
	f.Add("HugePages-2Mi", "hugepages-2Mi")
	f.Add("HugePages", "hugepages-1e400")
	f.Fuzz(func(t *testing.T, medium, resource string) {
		pod := &v1.Pod{Spec: v1.PodSpec{Containers: []v1.Container{{Resources: v1.ResourceRequirements{
			Requests: v1.ResourceList{v1.ResourceName(resource): {}}}}}}}
		if size, err := pageSize(pod, v1.StorageMedium(medium)); err == nil && size <= 0 {
			t.Errorf("pages of %d bytes", size)
		}
	})
}
