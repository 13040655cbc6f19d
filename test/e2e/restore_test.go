package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-edge/coracle/controlplane/fleethub"
)

// withoutControlPlane stops the control plane, and the supervisor with it so that
// it isn't started again, does something, and lets it be started.
func (c *cluster) withoutControlPlane(t *testing.T, do func()) {
	t.Helper()
	old := c.pid(t, "controlplane")
	if err := syscall.Kill(c.state.PID, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := syscall.Kill(c.state.PID, syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		eventually(t, 60*time.Second, func() error {
			raw, err := os.ReadFile(filepath.Join(c.dir, "run", "controlplane.pid"))
			if err != nil {
				return err
			}
			if strings.HasPrefix(string(raw), strconv.Itoa(old)+" ") {
				return fmt.Errorf("the control plane was not started again")
			}
			_, err = c.client.CoreV1().Namespaces().Get(t.Context(), "default", metav1.GetOptions{})
			return err
		})
	}()
	if err := syscall.Kill(old, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, func() error {
		// Its parent is stopped, too, so it stays a zombie.
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", old))
		if err == nil && !strings.Contains(string(raw), ") Z ") {
			return fmt.Errorf("the control plane still runs")
		}
		return nil
	})
	do()
}

// save takes a snapshot and returns its name.
func (c *cluster) save(t *testing.T) string {
	t.Helper()
	out, err := c.operate("snapshot", "save")
	if err != nil {
		t.Fatal(err)
	}
	name, _, _ := strings.Cut(out, ",")
	return name
}

// operate runs coracle as the cluster's administrator.
func (c *cluster) operate(args ...string) (string, error) {
	return coracle(append(args, "--kubeconfig", c.layout.Kubeconfig())...)
}

func (c *cluster) restore(t *testing.T, snapshot string) {
	t.Helper()
	c.withoutControlPlane(t, func() {
		out, err := coracle("restore", snapshot, "--data-dir", c.dir)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(out, "coracle restore confirm") {
			t.Errorf("restore doesn't say how to go on:\n%s", out)
		}
	})
}

// standing waits until the nodes that run wait to be settled, with the names of
// all that they run, and returns what the cluster doesn't know.
func (c *cluster) standing(t *testing.T, nodes, unknown int) (names []string) {
	t.Helper()
	eventually(t, 90*time.Second, func() error {
		out, err := c.operate("restore", "status", "-o", "json")
		if err != nil {
			return err
		}
		var s fleethub.Standing
		if err := json.Unmarshal([]byte(out), &s); err != nil {
			return err
		}
		names = nil
		there := 0
		for _, u := range s.Unsettled {
			if u.There {
				there++
			}
			for _, p := range u.Unknown {
				if p.Name == "" {
					return fmt.Errorf("the name of a pod of %s isn't known yet", u.Node)
				}
				names = append(names, p.Name)
			}
		}
		if there != nodes || len(names) != unknown || s.Restore == nil {
			return fmt.Errorf("%d nodes, %d unknown pods; want %d and %d: %s", there, len(names), nodes, unknown, out)
		}
		return nil
	})
	return names
}

// pods returns those with a label: the container of each by its name, and UIDs.
func (c *cluster) podsOf(t *testing.T, app string) (containers map[string]string, uids map[string]string) {
	t.Helper()
	l, err := c.client.CoreV1().Pods(corev1.NamespaceAll).List(t.Context(), metav1.ListOptions{LabelSelector: "app=" + app})
	if err != nil {
		t.Fatal(err)
	}
	containers, uids = map[string]string{}, map[string]string{}
	for _, p := range l.Items {
		uids[p.Name] = string(p.UID)
		for _, s := range p.Status.ContainerStatuses {
			if s.RestartCount != 0 {
				t.Errorf("pod %s was restarted", p.Name)
			}
			containers[p.Name] = s.ContainerID
		}
	}
	return containers, uids
}

func (c *cluster) pending(t *testing.T, node string) bool {
	t.Helper()
	o, err := c.client.CoreV1().Nodes().Get(t.Context(), node, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ready, pending := false, false
	for _, cond := range o.Status.Conditions {
		switch cond.Type {
		case corev1.NodeReady:
			ready = cond.Status == corev1.ConditionTrue
		case fleethub.ConditionRestorePending:
			pending = cond.Status == corev1.ConditionTrue && strings.Contains(cond.Message, "coracle restore status")
		}
	}
	if !ready {
		t.Errorf("%s isn't ready", node)
	}
	return pending
}

func subset(t *testing.T, what string, want, got map[int]bool) {
	t.Helper()
	for pid := range want {
		if !got[pid] {
			t.Errorf("%s: guest %d was stopped", what, pid)
		}
	}
}

// More in a namespace that the snapshot doesn't know, with what it refers to.
const extra = `
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {greeting: hello}
---
apiVersion: v1
kind: Secret
metadata: {name: password}
stringData: {value: "4711"}
---
apiVersion: v1
kind: Pod
metadata: {name: extra, labels: {app: extra}}
spec:
  runtimeClassName: wasm
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: %q
    env:
    - {name: GREETING, valueFrom: {configMapKeyRef: {name: settings, key: greeting}}}
    - {name: PASSWORD, valueFrom: {secretKeyRef: {name: password, key: value}}}
`

// etcd is put back to before 20 running pods, on a fleet of five nodes: none of
// them stops, until the operator has said what is right.
func TestRestoreUnderARunningFleet(t *testing.T) {
	c := newCluster(t, "--nodes=5", "--no-example")
	image := push(t, c, cModule(t, "ticker"), "ticker")
	deployment := fmt.Sprintf(twenty, image)
	c.must(t, "wait", "--for=create", "serviceaccount/default", "--timeout=30s")
	for _, node := range c.state.Nodes {
		c.must(t, "wait", "--for=create", "node/"+node, "--timeout=30s")
		c.must(t, "wait", "--for=condition=Ready", "node/"+node, "--timeout=30s")
		c.apply(t, "default", wasmPod("old-"+node, image)+"  nodeName: "+node+"\n")
	}
	for _, node := range c.state.Nodes {
		c.must(t, "wait", "--for=jsonpath={.status.phase}=Running", "pod/old-"+node, "--timeout=60s")
	}
	snapshot := c.save(t)
	if out, err := c.operate("snapshot", "list"); err != nil || !strings.Contains(out, snapshot) {
		t.Errorf("%v: %s", err, out)
	}

	c.apply(t, "default", deployment)
	c.must(t, "create", "namespace", "later")
	c.must(t, "wait", "-n", "later", "--for=create", "serviceaccount/default", "--timeout=30s")
	c.apply(t, "later", fmt.Sprintf(extra, image))
	before := c.running(t, "twenty", 20)
	c.must(t, "wait", "-n", "later", "--for=jsonpath={.status.phase}=Running", "pod/extra", "--timeout=60s")
	_, uids := c.podsOf(t, "twenty")
	extraContainer, extraUID := c.podsOf(t, "extra")
	password := c.must(t, "get", "-n", "later", "secret", "password", "-o", "jsonpath={.metadata.uid}")
	guests := c.guests(t)
	if len(guests) != 26 {
		t.Fatalf("%d guests", len(guests))
	}
	// A bad snapshot first: it changes nothing.
	c.withoutControlPlane(t, func() {
		good, err := os.ReadFile(filepath.Join(c.dir, "controlplane", "snapshots", snapshot))
		if err != nil {
			t.Fatal(err)
		}
		bad := filepath.Join(t.TempDir(), "bad.db")
		if err := os.WriteFile(bad, good[:len(good)/2], 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := coracle("restore", bad, "--data-dir", c.dir); err == nil || !strings.Contains(out, "not a whole snapshot") || !strings.Contains(out, bad) {
			t.Errorf("restore of half a snapshot: %v", err)
		}
	})
	if after := c.running(t, "twenty", 20); !maps.Equal(before, after) {
		t.Errorf("%v, before %v", after, before)
	}

	c.restore(t, snapshot)
	names := c.standing(t, 5, 21)
	want := append(slices.Sorted(maps.Keys(before)), "extra")
	if slices.Sort(names); !slices.Equal(names, sorted(want)) {
		t.Errorf("unknown: %v, want %v", names, want)
	}
	if known, _ := c.podsOf(t, "twenty"); len(known) != 0 {
		t.Errorf("etcd isn't of the past: %v", known)
	}
	for _, node := range c.state.Nodes {
		eventually(t, 10*time.Second, func() error {
			if !c.pending(t, node) {
				return fmt.Errorf("%s has no condition %s", node, fleethub.ConditionRestorePending)
			}
			return nil
		})
	}
	// Nothing new begins, and what the cluster knows is still reported.
	c.apply(t, "default", wasmPod("new", image)+"  nodeName: board-1\n")
	time.Sleep(2 * time.Second)
	if phase := c.must(t, "get", "pod", "new", "-o", "jsonpath={.status.phase}"); phase != "Pending" {
		t.Errorf("a pod ordered to a node of another incarnation is %s", phase)
	}
	if now := c.guests(t); !maps.Equal(guests, now) {
		t.Errorf("guests %v, before %v", now, guests)
	}
	if out := c.must(t, "logs", "old-board-2", "--tail=1"); out == "" {
		t.Error("no logs")
	}

	t.Run("adopt", func(t *testing.T) {
		out, err := c.operate("restore", "adopt", "--dry-run")
		if err != nil || !strings.Contains(out, "would be brought back") {
			t.Errorf("%v: %s", err, out)
		}
		if known, _ := c.podsOf(t, "twenty"); len(known) != 0 {
			t.Errorf("a dry run brought back %v", known)
		}
		if out, err = c.operate("restore", "adopt"); err != nil {
			t.Fatal(err)
		}
		t.Logf("\n%s", out)
		if after := c.running(t, "twenty", 20); !maps.Equal(before, after) {
			t.Errorf("containers were replaced: %v, before %v", after, before)
		}
		if _, now := c.podsOf(t, "twenty"); !maps.Equal(uids, now) {
			t.Errorf("UIDs %v, before %v", now, uids)
		}
		eventually(t, 30*time.Second, func() error {
			if now, uid := c.podsOf(t, "extra"); !maps.Equal(extraContainer, now) || !maps.Equal(uid, extraUID) {
				return fmt.Errorf("extra is %v %v, was %v %v", now, uid, extraContainer, extraUID)
			}
			return nil
		})
		if uid := c.must(t, "get", "-n", "later", "secret", "password", "-o", "jsonpath={.metadata.uid}"); uid != password {
			t.Errorf("the Secret is %s, was %s", uid, password)
		}
		// The new pod begins now; nothing else does.
		c.must(t, "wait", "--for=jsonpath={.status.phase}=Running", "pod/new", "--timeout=60s")
		now := c.guests(t)
		if subset(t, "adopt", guests, now); len(now) != len(guests)+1 {
			t.Errorf("%d guests, want one more than %d", len(now), len(guests))
		}
		for _, node := range c.state.Nodes {
			eventually(t, 10*time.Second, func() error {
				if c.pending(t, node) {
					return fmt.Errorf("%s still has the condition", node)
				}
				return nil
			})
		}
		// The Deployment is applied again and takes its pods.
		c.apply(t, "default", deployment)
		eventually(t, 30*time.Second, func() error {
			d, err := c.client.AppsV1().Deployments("default").Get(t.Context(), "twenty", metav1.GetOptions{})
			if err == nil && d.Status.ReadyReplicas != 20 {
				err = fmt.Errorf("%d of 20 replicas are ready", d.Status.ReadyReplicas)
			}
			return err
		})
		if after := c.running(t, "twenty", 20); !maps.Equal(before, after) {
			t.Errorf("the Deployment replaced its pods: %v, before %v", after, before)
		}
		subset(t, "deployment", guests, c.guests(t))
	})

	t.Run("confirm", func(t *testing.T) {
		snapshot := c.save(t)
		second := strings.ReplaceAll(deployment, "twenty", "second")
		c.apply(t, "default", second)
		eventually(t, 90*time.Second, func() error {
			if now, _ := c.podsOf(t, "second"); len(now) != 20 {
				return fmt.Errorf("%d of 20 run", len(now))
			}
			return nil
		})
		eventually(t, 30*time.Second, func() error {
			if n := len(c.guests(t)); n != 47 {
				return fmt.Errorf("%d of 47 guests run", n)
			}
			return nil
		})
		all := c.guests(t)
		// One node is away when the word is said.
		away := c.pid(t, "board-5")
		if err := syscall.Kill(away, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		defer syscall.Kill(away, syscall.SIGCONT)
		c.restore(t, snapshot)
		eventually(t, 60*time.Second, func() error {
			out, err := c.operate("restore", "status")
			if err == nil && (strings.Count(out, "unknown") < 16 || !strings.Contains(out, "Not heard of") || !strings.Contains(out, "board-5")) {
				err = fmt.Errorf("%s", out)
			}
			return err
		})
		if now := c.guests(t); !maps.Equal(all, now) {
			t.Errorf("guests %v, before %v", now, all)
		}
		out, err := c.operate("restore", "confirm")
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("\n%s", out)
		if err := syscall.Kill(away, syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		// Those of the second deployment stop, on all five; all others go on.
		eventually(t, 90*time.Second, func() error {
			if n := len(c.guests(t)); n != 27 {
				return fmt.Errorf("%d guests, want 27", n)
			}
			return nil
		})
		subset(t, "confirm", guests, c.guests(t))
		if after := c.running(t, "twenty", 20); !maps.Equal(before, after) {
			t.Errorf("containers were replaced: %v, before %v", after, before)
		}
		if _, err := c.client.AppsV1().Deployments("default").Get(t.Context(), "second", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			t.Errorf("the second deployment: %v", err)
		}
		for _, node := range c.state.Nodes {
			c.must(t, "wait", "--for=condition=Ready", "node/"+node, "--timeout=60s")
		}
		// The cluster works as before.
		c.apply(t, "default", wasmPod("last", image)+"  nodeName: board-5\n")
		c.must(t, "wait", "--for=jsonpath={.status.phase}=Running", "pod/last", "--timeout=60s")
	})
}

func sorted(s []string) []string { return slices.Sorted(slices.Values(s)) }
