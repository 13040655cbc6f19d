package fleethub

import (
	"log/slog"
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
				serviceLister: corelisters.NewServiceLister(cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{})),
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
