package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/coracle-edge/coracle/examples"
)

// kubectl's cordon, drain and uncordon against nodes that are there: budgets are
// kept, DaemonSets and data are not taken by surprise, and what is drained ends on
// its node before kubectl says so.
func TestCordonDrainUncordon(t *testing.T) {
	ns := shared.namespace(t)
	node, other := shared.state.Nodes[0], shared.state.Nodes[1]
	shared.must(t, "cordon", other)
	defer shared.must(t, "uncordon", other)
	pod := fmt.Sprintf("metadata: {labels: {app: drained}}\n    spec: {terminationGracePeriodSeconds: 1, containers: [{name: main, image: %q}], "+
		"volumes: [{name: data, emptyDir: {}}]}", examples.HelloImage)
	shared.apply(t, ns, "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec:\n  replicas: 2\n  selector: {matchLabels: {app: drained}}\n  template:\n    "+pod+"\n")
	shared.apply(t, ns, "apiVersion: apps/v1\nkind: DaemonSet\nmetadata: {name: everywhere}\nspec:\n  selector: {matchLabels: {app: drained, of: ds}}\n  template:\n    "+
		strings.Replace(pod, "{app: drained}", "{app: drained, of: ds}", 1)+"\n")
	shared.apply(t, ns, "apiVersion: policy/v1\nkind: PodDisruptionBudget\nmetadata: {name: web}\nspec: {minAvailable: 2, selector: {matchLabels: {app: drained}, matchExpressions: [{key: of, operator: DoesNotExist}]}}\n")
	shared.must(t, "rollout", "status", "-n", ns, "deployment/web", "--timeout=60s")
	shared.must(t, "rollout", "status", "-n", ns, "daemonset/everywhere", "--timeout=60s")
	shared.must(t, "wait", "-n", ns, "pdb/web", "--for=jsonpath={.status.currentHealthy}=2", "--timeout=30s")
	// The budget of two of two allows nothing, wherever they could go.
	shared.must(t, "uncordon", other)

	drain := func(more ...string) (string, error) {
		return shared.kubectl("", append([]string{"drain", node, "--pod-selector=app=drained"}, more...)...)
	}
	defer shared.must(t, "uncordon", node)
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "DaemonSet-managed Pods"},
		{[]string{"--ignore-daemonsets"}, "local storage"},
		{[]string{"--ignore-daemonsets", "--delete-emptydir-data", "--timeout=3s"}, "violate the pod's disruption budget"},
	} {
		if out, err := drain(c.args...); err == nil || !strings.Contains(out, c.want) {
			t.Errorf("drain %s: %v\n%s\nwant %s", c.args, err, out, c.want)
		}
	}
	on := func() string {
		return shared.must(t, "get", "pods", "-n", ns, "-l", "app=drained,of!=ds", "--field-selector=spec.nodeName="+node, "-o", "name")
	}
	if n := len(strings.Fields(on())); n != 2 {
		t.Fatalf("%d pods on %s: the budget was broken", n, node)
	}
	shared.must(t, "patch", "-n", ns, "pdb/web", "--type=merge", "-p", `{"spec":{"minAvailable":1}}`)
	if out, err := drain("--ignore-daemonsets", "--delete-emptydir-data", "--timeout=90s"); err != nil || !strings.Contains(out, "node/"+node+" drained") {
		t.Fatalf("drain: %v\n%s", err, out)
	}
	if left := on(); left != "" {
		t.Errorf("%s still has %s", node, left)
	}
	shared.must(t, "rollout", "status", "-n", ns, "deployment/web", "--timeout=60s")
	// What was drained doesn't come back to a cordoned node, and does after it.
	shared.must(t, "scale", "-n", ns, "deployment/web", "--replicas=3")
	shared.must(t, "rollout", "status", "-n", ns, "deployment/web", "--timeout=60s")
	if got := on(); got != "" {
		t.Errorf("%s is cordoned and got %s", node, got)
	}
	shared.must(t, "uncordon", node)
	shared.must(t, "cordon", other)
	shared.must(t, "scale", "-n", ns, "deployment/web", "--replicas=4")
	eventually(t, 60*time.Second, func() error {
		if on() == "" {
			return fmt.Errorf("nothing runs on %s", node)
		}
		return nil
	})
}
