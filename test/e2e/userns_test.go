package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// ownUsers has a pod with users of its own read and write its volumes as root, who is
// nobody on the node.
const ownUsers = `
apiVersion: v1
kind: ConfigMap
metadata: {name: words}
data: {word: read-the-configmap}
---
apiVersion: v1
kind: Secret
metadata: {name: words}
stringData: {word: read-the-secret}
---
apiVersion: v1
kind: Pod
metadata: {name: own}
spec:
  nodeName: %s
  hostUsers: false
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  volumes:
  - {name: words, projected: {defaultMode: 256, sources: [{configMap: {name: words, items: [{key: word, path: a}]}}, {secret: {name: words, items: [{key: word, path: b}]}}, {serviceAccountToken: {path: token}}]}}
  - {name: scratch, emptyDir: {}}
  containers:
  - name: main
    image: example.org/busybox:1
    imagePullPolicy: Never
    command: [sh, -c, "cat /proc/self/uid_map /proc/self/gid_map && cat /words/a /words/b && test -s /words/token && touch /scratch/x && stat -c mine=%%u:%%g /scratch/x"]
    volumeMounts: [{name: words, mountPath: /words}, {name: scratch, mountPath: /scratch}]
`

// Where the runtime can map ids a pod with hostUsers: false has its own; elsewhere it
// doesn't run as the node's users instead. Which it is stands in the node's status.
func TestPodOfItsOwnUsers(t *testing.T) {
	ns := shared.namespace(t)
	if !shared.importBusybox(t) {
		t.Skip("no containerd runs here: nothing could map the ids of a process")
	}
	node := shared.state.Nodes[0]
	able := shared.must(t, "get", "node", node, "-o", `jsonpath={.status.runtimeHandlers[?(@.name=="")].features.userNamespaces}`) == "true"
	shared.apply(t, ns, fmt.Sprintf(ownUsers, node))
	if !able {
		shared.shows(t, 60*time.Second, []string{"can't set `spec.hostUsers: false`, runtime does not support user namespaces"}, "-n", ns, "get", "events")
		return
	}
	var out string
	eventually(t, 90*time.Second, func() (err error) {
		if phase := shared.must(t, "-n", ns, "get", "pod", "own", "-o", "jsonpath={.status.phase}"); phase != "Succeeded" && phase != "Failed" {
			return fmt.Errorf("pod own is %s", phase)
		}
		out, err = shared.kubectl("", "-n", ns, "logs", "own")
		return err
	})
	maps := strings.Fields(out)
	for _, word := range []string{"read-the-configmap", "read-the-secret", "mine=0:0"} {
		if !strings.Contains(out, word) {
			t.Errorf("no %s in %s", word, out)
		}
	}
	// Inside, outside, how many; of users and of groups.
	if len(maps) < 6 || maps[0] != "0" || maps[1] == "0" || maps[2] != "65536" || strings.Join(maps[:3], " ") != strings.Join(maps[3:6], " ") {
		t.Errorf("its ids: %s", out)
	}
}
