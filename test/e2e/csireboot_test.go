package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coracle-edge/coracle/test/lab"
)

// csiOnABoard has a driver as vendors deploy it, privileged and with the kubelet's
// folder, and a pod that notes in its volume each time it starts.
const csiOnABoard = `
apiVersion: storage.k8s.io/v1
kind: CSIDriver
metadata: {name: reboot.csi.example}
spec: {attachRequired: false, fsGroupPolicy: File}
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: kept}
spec:
  accessModes: [ReadWriteOnce]
  storageClassName: ""
  capacity: {storage: 1Gi}
  claimRef: {namespace: default, name: kept}
  csi: {driver: reboot.csi.example, volumeHandle: h1}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: kept}
spec: {accessModes: [ReadWriteOnce], storageClassName: "", volumeName: kept, resources: {requests: {storage: 1Gi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: driver}
spec:
  hostNetwork: true
  terminationGracePeriodSeconds: 1
  volumes:
  - {name: kubelet, hostPath: {path: /var/lib/kubelet, type: Directory}}
  - {name: disk, hostPath: {path: %[1]q, type: Directory}}
  containers:
  - name: main
    image: example.org/csidriverd:1
    imagePullPolicy: Never
    stdin: true # it ends with that
    args: [--name, reboot.csi.example, --node, board-1, --dir, /disk, --asked, /disk/asked]
    securityContext: {privileged: true}
    volumeMounts: [{name: kubelet, mountPath: /var/lib/kubelet, mountPropagation: Bidirectional}, {name: disk, mountPath: /disk}]
---
apiVersion: v1
kind: Pod
metadata: {name: keeper}
spec:
  terminationGracePeriodSeconds: 1
  securityContext: {fsGroup: 4000}
  volumes: [{name: v, persistentVolumeClaim: {claimName: kept}}]
  containers:
  - name: main
    image: example.org/busybox:1
    imagePullPolicy: Never
    command: [sh, -c, "echo started >> /v/starts && exec sleep 3600"]
    volumeMounts: [{name: v, mountPath: /v}]
`

// boardWithDriver is a cluster of one isolated board that has the image
// example.org/PROGRAM:1 of a driver, and a folder for what the driver writes.
func boardWithDriver(t *testing.T, program string) (c *cluster, disk string) {
	t.Helper()
	c = newCluster(t, "--nodes=1", "--no-example")
	c.must(t, "wait", "--for=create", "node/board-1", "--timeout=60s")
	c.must(t, "wait", "--for=condition=Ready", "node/board-1", "--timeout=60s")
	isolated(t, c)
	if !c.importBusybox(t) {
		t.Skip("no containerd runs here")
	}
	data, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Base(program)
	image := lab.OCI(ocispec.ImageConfig{Entrypoint: []string{"/" + name}}, nil, []lab.File{{Path: name, Mode: 0o755, Data: data}})
	archive := filepath.Join(t.TempDir(), "driver.tar")
	if err := os.WriteFile(archive, lab.Archive(image, "example.org/"+name+":1"), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := coracle("image", "import", "--node-dir", c.layout.Node("board-1"), archive); err != nil {
		t.Fatal(err, out)
	}
	disk = filepath.Join(c.dir, "driver")
	if err := os.Mkdir(disk, 0o755); err != nil {
		t.Fatal(err)
	}
	c.must(t, "wait", "--for=create", "serviceaccount/default", "--timeout=60s")
	return c, disk
}

// A board that starts without its control plane runs its pods of every kind again,
// from what it keeps: native and Wasm ones with their secrets, configMaps, tokens and
// init containers, both in one pod, static ones. It stages and publishes a CSI volume
// again, by a driver that is itself a pod of the board: the mounts of the former boot
// are gone with their memory.
func TestABoardRebootsWithoutTheControlPlane(t *testing.T) {
	c, disk := boardWithDriver(t, lab.CSIDriver(t))
	c.apply(t, "default", fmt.Sprintf(csiOnABoard, disk))
	k := startKinds(t, c)
	starts := func(want int) func() error {
		return func() error {
			raw, err := os.ReadFile(filepath.Join(disk, "h1", "starts"))
			if err == nil && string(raw) != strings.Repeat("started\n", want) {
				err = fmt.Errorf("the volume has %q, want %d starts", raw, want)
			}
			return err
		}
	}
	eventually(t, 120*time.Second, starts(1))
	c.must(t, "wait", "--for=condition=Ready", "pod/keeper", "pod/driver", "--timeout=60s")
	target := filepath.Join("/var/lib/kubelet/pods", c.must(t, "get", "pod", "keeper", "-o", "jsonpath={.metadata.uid}"), "volumes/kubernetes.io~csi/kept/mount")
	// mounted is how often something is mounted on the volume's path on the board.
	mounted := func() int {
		raw, err := c.onNode("board-1", "cat", "/proc/self/mountinfo").Output()
		if err != nil {
			return -1 // it is between two boots
		}
		n := 0
		for line := range strings.Lines(string(raw)) {
			if f := strings.Fields(line); len(f) > 4 && f[4] == target {
				n++
			}
		}
		return n
	}
	if n := mounted(); n != 1 {
		t.Fatalf("%d mounts on %s", n, target)
	}
	asked := func() []string {
		raw, err := os.ReadFile(filepath.Join(disk, "asked"))
		if err != nil {
			t.Fatal(err)
		}
		return strings.Split(strings.TrimSpace(string(raw)), "\n")
	}
	once := []string{"NodeStageVolume h1", "NodePublishVolume h1"}
	if got := asked(); !slices.Equal(got, once) {
		t.Fatalf("the driver was asked %q, want %q", got, once)
	}

	k.run(0)
	k.mirrored("fixed", "Running")
	k.mirrored("module", "Running")
	if out := c.must(t, "logs", "fixed-board-1"); out != "fixed\n" {
		t.Errorf("the log of the mirror: %q", out)
	}

	// From here on nobody answers the board. Its first process takes all others and
	// all mounts with it, and what was in memory: of the kubelet's folder only what is
	// on its disk comes back.
	server := c.pid(t, "controlplane")
	if err := syscall.Kill(server, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Kill(server, syscall.SIGCONT) })
	was := map[string]int{}
	for _, p := range []string{"namespaces-board-1", "board-1", "containerd-board-1"} {
		was[p] = c.pid(t, p)
	}
	if err := syscall.Kill(was["namespaces-board-1"], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, 180*time.Second, starts(2))
	for p, pid := range was {
		if now := c.pid(t, p); now == pid {
			t.Errorf("%s is the process it was before", p)
		}
	}
	if n := mounted(); n != 1 {
		t.Errorf("%d mounts on %s after the reboot", n, target)
	}
	if got, want := asked(), slices.Concat(once, once); !slices.Equal(got, want) {
		t.Errorf("the driver was asked %q, want %q", got, want)
	}
	k.run(1)
	k.alone()
	if raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", server)); err != nil || !strings.Contains(string(raw), ") T ") {
		t.Fatalf("the control plane wasn't away all the time: %s %v", raw, err)
	}

	// Once it is there again it sees the same pod, started once more, and may delete it.
	if err := syscall.Kill(server, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	c.shows(t, 120*time.Second, []string{"Running 1 true"}, "get", "pod", "keeper", "-o", "jsonpath={.status.phase} {.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].ready}")
	if err := starts(2)(); err != nil {
		t.Error(err)
	}
	k.mirrored("fixed", "")
	k.mirrored("late", "Running")
	k.mirrored("module", "Running")
	c.shows(t, 60*time.Second, []string{"guest Running 1\n", "native Running 1\n", "both Running 1 1\n"}, "get", "pods", "-l", "app=kinds",
		"-o", `jsonpath={range .items[*]}{.metadata.name} {.status.phase} {.status.containerStatuses[*].restartCount}{"\n"}{end}`)
	k.static("late", "")
	k.mirrored("late", "")
	k.live(7416, 0)
	c.must(t, "delete", "pod", "keeper", "--timeout=60s")
	eventually(t, 60*time.Second, func() error {
		if got, want := asked(), slices.Concat(once, once, []string{"NodeUnpublishVolume h1", "NodeUnstageVolume h1"}); !slices.Equal(got, want) || mounted() != 0 {
			return fmt.Errorf("the driver was asked %q, want %q; %d mounts", got, want, mounted())
		}
		return nil
	})
}
