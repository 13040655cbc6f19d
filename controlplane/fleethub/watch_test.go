package fleethub

import (
	"log/slog"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
)

// After a gap in its watch an informer shows a pod that was replaced by one of the
// same name as an update. The node that had the former must not keep it: there
// would be two of a name, for as long as this hub lives.
func TestAPodReplacedUnseenIsTakenFromItsNode(t *testing.T) {
	pod := func(uid, node string) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web-0", UID: types.UID(uid)}, Spec: corev1.PodSpec{NodeName: node}}
	}
	for _, c := range []struct{ name, to string }{
		{"by one on another node", "board-b"},
		{"by one that isn't bound yet", ""},
		{"by one on the same node", "board-a"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := &Hub{
				c: Config{Now: time.Now}, log: slog.New(slog.DiscardHandler), encoder: newEncoder([]byte("key")),
				nodes: map[string]*node{}, bound: map[string]map[types.NamespacedName]*corev1.Pod{}, users: map[ref]map[string]bool{},
				work:          workqueue.NewTypedDelayingQueue[string](),
				serviceLister: corelisters.NewServiceLister(cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc})),
			}
			defer h.work.ShutDown()
			a, b := h.get("board-a"), h.get("board-b")
			former, latter := pod("former", "board-a"), pod("latter", c.to)
			podHandler{h}.OnAdd(former, true)
			if d := h.compute(a); len(d) != 1 {
				t.Fatalf("board-a should have %v at first", d)
			}
			a.stale = false
			podHandler{h}.OnUpdate(former, latter)
			if _, there := h.compute(a)["former"]; there {
				t.Error("board-a should still have the pod that is no more")
			}
			if !a.stale {
				t.Error("board-a isn't told")
			}
			for _, n := range []*node{a, b} {
				if _, there := h.compute(n)["latter"]; there != (n.name == c.to) {
					t.Errorf("%s has the new pod: %v", n.name, there)
				}
			}
		})
	}
}

// A pod's environment tells of the Services of its namespace that have an address,
// and always of the API's. A node gets those, and hears of one that comes later.
func TestNodesGetTheServicesOfTheirPods(t *testing.T) {
	service := func(namespace, name, ip string) *corev1.Service {
		return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(namespace + "/" + name)}, Spec: corev1.ServiceSpec{ClusterIP: ip}}
	}
	known := cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc})
	h := &Hub{
		c: Config{Now: time.Now}, log: slog.New(slog.DiscardHandler), encoder: newEncoder([]byte("key")),
		nodes: map[string]*node{}, bound: map[string]map[types.NamespacedName]*corev1.Pod{}, users: map[ref]map[string]bool{},
		work: workqueue.NewTypedDelayingQueue[string](), serviceLister: corelisters.NewServiceLister(known),
	}
	defer h.work.ShutDown()
	for _, s := range []*corev1.Service{service("default", "kubernetes", "10.43.0.1"), service("default", "other", "10.43.0.2"),
		service("shop", "web", "10.43.0.3"), service("shop", "headless", "None"), service("shop", "outside", "")} {
		if err := known.Add(s); err != nil {
			t.Fatal(err)
		}
	}
	no := false
	linked := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "a", UID: "a"}, Spec: corev1.PodSpec{NodeName: "linked"}}
	plain := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "b", UID: "b"}, Spec: corev1.PodSpec{NodeName: "plain", EnableServiceLinks: &no}}
	has := func(n *node) []string {
		var uids []string
		for uid := range h.compute(n) {
			uids = append(uids, uid)
		}
		slices.Sort(uids)
		return uids
	}
	empty, a, b := h.get("empty"), h.get("linked"), h.get("plain")
	podHandler{h}.OnAdd(linked, true)
	podHandler{h}.OnAdd(plain, true)
	for _, c := range []struct {
		n    *node
		want []string
	}{
		{empty, nil},
		{a, []string{"a", "default/kubernetes", "shop/web"}},
		{b, []string{"b", "default/kubernetes"}},
	} {
		if got := has(c.n); !slices.Equal(got, c.want) {
			t.Errorf("%s should have %q, want %q", c.n.name, got, c.want)
		}
		c.n.stale = false
	}
	later := service("shop", "later", "10.43.0.4")
	if err := known.Add(later); err != nil {
		t.Fatal(err)
	}
	serviceHandler{h}.OnAdd(later, false)
	if !a.stale || b.stale || empty.stale {
		t.Errorf("told of a new Service: linked %v, plain %v, empty %v", a.stale, b.stale, empty.stale)
	}
	if got := has(a); !slices.Contains(got, "shop/later") {
		t.Errorf("linked should have %q", got)
	}
}
