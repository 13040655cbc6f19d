package upstream

import (
	"context"
	"fmt"
	"sync"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/cache"

	discovery "k8s.io/api/discovery/v1"
)

var (
	persistentVolumes      = gvr("", "v1", "persistentvolumes")
	persistentVolumeClaims = gvr("", "v1", "persistentvolumeclaims")
	resourceClaims         = gvr("resource.k8s.io", "v1", "resourceclaims")
	signingRequests        = gvr("certificates.k8s.io", "v1", "certificatesigningrequests")
)

// gate opens when its informer shows an object that passes. It stays open: whoever had one autoscaler will have another.
type gate struct {
	informer func(ctx context.Context) cache.SharedIndexInformer
	pass     func(obj any) bool
}

// await returns when one of the gates has opened, or ctx has ended. No gates are open ones.
func (s *Set) await(ctx context.Context, gates []gate) error {
	if len(gates) == 0 {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	open := make(chan struct{})
	var once sync.Once
	look := func(g gate) func(any) {
		return func(obj any) {
			if g.pass == nil || g.pass(obj) {
				once.Do(func() { close(open) })
			}
		}
	}
	for _, g := range gates {
		informer := g.informer(ctx)
		handle, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc:    look(g),
			UpdateFunc: func(_, cur any) { look(g)(cur) },
		})
		if err != nil {
			return fmt.Errorf("wait for the first object: %w", err)
		}
		defer informer.RemoveEventHandler(handle)
	}
	s.startInformers()
	select {
	case <-open:
	case <-ctx.Done():
	}
	return nil
}

// anyOf waits for any object of the kinds, by the metadata that garbage collection watches anyway.
func (s *Set) anyOf(kinds ...schema.GroupVersionResource) []gate {
	var gates []gate
	for _, kind := range kinds {
		gates = append(gates, s.anyMatching(kind, nil)...)
	}
	return gates
}

// anyMatching waits for an object whose metadata passes.
func (s *Set) anyMatching(kind schema.GroupVersionResource, pass func(metav1.Object) bool) []gate {
	g := gate{informer: func(context.Context) cache.SharedIndexInformer { return s.kinds.pin(kind) }}
	if pass != nil {
		g.pass = func(obj any) bool {
			m, err := meta.Accessor(obj)
			return err == nil && pass(m)
		}
	}
	return []gate{g}
}

func (s *Set) anyPod(pass func(*v1.Pod) bool) []gate {
	return []gate{{
		informer: func(context.Context) cache.SharedIndexInformer { return s.deps.Factory.Core().V1().Pods().Informer() },
		pass:     func(obj any) bool { pod, ok := obj.(*v1.Pod); return ok && pass(pod) },
	}}
}

// anyClaim waits for a claim, held in full: not to be asked for before there is one.
func (s *Set) anyClaim(pass func(*v1.PersistentVolumeClaim) bool) []gate {
	return []gate{{
		informer: func(context.Context) cache.SharedIndexInformer {
			return s.deps.Factory.Core().V1().PersistentVolumeClaims().Informer()
		},
		pass: func(obj any) bool { claim, ok := obj.(*v1.PersistentVolumeClaim); return ok && pass(claim) },
	}}
}

func (s *Set) anyService(pass func(*v1.Service) bool) []gate {
	return []gate{{
		informer: func(context.Context) cache.SharedIndexInformer {
			return s.deps.Factory.Core().V1().Services().Informer()
		},
		pass: func(obj any) bool { svc, ok := obj.(*v1.Service); return ok && pass(svc) },
	}}
}

// anyTokenSecret waits for a Secret of type kubernetes.io/service-account-token.
func (s *Set) anyTokenSecret() []gate {
	return []gate{{informer: func(ctx context.Context) cache.SharedIndexInformer {
		return newKind(ctx, s.kinds.client, gvr("", "v1", "secrets"), tokenSecrets) // ends with the wait
	}}}
}

// selecting reports whether a Service has a selector, so that somebody has to write its endpoints.
func selecting(svc *v1.Service) bool { return len(svc.Spec.Selector) > 0 }

// handMade reports whether Endpoints may have to be mirrored: they are neither of upstream's endpoints controller nor
// marked not to be, as those of Service kubernetes are.
func handMade(m metav1.Object) bool {
	labels := m.GetLabels()
	if labels[discovery.LabelSkipMirror] == "true" || labels["endpoints.kubernetes.io/managed-by"] != "" {
		return false
	}
	return true
}
