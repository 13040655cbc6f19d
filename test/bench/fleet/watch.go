package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// awayWatch follows the readiness of all nodes as the API tells it.
type awayWatch struct {
	stop func()

	mu    sync.Mutex
	ever  map[string]bool // nodes that weren't ready at some time
	since map[string]change
}

// change of a node's readiness, and when a watcher heard of it.
type change struct {
	to corev1.ConditionStatus
	at time.Time
}

func watchNodes(ctx context.Context, client kubernetes.Interface) (*awayWatch, error) {
	ctx, cancel := context.WithCancel(ctx)
	w := &awayWatch{ever: map[string]bool{}, since: map[string]change{}}
	factory := informers.NewSharedInformerFactory(client, 0)
	informer := factory.Core().V1().Nodes().Informer()
	registered, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { w.see(o.(*corev1.Node)) },
		UpdateFunc: func(_, o any) { w.see(o.(*corev1.Node)) },
	})
	if err != nil {
		cancel()
		return nil, err
	}
	factory.Start(ctx.Done())
	w.stop = func() { cancel(); factory.Shutdown() }
	if !cache.WaitForCacheSync(ctx.Done(), registered.HasSynced) {
		w.stop()
		return nil, fmt.Errorf("nodes can't be watched: %w", ctx.Err())
	}
	return w, nil
}

func (w *awayWatch) see(n *corev1.Node) {
	r := readiness(n)
	w.mu.Lock()
	defer w.mu.Unlock()
	if r != corev1.ConditionTrue {
		w.ever[n.Name] = true
	}
	if w.since[n.Name].to != r {
		w.since[n.Name] = change{r, time.Now()}
	}
}

// reset has count begin anew.
func (w *awayWatch) reset() {
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.ever)
}

// ready is how many nodes are.
func (w *awayWatch) ready() (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.since {
		if c.to == corev1.ConditionTrue {
			n++
		}
	}
	return n
}

// count of the nodes that weren't ready at some time.
func (w *awayWatch) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.ever)
}

// of a node, its readiness and since when.
func (w *awayWatch) of(node string) change {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.since[node]
}

func readiness(n *corev1.Node) corev1.ConditionStatus {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status
		}
	}
	return ""
}
