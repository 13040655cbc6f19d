package crishim_test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/crishim"
	"github.com/coracle-edge/coracle/crishim/oci"
	"github.com/coracle-edge/coracle/test/lab"
)

// startContainerd starts one of the test's own with a registry, and gives the
// configuration of a node in front of it.
func startContainerd(t *testing.T) (reg *lab.Registry, ctd *oci.Private, dir string, configure func(*crishim.Config)) {
	t.Helper()
	reg = lab.StartRegistry(t)
	dir, err := os.MkdirTemp("", "cor-ctd-*")
	if err != nil {
		t.Fatal(err)
	}
	removeCgroups(t, "/coracle-test-oci")
	ctd = lab.StartContainerdIn(t, dir, reg.HostsDir, true)
	return reg, ctd, dir, func(c *crishim.Config) {
		c.ContainerdSocket, c.RegistryHosts = ctd.Socket(), reg.HostsDir
		c.CNIConfDir, c.CNIBinDirs = ctd.CNIConfDir(), []string{ctd.CNIBinDir()}
	}
}

// TestOCIAndMixedPods runs on a containerd of the test's own: a pod of each
// kind, a pod with a container of each, and what happens when containerd goes
// away and comes back.
func TestOCIAndMixedPods(t *testing.T) {
	lab.NeedNamespaces(t)
	reg, ctd, dir, withContainerd := startContainerd(t)
	n := newNode(t, withContainerd)
	busybox := reg.Push(t, "busybox:1", lab.Busybox(t))
	wasm := reg.Push(t, "probe:1", lab.CNCF(probeModule(t)))
	for ref, kind := range map[string]string{busybox: "oci", wasm: "wasm"} {
		resp, err := n.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
		if err != nil {
			t.Fatal(err)
		}
		st, err := n.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
		if err != nil || st.GetInfo()[crishim.AnnotationKind] != kind || st.GetImage().GetId() != resp.GetImageRef() {
			t.Errorf("%s: %v, %v; pulled %s", ref, st, err, resp.GetImageRef())
		}
	}
	events := n.Events(t.Context())

	t.Run("images of both stores", func(t *testing.T) {
		n.in(t)
		list, err := n.ListImages(t.Context(), &runtimeapi.ListImagesRequest{})
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]string{}
		for _, i := range list.GetImages() {
			for _, tag := range i.GetRepoTags() {
				got[tag] = fmt.Sprint(i.GetSpec().GetAnnotations()[crishim.AnnotationKind], i.GetPinned())
			}
		}
		if got[busybox] != "ocifalse" || got[wasm] != "wasmfalse" || got[oci.PauseImage] != "ocitrue" {
			t.Errorf("images %v", got)
		}
		fs, err := n.ImageFsInfo(t.Context(), &runtimeapi.ImageFsInfoRequest{})
		if err != nil || len(fs.GetImageFilesystems()) == 0 || fs.GetImageFilesystems()[0].GetUsedBytes().GetValue() == 0 {
			t.Errorf("file systems %v, %v", fs, err)
		}
	})

	t.Run("OCI pod", func(t *testing.T) {
		n.in(t)
		sb, pod := n.sandbox("ocipod", isOCI)
		id := n.start(sb, pod, shell(busybox, "echo hello from OCI; exit 4"))
		st := n.wait(id)
		if got := text(readLog(t, st.GetLogPath())); got != "hello from OCI\n" || st.GetExitCode() != 4 {
			t.Errorf("log %q, exit code %d", got, st.GetExitCode())
		}
		n.awaitEvent(events, id, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT, func(ev *runtimeapi.ContainerEventResponse) bool {
			if s := ev.GetContainersStatuses(); len(s) != 1 || s[0].GetExitCode() != 4 || ev.GetPodSandboxStatus().GetId() != sb {
				t.Errorf("event %v", ev)
			}
			return true
		})
	})

	t.Run("Wasm pod with an address", func(t *testing.T) {
		n.in(t)
		port := freePort(t)
		sb, pod := n.sandbox("wasmpod", func(c *runtimeapi.PodSandboxConfig) {
			c.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: 8080, HostPort: int32(port)}}
		})
		n.start(sb, pod, containerConfig(wasm, "serve"))
		ip := n.ip(sb)
		if got := get(t, ip+":8080"); got != "served\n" {
			t.Errorf("from the node: %q", got)
		}
		ocisb, ocipod := n.sandbox("client", isOCI)
		st := n.wait(n.start(ocisb, ocipod, shell(busybox, fmt.Sprintf("nc %s 8080 </dev/null", ip))))
		if got := text(readLog(t, st.GetLogPath())); got != "served\n" {
			t.Errorf("from an OCI pod: %q", got)
		}
		// A hostPort is reached by the node's own address on the bridge.
		gateway := ip[:strings.LastIndex(ip, ".")] + ".1"
		if got := get(t, fmt.Sprintf("%s:%d", gateway, port)); got != "served\n" {
			t.Errorf("by hostPort: %q", got)
		}
		n.reopen()
		if now := n.ip(sb); now != ip {
			t.Errorf("address was %s, is %s", ip, now)
		}
		if got := get(t, ip+":8080"); got != "served\n" {
			t.Errorf("after a restart: %q", got)
		}
		if _, err := n.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: sb}); err != nil {
			t.Fatal(err)
		}
		if left, _ := filepath.Glob(filepath.Join(dir, "ipam", "*", ip)); len(left) != 0 {
			t.Errorf("address %s isn't given back", ip)
		}
		if m, _ := lab.MountsBelow(n.cfg.StateDir); len(m) != 0 {
			t.Errorf("mounts %v are left", m)
		}
	})

	t.Run("mixed pod", func(t *testing.T) {
		n.in(t)
		events := n.Events(t.Context())
		sb, pod := n.sandbox("mixed", isOCI)
		wcfg := containerConfig(wasm, "serve")
		wcfg.Metadata.Name = "wasm"
		wcfg.Annotations = map[string]string{crishim.AnnotationListen: "127.0.0.1:8080/tcp"}
		wid := n.start(sb, pod, wcfg)
		ocfg := shell(busybox, "until nc 127.0.0.1 8080 </dev/null; do sleep 0.1; done")
		ocfg.Metadata.Name, ocfg.LogPath = "oci", "oci.log"
		st := n.wait(n.start(sb, pod, ocfg))
		if got := text(of("stdout", readLog(t, st.GetLogPath()))); got != "served\n" {
			t.Errorf("over the pod's loopback: %q", got)
		}
		list, err := n.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{PodSandboxId: sb}})
		if err != nil || len(list.GetContainers()) != 2 {
			t.Errorf("containers %v, %v", list, err)
		}
		metrics, err := n.ListPodSandboxMetrics(t.Context(), &runtimeapi.ListPodSandboxMetricsRequest{})
		if err != nil || !slices.ContainsFunc(metrics.GetPodMetrics(), func(p *runtimeapi.PodSandboxMetrics) bool {
			return p.GetPodSandboxId() == sb && slices.ContainsFunc(p.GetContainerMetrics(), func(c *runtimeapi.ContainerMetrics) bool { return c.GetContainerId() == wid })
		}) {
			t.Errorf("no metrics of the Wasm container: %v, %v", metrics, err)
		}
		conn, err := n.DialPod(t.Context(), sb, 8080)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if got, err := io.ReadAll(conn); string(got) != "served\n" {
			t.Errorf("dialled: %q, %v", got, err)
		}
		// Events tell of the whole pod, whichever runtime's container they are of.
		whole := func(what string) func(*runtimeapi.ContainerEventResponse) bool {
			return func(ev *runtimeapi.ContainerEventResponse) bool {
				var names []string
				for _, st := range ev.GetContainersStatuses() {
					names = append(names, st.GetMetadata().GetName())
				}
				slices.Sort(names)
				if got := strings.Join(names, " "); got != what || ev.GetPodSandboxStatus().GetMetadata().GetName() != "mixed" {
					t.Errorf("event %s of %q, sandbox %q; want those of %q", ev.GetContainerEventType(), got, ev.GetPodSandboxStatus().GetMetadata().GetName(), what)
				}
				return true
			}
		}
		id := st.GetId()
		n.awaitEvent(events, id, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT, whole("oci wasm"))
		if _, err := n.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: wid}); err != nil {
			t.Fatal(err)
		}
		n.awaitEvent(events, wid, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT, whole("oci wasm"))
		if _, err := n.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: id}); err != nil {
			t.Fatal(err)
		}
		n.awaitEvent(events, id, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT, whole("wasm"))
		if _, err := n.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: sb}); err != nil {
			t.Fatal(err)
		}
		if st := n.status(wid); st.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED {
			t.Errorf("after StopPodSandbox the Wasm container is %s", st.GetState())
		}
		if _, err := n.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: sb}); err != nil {
			t.Fatal(err)
		}
		if _, err := n.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: wid}); status.Code(err) != codes.NotFound {
			t.Errorf("after RemovePodSandbox: %v", err)
		}
	})

	t.Run("every RPC", func(t *testing.T) {
		n.in(t)
		for ref, kind := range map[string]func(*runtimeapi.PodSandboxConfig){busybox: isOCI, wasm: isOCI} {
			callAll(t, n, func(t *testing.T) map[string]string {
				if _, err := n.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}}); err != nil {
					t.Fatal(err)
				}
				return things(t, n, ref, kind)
			})
			n.removeAll()
		}
		for _, ref := range []string{busybox, wasm} {
			if _, err := n.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}}); err != nil {
				t.Fatal(err)
			}
		}
	})

	t.Run("import", func(t *testing.T) {
		n.in(t)
		names, err := n.Import(t.Context(), bytes.NewReader(lab.Archive(lab.Busybox(t), "")), "example.org/imported:1")
		if err != nil {
			t.Fatal(err)
		}
		sb, pod := n.sandbox("imported", isOCI)
		st := n.wait(n.start(sb, pod, shell(names[0], "echo imported")))
		if got := text(readLog(t, st.GetLogPath())); got != "imported\n" {
			t.Errorf("log %q", got)
		}
	})

	t.Run("containerd goes and comes back", func(t *testing.T) {
		n.in(t)
		sb, pod := n.sandbox("stays", isOCI)
		ocfg := shell(busybox, "sleep 1000")
		id := n.start(sb, pod, ocfg)
		wasmsb, wasmpod := n.sandbox("goeson", nil)
		proc, _ := os.FindProcess(ctd.PID())
		_ = proc.Kill()
		<-ctd.Done()
		check := func(when string) {
			t.Helper()
			list, err := n.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{Id: id}})
			if err != nil || len(list.GetContainers()) != 1 || list.GetContainers()[0].GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING ||
				list.GetContainers()[0].GetAnnotations()[crishim.AnnotationStale] == "" {
				t.Errorf("%s: containers %v, %v", when, list, err)
			}
			sbs, err := n.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"app": "stays"}}})
			if err != nil || len(sbs.GetItems()) != 1 || sbs.GetItems()[0].GetAnnotations()[crishim.AnnotationStale] == "" {
				t.Errorf("%s: sandboxes %v, %v", when, sbs, err)
			}
			if _, err := n.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id}); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "Wasm containers go on") {
				t.Errorf("%s: status: %v", when, err)
			}
			if ok, why := n.OCIReady(t.Context()); ok || !strings.Contains(why, "containerd") {
				t.Errorf("%s: OCI ready: %v %q", when, ok, why)
			}
		}
		check("containerd is dead")
		n.reopen()
		check("containerd is dead and crishim was restarted")
		st := n.wait(n.start(wasmsb, wasmpod, containerConfig(wasm, "hello")))
		if st.GetExitCode() != 0 {
			t.Errorf("Wasm while containerd is dead: %s %s", st.GetReason(), st.GetMessage())
		}
		if _, err := n.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: busybox}}); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), busybox) {
			t.Errorf("pulling an OCI image: %v", err)
		}
		if _, err := n.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: wasm}}); err != nil {
			t.Errorf("pulling a Wasm image: %v", err)
		}
		lab.StartContainerdIn(t, dir, reg.HostsDir, false)
		eventually(t, func() string {
			st, err := n.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
			if err != nil {
				return err.Error()
			}
			if st.GetStatus().GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING {
				return "it is " + st.GetStatus().GetState().String()
			}
			return ""
		})
		// Its events come again too, within the pause between two attempts.
		events := n.Events(t.Context())
		attempt := 0
		eventually(t, func() string {
			attempt++
			c := shell(busybox, "true")
			c.Metadata.Name = fmt.Sprint("event-", attempt)
			n.start(sb, pod, c)
			select {
			case <-events:
				return ""
			case <-time.After(time.Second):
				return "no event after containerd came back"
			}
		})
		n.removeAll() // while there is a containerd to do it
	})
}

func removeCgroups(t *testing.T, parent string) {
	t.Cleanup(func() {
		for _, cg := range cgroupsNamed(parent) {
			_ = os.Remove(cg)
		}
	})
}

// awaitEvent reads events until one that is wanted.
func (n *node) awaitEvent(events <-chan *runtimeapi.ContainerEventResponse, id string, what runtimeapi.ContainerEventType, wanted func(*runtimeapi.ContainerEventResponse) bool) {
	n.t.Helper()
	timeout := time.After(20 * time.Second)
	for {
		select {
		case ev, open := <-events:
			if !open {
				n.t.Fatal("the events ended")
			}
			if ev.GetContainerId() == id && ev.GetContainerEventType() == what && wanted(ev) {
				return
			}
		case <-timeout:
			n.t.Fatalf("no event %s of %s", what, id)
		}
	}
}

func isOCI(c *runtimeapi.PodSandboxConfig) {
	c.Annotations[crishim.AnnotationSandbox] = "oci"
	c.Linux.CgroupParent = "/coracle-test-oci/" + c.Metadata.Name
}

func shell(image, script string) *runtimeapi.ContainerConfig {
	cfg := containerConfig(image)
	cfg.Command, cfg.Args = []string{"/bin/sh", "-c", script}, nil
	return cfg
}

func (n *node) ip(sandbox string) string {
	n.t.Helper()
	resp, err := n.PodSandboxStatus(n.t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: sandbox})
	if err != nil || resp.GetStatus().GetNetwork().GetIp() == "" {
		n.t.Fatalf("sandbox %v, %v", resp.GetStatus(), err)
	}
	return resp.GetStatus().GetNetwork().GetIp()
}
