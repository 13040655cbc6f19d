package upstream

import (
	"context"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/tools/cache"
)

// kinds holds one informer of the metadata of each kind that somebody asked for. There are some fifty, nearly all of them
// empty, so they are lighter than client-go's shared informers: event handlers are called one after the other by the
// informer's own goroutine, with no queue of 16 kB and no two goroutines each. So a handler must not block; those of
// garbage collection, quota and the gates put something into a queue or close a channel.
type kinds struct {
	ctx    context.Context
	client metadata.Interface

	mu  sync.Mutex
	all map[schema.GroupVersionResource]*kind
}

func newKinds(ctx context.Context, client metadata.Interface) *kinds {
	return &kinds{ctx: ctx, client: client, all: map[schema.GroupVersionResource]*kind{}}
}

// of returns the informer of a kind and starts it if need be. It runs until kinds' context ends, or the kind is dropped.
func (k *kinds) of(resource schema.GroupVersionResource) *kind {
	k.mu.Lock()
	defer k.mu.Unlock()
	if have, ok := k.all[resource]; ok {
		return have
	}
	made := newKind(k.ctx, k.client, resource, "")
	k.all[resource] = made
	return made
}

// drop ends the informers of kinds that are not served any more. client-go's shared factories would list them in vain for
// ever, after each CustomResourceDefinition that was deleted.
func (k *kinds) drop(served map[schema.GroupVersionResource]bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for resource, have := range k.all {
		if !served[resource] && !have.pinned {
			have.stop()
			delete(k.all, resource)
		}
	}
}

// pin is of, for a kind that is never dropped.
func (k *kinds) pin(resource schema.GroupVersionResource) *kind {
	have := k.of(resource)
	k.mu.Lock()
	have.pinned = true
	k.mu.Unlock()
	return have
}

// kind is an informer of one kind's metadata: a cache.SharedIndexInformer and an informers.GenericInformer.
type kind struct {
	resource   schema.GroupResource
	indexer    cache.Indexer
	controller cache.Controller
	stop       context.CancelFunc
	done       <-chan struct{}
	pinned     bool

	mu       sync.Mutex
	handlers []*kindHandler
}

// kindHandler is one handler's registration; its HasSynced is the informer's.
type kindHandler struct {
	cache.ResourceEventHandler
	of *kind
}

func (h *kindHandler) HasSynced() bool                     { return h.of.controller.HasSynced() }
func (h *kindHandler) HasSyncedChecker() cache.DoneChecker { return h.of.controller.HasSyncedChecker() }

func newKind(ctx context.Context, client metadata.Interface, resource schema.GroupVersionResource, fields string) *kind {
	ctx, stop := context.WithCancel(ctx)
	k := &kind{resource: resource.GroupResource(), stop: stop, done: ctx.Done()}
	objects := client.Resource(resource)
	store, controller := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
			ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
				o.FieldSelector = fields
				return objects.List(ctx, o)
			},
			WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
				o.FieldSelector = fields
				return objects.Watch(ctx, o)
			},
		}, client),
		ObjectType: &metav1.PartialObjectMetadata{},
		Indexers:   cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc},
		Transform:  trimMetadata,
		Handler:    k,
	})
	k.indexer, k.controller = store.(cache.Indexer), controller
	go controller.RunWithContext(ctx) // ends with ctx
	return k
}

// trimMetadata keeps what is read: garbage collection goes by owners, finalizers and UIDs, gates by labels. Annotations
// (kubectl's copy of the whole object among them) go.
func trimMetadata(obj any) (any, error) {
	if m, err := meta.Accessor(obj); err == nil {
		m.SetManagedFields(nil)
		m.SetAnnotations(nil)
	}
	return obj, nil
}

func (k *kind) OnAdd(obj any, initial bool) {
	k.each(func(h cache.ResourceEventHandler) { h.OnAdd(obj, initial) })
}
func (k *kind) OnUpdate(old, cur any) {
	k.each(func(h cache.ResourceEventHandler) { h.OnUpdate(old, cur) })
}
func (k *kind) OnDelete(obj any) { k.each(func(h cache.ResourceEventHandler) { h.OnDelete(obj) }) }

func (k *kind) each(call func(cache.ResourceEventHandler)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, h := range k.handlers {
		call(h.ResourceEventHandler)
	}
}

// AddEventHandler shows the handler what is there, then every change. An object that changes meanwhile may be shown twice.
func (k *kind) AddEventHandler(h cache.ResourceEventHandler) (cache.ResourceEventHandlerRegistration, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	added := &kindHandler{h, k}
	k.handlers = append(k.handlers, added)
	for _, obj := range k.indexer.List() {
		h.OnAdd(obj, true)
	}
	return added, nil
}

func (k *kind) AddEventHandlerWithResyncPeriod(h cache.ResourceEventHandler, _ time.Duration) (cache.ResourceEventHandlerRegistration, error) {
	return k.AddEventHandler(h)
}

func (k *kind) AddEventHandlerWithOptions(h cache.ResourceEventHandler, _ cache.HandlerOptions) (cache.ResourceEventHandlerRegistration, error) {
	return k.AddEventHandler(h)
}

// RemoveEventHandler must not be called by a handler.
func (k *kind) RemoveEventHandler(handle cache.ResourceEventHandlerRegistration) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for i, h := range k.handlers {
		if h == handle {
			k.handlers = append(k.handlers[:i:i], k.handlers[i+1:]...)
			break
		}
	}
	return nil
}

func (k *kind) Informer() cache.SharedIndexInformer { return k }
func (k *kind) Lister() cache.GenericLister         { return cache.NewGenericLister(k.indexer, k.resource) }

func (k *kind) GetStore() cache.Store     { return k.indexer }
func (k *kind) GetIndexer() cache.Indexer { return k.indexer }
func (k *kind) AddIndexers(add cache.Indexers) error {
	return addMissing(k.indexer, k.indexer, add)
}
func (k *kind) GetController() cache.Controller     { return running{k.controller} }
func (k *kind) HasSynced() bool                     { return k.controller.HasSynced() }
func (k *kind) HasSyncedChecker() cache.DoneChecker { return k.controller.HasSyncedChecker() }
func (k *kind) LastSyncResourceVersion() string     { return k.controller.LastSyncResourceVersion() }

func (k *kind) IsStopped() bool {
	select {
	case <-k.done:
		return true
	default:
		return false
	}
}

// running is a controller that runs already: garbage collection and quota run it once more.
type running struct{ cache.Controller }

func (running) Run(<-chan struct{})            {}
func (running) RunWithContext(context.Context) {}

// Run and RunWithContext only wait: the informer has been running since it was made.
func (k *kind) Run(stop <-chan struct{})           { <-stop }
func (k *kind) RunWithContext(ctx context.Context) { <-ctx.Done() }

func (k *kind) SetWatchErrorHandler(cache.WatchErrorHandler) error { return nil }
func (k *kind) SetWatchErrorHandlerWithContext(cache.WatchErrorHandlerWithContext) error {
	return nil
}
func (k *kind) SetTransform(cache.TransformFunc) error { return nil }
