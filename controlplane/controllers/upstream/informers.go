package upstream

import (
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/informers/admissionregistration"
	"k8s.io/client-go/informers/apps"
	"k8s.io/client-go/informers/autoscaling"
	"k8s.io/client-go/informers/batch"
	"k8s.io/client-go/informers/certificates"
	"k8s.io/client-go/informers/core"
	"k8s.io/client-go/informers/discovery"
	"k8s.io/client-go/informers/internalinterfaces"
	"k8s.io/client-go/informers/networking"
	"k8s.io/client-go/informers/policy"
	"k8s.io/client-go/informers/rbac"
	"k8s.io/client-go/informers/resource"
	"k8s.io/client-go/informers/scheduling"
	"k8s.io/client-go/informers/storage"
	"k8s.io/client-go/tools/cache"
)

// Trim is the transform of typed informers: field managers are no concern of ours and often half of an object.
func Trim(obj any) (any, error) {
	if m, err := meta.Accessor(obj); err == nil && m.GetManagedFields() != nil {
		m.SetManagedFields(nil)
	}
	return obj, nil
}

func selectFields(selector string) func(*metav1.ListOptions) {
	return func(o *metav1.ListOptions) { o.FieldSelector = selector }
}

// handlers remembers event handlers, to take them off, and holds back what they are told until their controller is built.
// Upstream starts informers after all constructors; ours run already, and a constructor that adds a handler before it has
// set what the handler reads (StatefulSet's lister) would be told of pods meanwhile, and end the process.
type handlers struct {
	mu   sync.Mutex
	list []func()

	built chan struct{} // closed when the constructor has returned
	void  bool          // it failed: nobody is there to be told; set before built is closed
}

func newHandlers() *handlers { return &handlers{built: make(chan struct{})} }

// open ends the wait for the constructor. If it failed, its handlers are told nothing.
func (h *handlers) open(err error) {
	h.void = err != nil
	close(h.built)
}

// held is a handler that is told nothing before its controller is built.
type held struct {
	cache.ResourceEventHandler
	handlers *handlers
}

func (l held) ready() bool {
	<-l.handlers.built
	return !l.handlers.void
}

func (l held) OnAdd(obj any, initial bool) {
	if l.ready() {
		l.ResourceEventHandler.OnAdd(obj, initial)
	}
}

func (l held) OnUpdate(old, cur any) {
	if l.ready() {
		l.ResourceEventHandler.OnUpdate(old, cur)
	}
}

func (l held) OnDelete(obj any) {
	if l.ready() {
		l.ResourceEventHandler.OnDelete(obj)
	}
}

func (h *handlers) add(informer cache.SharedIndexInformer, handle cache.ResourceEventHandlerRegistration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.list = append(h.list, func() { _ = informer.RemoveEventHandler(handle) })
}

func (h *handlers) remove() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, off := range h.list {
		off()
	}
	h.list = nil
}

// tracked is a shared factory whose informers remember the handlers added through it. Upstream's controllers never take
// theirs off, for they end with the process.
type tracked struct {
	informers.SharedInformerFactory
	handlers *handlers
}

func (t tracked) InformerFor(obj runtime.Object, new internalinterfaces.NewInformerFunc) cache.SharedIndexInformer {
	return trackedInformer{t.SharedInformerFactory.InformerFor(obj, new), t.handlers}
}

func (t tracked) ForResource(kind schema.GroupVersionResource) (informers.GenericInformer, error) {
	generic, err := t.SharedInformerFactory.ForResource(kind)
	if err != nil {
		return nil, err
	}
	return trackedGeneric{generic, t.handlers}, nil
}

// The groups' accessors are bound to the factory that they are called on, so those in use are bound to this one.
func (t tracked) Admissionregistration() admissionregistration.Interface {
	return admissionregistration.New(t, "", nil)
}
func (t tracked) Apps() apps.Interface                 { return apps.New(t, "", nil) }
func (t tracked) Autoscaling() autoscaling.Interface   { return autoscaling.New(t, "", nil) }
func (t tracked) Batch() batch.Interface               { return batch.New(t, "", nil) }
func (t tracked) Certificates() certificates.Interface { return certificates.New(t, "", nil) }
func (t tracked) Core() core.Interface                 { return core.New(t, "", nil) }
func (t tracked) Discovery() discovery.Interface       { return discovery.New(t, "", nil) }
func (t tracked) Networking() networking.Interface     { return networking.New(t, "", nil) }
func (t tracked) Policy() policy.Interface             { return policy.New(t, "", nil) }
func (t tracked) Rbac() rbac.Interface                 { return rbac.New(t, "", nil) }
func (t tracked) Resource() resource.Interface         { return resource.New(t, "", nil) }
func (t tracked) Scheduling() scheduling.Interface     { return scheduling.New(t, "", nil) }
func (t tracked) Storage() storage.Interface           { return storage.New(t, "", nil) }

type trackedGeneric struct {
	informers.GenericInformer
	handlers *handlers
}

func (t trackedGeneric) Informer() cache.SharedIndexInformer {
	return trackedInformer{t.GenericInformer.Informer(), t.handlers}
}

type trackedInformer struct {
	cache.SharedIndexInformer
	handlers *handlers
}

func (t trackedInformer) AddEventHandler(h cache.ResourceEventHandler) (cache.ResourceEventHandlerRegistration, error) {
	return t.note(t.SharedIndexInformer.AddEventHandler(t.hold(h)))
}

func (t trackedInformer) AddEventHandlerWithResyncPeriod(h cache.ResourceEventHandler, d time.Duration) (cache.ResourceEventHandlerRegistration, error) {
	return t.note(t.SharedIndexInformer.AddEventHandlerWithResyncPeriod(t.hold(h), d))
}

func (t trackedInformer) AddEventHandlerWithOptions(h cache.ResourceEventHandler, o cache.HandlerOptions) (cache.ResourceEventHandlerRegistration, error) {
	return t.note(t.SharedIndexInformer.AddEventHandlerWithOptions(t.hold(h), o))
}

// hold keeps h from being told anything yet, but by an informer of metadata: that one tells its handlers itself, one after
// the other, and must not wait (type kinds).
func (t trackedInformer) hold(h cache.ResourceEventHandler) cache.ResourceEventHandler {
	if _, metadata := t.SharedIndexInformer.(*kind); metadata {
		return h
	}
	return held{h, t.handlers}
}

func (t trackedInformer) note(handle cache.ResourceEventHandlerRegistration, err error) (cache.ResourceEventHandlerRegistration, error) {
	if err == nil {
		t.handlers.add(t.SharedIndexInformer, handle)
	}
	return handle, err
}

// AddIndexers adds those that an earlier run of the controller has not added. Indexes stay.
func (t trackedInformer) AddIndexers(add cache.Indexers) error {
	return addMissing(t.SharedIndexInformer, t.SharedIndexInformer.GetIndexer(), add)
}

func (t trackedInformer) GetIndexer() cache.Indexer {
	return onceIndexer{t.SharedIndexInformer.GetIndexer()}
}

type onceIndexer struct{ cache.Indexer }

func (o onceIndexer) AddIndexers(add cache.Indexers) error {
	return addMissing(o.Indexer, o.Indexer, add)
}

// addMissing adds the indexes that an indexer lacks. Controllers are made at the same time: where another one was
// quicker with an index, what is missing now is added.
func addMissing(to interface{ AddIndexers(cache.Indexers) error }, indexer cache.Indexer, add cache.Indexers) error {
	lacks := missing(indexer, add)
	err := to.AddIndexers(lacks)
	for err != nil {
		now := missing(indexer, add)
		if len(now) == len(lacks) {
			return err
		}
		lacks, err = now, to.AddIndexers(now)
	}
	return nil
}

func missing(indexer cache.Indexer, add cache.Indexers) cache.Indexers {
	have, out := indexer.GetIndexers(), cache.Indexers{}
	for name, index := range add {
		if _, ok := have[name]; !ok {
			out[name] = index
		}
	}
	return out
}

// hot are the kinds that our controllers and the hub hold in full at all times. Garbage collection uses the same
// informers; of all other kinds it watches metadata only.
var hot = []schema.GroupVersionResource{
	gvr("", "v1", "pods"), gvr("", "v1", "nodes"), gvr("", "v1", "services"), gvr("", "v1", "namespaces"), gvr("", "v1", "serviceaccounts"),
	gvr("apps", "v1", "deployments"), gvr("apps", "v1", "replicasets"), gvr("apps", "v1", "daemonsets"), gvr("apps", "v1", "controllerrevisions"),
	gvr("batch", "v1", "jobs"), gvr("discovery.k8s.io", "v1", "endpointslices"), gvr("rbac.authorization.k8s.io", "v1", "clusterroles"),
}

// quotaInFull are the kinds of which quota reads more than metadata.
var quotaInFull = []schema.GroupVersionResource{
	persistentVolumeClaims, resourceClaims,
}

// mixed returns informers by resource: typed ones for the given kinds, else of metadata.
func (k *kit) mixed(inFull ...[]schema.GroupVersionResource) mixed {
	m := mixed{kit: k, inFull: map[schema.GroupVersionResource]bool{}}
	for _, list := range inFull {
		for _, kind := range list {
			m.inFull[kind] = true
		}
	}
	return m
}

type mixed struct {
	kit    *kit
	inFull map[schema.GroupVersionResource]bool
}

func (m mixed) ForResource(kind schema.GroupVersionResource) (informers.GenericInformer, error) {
	if m.inFull[kind] {
		return m.kit.Factory.ForResource(kind)
	}
	return trackedGeneric{m.kit.kinds.of(kind), m.kit.handlers}, nil
}

func (m mixed) Start(<-chan struct{}) { m.kit.startInformers() }
