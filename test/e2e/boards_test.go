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

// isolated skips a test where nodes share the machine's namespaces, and says why.
func isolated(t *testing.T, c *cluster) {
	t.Helper()
	if !readable(filepath.Join(c.dir, "run", "namespaces-board-1.pid")) {
		t.Skip("nodes have no namespaces of their own here: that needs root, containerd, runc, CNI plugins and iptables")
	}
}

// namespacesOf are the ids of the namespaces that a process of the cluster is in.
func namespacesOf(t *testing.T, pid int) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, kind := range []string{"net", "mnt", "pid", "uts", "ipc"} {
		id, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
		if err != nil {
			t.Fatal(err)
		}
		out[kind] = id
	}
	return out
}

// As root each node is a board of its own: nothing of what it is in is the
// machine's or another's, and it has its own address.
func TestEachNodeHasItsOwnNamespaces(t *testing.T) {
	isolated(t, shared)
	seen := map[string]string{}
	for _, kind := range namespacesOf(t, os.Getpid()) {
		seen[kind] = "this machine"
	}
	for _, process := range []string{"board-1", "board-2"} {
		for kind, id := range namespacesOf(t, shared.pid(t, process)) {
			if other, ok := seen[id]; ok {
				t.Errorf("the %s namespace of %s is also that of %s", kind, process, other)
			}
			seen[id] = process
		}
	}
	for node, containerd := range map[string]string{"board-1": "containerd-board-1", "board-2": "containerd-board-2"} {
		a, b := namespacesOf(t, shared.pid(t, node)), namespacesOf(t, shared.pid(t, containerd))
		for kind := range a {
			if a[kind] != b[kind] {
				t.Errorf("%s and its containerd have two %s namespaces", node, kind)
			}
		}
	}
	addresses := strings.Fields(shared.must(t, "get", "nodes", "-o", `jsonpath={.items[*].status.addresses[?(@.type=="InternalIP")].address}`))
	boots := strings.Fields(shared.must(t, "get", "nodes", "-o", `jsonpath={.items[*].status.nodeInfo.bootID}`))
	for what, list := range map[string][]string{"address": addresses, "boot": boots} {
		if len(list) != 2 || list[0] == list[1] {
			t.Errorf("each node has its own %s, got %q", what, list)
		}
	}
}

// Pods of two boards reach each other under their own addresses, and the API by
// the kubernetes Service; the machine that the control plane is on reaches none.
func TestPodsOfTwoBoardsReachEachOther(t *testing.T) {
	isolated(t, shared)
	ns := shared.namespace(t)
	module, err := filepath.Abs("../../examples/http/http.wasm")
	if err != nil {
		t.Fatal(err)
	}
	image := push(t, shared, module, "http")
	for _, n := range []string{"1", "2"} {
		shared.apply(t, ns, strings.Replace(wasmPod("on-"+n, image), "\"}", "\", ports: [{containerPort: 8080}]}", 1)+"  nodeName: board-"+n+"\n")
	}
	shared.must(t, "wait", "-n", ns, "--for=jsonpath={.status.phase}=Running", "pod/on-1", "pod/on-2", "--timeout=60s")
	for node, other := range map[string]string{"board-1": "on-2", "board-2": "on-1"} {
		ip := shared.must(t, "get", "pod", "-n", ns, other, "-o", "jsonpath={.status.podIP}")
		eventually(t, 20*time.Second, func() error {
			out, err := shared.onNode(node, "curl", "-sS", "--noproxy", "*", "--max-time", "5", "http://"+ip+":8080/").CombinedOutput()
			if err != nil {
				return fmt.Errorf("%s to pod %s (%s): %w: %s", node, other, ip, err, out)
			}
			return nil
		})
		// Without a token it says who isn't let in: it was the API that answered.
		eventually(t, 20*time.Second, func() error {
			out, err := shared.onNode(node, "curl", "-sk", "--noproxy", "*", "--max-time", "5", "https://10.43.0.1/readyz").CombinedOutput()
			if err != nil || !strings.Contains(string(out), `"reason": "Unauthorized"`) {
				return fmt.Errorf("the API by its Service from %s: %v: %s", node, err, out)
			}
			return nil
		})
	}
}

// A board that loses its power comes back, as another boot, with what it ran.
func TestABoardThatLosesItsPowerComesBack(t *testing.T) {
	c := newCluster(t, "--nodes=2")
	isolated(t, c)
	node := c.must(t, "get", "pod", "hello", "-o", "jsonpath={.spec.nodeName}")
	boot := func() string {
		return c.must(t, "get", "node", node, "-o", "jsonpath={.status.nodeInfo.bootID}")
	}
	first, old := boot(), c.pid(t, "namespaces-"+node)
	agent := c.pid(t, node)
	if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, 60*time.Second, func() error {
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", agent)); err == nil {
			return fmt.Errorf("its agent outlived the board's first process")
		}
		if b := boot(); b == first {
			return fmt.Errorf("%s is still of boot %s", node, b)
		}
		out := c.must(t, "get", "pod", "hello", "-o", "jsonpath={.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].ready}")
		if out != "1 true" {
			return fmt.Errorf("pod hello has restarts and readiness %q", out)
		}
		return nil
	})
}
