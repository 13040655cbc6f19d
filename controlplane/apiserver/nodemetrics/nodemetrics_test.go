package nodemetrics

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	genericapirequest "k8s.io/apiserver/pkg/endpoints/request"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/metrics/pkg/apis/metrics"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

// boards answer for their nodes.
type boards struct {
	mu      sync.Mutex
	asked   []string
	now     int
	most    int
	delay   time.Duration
	answers map[string]string // else a usage
}

func (b *boards) RoundTrip(r *http.Request) (*http.Response, error) {
	node := r.URL.Hostname()
	b.mu.Lock()
	b.asked = append(b.asked, node)
	b.now++
	b.most = max(b.most, b.now)
	answer, special := b.answers[node]
	b.mu.Unlock()
	defer func() { b.mu.Lock(); b.now--; b.mu.Unlock() }()
	select {
	case <-time.After(b.delay):
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
	if r.URL.Path != fleet.UsagePath || r.URL.Port() != "10250" {
		return nil, fmt.Errorf("asked for %s", r.URL)
	}
	if !special {
		var body bytes.Buffer
		_ = fleet.WriteUsage(&body, &fleet.Usage{UnixMilli: 1e12, WindowMilli: 1500, NanoCores: 250e6, WorkingSet: 64 << 20, Pods: []fleet.PodUsage{
			{Namespace: "default", Name: "app-" + node, UID: "uid-" + node, Containers: []fleet.ContainerUsage{{Name: "main", NanoCores: 5e6, WorkingSet: 1 << 20}}},
			{Namespace: "default", Name: "old-" + node, UID: "of its predecessor", Containers: []fleet.ContainerUsage{{Name: "main"}}}}})
		answer = body.String()
	}
	if answer == "" {
		return nil, errors.New("the node didn't open its tunnel")
	}
	return &http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader(answer))}, nil
}

func node(name string, ready corev1.ConditionStatus, labels ...string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"site": "a"}},
		Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready}}}}
	for i := 0; i+1 < len(labels); i += 2 {
		n.Labels[labels[i]] = labels[i+1]
	}
	return n
}

func TestNodesAreAskedOnceAndNotTooManyAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &boards{delay: time.Second}
		s := NewSource(b, nil)
		var nodes []*corev1.Node
		for i := range 50 {
			nodes = append(nodes, node(fmt.Sprintf("n%02d", i), corev1.ConditionTrue))
		}
		nodes = append(nodes, node("sat", corev1.ConditionTrue, fleet.LabelLinkClass, "satellite"), node("away", corev1.ConditionUnknown), node("notready", corev1.ConditionFalse))
		var both sync.WaitGroup
		for range 2 { // two who ask at the same time
			both.Go(func() {
				if got := s.Of(t.Context(), nodes); len(got) != 52 || got["away"] != nil || got["notready"] == nil {
					t.Errorf("%d answers", len(got))
				}
			})
		}
		both.Wait()
		if len(b.asked) != 52 || b.most > Parallel || b.most < 2 {
			t.Errorf("asked %d times, %d at a time", len(b.asked), b.most)
		}
		ask := func(want int, what string) {
			t.Helper()
			b.asked = nil
			s.Of(t.Context(), nodes)
			if len(b.asked) != want {
				t.Errorf("%s: asked %d nodes, want %d", what, len(b.asked), want)
			}
		}
		ask(0, "at once again")
		time.Sleep(11 * time.Second)
		ask(51, "after the time of a lan")
		time.Sleep(5 * time.Minute)
		ask(52, "after the time of a satellite")
		if time.Sleep(forget + time.Minute); len(s.entries) == 0 {
			t.Fatal("nothing is kept at all")
		}
		s.Of(t.Context(), nil)
		if len(s.entries) != 0 {
			t.Errorf("%d nodes are remembered that nobody asks for", len(s.entries))
		}
	})
}

func TestANodeThatDoesNotAnswerIsLeftOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &boards{answers: map[string]string{"silent": "", "mad": `{"t":1,"w":0}`, "long": `{"t":1,"w":5,"p":[` + strings.Repeat(" ", fleet.MaxUsage)}}
		s := NewSource(b, nil)
		nodes := []*corev1.Node{node("silent", corev1.ConditionTrue), node("mad", corev1.ConditionTrue), node("long", corev1.ConditionTrue), node("well", corev1.ConditionTrue)}
		for range 2 {
			if got := s.Of(t.Context(), nodes); len(got) != 1 || got["well"] == nil {
				t.Errorf("%v", got)
			}
		}
		if len(b.asked) != 4 {
			t.Errorf("asked %q: who fails is left alone for a while", b.asked)
		}
		time.Sleep(backOff + time.Second)
		delete(b.answers, "silent")
		if got := s.Of(t.Context(), nodes); len(got) != 2 {
			t.Errorf("after the back-off: %v", got)
		}
		b.delay = time.Hour
		time.Sleep(time.Minute)
		start := time.Now()
		if got := s.Of(t.Context(), nodes); len(got) != 0 || time.Since(start) > askTimeout+time.Second {
			t.Errorf("%v after %v", got, time.Since(start))
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		s.Of(ctx, nodes)
	})
}

func stores(t *testing.T) (corelisters.NodeLister, corelisters.PodLister) {
	t.Helper()
	nodes := cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{})
	pods := cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc})
	for _, n := range []string{"a", "b", "away"} {
		ready := corev1.ConditionTrue
		if n == "away" {
			ready = corev1.ConditionUnknown
		}
		if err := nodes.Add(node(n, ready, "name", n)); err != nil {
			t.Fatal(err)
		}
		for _, p := range []string{"app-", "old-", "silent-"} {
			if err := pods.Add(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: p + n, UID: types.UID("uid-" + n), Labels: map[string]string{"app": p + n}},
				Spec: corev1.PodSpec{NodeName: n}, Status: corev1.PodStatus{Phase: corev1.PodRunning}}); err != nil {
				t.Fatal(err)
			}
		}
	}
	return corelisters.NewNodeLister(nodes), corelisters.NewPodLister(pods)
}

func TestListsAndGets(t *testing.T) {
	nodeLister, podLister := stores(t)
	b := &boards{}
	s := NewSource(b, nil)
	nodes, pods := &nodeREST{s, nodeLister}, &podREST{s, nodeLister, podLister}
	ctx := genericapirequest.WithNamespace(t.Context(), "default")
	selector := func(text string) *metainternalversion.ListOptions {
		l, err := labels.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		return &metainternalversion.ListOptions{LabelSelector: l}
	}
	listed := func(object any, err error) (out []string) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		switch l := object.(type) {
		case *metrics.PodMetricsList:
			for _, p := range l.Items {
				if len(p.Containers) != 1 || p.Containers[0].Usage.Cpu().MilliValue() != 5 || p.Containers[0].Usage.Memory().Value() != 1<<20 || p.Window.Duration != 1500*time.Millisecond {
					t.Errorf("%+v", p)
				}
				out = append(out, p.Name)
			}
		case *metrics.NodeMetricsList:
			for _, n := range l.Items {
				if n.Usage.Cpu().MilliValue() != 250 || n.Usage.Memory().Value() != 64<<20 {
					t.Errorf("%+v", n)
				}
				out = append(out, n.Name)
			}
		}
		return out
	}
	for want, got := range map[string][]string{
		"a b":         listed(nodes.List(ctx, nil)),
		"b":           listed(nodes.List(ctx, selector("name=b"))),
		"app-a app-b": listed(pods.List(ctx, nil)),
		"app-a":       listed(pods.List(ctx, selector("app=app-a"))),
		"":            listed(pods.List(genericapirequest.WithNamespace(t.Context(), "other"), nil)),
	} {
		if strings.Join(got, " ") != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if _, err := nodes.Get(ctx, "a", nil); err != nil {
		t.Error(err)
	}
	if p, err := pods.Get(ctx, "app-a", nil); err != nil || p.(*metrics.PodMetrics).Labels["app"] != "app-a" {
		t.Errorf("%+v, %v", p, err)
	}
	for _, err := range []error{second(nodes.Get(ctx, "away", nil)), second(nodes.Get(ctx, "none", nil)), second(pods.Get(ctx, "old-a", nil)),
		second(pods.Get(ctx, "app-away", nil)), second(pods.Get(ctx, "none", nil))} {
		if !apierrors.IsNotFound(err) {
			t.Errorf("%v", err)
		}
	}
	// Only the node of the pod that is asked for is asked.
	b.asked = nil
	listed((&podREST{NewSource(b, nil), nodeLister, podLister}).List(ctx, selector("app=app-b")))
	if !slices.Equal(b.asked, []string{"b"}) {
		t.Errorf("asked %q", b.asked)
	}
	list, _ := pods.List(ctx, nil)
	table, err := pods.ConvertToTable(ctx, list, nil)
	if err != nil || len(table.Rows) != 2 || table.Rows[0].Cells[1] != "5m" || table.Rows[0].Cells[2] != "1Mi" {
		t.Errorf("%+v, %v", table, err)
	}
}

func second[T any](_ T, err error) error { return err }
