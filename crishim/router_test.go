package crishim_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/crishim"
	"github.com/coracle-edge/coracle/crishim/oci"
	"github.com/coracle-edge/coracle/test/lab"
)

// kindsOf lists the kinds under which a reference is listed, in both stores.
func (n *node) kindsOf(ref string) (kinds []string) {
	n.t.Helper()
	list, err := n.ListImages(n.t.Context(), &runtimeapi.ListImagesRequest{})
	if err != nil {
		n.t.Fatal(err)
	}
	for _, img := range list.GetImages() {
		if slices.Contains(img.GetRepoTags(), ref) {
			kinds = append(kinds, img.GetSpec().GetAnnotations()[crishim.AnnotationKind])
		}
	}
	return kinds
}

func (n *node) pull(ref string) string {
	n.t.Helper()
	resp, err := n.PullImage(n.t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	if err != nil {
		n.t.Fatal(err)
	}
	return resp.GetImageRef()
}

// TestRouter is about what both stores and both runtimes share.
func TestRouter(t *testing.T) {
	lab.NeedNamespaces(t)
	reg, _, _, withContainerd := startContainerd(t)
	n := newNode(t, withContainerd)

	t.Run("a tag changes its kind and back", func(t *testing.T) {
		n.in(t)
		ref := reg.Push(t, "app:latest", lab.CNCF(probeModule(t)))
		first := n.pull(ref)
		sb, pod := n.sandbox("stays-wasm", hostNetwork)
		runs := n.start(sb, pod, containerConfig(ref, "sleep"))
		pid := n.pid(runs)
		for _, step := range []struct {
			kind  string
			image *lab.Image
		}{{"oci", lab.Busybox(t)}, {"wasm", lab.WasmToOCI(probeModule(t))}, {"oci", lab.Busybox(t)}, {"wasm", lab.CNCF(probeModule(t))}} {
			reg.Push(t, "app:latest", step.image)
			id := n.pull(ref)
			// containerd's CRI hears of it by an event.
			eventually(t, func() string {
				if got := n.kindsOf(ref); len(got) != 1 || got[0] != step.kind {
					return "the tag is listed as " + strings.Join(got, ", ") + ", want " + step.kind
				}
				return ""
			})
			st, err := n.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
			if err != nil || st.GetInfo()[crishim.AnnotationKind] != step.kind || st.GetImage().GetId() != id {
				t.Errorf("%s: status %v, %v; pulled %s", step.kind, st, err, id)
			}
		}
		if now := n.pid(runs); now != pid {
			t.Error("the container of the first image doesn't run any more")
		}
		if got := n.status(runs).GetImageId(); got != first {
			t.Errorf("its image is %s, was %s", got, first)
		}
		if _, err := n.RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}}); err != nil {
			t.Fatal(err)
		}
		if st, err := n.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}}); err != nil || st.GetImage() != nil {
			t.Errorf("after its removal: %v, %v", st, err)
		}
	})

	t.Run("a pull that containerd refuses leaves the Wasm image its name", func(t *testing.T) {
		n.in(t)
		ref := reg.Push(t, "kept:1", lab.CNCF(probeModule(t)))
		n.pull(ref)
		broken := lab.OCI(ocispec.ImageConfig{Entrypoint: []string{"/x"}}, nil, []lab.File{{Path: "x", Mode: 0o755, Data: []byte("nowhere else")}})
		reg.Push(t, "kept:1", broken)
		layer := broken.Blobs[0].Desc.Digest.Encoded()
		// The layer is gone from the registry, and containerd doesn't have it.
		if err := filepath.WalkDir(reg.Dir, func(path string, d os.DirEntry, err error) error {
			if err == nil && strings.Contains(path, layer) && !d.IsDir() {
				return os.Remove(path)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		_, err := n.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
		if err == nil {
			t.Error("containerd pulled an image without its layer")
		}
		if got := n.kindsOf(ref); len(got) != 1 || got[0] != "wasm" {
			t.Errorf("the tag is %q", got)
		}
	})

	t.Run("an OCI container in a Wasm-only sandbox", func(t *testing.T) {
		n.in(t)
		ref := reg.Push(t, "shell:1", lab.Busybox(t))
		n.pull(ref)
		sb, pod := n.sandbox("wasm-only", nil)
		_, err := n.create(sb, pod, shell(ref, "true"))
		if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "its pod sandbox is Wasm only") || !strings.Contains(err.Error(), ref) {
			t.Errorf("got %v", err)
		}
	})

	t.Run("a mixed pod shares namespace and cgroup", func(t *testing.T) {
		n.in(t)
		wasm, ref := reg.Push(t, "guest:1", lab.CNCF(probeModule(t))), reg.Push(t, "shell:2", lab.Busybox(t))
		n.pull(wasm)
		n.pull(ref)
		sb, pod := n.sandbox("mixed-router", isOCI)
		guest := n.start(sb, pod, containerConfig(wasm, "sleep"))
		cfg := shell(ref, "sleep 1000")
		cfg.Metadata.Name, cfg.LogPath = "oci", "oci.log"
		other := n.start(sb, pod, cfg)
		for _, id := range []string{guest, other} {
			found, _ := filepath.Glob("/sys/fs/cgroup/*" + pod.GetLinux().GetCgroupParent() + "/" + id)
			v2, _ := filepath.Glob("/sys/fs/cgroup" + pod.GetLinux().GetCgroupParent() + "/" + id)
			if len(found)+len(v2) == 0 {
				t.Errorf("container %s has no cgroup below the pod's", id)
			}
		}
		// The guest's sockets are opened there; the guest itself is no member.
		list, err := n.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{PodSandboxId: sb}})
		if err != nil || len(list.GetContainers()) != 2 {
			t.Errorf("containers %v, %v", list, err)
		}
		if _, err := n.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: sb}); err != nil {
			t.Fatal(err)
		}
		if found, _ := filepath.Glob("/sys/fs/cgroup/*" + pod.GetLinux().GetCgroupParent() + "/*/cgroup.procs"); len(found) > 0 {
			t.Errorf("left: %v", found)
		}
	})

	t.Run("a shared file system is counted once", func(t *testing.T) {
		n.in(t)
		one := n.fsInfo()
		if len(one.GetImageFilesystems()) != 1 || len(one.GetContainerFilesystems()) != 0 {
			t.Errorf("on one file system: %v", one)
		}
		own := t.TempDir()
		if err := unix.Mount("tmpfs", own, "tmpfs", 0, "size=64m"); err != nil {
			t.Skip("can't mount a tmpfs: ", err)
		}
		t.Cleanup(func() { _ = unix.Unmount(own, unix.MNT_DETACH) })
		m := newNode(t, func(c *crishim.Config) {
			withContainerd(c)
			c.StateDir = filepath.Join(own, "state")
		})
		m.pull(lab.RegistryName + "/guest:1")
		two := m.fsInfo()
		if len(two.GetImageFilesystems()) != 2 {
			t.Fatalf("on two file systems: %v", two)
		}
		ours, theirs := two.GetImageFilesystems()[0], two.GetImageFilesystems()[1]
		if !strings.HasPrefix(ours.GetFsId().GetMountpoint(), own) || strings.HasPrefix(theirs.GetFsId().GetMountpoint(), own) {
			t.Errorf("%v, %v", ours, theirs)
		}
		// containerd looks every ten seconds.
		eventually(t, func() string {
			alone := m.fsInfo().GetImageFilesystems()[1].GetUsedBytes().GetValue()
			if sum := n.fsInfo().GetImageFilesystems()[0].GetUsedBytes().GetValue(); alone == 0 || sum < alone {
				return fmt.Sprintf("together %d, containerd's alone %d", sum, alone)
			}
			return ""
		})
	})

	t.Run("the pause image is pinned", func(t *testing.T) {
		n.in(t)
		list, err := n.ListImages(t.Context(), &runtimeapi.ListImagesRequest{Filter: &runtimeapi.ImageFilter{Image: &runtimeapi.ImageSpec{Image: oci.PauseImage}}})
		if err != nil || len(list.GetImages()) != 1 || !list.GetImages()[0].GetPinned() {
			t.Errorf("%v, %v", list, err)
		}
		for _, ref := range []string{lab.RegistryName + "/guest:1", lab.RegistryName + "/shell:2"} {
			list, err := n.ListImages(t.Context(), &runtimeapi.ListImagesRequest{Filter: &runtimeapi.ImageFilter{Image: &runtimeapi.ImageSpec{Image: ref}}})
			if err != nil || len(list.GetImages()) != 1 {
				t.Errorf("%s: %v, %v", ref, list, err)
			}
		}
	})
}

func (n *node) fsInfo() *runtimeapi.ImageFsInfoResponse {
	n.t.Helper()
	resp, err := n.ImageFsInfo(n.t.Context(), &runtimeapi.ImageFsInfoRequest{})
	if err != nil {
		n.t.Fatal(err)
	}
	return resp
}
