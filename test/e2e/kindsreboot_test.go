package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coracle-edge/coracle/test/lab"
)

// kindsOnABoard are pods of every kind with all that may come from the API in them:
// what they print shows that they have it.
const kindsOnABoard = `
apiVersion: v1
kind: ConfigMap
metadata: {name: cm}
data: {a: "of the configMap\n"}
---
apiVersion: v1
kind: Secret
metadata: {name: sec}
stringData: {k: "of the secret\n", v: a variable}
---
apiVersion: v1
kind: Pod
metadata: {name: native, labels: {app: kinds}}
spec:
  terminationGracePeriodSeconds: 1
  VOLUMES
  initContainers:
  - {name: before, image: "example.org/busybox:1", imagePullPolicy: Never, command: [sh, -c, "mkdir -p /disk/sub; echo of the init container > /disk/sub/x"], volumeMounts: [{name: disk, mountPath: /disk}]}
  - {name: beside, image: "example.org/busybox:1", imagePullPolicy: Never, restartPolicy: Always, command: [sleep, "7411"]}
  containers:
  - name: main
    image: example.org/busybox:1
    imagePullPolicy: Never
    command: [sh, -c, 'cat /cm/a /sec/k /all/k /sub/x /all/labels; echo; echo $V; head -c 2 /all/token; echo; head -c 2 /var/run/secrets/kubernetes.io/serviceaccount/token; echo; exec sleep 7412']
    MOUNTS
---
apiVersion: v1
kind: Pod
metadata: {name: guest, labels: {app: kinds}}
spec:
  terminationGracePeriodSeconds: 1
  VOLUMES
  initContainers:
  - {name: before, image: "example.org/guest:1", imagePullPolicy: Never, args: [write, /sub/x, of the init container], volumeMounts: [{name: disk, mountPath: /sub, subPath: sub}]}
  - {name: beside, image: "example.org/guest:1", imagePullPolicy: Never, restartPolicy: Always, args: [sleep]}
  containers:
  - name: main
    image: example.org/guest:1
    imagePullPolicy: Never
    args: [cat, /cm/a, --, cat, /sec/k, --, cat, /all/k, --, cat, /sub/x, --, cat, /all/labels, --, say, "", --, env, V, --, cat, /all/token, --, say, "", --, cat, /var/run/secrets/kubernetes.io/serviceaccount/token, --, say, "", --, sleep]
    MOUNTS
---
apiVersion: v1
kind: Pod
metadata: {name: both, labels: {app: kinds}}
spec:
  terminationGracePeriodSeconds: 1
  volumes: [{name: cm, configMap: {name: cm}}]
  containers:
  - {name: native, image: "example.org/busybox:1", imagePullPolicy: Never, command: [sh, -c, "cat /cm/a; exec sleep 7413"], volumeMounts: [{name: cm, mountPath: /cm}]}
  - {name: wasm, image: "example.org/guest:1", imagePullPolicy: Never, args: [cat, /cm/a, --, sleep], volumeMounts: [{name: cm, mountPath: /cm}]}
`

// What the pods of both kinds have in common.
const (
	kindsVolumes = `volumes:
  - {name: cm, configMap: {name: cm}}
  - {name: sec, secret: {secretName: sec}}
  - {name: disk, emptyDir: {}}
  - name: all
    projected:
      sources:
      - {secret: {name: sec, items: [{key: k, path: k}]}}
      - {downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}
      - {serviceAccountToken: {path: token, expirationSeconds: 3600}}`
	kindsMounts = `env: [{name: V, valueFrom: {secretKeyRef: {name: sec, key: v}}}]
    volumeMounts:
    - {name: cm, mountPath: /cm}
    - {name: sec, mountPath: /sec}
    - {name: all, mountPath: /all}
    - {name: disk, mountPath: /sub, subPath: sub}`
)

// staticOf is a static pod of a name; what it prints, and how long it sleeps, which
// tells its process.
func staticOf(name, says string, seconds int) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: "example.org/busybox:1", imagePullPolicy: Never, command: [sh, -c, "echo %s; exec sleep %d"]}]
`, name, says, seconds)
}

// kinds is one board with pods of every kind.
type kinds struct {
	*testing.T
	c *cluster
}

func startKinds(t *testing.T, c *cluster) *kinds {
	t.Helper()
	archive := filepath.Join(t.TempDir(), "guest.tar")
	guest := lab.Compat(lab.Wasm(t, filepath.Join("..", "wasmpods", "guest", "guest.c")), "compat")
	if err := os.WriteFile(archive, lab.Archive(guest, "example.org/guest:1"), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := coracle("image", "import", "--node-dir", c.layout.Node("board-1"), archive); err != nil {
		t.Fatal(err, out)
	}
	k := &kinds{t, c}
	c.apply(t, "default", strings.NewReplacer("VOLUMES", kindsVolumes, "MOUNTS", kindsMounts).Replace(kindsOnABoard))
	k.static("fixed", staticOf("fixed", "fixed", 7414))
	k.static("module", strings.ReplaceAll(strings.ReplaceAll(staticOf("module", "module", 0), "example.org/busybox:1", "example.org/guest:1"),
		`command: [sh, -c, "echo module; exec sleep 0"]`, `args: [say, module, --, sleep]`))
	return k
}

// static puts a manifest into the board's folder, at once; "" takes it out.
func (k *kinds) static(name, manifest string) {
	k.Helper()
	file := filepath.Join(k.c.layout.Node("board-1"), "static-pods", name+".yaml")
	if manifest == "" {
		if err := os.Remove(file); err != nil {
			k.Fatal(err)
		}
		return
	}
	tmp := filepath.Join(filepath.Dir(file), "."+name)
	if err := os.WriteFile(tmp, []byte(manifest), 0o644); err != nil {
		k.Fatal(err)
	}
	if err := os.Rename(tmp, file); err != nil {
		k.Fatal(err)
	}
}

// printed waits until the log of a container's run has the words, by the file on the
// board: nobody else is asked.
func (k *kinds) printed(pod, container string, run int, words ...string) {
	k.Helper()
	glob := filepath.Join(k.c.layout.Node("board-1"), "pods-logs", "default_"+pod+"_*", container, fmt.Sprint(run, ".log"))
	eventually(k.T, 120*time.Second, func() error {
		files, _ := filepath.Glob(glob)
		all := ""
		for _, f := range files {
			raw, err := os.ReadFile(f)
			if err != nil {
				return err
			}
			all += string(raw)
		}
		for _, w := range words {
			if !strings.Contains(all, w) {
				return fmt.Errorf("%q isn't in %s: %q", w, glob, all)
			}
		}
		return nil
	})
}

// run waits until each pod is in that run, counted from 0, and has all it is made of.
func (k *kinds) run(run int) {
	k.Helper()
	for pod, variable := range map[string]string{"native": " F a variable\n", "guest": " F V=a variable\n"} {
		k.printed(pod, "main", run, " F of the configMap\n", " F of the secret\n", " F of the init container\n", ` F app="kinds"`, variable, " F ey")
	}
	k.printed("both", "native", run, " F of the configMap\n")
	k.printed("both", "wasm", run, " F of the configMap\n")
	k.printed("fixed-board-1", "main", run, " F fixed\n")
	k.printed("module-board-1", "main", run, " F module\n")
}

// mirrored waits until the API shows a static pod so, "" for not at all.
func (k *kinds) mirrored(name, phase string) {
	k.Helper()
	eventually(k.T, 90*time.Second, func() error {
		got, err := k.c.kubectl("", "get", "pod", name+"-board-1", "--ignore-not-found", "-o", `jsonpath={.status.phase}`)
		if err == nil && got != phase {
			err = fmt.Errorf("the mirror of %s is %q, want %q", name, got, phase)
		}
		return err
	})
}

// live waits until so many processes of a static pod live.
func (k *kinds) live(seconds, want int) {
	k.Helper()
	eventually(k.T, 90*time.Second, func() error {
		if got := running(fmt.Sprint("sleep ", seconds)); len(got) != want {
			return fmt.Errorf("%d processes sleep %d, want %d", len(got), seconds, want)
		}
		return nil
	})
}

// alone does to static pods of containerd's what may be done to them while the board
// has nobody: one comes, is changed, and another goes.
func (k *kinds) alone() {
	k.Helper()
	k.static("late", staticOf("late", "first", 7415))
	k.printed("late-board-1", "main", 0, " F first\n")
	k.live(7415, 1)
	k.static("late", staticOf("late", "second", 7416))
	k.printed("late-board-1", "main", 0, " F second\n")
	k.live(7415, 0)
	k.live(7416, 1)
	k.static("fixed", "")
	k.live(7414, 0)
}
