package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	csi "github.com/container-storage-interface/spec/lib/go/csi"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/coracle-edge/coracle/test/lab"
)

// hostPathDriver is deployed as its own manifests have it; what creates volumes for
// claims and attaches them runs elsewhere, or not at all.
const hostPathDriver = `
apiVersion: storage.k8s.io/v1
kind: CSIDriver
metadata: {name: hostpath.csi.k8s.io}
spec: {attachRequired: false, podInfoOnMount: true, fsGroupPolicy: File, volumeLifecycleModes: [Persistent, Ephemeral]}
---
apiVersion: v1
kind: Pod
metadata: {name: driver, namespace: %[1]s}
spec:
  nodeName: %[2]s
  terminationGracePeriodSeconds: 1
  volumes:
  - {name: socket, hostPath: {path: /var/lib/kubelet/plugins/hostpath.csi.k8s.io, type: DirectoryOrCreate}}
  - {name: pods, hostPath: {path: /var/lib/kubelet/pods, type: DirectoryOrCreate}}
  - {name: registration, hostPath: {path: /var/lib/kubelet/plugins_registry, type: Directory}}
  - {name: plugins, hostPath: {path: /var/lib/kubelet/plugins, type: Directory}}
  - {name: data, hostPath: {path: %[3]q, type: Directory}}
  containers:
  - name: hostpath
    image: registry.invalid/hostpathplugin:1
    command: [/hostpathplugin, --drivername=hostpath.csi.k8s.io, --v=5, "--endpoint=unix:///csi/csi.sock", --nodeid=%[2]s]
    securityContext: {privileged: true}
    volumeMounts:
    - {name: socket, mountPath: /csi}
    - {name: pods, mountPath: /var/lib/kubelet/pods, mountPropagation: Bidirectional}
    - {name: plugins, mountPath: /var/lib/kubelet/plugins, mountPropagation: Bidirectional}
    - {name: data, mountPath: /csi-data-dir}
  - name: registrar
    image: registry.invalid/hostpathplugin:1
    stdin: true # it ends with that
    command: [/csidriverd, --register, --name, hostpath.csi.k8s.io]
    securityContext: {privileged: true}
    volumeMounts: [{name: registration, mountPath: /var/lib/kubelet/plugins_registry}]
`

const hostPathPods = `
apiVersion: v1
kind: PersistentVolume
metadata: {name: %[1]s}
spec:
  accessModes: [ReadWriteOnce]
  storageClassName: ""
  capacity: {storage: 1Mi}
  claimRef: {namespace: %[1]s, name: kept}
  csi: {driver: hostpath.csi.k8s.io, volumeHandle: %[3]q}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: kept, namespace: %[1]s}
spec: {accessModes: [ReadWriteOnce], storageClassName: "", volumeName: %[1]s, resources: {requests: {storage: 1Mi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: user, namespace: %[1]s}
spec:
  nodeName: %[2]s
  terminationGracePeriodSeconds: 1
  securityContext: {fsGroup: 4000}
  volumes:
  - {name: kept, persistentVolumeClaim: {claimName: kept}}
  - {name: scratch, csi: {driver: hostpath.csi.k8s.io}}
  containers:
  - name: main
    image: registry.invalid/hostpathplugin:1
    command: [sh, -c, "echo start >> /kept/starts && echo passing > /scratch/file && exec sleep 3600"]
    volumeMounts: [{name: kept, mountPath: /kept}, {name: scratch, mountPath: /scratch}]
`

// Kubernetes' own hostpath driver, unmodified, gives pods volumes: one that stays and
// one that goes with its pod.
func TestTheHostPathDriver(t *testing.T) {
	node := shared.state.Nodes[0]
	var programs []lab.File
	for name, path := range map[string]string{"hostpathplugin": lab.HostPathDriver(t), "csidriverd": lab.CSIDriver(t), "bin/busybox": "/bin/busybox"} {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		programs = append(programs, lab.File{Path: name, Mode: 0o755, Data: data})
	}
	for _, applet := range []string{"sh", "mount", "umount", "sleep"} {
		programs = append(programs, lab.File{Path: "bin/" + applet, Mode: 0o755, Hard: "bin/busybox"})
	}
	native(t, node, "registry.invalid/hostpathplugin:1", lab.OCI(ocispec.ImageConfig{Env: []string{"PATH=/bin"}}, nil, programs))
	ns, data := shared.namespace(t), t.TempDir()
	shared.apply(t, ns, fmt.Sprintf(hostPathDriver, ns, node, data))
	t.Cleanup(func() { shared.must(t, "delete", "csidriver", "hostpath.csi.k8s.io") })
	shared.must(t, "wait", "-n", ns, "--for=condition=Ready", "pod/driver", "--timeout=90s")
	shared.shows(t, time.Minute, []string{"hostpath.csi.k8s.io"}, "get", "csinode", node, "-o", "jsonpath={.spec.drivers[*].name}")

	volume := createVolume(t, filepath.Join(shared.layout.Node(node), "disk/var/lib/kubelet/plugins/hostpath.csi.k8s.io"))
	shared.apply(t, ns, fmt.Sprintf(hostPathPods, ns, node, volume))
	t.Cleanup(func() { shared.must(t, "delete", "pv", ns, "--wait=false") })
	shared.must(t, "wait", "-n", ns, "--for=condition=Ready", "pod/user", "--timeout=90s")
	kept := filepath.Join(data, volume)
	if raw, err := os.ReadFile(filepath.Join(kept, "starts")); string(raw) != "start\n" {
		t.Errorf("the volume has %q, %v", raw, err)
	}
	if got := shared.must(t, "exec", "-n", ns, "user", "--", "/bin/busybox", "stat", "-c", "%g %a", "/kept"); got != "4000 2775\n" {
		t.Errorf("to the pod's group the volume is %q", got)
	}
	volumes, err := filepath.Glob(filepath.Join(data, "*", "file"))
	if err != nil || len(volumes) != 1 {
		t.Errorf("the inline volume is in %q, %v", volumes, err)
	}
	// Its figures are the driver's.
	figures := shared.shows(t, 90*time.Second, []string{`"name":"kept","pvcRef":{"name":"kept","namespace":"` + ns + `"}`, `"name":"scratch"`},
		"get", "--raw", "/api/v1/nodes/"+node+"/proxy/stats/summary")
	if n := strings.Count(figures, `"name":"scratch"`) + strings.Count(figures, fmt.Sprintf(`"name":%q}`, ns)); n != 1 {
		t.Errorf("a volume is counted twice: %s", figures)
	}

	shared.must(t, "delete", "pod", "-n", ns, "user", "--timeout=60s")
	if left, _ := filepath.Glob(filepath.Join(data, "*", "file")); len(left) != 0 {
		t.Errorf("the inline volume outlives its pod: %q", left)
	}
	shared.apply(t, ns, fmt.Sprintf(hostPathPods, ns, node, volume))
	shared.must(t, "wait", "-n", ns, "--for=condition=Ready", "pod/user", "--timeout=90s")
	if raw, err := os.ReadFile(filepath.Join(kept, "starts")); string(raw) != "start\nstart\n" {
		t.Errorf("the next pod finds %q, %v", raw, err)
	}
	shared.must(t, "delete", "pod", "-n", ns, "user", "--timeout=60s")
	if out, err := shared.onNode(node, "cat", "/proc/self/mountinfo").Output(); err != nil || strings.Contains(string(out), "kubernetes.io~csi") {
		t.Errorf("still mounted: %s, %v", out, err)
	}
}

// createVolume asks the driver, whose socket is in a folder, for a volume.
func createVolume(t *testing.T, dir string) string {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0) // the path is too long for a socket's
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	conn, err := grpc.NewClient(fmt.Sprintf("unix:///proc/self/fd/%d/csi.sock", fd), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	got, err := csi.NewControllerClient(conn).CreateVolume(ctx, &csi.CreateVolumeRequest{Name: "kept", CapacityRange: &csi.CapacityRange{RequiredBytes: 1 << 20},
		VolumeCapabilities: []*csi.VolumeCapability{{AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
			AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{}}}}})
	if err != nil {
		t.Fatal(err)
	}
	return got.Volume.VolumeId
}
