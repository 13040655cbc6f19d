package wasmpods

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	corev1 "k8s.io/api/core/v1"
)

// volumeDir is where the board keeps a volume of a pod, on its disk.
func (b *bed) volumeDir(p *corev1.Pod, plugin, name string) string {
	return filepath.Join(cluster.layout.Node("board-1"), "pods", string(p.UID), "volumes", "kubernetes.io~"+plugin, name)
}

// While somebody with the rights of root turns the folders and files of an emptyDir
// into links that lead out and back, guests are started on subPaths of it: none of
// them is ever given what is outside, nor makes anything there. The preopens are
// the wall here, as bind mounts are for a process.
func TestSubPathsWhileTheirVolumeIsSwapped(t *testing.T) {
	b := newBed(t)
	var more strings.Builder
	for i := range 12 {
		fmt.Fprintf(&more, "- {args: [wait, /v/go, --, cat, /d/id, --, cat, /f, --, write, /d/made-%[1]d, x, --, cat, /deep/id], volumeMounts: [{name: v, mountPath: /v}, {name: v, mountPath: /d, subPath: a}, {name: v, mountPath: /f, subPath: file}, {name: v, mountPath: /deep, subPath: a/b}]}\n", i)
	}
	// The first makes what the others use.
	b.pod("p", `
restartPolicy: OnFailure
volumes: [{name: v, emptyDir: {}}]
initContainers: [{args: [wait, /v/ready], volumeMounts: [{name: v, mountPath: /v}]}]
containers:
`+more.String())
	p := b.become("p", "waits to be prepared", func(p *corev1.Pod) bool { return status(p, "i0").State.Running != nil })
	volume := b.volumeDir(p, "empty-dir", "v")
	outside := b.hostDir("outside")
	in := func(name string) string { return filepath.Join(volume, name) }
	for dir, id := range map[string]string{volume: "inside\n", outside: "outside\n"} {
		for _, folder := range []string{"a/b", "b"} {
			if err := os.MkdirAll(filepath.Join(dir, folder), 0o777); err != nil {
				t.Fatal(err)
			}
		}
		for _, file := range []string{"id", "a/id", "a/b/id", "b/id", "file"} {
			if err := os.WriteFile(filepath.Join(dir, file), []byte(id), 0o666); err != nil {
				t.Fatal(err)
			}
		}
		for _, folder := range []string{"a", "a/b"} {
			if err := os.Chmod(filepath.Join(dir, folder), 0o777); err != nil { // whatever the umask is
				t.Fatal(err)
			}
		}
	}
	if err := errors.Join(os.Symlink(filepath.Join(outside, "a"), in("a.link")), os.Symlink(filepath.Join(outside, "file"), in("file.link")), os.Symlink("../../../../../../"+outside+"/b", in("a/b.link"))); err != nil {
		t.Fatal(err)
	}
	before := tree(t, outside)
	stop, swaps := make(chan struct{}), 0
	var swapper sync.WaitGroup
	swapper.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			for _, name := range []string{"a", "a/b", "file"} { // there and back
				for range 2 {
					if unix.Renameat2(unix.AT_FDCWD, in(name), unix.AT_FDCWD, in(name+".link"), unix.RENAME_EXCHANGE) == nil {
						swaps++
					}
				}
			}
		}
	})
	end := sync.OnceFunc(func() { close(stop); swapper.Wait() })
	defer end()
	if err := os.WriteFile(in("ready"), nil, 0o666); err != nil {
		t.Fatal(err)
	}
	// A link that led out when a container was to be made is refused, and tried again.
	b.become("p", "has started them all", func(p *corev1.Pod) bool {
		for i := range 12 {
			if status(p, fmt.Sprint("c", i)).State.Running == nil {
				return false
			}
		}
		return true
	})
	if err := os.WriteFile(in("go"), nil, 0o666); err != nil {
		t.Fatal(err)
	}
	b.phase("p", corev1.PodSucceeded)
	end()
	if swaps < 1000 {
		t.Errorf("only %d swaps: nothing was raced", swaps)
	}
	for i := range 12 {
		if out := b.logs("p", fmt.Sprint("c", i)); out != "inside\ninside\ninside\n" {
			t.Errorf("c%d read %q", i, out)
		}
	}
	if after := tree(t, outside); after != before {
		t.Errorf("outside there was\n%s\nand is\n%s", before, after)
	}
}

// tree is all that is below a folder, with what is in the files.
func tree(t *testing.T, dir string) string {
	var out strings.Builder
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		raw := []byte(nil)
		if d.Type().IsRegular() {
			raw, err = os.ReadFile(path)
		}
		fmt.Fprintf(&out, "%s %q\n", path, raw)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// What is mounted below a read-only volume is read-only too, and the pod's status
// says so (KEP 3857).
func TestRecursiveReadOnly(t *testing.T) {
	b := newBed(t)
	dir := b.hostDir("host")
	below := filepath.Join(dir, "below")
	if err := errors.Join(os.Mkdir(below, 0o777), os.WriteFile(filepath.Join(dir, "x"), []byte("above\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
	// On the board, whose mounts aren't ours.
	if out, err := b.onBoard("sh", "-c", "mount -t tmpfs -o mode=777 none "+below+" && echo mounted > "+below+"/y").CombinedOutput(); err != nil {
		t.Fatal(err, string(out))
	}
	t.Cleanup(func() {
		if out, err := b.onBoard("umount", below).CombinedOutput(); err != nil {
			t.Error(err, string(out))
		}
	})
	b.pod("p", `
restartPolicy: Never
volumes: [{name: h, hostPath: {path: `+dir+`}}]
containers:
- {args: [cat, /h/x, --, cat, /h/below/y, --, write, /h/below/z, x], volumeMounts: [{name: h, mountPath: /h, readOnly: true, recursiveReadOnly: Enabled}]}
- {args: [write, /h/below/w, x], volumeMounts: [{name: h, mountPath: /h}]}
`)
	p := b.phase("p", corev1.PodFailed)
	if out := b.logs("p", "c0", "above\nmounted\n"); !strings.Contains(out, "Read-only file system") || ended(p, "c0").ExitCode != 1 {
		t.Errorf("%q, %+v", out, ended(p, "c0"))
	}
	if e := ended(p, "c1"); e == nil || e.ExitCode != 0 {
		t.Errorf("the one that may write there: %+v", e)
	}
	mounts := status(p, "c0").VolumeMounts
	if len(mounts) == 0 || mounts[0].RecursiveReadOnly == nil || *mounts[0].RecursiveReadOnly != corev1.RecursiveReadOnlyEnabled {
		t.Errorf("the status says %+v", mounts)
	}
}

// A guest that reads two keys through one folder has both of one version: what is
// projected is swapped as a whole under it.
func TestProjectedVolumesAreSwappedAsAWhole(t *testing.T) {
	b := newBed(t)
	b.configMap("cm", map[string]string{"a": "v0", "b": "v0"})
	b.pod("p", `
volumes: [{name: v, projected: {sources: [{configMap: {name: cm}}, {downwardAPI: {items: [{path: name, fieldRef: {fieldPath: metadata.name}}]}}]}}]
containers: [{args: [pair, /v], volumeMounts: [{name: v, mountPath: /v}], resources: {limits: {cpu: 200m}}}]
`)
	b.logs("p", "c0", "both have v0")
	for i := 1; i <= 6; i++ {
		version := fmt.Sprint("v", i)
		b.kubectl("patch", "configmap", "cm", "--type=merge", "-p", `{"data": {"a": "`+version+`", "b": "`+version+`"}}`)
		b.logs("p", "c0", "both have "+version)
	}
	if out := b.logs("p", "c0"); strings.Contains(out, "torn") {
		t.Errorf("%q", out)
	}
}

// The objects of a volume may go: its pod has what it had, and is restarted with it,
// as by a kubelet, for which a volume that is mounted stays so.
func TestAVolumeOutlivesItsObject(t *testing.T) {
	b := newBed(t)
	b.configMap("cm", map[string]string{"a": "kept\n"})
	b.secret("sec", map[string]string{"k": "secret\n"})
	b.pod("p", `
volumes: [{name: cm, configMap: {name: cm}}, {name: sec, secret: {secretName: sec}}]
containers:
- {args: [cat, /cm/a, --, cat, /sec/k, --, http], ports: [{containerPort: 8080}], volumeMounts: [{name: cm, mountPath: /cm}, {name: sec, mountPath: /sec}],
   livenessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1, failureThreshold: 1, timeoutSeconds: 10}}
`)
	b.ready("p", true)
	b.kubectl("delete", "configmap/cm", "secret/sec")
	// The node knows that they are gone: another pod waits for them.
	b.pod("late", `{volumes: [{name: cm, configMap: {name: cm}}], containers: [{args: [sleep], volumeMounts: [{name: cm, mountPath: /cm}]}]}`)
	b.become("late", "waits", func(p *corev1.Pod) bool { return waits(p, "c0", "ContainerCreating") })
	b.kubectl("get", "--raw", "/api/v1/namespaces/"+b.ns+"/pods/p:8080/proxy/fail")
	b.become("p", "is restarted", func(p *corev1.Pod) bool {
		return status(p, "c0").RestartCount == 1 && status(p, "c0").State.Running != nil
	})
	b.logs("p", "c0", "kept\n", "secret\n")
	b.kubectl("delete", "pod", "p", "--timeout=60s")
}

func TestHostPathTypes(t *testing.T) {
	b := newBed(t)
	dir := b.hostDir("host")
	socket, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("a file\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	b.pod("good", `
restartPolicy: Never
securityContext: {runAsUser: 0}
volumes:
- {name: f, hostPath: {path: `+dir+`/f, type: File}}
- {name: nf, hostPath: {path: `+dir+`/new-file, type: FileOrCreate}}
- {name: nd, hostPath: {path: `+dir+`/new/dir, type: DirectoryOrCreate}}
- {name: s, hostPath: {path: `+dir+`/s, type: Socket}}
- {name: c, hostPath: {path: /dev/null, type: CharDevice}}
containers:
- args: [cat, /f, --, write, /nf, made, --, write, /nd/x, made, --, exists, /s, --, exists, /null]
  volumeMounts: [{name: f, mountPath: /f}, {name: nf, mountPath: /nf}, {name: nd, mountPath: /nd}, {name: s, mountPath: /s}, {name: c, mountPath: /null}]
`)
	b.phase("good", corev1.PodSucceeded)
	b.logs("good", "c0", "a file\n")
	for _, name := range []string{"new-file", "new/dir/x"} {
		if raw, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(raw) != "made\n" {
			t.Errorf("%s: %q %v", name, raw, err)
		}
	}
	for kind, what := range map[string]string{"Directory": "a directory", "Socket": "a socket file", "CharDevice": "a character device", "BlockDevice": "a block device"} {
		name := "bad-" + strings.ToLower(kind)
		b.pod(name, `{volumes: [{name: v, hostPath: {path: `+dir+`/f, type: `+kind+`}}], containers: [{args: [sleep], volumeMounts: [{name: v, mountPath: /v}]}]}`)
		b.refused(name, "c0", "ContainerCreating", "hostPath type check failed: "+dir+"/f is not "+what)
	}
}

// An emptyDir in memory is as large as it says, and its guest is told when it is full.
func TestAFullVolumeInMemory(t *testing.T) {
	b := newBed(t)
	b.pod("p", `
restartPolicy: Never
volumes: [{name: v, emptyDir: {medium: Memory, sizeLimit: 1Mi}}]
containers: [{args: [fill, /v/a, "512", --, say, fits, --, fill, /v/b, "4096"], volumeMounts: [{name: v, mountPath: /v}]}]
`)
	p := b.phase("p", corev1.PodFailed)
	if p.Status.Reason == "Evicted" { // the node may have looked before the guest ended
		return
	}
	b.logs("p", "c0", "fits") // of which stderr may come first
	b.logs("p", "c0", "No space left on device")
}

// What the board mounts below a volume of a guest that runs is there for it, as with
// HostToContainer for a process; and it goes again.
func TestMountsThatComeWhileAGuestRuns(t *testing.T) {
	b := newBed(t)
	dir := b.hostDir("host")
	below := filepath.Join(dir, "below")
	if err := os.Mkdir(below, 0o777); err != nil {
		t.Fatal(err)
	}
	b.pod("p", `
volumes: [{name: h, hostPath: {path: `+dir+`}}]
containers: [{args: [watch, /h/below/x], volumeMounts: [{name: h, mountPath: /h, mountPropagation: HostToContainer}]}]
`)
	b.logs("p", "c0", "none")
	umount := func() {
		t.Helper()
		if out, err := b.onBoard("umount", below).CombinedOutput(); err != nil {
			t.Error(err, string(out))
		}
	}
	if out, err := b.onBoard("sh", "-c", "mount -t tmpfs -o mode=777 none "+below+" && echo mounted > "+below+"/x").CombinedOutput(); err != nil {
		t.Fatal(err, string(out))
	}
	end := sync.OnceFunc(umount)
	defer end()
	b.logs("p", "c0", "none", "mounted")
	end()
	b.logs("p", "c0", "none", "mounted", "none")
}

// What is optional may come later: a guest that runs is shown it then.
func TestOptionalObjectsMayComeLater(t *testing.T) {
	b := newBed(t)
	b.pod("p", `
volumes:
- {name: cm, configMap: {name: later, optional: true}}
- {name: all, projected: {sources: [{secret: {name: later, optional: true}}, {downwardAPI: {items: [{path: name, fieldRef: {fieldPath: metadata.name}}]}}]}}
containers:
- {args: [watch, /cm/a], volumeMounts: [{name: cm, mountPath: /cm}]}
- {args: [cat, /all/name, --, watch, /all/k], volumeMounts: [{name: all, mountPath: /all}]}
`)
	b.logs("p", "c0", "none")
	b.logs("p", "c1", "none")
	b.configMap("later", map[string]string{"a": "has come"})
	b.secret("later", map[string]string{"k": "has come too"})
	b.logs("p", "c0", "none", "has come")
	b.logs("p", "c1", "none", "has come too")
}
