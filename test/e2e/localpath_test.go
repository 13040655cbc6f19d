package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A StatefulSet as any chart has it, without a StorageClass: each of its pods notes in
// its volume where it starts.
const localPathSet = `
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: store}
spec:
  serviceName: store
  replicas: 2
  podManagementPolicy: Parallel
  selector: {matchLabels: {app: store}}
  template:
    metadata: {labels: {app: store}}
    spec:
      terminationGracePeriodSeconds: 1
      tolerations: [{operator: Exists}]
      securityContext: {runAsUser: 1234, runAsNonRoot: true}
      affinity:
        podAntiAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
          - {topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {app: store}}}
      containers:
      - name: main
        image: example.org/busybox:1
        imagePullPolicy: Never
        command: [sh, -c, "echo $NODE >> /v/starts && exec sleep 3600"]
        env: [{name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]
        volumeMounts: [{name: data, mountPath: /v}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
`

// Claims without a class get folders of the node that their pod is on. The data is
// there for the pod that comes after it, on that node, also after a reboot without the
// control plane, until the claim is deleted.
func TestLocalPathVolumes(t *testing.T) {
	c := newCluster(t, "--nodes=2", "--no-example")
	for _, node := range c.state.Nodes {
		c.must(t, "wait", "--for=create", "node/"+node, "--timeout=60s")
		c.must(t, "wait", "--for=condition=Ready", "node/"+node, "--timeout=60s")
	}
	isolated(t, c)
	if !c.importBusybox(t) {
		t.Skip("no containerd runs here")
	}
	c.must(t, "wait", "--for=create", "serviceaccount/default", "--timeout=60s")
	c.shows(t, 30*time.Second, []string{"local-path (default)", "coracle.dev/local-path", "WaitForFirstConsumer"}, "get", "storageclasses")

	// A mistake says what to do.
	c.apply(t, "default", `
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: shared}
spec: {accessModes: [ReadWriteMany], resources: {requests: {storage: 1Gi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: sharer}
spec:
  volumes: [{name: v, persistentVolumeClaim: {claimName: shared}}]
  containers: [{name: main, image: "example.org/busybox:1", imagePullPolicy: Never, volumeMounts: [{name: v, mountPath: /v}]}]
`)
	c.shows(t, 60*time.Second, []string{"ProvisioningFailed", "access mode ReadWriteMany: the volume is on one node only; use ReadWriteOnce or ReadWriteOncePod"}, "describe", "pvc", "shared")
	c.must(t, "delete", "pod", "sharer", "--timeout=60s")
	c.must(t, "delete", "pvc", "shared", "--timeout=60s")

	c.apply(t, "default", localPathSet)
	ready := func() {
		t.Helper()
		for _, pod := range []string{"pod/store-0", "pod/store-1"} {
			c.must(t, "wait", "--for=create", pod, "--timeout=60s")
			c.must(t, "wait", "--for=condition=Ready", pod, "--timeout=120s")
		}
	}
	ready()
	folder := func(pod string) string {
		return c.must(t, "get", "pv", c.must(t, "get", "pvc", "data-"+pod, "-o", "jsonpath={.spec.volumeName}"), "-o", "jsonpath={.spec.local.path}")
	}
	nodeOf := func(pod string) string {
		return c.must(t, "get", "pod", pod, "-o", "jsonpath={.spec.nodeName}")
	}
	starts := func(node, folder string, want int) func() error {
		return func() error {
			raw, err := os.ReadFile(filepath.Join(folder, "starts"))
			if err == nil && string(raw) != strings.Repeat(node+"\n", want) {
				err = fmt.Errorf("the volume has %q, want %d starts on %s", raw, want, node)
			}
			return err
		}
	}
	node, other := nodeOf("store-0"), nodeOf("store-1")
	mine, others := folder("store-0"), folder("store-1")
	if node == other || filepath.Dir(mine) != filepath.Join(c.layout.Node(node), "local-volumes") || filepath.Dir(others) != filepath.Join(c.layout.Node(other), "local-volumes") {
		t.Fatalf("%s on %s, %s on %s", mine, node, others, other)
	}
	for _, s := range []func() error{starts(node, mine, 1), starts(other, others, 1)} {
		if err := s(); err != nil {
			t.Error(err)
		}
	}

	// Another pod of the name has the same volume.
	c.must(t, "delete", "pod", "store-0", "--timeout=60s")
	ready()
	eventually(t, 30*time.Second, starts(node, mine, 2))

	// The board reboots, and nobody answers it.
	server := c.pid(t, "controlplane")
	if err := syscall.Kill(server, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Kill(server, syscall.SIGCONT) })
	if err := syscall.Kill(c.pid(t, "namespaces-"+node), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, 180*time.Second, starts(node, mine, 3))
	if err := syscall.Kill(server, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	c.shows(t, 120*time.Second, []string{"Running true"}, "get", "pod", "store-0", "-o", "jsonpath={.status.phase} {.status.containerStatuses[0].ready}")

	// A claim that goes takes its folder along, and nobody else's.
	c.must(t, "delete", "statefulset", "store", "--timeout=60s")
	c.must(t, "wait", "--for=delete", "pod", "-l", "app=store", "--timeout=60s")
	c.must(t, "delete", "pvc", "data-store-0", "--timeout=60s")
	eventually(t, 60*time.Second, func() error {
		if _, err := os.Stat(mine); !os.IsNotExist(err) {
			return fmt.Errorf("%s is still there (%v)", mine, err)
		}
		if out := strings.Fields(c.must(t, "get", "pv", "-o", "name")); len(out) != 1 {
			return fmt.Errorf("volumes: %s", out)
		}
		return nil
	})
	if err := starts(other, others, 1)(); err != nil {
		t.Error(err)
	}

	// A board that doesn't answer when its claim goes removes the folder once it does.
	agent := c.pid(t, other)
	if err := syscall.Kill(agent, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Kill(agent, syscall.SIGCONT) })
	c.must(t, "delete", "pvc", "data-store-1", "--timeout=60s")
	c.shows(t, 30*time.Second, []string{"Released"}, "get", "pv")
	if err := starts(other, others, 1)(); err != nil {
		t.Error(err)
	}
	if err := syscall.Kill(agent, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	eventually(t, 120*time.Second, func() error {
		if _, err := os.Stat(others); !os.IsNotExist(err) {
			return fmt.Errorf("%s is still there (%v)", others, err)
		}
		if out := c.must(t, "get", "pv", "-o", "name"); out != "" {
			return fmt.Errorf("volumes: %s", out)
		}
		return nil
	})
}
