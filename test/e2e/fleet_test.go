package e2e

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-edge/coracle/examples"
)

// TestLeasesOfNodes: kubectl finds a Lease per node, renewed when the node was
// heard, that nobody can write.
func TestLeasesOfNodes(t *testing.T) {
	shared.shows(t, time.Minute, []string{"board-1", "board-2"}, "get", "lease", "-n", "kube-node-lease")
	leases := shared.client.CoordinationV1().Leases("kube-node-lease")
	first, err := leases.Get(t.Context(), "board-1", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if age := time.Since(first.Spec.RenewTime.Time); age < 0 || age > time.Duration(*first.Spec.LeaseDurationSeconds)*time.Second {
		t.Errorf("renewed %s ago, of a lease of %d s", age, *first.Spec.LeaseDurationSeconds)
	}
	eventually(t, 2*time.Duration(*first.Spec.LeaseDurationSeconds)*time.Second, func() error {
		next, err := leases.Get(t.Context(), "board-1", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if !next.Spec.RenewTime.After(first.Spec.RenewTime.Time) {
			return fmt.Errorf("not renewed after %s", first.Spec.RenewTime)
		}
		return nil
	})
	if out, err := shared.kubectl("", "delete", "lease", "-n", "kube-node-lease", "board-1"); err == nil || !strings.Contains(out, "fleet hub") {
		t.Errorf("deleting a node's lease: %v\n%s", err, out)
	}
	if out := shared.must(t, "get", "node", "board-1", "-o", "jsonpath={.metadata.name}"); out != "board-1" {
		t.Errorf("the node is %q", out)
	}
}

// TestTrafficIsCountedOnBothSides: the node's own figures, through its tunnel,
// and the control plane's.
func TestTrafficIsCountedOnBothSides(t *testing.T) {
	node := shared.must(t, "get", "--raw", "/api/v1/nodes/board-1/proxy/metrics")
	for _, want := range []string{
		`coracle_link_bytes_total{class="report",direction="sent"} [1-9]`,
		`coracle_link_bytes_total{class="control",direction="received"} [1-9]`,
		`coracle_link_connection_bytes_total{layer="mqtt",direction="sent"} [1-9]`,
		`coracle_link_stream_bytes_total{purpose="kubelet",direction="received"} [1-9]`,
		`coracle_link_live 1`, `coracle_link_class{class="[a-z]+"} 1`, `coracle_state_commits_total [1-9]`,
		`kubelet_node_name{node="board-1"} 1`, `process_resident_memory_bytes [1-9]`,
	} {
		if !regexp.MustCompile(want).MatchString(node) {
			t.Errorf("no %s in the node's metrics:\n%s", want, node)
		}
	}
	hub := shared.must(t, "get", "--raw", "/metrics")
	for _, want := range []string{
		`coracle_fleet_nodes{presence="present"} [2-9]`, `coracle_fleet_bytes_total{class="report",direction="received"} [1-9]`,
		`coracle_fleet_reports_total{verdict="stored"} [1-9]`, `coracle_fleet_stream_bytes_total{direction="sent",purpose="kubelet"} [1-9]`,
		`apiserver_request_total{`,
	} {
		if !regexp.MustCompile(want).MatchString(hub) {
			t.Errorf("no %s in the control plane's metrics", want)
		}
	}
	out, err := coracle("traffic", "board-1", "--kubeconfig", shared.layout.Kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if len(lines) != 2 || !strings.HasPrefix(lines[0], "NODE") || !strings.HasPrefix(lines[1], "board-1") || !strings.Contains(lines[1], "present") {
		t.Errorf("coracle traffic says\n%s", out)
	}
	if out, err := coracle("traffic", "board-99", "--kubeconfig", shared.layout.Kubeconfig()); err == nil || !strings.Contains(out, "board-99") {
		t.Errorf("traffic of a node that isn't: %v\n%s", err, out)
	}
}

// TestALabelChangesTheLinkClass of a running node; its pods go on.
func TestALabelChangesTheLinkClass(t *testing.T) {
	ns := shared.namespace(t)
	shared.apply(t, ns, wasmPod("stays", examples.HelloImage))
	shared.shows(t, time.Minute, []string{"Running"}, "get", "pod", "-n", ns, "stays")
	board := shared.must(t, "get", "pod", "-n", ns, "stays", "-o", "jsonpath={.spec.nodeName}")
	container := shared.must(t, "get", "pod", "-n", ns, "stays", "-o", "jsonpath={.status.containerStatuses[0].containerID}")
	defer shared.must(t, "label", "node", board, "coracle.dev/link-class-")
	shared.must(t, "label", "node", board, "coracle.dev/link-class=lte", "--overwrite")
	keepalive := regexp.MustCompile(`coracle_link_keepalive_seconds (\d+)`)
	eventually(t, time.Minute, func() error {
		out, err := shared.kubectl("", "get", "--raw", "/api/v1/nodes/"+board+"/proxy/metrics")
		if err != nil {
			return err
		}
		m := keepalive.FindStringSubmatch(out)
		if m == nil {
			return fmt.Errorf("no keepalive in\n%s", out)
		}
		if s, _ := strconv.Atoi(m[1]); s != 240 || !strings.Contains(out, `class="lte"`) {
			return fmt.Errorf("keepalive of %d s", s)
		}
		return nil
	})
	out := shared.must(t, "get", "pod", "-n", ns, "stays", "-o", "jsonpath={.status.phase} {.status.containerStatuses[0].containerID}")
	if out != "Running "+container {
		t.Errorf("the pod is %s, it was in container %s", out, container)
	}
	if ready := shared.must(t, "get", "node", board, "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`); ready != "True" {
		t.Errorf("the node is %s", ready)
	}
}

// TestADataBudgetOfARunningNode is said in a condition, and lifted by a larger
// one.
func TestADataBudgetOfARunningNode(t *testing.T) {
	const board = "board-2"
	condition := func(want string) func() error {
		return func() error {
			out, err := shared.kubectl("", "get", "node", board, "-o", `jsonpath={.status.conditions[?(@.type=="DataBudgetExceeded")].status}`)
			if err == nil && out != want {
				err = fmt.Errorf("DataBudgetExceeded is %q", out)
			}
			return err
		}
	}
	metrics := func() (string, error) {
		return shared.kubectl("", "get", "--raw", "/api/v1/nodes/"+board+"/proxy/metrics")
	}
	defer shared.must(t, "annotate", "node", board, "coracle.dev/data-budget-")
	shared.must(t, "annotate", "node", board, "coracle.dev/data-budget=1Gi", "--overwrite")
	eventually(t, time.Minute, condition("False"))
	used := regexp.MustCompile(`(?m)^coracle_link_data_used_bytes (\S+)$`)
	out, err := metrics()
	m := used.FindStringSubmatch(out)
	if err != nil || m == nil {
		t.Fatalf("%v\n%s", err, out)
	}
	n, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	shared.must(t, "annotate", "node", board, fmt.Sprintf("coracle.dev/data-budget=%d", int(n)+20_000), "--overwrite")
	eventually(t, time.Minute, func() error { // looking costs, too
		if _, err := metrics(); err != nil && !strings.Contains(err.Error(), "data budget") {
			return err
		}
		return condition("True")()
	})
	eventually(t, time.Minute, func() error {
		out, err := metrics()
		if err == nil || !strings.Contains(out, "coracle.dev/data-budget") {
			return fmt.Errorf("the node is still looked at: %v\n%s", err, out)
		}
		return nil
	})
	if ready := shared.must(t, "get", "node", board, "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`); ready != "True" {
		t.Errorf("the node is %s", ready)
	}
	shared.must(t, "annotate", "node", board, "coracle.dev/data-budget=1Gi", "--overwrite")
	eventually(t, time.Minute, condition("False"))
	if out, err := metrics(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
