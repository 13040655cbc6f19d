package scheduler

import (
	"context"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	clientcache "k8s.io/client-go/tools/cache"

	"github.com/coracle-edge/coracle/controlplane/scheduler/framework"
)

type listener struct {
	informer func() clientcache.SharedIndexInformer
	handler  clientcache.ResourceEventHandler
}

// listeners are the informers that the scheduler listens to itself.
func (s *Scheduler) listeners() []listener {
	core, storage, node := s.factory.Core().V1(), s.factory.Storage().V1(), s.factory.Node().V1()
	return []listener{
		// Nodes first: pods on them find their place, though any order works.
		{core.Nodes().Informer, handlers(s.onNode)},
		{core.Pods().Informer, handlers(s.onPod)},
		{core.Namespaces().Informer, handlers(s.onNamespace)},
		{core.PersistentVolumes().Informer, s.always(framework.Event{Kind: framework.VolumeEvent})},
		{core.PersistentVolumeClaims().Informer, handlers(s.onClaim)},
		{storage.StorageClasses().Informer, s.always(framework.Event{Kind: framework.VolumeEvent})},
		{storage.CSINodes().Informer, s.always(framework.Event{Kind: framework.VolumeEvent})},
		{storage.CSIDrivers().Informer, s.always(framework.Event{Kind: framework.VolumeEvent})},
		{storage.CSIStorageCapacities().Informer, s.always(framework.Event{Kind: framework.VolumeEvent})},
		{node.RuntimeClasses().Informer, s.always(framework.Event{Kind: framework.RuntimeClass})},
	}
}

// listen adds the handlers and waits until each has seen all that exists. stop
// removes them.
func (s *Scheduler) listen(ctx context.Context) (stop func(), err error) {
	var undo []func()
	stop = func() {
		for _, f := range undo {
			f()
		}
	}
	var synced []clientcache.InformerSynced
	for _, w := range s.listeners() {
		informer := w.informer()
		registration, err := informer.AddEventHandler(w.handler)
		if err != nil {
			return stop, err
		}
		undo = append(undo, func() { _ = informer.RemoveEventHandler(registration) })
		synced = append(synced, registration.HasSynced)
	}
	// Only looked up, by preemption.
	synced = append(synced, s.factory.Policy().V1().PodDisruptionBudgets().Informer().HasSynced)
	if !clientcache.WaitForCacheSync(ctx.Done(), synced...) {
		return stop, ErrNotSynced
	}
	for _, f := range s.filters {
		if w, ok := f.(framework.Watcher); ok {
			undo = append(undo, w.Watch(ctx, func() { s.factory.StartWithContext(ctx) }, s.queue.Happened))
		}
	}
	return stop, nil
}

// handlers calls f with the object before and after; nil stands for absent.
func handlers[T any](f func(before, after T)) clientcache.ResourceEventHandler {
	var none T
	return clientcache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { f(none, o.(T)) },
		UpdateFunc: func(a, b any) { f(a.(T), b.(T)) },
		DeleteFunc: func(o any) {
			if gone, ok := o.(clientcache.DeletedFinalStateUnknown); ok {
				o = gone.Obj
			}
			if t, ok := o.(T); ok {
				f(t, none)
			}
		},
	}
}

// always passes on that something came or changed, whatever it is.
func (s *Scheduler) always(ev framework.Event) clientcache.ResourceEventHandler {
	return clientcache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { s.queue.Happened(ev) },
		UpdateFunc: func(any, any) { s.queue.Happened(ev) },
	}
}

func (s *Scheduler) onNode(before, after *v1.Node) {
	if after == nil {
		s.cache.RemoveNode(before.Name)
		s.queue.Happened(framework.Event{Kind: framework.NodeGone, OldNode: before})
		return
	}
	s.cache.SetNode(after)
	if before == nil || nodeMatters(before, after) {
		s.queue.Happened(framework.Event{Kind: framework.NodeChanged, OldNode: before, Node: after})
	}
}

// nodeMatters says whether anything changed that a filter looks at: most
// updates of a node are about its conditions and images.
func nodeMatters(a, b *v1.Node) bool {
	same := equality.Semantic.DeepEqual
	return a.UID != b.UID || !same(a.Labels, b.Labels) || !same(a.Spec, b.Spec) ||
		!same(a.Status.Allocatable, b.Status.Allocatable) ||
		!same(a.Status.RuntimeHandlers, b.Status.RuntimeHandlers) ||
		!same(a.Status.DeclaredFeatures, b.Status.DeclaredFeatures)
}

func (s *Scheduler) onPod(before, after *v1.Pod) {
	if before != nil && after != nil && before.UID != after.UID {
		// The informer saw neither the deletion nor the creation.
		s.onPod(before, nil)
		s.onPod(nil, after)
		return
	}
	switch {
	case after == nil:
		s.podGone(before)
	case onNode(after):
		s.podPlaced(before, after)
	case ended(after):
		s.podGone(after)
	case after.Spec.SchedulerName == s.opts.Name:
		s.podWaits(before, after)
	}
}

func (s *Scheduler) podWaits(before, after *v1.Pod) {
	if after.DeletionTimestamp != nil {
		s.queue.Delete(after.UID)
		s.nominated.remove(after.UID)
		return
	}
	if before == nil && after.Status.NominatedNodeName != "" {
		// Room was being made for it before the scheduler started.
		s.nominated.set(framework.NewPod(after), after.Status.NominatedNodeName)
	}
	changed := before == nil || !equality.Semantic.DeepEqual(before.Spec, after.Spec) ||
		!equality.Semantic.DeepEqual(before.Labels, after.Labels) ||
		// The claims of its templates were made.
		!equality.Semantic.DeepEqual(before.Status.ResourceClaimStatuses, after.Status.ResourceClaimStatuses)
	s.queue.Add(after, changed)
}

func (s *Scheduler) podPlaced(before, after *v1.Pod) {
	s.cache.SetPod(after)
	if before == nil || !onNode(before) {
		s.queue.Delete(after.UID)
		s.nominated.remove(after.UID)
		s.reporter.forget(after.UID)
		s.queue.Happened(framework.Event{Kind: framework.PodPlaced, Pod: after})
		return
	}
	same := equality.Semantic.DeepEqual
	if !same(before.Labels, after.Labels) {
		s.queue.Happened(framework.Event{Kind: framework.PodPlaced, OldPod: before, Pod: after})
	}
	if before.Generation != after.Generation || !same(before.Status.ContainerStatuses, after.Status.ContainerStatuses) {
		// It may have been resized.
		s.queue.Happened(framework.Event{Kind: framework.PodLeft, OldPod: before, Pod: after})
	}
}

func (s *Scheduler) podGone(pod *v1.Pod) {
	room := s.cache.Assigned(pod.UID)
	s.cache.RemovePod(pod.UID)
	s.queue.Delete(pod.UID)
	s.reporter.forget(pod.UID)
	if s.nominated.remove(pod.UID) || room {
		s.queue.Happened(framework.Event{Kind: framework.PodLeft, Pod: pod})
	}
}

func (s *Scheduler) onClaim(before, after *v1.PersistentVolumeClaim) {
	if after != nil {
		s.queue.Happened(framework.Event{Kind: framework.VolumeEvent, Claim: after.Namespace + "/" + after.Name})
	}
}

func (s *Scheduler) onNamespace(before, after *v1.Namespace) {
	if after != nil && (before == nil || !equality.Semantic.DeepEqual(before.Labels, after.Labels)) {
		s.queue.Happened(framework.Event{Kind: framework.Namespace})
	}
}

func onNode(pod *v1.Pod) bool { return pod.Spec.NodeName != "" && !ended(pod) }

func ended(pod *v1.Pod) bool {
	return pod.Status.Phase == v1.PodSucceeded || pod.Status.Phase == v1.PodFailed
}
