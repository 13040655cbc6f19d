package wasmpods

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/coracle-edge/coracle/test/lab"
)

// volume makes a PersistentVolume of a source in YAML and a claim of the same name
// that is bound to it.
func (b *bed) volume(name, source string) {
	b.Helper()
	pv := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: b.ns + "-" + name}}
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: name}}
	common := `{accessModes: [ReadWriteOnce], storageClassName: "", `
	for to, spec := range map[any]string{
		&pv.Spec:    common + `capacity: {storage: 1Gi}, persistentVolumeReclaimPolicy: Retain, claimRef: {namespace: ` + b.ns + `, name: ` + name + `}, ` + source + `}`,
		&claim.Spec: common + `resources: {requests: {storage: 1Gi}}, volumeName: ` + pv.Name + `}`,
	} {
		if err := yaml.UnmarshalStrict([]byte(spec), to); err != nil {
			b.Fatalf("volume %s: %v", name, err)
		}
	}
	claim.Spec.VolumeMode = pv.Spec.VolumeMode
	if _, err := cluster.client.CoreV1().PersistentVolumes().Create(b.Context(), pv, metav1.CreateOptions{}); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { b.kubectl("delete", "pv", pv.Name, "--wait=false") })
	if _, err := cluster.client.CoreV1().PersistentVolumeClaims(b.ns).Create(b.Context(), claim, metav1.CreateOptions{}); err != nil {
		b.Fatal(err)
	}
}

// hostDir is a folder that the board sees under the same name.
func (b *bed) hostDir(name string) string {
	b.Helper()
	dir := filepath.Join(cluster.layout.Root, b.ns+"-"+name)
	if err := os.Mkdir(dir, 0o777); err != nil {
		b.Fatal(err)
	}
	if err := os.Chmod(dir, 0o777); err != nil { // whatever the umask is
		b.Fatal(err)
	}
	return dir
}

func TestPersistentVolumes(t *testing.T) {
	b := newBed(t)
	local, host := b.hostDir("local"), b.hostDir("host")
	here := `nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [board-1]}]}]}}`
	b.volume("local", `local: {path: `+local+`}, `+here)
	b.volume("host", `hostPath: {path: `+host+`, type: Directory}`)
	b.volume("none", `local: {path: /nothing/here}, `+here)
	b.pod("writer", `
restartPolicy: Never
securityContext: {fsGroup: 4000, runAsUser: 1001}
volumes: [{name: l, persistentVolumeClaim: {claimName: local}}, {name: h, persistentVolumeClaim: {claimName: host}}]
containers: [{args: [write, /l/x, kept, --, write, /h/x, on the host], volumeMounts: [{name: l, mountPath: /l}, {name: h, mountPath: /h}]}]
`)
	b.pod("waiting", `{volumes: [{name: v, persistentVolumeClaim: {claimName: later}}], containers: [{args: [sleep], volumeMounts: [{name: v, mountPath: /v}]}]}`)
	b.pod("nothing", `{volumes: [{name: v, persistentVolumeClaim: {claimName: none}}], containers: [{args: [sleep], volumeMounts: [{name: v, mountPath: /v}]}]}`)
	b.phase("writer", corev1.PodSucceeded)
	b.pod("reader", `
restartPolicy: Never
volumes: [{name: l, persistentVolumeClaim: {claimName: local, readOnly: true}}]
containers: [{args: [cat, /l/x, --, write, /l/y, z], volumeMounts: [{name: l, mountPath: /l}]}]
`)
	p := b.phase("reader", corev1.PodFailed)
	if out := b.logs("reader", "c0", "kept\n"); !strings.Contains(out, "Read-only file system") || ended(p, "c0").ExitCode != 1 {
		t.Errorf("%q, %+v", out, ended(p, "c0"))
	}
	if raw, err := os.ReadFile(filepath.Join(host, "x")); err != nil || string(raw) != "on the host\n" {
		t.Errorf("%q %v", raw, err)
	}
	if st, err := os.Stat(local); err != nil || st.Sys().(*syscall.Stat_t).Gid != 4000 || st.Mode()&os.ModeSetgid == 0 {
		t.Errorf("fsGroup: %v of group %d, %v", st.Mode(), st.Sys().(*syscall.Stat_t).Gid, err)
	}

	b.become("waiting", "waits for its claim", func(p *corev1.Pod) bool {
		for _, c := range p.Status.Conditions {
			if c.Type == corev1.PodScheduled {
				return c.Reason == "Unschedulable" && strings.Contains(c.Message, `persistentvolumeclaim "later" not found`)
			}
		}
		return false
	})
	b.become("nothing", "waits", func(p *corev1.Pod) bool { return waits(p, "c0", "ContainerCreating") })
	b.volume("later", `hostPath: {path: `+host+`}`)
	b.ready("waiting", true)
}

// driver runs a CSI driver on the board until the test ends.
func (b *bed) driver(name string) (asked func() string) {
	b.Helper()
	raw, err := os.ReadFile(filepath.Join(cluster.layout.Root, "run", "namespaces-board-1.pid"))
	if err != nil {
		b.Skip("the board has no namespaces of its own, and its drivers would register with this machine's kubelet:", err)
	}
	record := filepath.Join(b.hostDir("record"), "asked")
	cmd := exec.Command("nsenter", "--target", strings.Fields(string(raw))[0], "--net", "--mount", "--pid", "--", lab.CSIDriver(b.T),
		"--name", name, "--node", "board-1", "--dir", b.hostDir("volumes"), "--asked", record)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = stdin.Close()
		if err := cmd.Wait(); err != nil {
			b.Errorf("driver %s: %v %s", name, err, said.String())
		}
	})
	object := fmt.Sprintf(`{"apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver", "metadata": {"name": %q},
		"spec": {"attachRequired": false, "podInfoOnMount": true, "fsGroupPolicy": "File", "volumeLifecycleModes": ["Persistent", "Ephemeral"]}}`, name)
	if out, err := b.try(object, "create", "-f", "-"); err != nil {
		b.Fatal(out, err)
	}
	b.Cleanup(func() { b.kubectl("delete", "csidriver", name) })
	b.eventually("driver "+name+" in the node's CSINode", func() error {
		n, err := cluster.client.StorageV1().CSINodes().Get(b.Context(), "board-1", metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, d := range n.Spec.Drivers {
			if d.Name == name && d.NodeID == "board-1" {
				return nil
			}
		}
		return fmt.Errorf("it has %+v", n.Spec.Drivers)
	})
	return func() string { raw, _ := os.ReadFile(record); return string(raw) }
}

func TestCSIVolumes(t *testing.T) {
	b := newBed(t)
	asked := b.driver("wasm.csi.example")
	b.volume("claimed", `csi: {driver: wasm.csi.example, volumeHandle: h1}`)
	b.volume("raw", `volumeMode: Block, csi: {driver: wasm.csi.example, volumeHandle: h2}`)
	b.pod("p", `
securityContext: {runAsUser: 1001, fsGroup: 4000}
volumes:
- {name: claimed, persistentVolumeClaim: {claimName: claimed}}
- {name: inline, csi: {driver: wasm.csi.example}}
containers:
- args: [write, /c/x, by CSI, --, cat, /c/x, --, write, /i/deep, inline, --, cat, /i/deep, --, cat, /sub/y, --, sleep]
  volumeMounts: [{name: claimed, mountPath: /c}, {name: inline, mountPath: /i}, {name: claimed, mountPath: /sub, subPath: sub}]
initContainers: [{args: [write, /s/y, of a subPath], volumeMounts: [{name: claimed, mountPath: /s, subPath: sub}]}]
`)
	b.logs("p", "c0", "by CSI\n", "inline\n", "of a subPath\n")
	p := b.ready("p", true)
	b.eventually("figures of the claim", func() error {
		raw, err := cluster.client.CoreV1().RESTClient().Get().AbsPath("/api/v1/nodes/board-1/proxy/stats/summary").DoRaw(t.Context())
		if err != nil {
			return err
		}
		var s struct {
			Pods []struct {
				PodRef struct{ UID string }
				Volume []struct {
					Name          string
					CapacityBytes *uint64
					PVCRef        *struct{ Name string }
				}
			}
		}
		if err := json.Unmarshal(raw, &s); err != nil {
			return err
		}
		for _, pod := range s.Pods {
			for _, v := range pod.Volume {
				if pod.PodRef.UID == string(p.UID) && v.Name == "claimed" && v.PVCRef != nil && v.PVCRef.Name == "claimed" && v.CapacityBytes != nil && *v.CapacityBytes > 0 {
					return nil
				}
			}
		}
		return fmt.Errorf("the summary hasn't got it: %s", raw)
	})
	// A guest has no calls for devices.
	b.pod("raw", `{volumes: [{name: r, persistentVolumeClaim: {claimName: raw}}], containers: [{args: [sleep], volumeDevices: [{name: r, devicePath: /dev/r}]}]}`)
	b.refused("raw", "c0", "CreateContainerError", "WASI has no call for device nodes")
	b.kubectl("delete", "pod", "p", "raw")
	b.eventually("the volumes to be taken back", func() error {
		all := asked()
		for _, step := range []string{"NodeStageVolume h1", "NodePublishVolume h1", "NodeUnpublishVolume h1", "NodeUnstageVolume h1", "NodePublishVolume csi-", "NodeUnpublishVolume csi-", "NodeUnstageVolume h2"} {
			if !strings.Contains(all, step) {
				return fmt.Errorf("the driver was not asked to %s: %s", step, all)
			}
		}
		return nil
	})
}

func TestImageVolumes(t *testing.T) {
	b := newBed(t)
	b.pod("p", `
restartPolicy: Never
volumes: [{name: i, image: {reference: `+guestImage+`, pullPolicy: Never}}]
containers:
- {args: [cat, /i/usr/share/motd, --, cat, /s/motd, --, write, /i/x, y], volumeMounts: [{name: i, mountPath: /i}, {name: i, mountPath: /s, subPath: usr/share}]}
`)
	p := b.phase("p", corev1.PodFailed)
	if out := b.logs("p", "c0", "from the image\nfrom the image\n"); !strings.Contains(out, "Read-only file system") || ended(p, "c0").ExitCode != 1 {
		t.Errorf("%q, %+v", out, ended(p, "c0"))
	}
	b.pod("missing", `{volumes: [{name: i, image: {reference: "wasmpods.example/none:1", pullPolicy: Never}}], containers: [{args: [sleep], volumeMounts: [{name: i, mountPath: /i}]}]}`)
	b.become("missing", "names the image", func(p *corev1.Pod) bool {
		w := status(p, "c0").State.Waiting
		return w != nil && strings.Contains(w.Message, "wasmpods.example/none:1")
	})
	b.pod("nosub", `{volumes: [{name: i, image: {reference: `+guestImage+`, pullPolicy: Never}}], containers: [{args: [sleep], volumeMounts: [{name: i, mountPath: /i, subPath: nothing/here}]}]}`)
	b.refused("nosub", "c0", "CreateContainerError", "nothing/here")
}

// A subPath of a configMap stays what it was, while the whole of it follows, as with
// a kubelet.
func TestSubPathsDoNotFollow(t *testing.T) {
	b := newBed(t)
	b.configMap("cm", map[string]string{"a": "one"})
	b.pod("p", `
volumes: [{name: cm, configMap: {name: cm}}]
containers:
- {args: [watch, /cm/a], volumeMounts: [{name: cm, mountPath: /cm}]}
- {args: [watch, /etc/a], volumeMounts: [{name: cm, mountPath: /etc/a, subPath: a}]}
`)
	b.logs("p", "c0", "one")
	b.logs("p", "c1", "one")
	b.kubectl("patch", "configmap", "cm", "--type=merge", "-p", `{"data": {"a": "two"}}`)
	b.logs("p", "c0", "one", "two")
	if out := b.logs("p", "c1", "one"); strings.Contains(out, "two") {
		t.Errorf("%q", out)
	}
	b.pod("unset", `{volumes: [{name: cm, configMap: {name: cm}}], containers: [{args: [sleep], volumeMounts: [{name: cm, mountPath: /cm, subPathExpr: $(NOWHERE)/a}]}]}`)
	b.refused("unset", "c0", "CreateContainerConfigError", "NOWHERE")
}
