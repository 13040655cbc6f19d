package crishim_test

import (
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/test/lab"
)

// TestWasmImageVolume: a container reads another image, which stays as long as it
// does.
func TestWasmImageVolume(t *testing.T) {
	n := newNode(t, nil)
	data := n.image(lab.Compat(probeModule(t), "compat", lab.File{Path: "etc/motd", Mode: 0o644, Data: []byte("from the image\n")}))
	id := func() string {
		resp, err := n.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: data}})
		if err != nil {
			t.Fatal(err)
		}
		return resp.GetImage().GetId()
	}
	want := id()
	cfg := containerConfig(n.image(lab.CNCF(probeModule(t))), "tick", "1", "1", "--", "cat", "/data/motd", "--", "write", "/data/x", "y")
	cfg.Mounts = []*runtimeapi.Mount{{Image: &runtimeapi.ImageSpec{Image: data}, ImageSubPath: "etc", ContainerPath: "/data", Readonly: true}}
	sb, pod := n.sandbox("volume", hostNetwork)
	c, err := n.create(sb, pod, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if ref := n.status(c).GetMounts()[0].GetImage().GetImageRef(); ref != want {
		t.Errorf("the status says %q, want %q", ref, want)
	}
	if _, err := n.RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: data}}); err != nil {
		t.Error(err)
	}
	if _, err := n.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: c}); err != nil {
		t.Fatal(err)
	}
	st := n.wait(c)
	lines := readLog(t, st.GetLogPath())
	if got := text(of("stdout", lines)); got != "tick 0\nfrom the image\n" {
		t.Errorf("stdout %q", got)
	}
	if got := text(of("stderr", lines)); got != "write /data/x: Read-only file system\n" || st.GetExitCode() != 1 {
		t.Errorf("stderr %q, code %d", got, st.GetExitCode())
	}
}
