package apiserver

import (
	"reflect"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/registry/generic"
	genericregistry "k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/registry/rest"
	serverstorage "k8s.io/apiserver/pkg/server/storage"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/cacher"
	"k8s.io/apiserver/pkg/storage/etcd3"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	"k8s.io/apiserver/pkg/storage/storagebackend/factory"
	"k8s.io/apiserver/pkg/storage/value/encrypt/identity"
	flowcontrolrequest "k8s.io/apiserver/pkg/util/flowcontrol/request"
	"k8s.io/client-go/tools/cache"
	"k8s.io/kubernetes/pkg/printers"
	printersinternal "k8s.io/kubernetes/pkg/printers/internalversion"
	printerstorage "k8s.io/kubernetes/pkg/printers/storage"

	"github.com/coracle-edge/coracle/controlplane/api/trace"
	"github.com/coracle-edge/coracle/controlplane/datastore"
)

// eventsHistory is how long a watch cache remembers, upstream's default.
const eventsHistory = 75 * time.Second

// cached are the kinds with a watch cache. One costs 13 goroutines and its
// objects a second time; it pays when a kind has several watchers or is listed
// often. All informers of this process are one per kind, so for other kinds a
// watch of etcd is as good.
var cached = map[schema.GroupResource]bool{
	{Resource: "pods"}:                                      true,
	{Resource: "nodes"}:                                     true,
	{Resource: "services"}:                                  true,
	{Resource: "configmaps"}:                                true,
	{Resource: "secrets"}:                                   true,
	{Resource: "serviceaccounts"}:                           true,
	{Resource: "namespaces"}:                                true,
	{Group: "apps", Resource: "deployments"}:                true,
	{Group: "apps", Resource: "replicasets"}:                true,
	{Group: "apps", Resource: "daemonsets"}:                 true,
	{Group: "batch", Resource: "jobs"}:                      true,
	{Group: "discovery.k8s.io", Resource: "endpointslices"}: true,
}

// storageGetter gives every registry the one etcd client, instead of a
// connection each, and the steps of pods to the trace.
type storageGetter struct {
	factory serverstorage.StorageFactory
	store   *datastore.Store
	objects flowcontrolrequest.StorageObjectCountTracker
	trace   *trace.Recorder
}

var _ generic.RESTOptionsGetter = &storageGetter{}

// GetRESTOptions implements generic.RESTOptionsGetter.
func (g *storageGetter) GetRESTOptions(resource schema.GroupResource, example runtime.Object) (generic.RESTOptions, error) {
	config, err := g.factory.NewConfig(resource, example)
	if err != nil {
		return generic.RESTOptions{}, err
	}
	return generic.RESTOptions{
		StorageConfig:             config,
		Decorator:                 g.decorate,
		DeleteCollectionWorkers:   1,
		EnableGarbageCollection:   true,
		ResourcePrefix:            g.factory.ResourcePrefix(resource),
		StorageObjectCountTracker: g.objects,
	}, nil
}

// with returns a getter for another scheme's storages.
func (g *storageGetter) with(factory serverstorage.StorageFactory) *storageGetter {
	copied := *g
	copied.factory = factory
	return &copied
}

func (g *storageGetter) decorate(
	config *storagebackend.ConfigForResource,
	resourcePrefix string,
	keyFunc func(obj runtime.Object) (string, error),
	newFunc, newListFunc func() runtime.Object,
	getAttrs storage.AttrFunc,
	triggers storage.IndexerFuncs,
	indexers *cache.Indexers,
) (storage.Interface, factory.DestroyFunc, error) {
	versioner := storage.APIObjectVersioner{}
	client := g.store.Client()
	if cached[config.GroupResource] {
		client = g.store.ClientWithStream(config.GroupResource.String())
	}
	raw, err := etcd3.New(client, g.store.Compactor(), config.Codec, newFunc, newListFunc, config.Prefix, resourcePrefix,
		config.GroupResource, identity.NewEncryptCheckTransformer(), config.LeaseManagerConfig, etcd3.NewDefaultDecoder(config.Codec, versioner), versioner)
	if err != nil {
		return nil, nil, err
	}
	var out storage.Interface = raw
	destroy := raw.Close
	if cached[config.GroupResource] {
		c, err := cacher.NewCacherFromConfig(cacher.Config{
			Storage:             raw,
			Versioner:           versioner,
			GroupResource:       config.GroupResource,
			EventsHistoryWindow: config.EventsHistoryWindow,
			ResourcePrefix:      resourcePrefix,
			KeyFunc:             keyFunc,
			NewFunc:             newFunc,
			NewListFunc:         newListFunc,
			GetAttrsFunc:        getAttrs,
			IndexerFuncs:        triggers,
			Indexers:            indexers,
			Codec:               config.Codec,
		})
		if err != nil {
			raw.Close()
			return nil, nil, err
		}
		delegator := cacher.NewCacheDelegator(c, raw)
		out = delegator
		destroy = func() {
			delegator.Stop()
			c.Stop()
			raw.Close()
		}
	}
	if g.trace != nil && config.GroupResource == (schema.GroupResource{Resource: "pods"}) {
		out = &tracedStorage{Interface: out, recorder: g.trace}
	}
	// Subresources share a storage and each of them destroys it.
	return out, sync.OnceFunc(destroy), nil
}

// sharePrinters gives all storages one table printer; each is born with one of
// its own that knows every kind.
func sharePrinters() func(rest.Storage) {
	shared := sync.OnceValue(func() rest.TableConvertor {
		return printerstorage.TableConvertor{TableGenerator: printers.NewTableGenerator().With(printersinternal.AddHandlers)}
	})
	return func(s rest.Storage) {
		for _, store := range storesIn(reflect.ValueOf(s), 0) {
			if _, ok := store.TableConvertor.(printerstorage.TableConvertor); ok {
				store.TableConvertor = shared()
			}
		}
	}
}

// storesIn finds the registry stores a REST storage is made of.
func storesIn(v reflect.Value, depth int) []*genericregistry.Store {
	for v.Kind() == reflect.Pointer || v.Kind() == reflect.Interface {
		if v.IsNil() {
			return nil
		}
		if v.CanInterface() {
			if s, ok := v.Interface().(*genericregistry.Store); ok {
				return []*genericregistry.Store{s}
			}
		}
		v = v.Elem()
	}
	if v.Kind() != reflect.Struct || depth > 3 {
		return nil
	}
	var found []*genericregistry.Store
	for i := range v.NumField() {
		if f := v.Type().Field(i); f.Anonymous && f.IsExported() {
			found = append(found, storesIn(v.Field(i), depth+1)...)
		}
	}
	return found
}
