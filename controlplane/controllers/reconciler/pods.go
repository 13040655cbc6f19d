package reconciler

import (
	"maps"
	"reflect"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
)

// PodEvents routes pod events to the key of the object that controls the pod. It is the one place that knows what a
// changed controller reference, a deletion timestamp and an orphan mean for owners of pods; the function fields say what
// the owner does about it. Owner, Orphan, Created, Deleted and Changed must be set.
type PodEvents struct {
	// Owner returns the key of the object that ref names, if it is of the controller's kind, exists, and has ref's UID.
	Owner func(namespace string, ref *metav1.OwnerReference) (key string, ok bool)
	// Orphan is called for a pod without a controller that is new, or whose labels or references changed: objects that
	// select it may want to adopt it.
	Orphan func(pod *v1.Pod)
	// Created is called when a pod of key's object appears.
	Created func(key string, pod *v1.Pod)
	// Deleted is called when a pod of key's object is marked for deletion (gone false) or has gone from the API (true).
	// For a pod that was marked before it went, it is called at least twice.
	Deleted func(key string, pod *v1.Pod, gone bool)
	// Changed is called when a pod of key's object changed, or when it was taken from key's object (cur then has another
	// controller, or none).
	Changed func(key string, old, cur *v1.Pod)
	// Unowned, if set, is called for each event of a pod whose controller doesn't exist or isn't of this kind, or that
	// has no controller.
	Unowned func(pod *v1.Pod)
}

// Handler is the event handler to watch pods with.
func (e PodEvents) Handler() cache.ResourceEventHandler {
	return cache.ResourceEventHandlerFuncs{AddFunc: e.add, UpdateFunc: e.update, DeleteFunc: e.remove}
}

func (e PodEvents) add(obj any) {
	pod, ok := obj.(*v1.Pod)
	if !ok {
		return
	}
	if pod.DeletionTimestamp != nil {
		// After a start of ours a pod can appear that is being deleted already: nobody waits for its creation.
		e.deleted(pod, false)
		return
	}
	ref := metav1.GetControllerOfNoCopy(pod)
	if ref == nil {
		e.unowned(pod)
		e.Orphan(pod)
		return
	}
	if key, ok := e.Owner(pod.Namespace, ref); ok {
		e.Created(key, pod)
	} else {
		e.unowned(pod)
	}
}

func (e PodEvents) update(oldObj, curObj any) {
	old, ok1 := oldObj.(*v1.Pod)
	cur, ok2 := curObj.(*v1.Pod)
	if !ok1 || !ok2 || old.ResourceVersion == cur.ResourceVersion && old.UID == cur.UID && old.ResourceVersion != "" {
		return
	}
	if old.UID != cur.UID {
		// Two events collapsed into one: the old pod went and another of its name came.
		e.deleted(old, true)
		e.add(cur)
		return
	}
	if cur.DeletionTimestamp != nil {
		e.deleted(cur, false)
		return
	}
	oldRef, curRef := metav1.GetControllerOfNoCopy(old), metav1.GetControllerOfNoCopy(cur)
	moved := !reflect.DeepEqual(oldRef, curRef)
	if moved && oldRef != nil {
		if key, ok := e.Owner(old.Namespace, oldRef); ok {
			e.Changed(key, old, cur)
		}
	}
	if curRef == nil {
		e.unowned(cur)
		if moved || !maps.Equal(old.Labels, cur.Labels) {
			e.Orphan(cur)
		}
		return
	}
	if key, ok := e.Owner(cur.Namespace, curRef); ok {
		e.Changed(key, old, cur)
	} else {
		e.unowned(cur)
	}
}

func (e PodEvents) remove(obj any) {
	if tomb, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = tomb.Obj
	}
	if pod, ok := obj.(*v1.Pod); ok {
		e.deleted(pod, true)
	}
}

func (e PodEvents) deleted(pod *v1.Pod, gone bool) {
	ref := metav1.GetControllerOfNoCopy(pod)
	if ref != nil {
		if key, ok := e.Owner(pod.Namespace, ref); ok {
			e.Deleted(key, pod, gone)
			return
		}
	}
	if !gone {
		e.unowned(pod)
	}
}

func (e PodEvents) unowned(pod *v1.Pod) {
	if e.Unowned != nil {
		e.Unowned(pod)
	}
}
