package upstream

import (
	"context"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/cache"
)

// settle is for how long after the last change of a CustomResourceDefinition or an APIService discovery is asked anew each
// time: a new kind is served some time after its definition was stored.
const settle = 45 * time.Second

// resources is which kinds the API serves, remembered for as long as no definition of a kind changes. Upstream asks twice
// every 30 s; an answer is 100 kB of JSON.
type resources struct {
	discovery.DiscoveryInterface
	mapper *restmapper.DeferredDiscoveryRESTMapper
	now    func() time.Time
	// served is told all preferred kinds whenever discovery was asked and answered in full.
	served func(map[schema.GroupVersionResource]bool)

	mu         sync.Mutex
	until      time.Time // not remembered before
	preferred  []*metav1.APIResourceList
	namespaced []*metav1.APIResourceList
}

func newResources(client discovery.DiscoveryInterface, served func(map[schema.GroupVersionResource]bool)) *resources {
	return &resources{
		DiscoveryInterface: client,
		mapper:             restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(client)),
		now:                time.Now,
		served:             served,
	}
}

// ServerPreferredResources is discovery's, out of memory if that is not older than the last change.
func (r *resources) ServerPreferredResources() ([]*metav1.APIResourceList, error) {
	return r.remember(&r.preferred, func() ([]*metav1.APIResourceList, error) {
		lists, err := r.DiscoveryInterface.ServerPreferredResources()
		if err == nil && len(lists) > 0 {
			if all, err := discovery.GroupVersionResources(lists); err == nil {
				served := make(map[schema.GroupVersionResource]bool, len(all))
				for kind := range all {
					served[kind] = true
				}
				r.served(served)
			}
		}
		return lists, err
	})
}

// ServerPreferredNamespacedResources is discovery's, out of memory if that is not older than the last change.
func (r *resources) ServerPreferredNamespacedResources() ([]*metav1.APIResourceList, error) {
	return r.remember(&r.namespaced, r.DiscoveryInterface.ServerPreferredNamespacedResources)
}

func (r *resources) remember(kept *[]*metav1.APIResourceList, ask func() ([]*metav1.APIResourceList, error)) ([]*metav1.APIResourceList, error) {
	r.mu.Lock()
	if *kept != nil {
		defer r.mu.Unlock()
		return *kept, nil
	}
	asked := r.now()
	r.mu.Unlock()
	lists, err := ask()
	if err != nil || len(lists) == 0 {
		return lists, err // an aggregated API that doesn't answer: ask again
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if asked.After(r.until) {
		*kept = lists
	}
	return lists, nil
}

func (r *resources) changed() {
	r.mu.Lock()
	r.until = r.now().Add(settle)
	r.preferred, r.namespaced = nil, nil
	r.mu.Unlock()
	r.mapper.Reset()
}

// watch forgets what is remembered when a definition of kinds changes. It returns after ctx ended.
func (r *resources) watch(ctx context.Context, s *Set) error {
	for _, kind := range []schema.GroupVersionResource{
		gvr("apiextensions.k8s.io", "v1", "customresourcedefinitions"), gvr("apiregistration.k8s.io", "v1", "apiservices"),
	} {
		informer := s.kinds.pin(kind)
		handle, err := informer.AddEventHandler(cache.ResourceEventHandlerDetailedFuncs{
			AddFunc: func(_ any, initial bool) {
				if !initial { // the first list, or what was there when this began
					r.changed()
				}
			},
			UpdateFunc: func(_, _ any) { r.changed() },
			DeleteFunc: func(any) { r.changed() },
		})
		if err != nil {
			return err
		}
		defer informer.RemoveEventHandler(handle)
	}
	// What was remembered before the watch began may be older than it.
	r.changed()
	<-ctx.Done()
	return nil
}
