package controllers_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/klog/v2"
	"k8s.io/utils/ptr"

	"github.com/coracle-edge/coracle/controlplane/controllers"
	"github.com/coracle-edge/coracle/controlplane/controllers/upstream"
	"github.com/coracle-edge/coracle/test/lab/realapi"
)

// cluster is the real API server on a real etcd, all controllers, and boards that are played by the test. All tests of
// the package share one.
type cluster struct {
	*realapi.Server
	client kubernetes.Interface // as an administrator
	boards *boards
	log    *logBook
}

// endedPods is how many pods that have ended this cluster keeps: more than the other tests leave behind.
const endedPods = 60

var shared *cluster

func TestMain(m *testing.M) {
	code := 1
	func() {
		dir, err := os.MkdirTemp("", "coracle-controllers-*")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return
		}
		defer os.RemoveAll(dir)
		if shared, err = start(dir); err != nil {
			fmt.Fprintln(os.Stderr, "start the control plane:", err)
			return
		}
		defer shared.Stop()
		code = m.Run()
	}()
	os.Exit(code)
}

func start(dir string) (*cluster, error) {
	utilruntime.ReallyCrash = false
	klog.SetLogger(logr.Discard())
	server, err := realapi.Start(dir)
	if err != nil {
		return nil, err
	}
	c := &cluster{Server: server, log: &logBook{}}
	c.client, err = kubernetes.NewForConfig(c.ClientConfig("test", "system:masters"))
	if err != nil {
		c.Stop()
		return nil, err
	}
	c.Go(func(ctx context.Context) {
		err := controllers.Run(ctx, controllers.Deps{
			Config:  c.ClientConfig,
			Factory: c.Informers(),
			Roots: func() controllers.Roots {
				changed := c.Keys.Changed()
				return controllers.Roots{CA: c.Keys.RootPEM(), SigningCertFile: c.Keys.CAFile(), SigningKeyFile: c.Keys.CAKeyFile(), Changed: changed}
			},
			ServiceAccountKey: c.Keys.ServiceAccountKey(),
			PodGarbage:        upstream.PodGarbage{EndedPods: endedPods, Every: time.Second, Quarantine: 2 * time.Second},
			Logger:            slog.New(c.log),
		})
		if err != nil {
			fmt.Fprintln(os.Stderr, "controllers:", err)
		}
	})
	c.boards = &boards{client: c.client, away: map[string]bool{}}
	c.Go(c.boards.run)
	return c, nil
}

// namespace makes a namespace that is gone after the test, and waits for its service account.
func (c *cluster) namespace(t *testing.T) string {
	t.Helper()
	ns, err := c.client.CoreV1().Namespaces().Create(t.Context(), &v1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "t-"}}, metav1.CreateOptions{})
	must(t, err)
	t.Cleanup(func() {
		_ = c.client.CoreV1().Namespaces().Delete(context.Background(), ns.Name, metav1.DeleteOptions{})
	})
	eventually(t, "default service account", func() error {
		_, err := c.client.CoreV1().ServiceAccounts(ns.Name).Get(t.Context(), "default", metav1.GetOptions{})
		return err
	})
	return ns.Name
}

// nodes makes ready nodes that are gone after the test, and returns their names.
func (c *cluster) nodes(t *testing.T, n int, labels map[string]string) []string {
	t.Helper()
	var names []string
	for range n {
		node, err := c.client.CoreV1().Nodes().Create(t.Context(), &v1.Node{ObjectMeta: metav1.ObjectMeta{GenerateName: "board-", Labels: labels}}, metav1.CreateOptions{})
		must(t, err)
		names = append(names, node.Name)
		t.Cleanup(func() {
			c.boards.setAway(node.Name, false)
			_ = c.client.CoreV1().Nodes().Delete(context.Background(), node.Name, metav1.DeleteOptions{})
		})
		must(t, c.boards.ready(t.Context(), node.Name, v1.ConditionTrue))
	}
	return names
}

// podsOf returns the pods of a namespace by label, those being deleted too.
func (c *cluster) podsOf(t *testing.T, namespace, selector string) []v1.Pod {
	t.Helper()
	list, err := c.client.CoreV1().Pods(namespace).List(t.Context(), metav1.ListOptions{LabelSelector: selector})
	must(t, err)
	return list.Items
}

func active(pods []v1.Pod) []v1.Pod {
	return slices.DeleteFunc(slices.Clone(pods), func(p v1.Pod) bool {
		return p.DeletionTimestamp != nil || p.Status.Phase == v1.PodSucceeded || p.Status.Phase == v1.PodFailed
	})
}

func template(labels map[string]string, image string) v1.PodTemplateSpec {
	return v1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: labels},
		Spec: v1.PodSpec{
			TerminationGracePeriodSeconds: ptr.To(int64(5)),
			Containers:                    []v1.Container{{Name: "c", Image: image}},
		},
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// gone is nil if err says that an object isn't there.
func gone(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return fmt.Errorf("still there (error: %v)", err)
}

// eventually retries f for thirty seconds.
func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	t.Fatalf("%s: %v", what, err)
}

// always checks for a while that f keeps being nil.
func always(t *testing.T, what string, during time.Duration, f func() error) {
	t.Helper()
	for end := time.Now().Add(during); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if err := f(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
}

// boards plays scheduler, hub and node agents: every pod that is bound, or fits on a node that is there, runs and becomes
// ready at once, and goes at once when it is deleted; except on nodes that are away, where nothing happens.
// Images say how: "exit0" succeeds, "exit1" fails, "stuck" never becomes ready, anything else runs.
type boards struct {
	client kubernetes.Interface
	mu     sync.Mutex
	away   map[string]bool
	next   int
	wanted string // a node for the next pod, away or not
}

// bindNext puts the next pod onto the named node, whatever is wrong with it.
func (b *boards) bindNext(node string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.wanted = node
}

func (b *boards) setAway(node string, is bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.away[node] = is
}

func (b *boards) isAway(node string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.away[node]
}

// leave is what the hub does when a node's session is gone.
func (b *boards) leave(t *testing.T, node string) {
	t.Helper()
	b.setAway(node, true)
	must(t, b.ready(t.Context(), node, v1.ConditionUnknown))
}

// comeBack is what it does when the node reports again: first the node, then its pods.
func (b *boards) comeBack(t *testing.T, node string) {
	t.Helper()
	must(t, b.ready(t.Context(), node, v1.ConditionTrue))
	b.setAway(node, false)
}

func (b *boards) ready(ctx context.Context, name string, status v1.ConditionStatus) error {
	for {
		node, err := b.client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		node.Status.Conditions = []v1.NodeCondition{{Type: v1.NodeReady, Status: status, Reason: "NodeStatusUnknown", LastTransitionTime: metav1.Now()}}
		if _, err = b.client.CoreV1().Nodes().UpdateStatus(ctx, node, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
			return err
		}
	}
}

func (b *boards) run(ctx context.Context) {
	for ctx.Err() == nil {
		pods, err1 := b.client.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
		nodes, err2 := b.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
		if err1 == nil && err2 == nil {
			for i := range pods.Items {
				b.step(ctx, &pods.Items[i], nodes.Items)
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (b *boards) step(ctx context.Context, pod *v1.Pod, nodes []v1.Node) {
	api := b.client.CoreV1().Pods(pod.Namespace)
	if pod.Spec.NodeName == "" {
		if node := b.place(pod, nodes); node != "" && pod.DeletionTimestamp == nil {
			_ = api.Bind(ctx, &v1.Binding{ObjectMeta: metav1.ObjectMeta{Name: pod.Name, UID: pod.UID}, Target: v1.ObjectReference{Kind: "Node", Name: node}}, metav1.CreateOptions{})
		}
		return
	}
	if b.isAway(pod.Spec.NodeName) {
		return
	}
	ended := pod.Status.Phase == v1.PodSucceeded || pod.Status.Phase == v1.PodFailed
	if pod.DeletionTimestamp != nil {
		if !ended {
			b.report(ctx, pod, v1.PodFailed, v1.ConditionFalse)
		}
		_ = api.Delete(ctx, pod.Name, metav1.DeleteOptions{GracePeriodSeconds: ptr.To(int64(0)), Preconditions: metav1.NewUIDPreconditions(string(pod.UID))})
		return
	}
	switch image := pod.Spec.Containers[0].Image; {
	case ended:
	case image == "exit0":
		b.report(ctx, pod, v1.PodSucceeded, v1.ConditionFalse)
	case image == "exit1":
		b.report(ctx, pod, v1.PodFailed, v1.ConditionFalse)
	case image == "stuck":
		b.report(ctx, pod, v1.PodRunning, v1.ConditionFalse)
	default:
		b.report(ctx, pod, v1.PodRunning, v1.ConditionTrue)
	}
}

// place finds a node: the one that a DaemonSet's pod names, else the next one without a NoSchedule taint that has the
// labels asked for.
func (b *boards) place(pod *v1.Pod, nodes []v1.Node) string {
	b.mu.Lock()
	wanted := b.wanted
	b.wanted = ""
	b.mu.Unlock()
	if wanted != "" {
		return wanted
	}
	named := ""
	if a := pod.Spec.Affinity; a != nil && a.NodeAffinity != nil && a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution != nil {
		for _, term := range a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
			for _, field := range term.MatchFields {
				named = field.Values[0]
			}
		}
	}
	for i := range nodes {
		node := nodes[(b.next+i)%len(nodes)]
		fits := named == "" || named == node.Name
		for k, v := range pod.Spec.NodeSelector {
			fits = fits && node.Labels[k] == v
		}
		for _, taint := range node.Spec.Taints {
			fits = fits && taint.Effect == v1.TaintEffectNoExecute
		}
		if fits && !b.isAway(node.Name) {
			b.next++
			return node.Name
		}
	}
	return ""
}

func (b *boards) report(ctx context.Context, pod *v1.Pod, phase v1.PodPhase, ready v1.ConditionStatus) {
	status := pod.Status.DeepCopy()
	status.Phase, status.PodIP, status.PodIPs = phase, "10.1.2.3", []v1.PodIP{{IP: "10.1.2.3"}}
	changed := pod.Status.Phase != phase
	for _, kind := range []v1.PodConditionType{v1.PodReady, v1.ContainersReady} {
		i := slices.IndexFunc(status.Conditions, func(c v1.PodCondition) bool { return c.Type == kind })
		if i < 0 {
			status.Conditions = append(status.Conditions, v1.PodCondition{Type: kind})
			i = len(status.Conditions) - 1
		}
		if status.Conditions[i].Status != ready {
			status.Conditions[i].Status, status.Conditions[i].LastTransitionTime = ready, metav1.Now()
			changed = true
		}
	}
	if changed {
		updated := pod.DeepCopy()
		updated.Status = *status
		_, _ = b.client.CoreV1().Pods(pod.Namespace).UpdateStatus(ctx, updated, metav1.UpdateOptions{})
	}
}

// logBook keeps what the controllers log, so that a test can look for failures.
type logBook struct {
	mu    sync.Mutex
	lines []string
}

func (l *logBook) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelWarn }
func (l *logBook) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s", r.Level, r.Message)
	r.Attrs(func(a slog.Attr) bool { fmt.Fprintf(&b, " %s=%v", a.Key, a.Value); return true })
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, b.String())
	if os.Getenv("CORACLE_TEST_LOG") != "" {
		fmt.Fprintln(os.Stderr, b.String())
	}
	return nil
}
func (l *logBook) WithAttrs([]slog.Attr) slog.Handler { return l }
func (l *logBook) WithGroup(string) slog.Handler      { return l }

func (l *logBook) with(text string) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var found []string
	for _, line := range l.lines {
		if strings.Contains(line, text) {
			found = append(found, line)
		}
	}
	return found
}
