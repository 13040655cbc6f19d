package away

import (
	"fmt"

	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/kubernetes/pkg/controller"
)

// Transitions is an event handler for nodes that calls visit with every pod of a node that went away, came back, or was
// deleted. Controllers whose answer depends on awayness enqueue the pod's owner: the pod's own status may not change with
// its node (a pod that was never ready isn't marked), so pod events alone would miss it.
// It adds an index of pods by node to the pods' informer if there is none.
func Transitions(pods cache.SharedIndexInformer, visit func(*v1.Pod)) (cache.ResourceEventHandler, error) {
	if err := controller.AddPodNodeNameIndexer(pods); err != nil {
		return nil, fmt.Errorf("index pods by node: %w", err)
	}
	indexer := pods.GetIndexer()
	each := func(node string) {
		objs, err := indexer.ByIndex(controller.PodNodeNameKeyIndex, node)
		if err != nil {
			return
		}
		for _, obj := range objs {
			if pod, ok := obj.(*v1.Pod); ok {
				visit(pod)
			}
		}
	}
	return cache.ResourceEventHandlerFuncs{
		UpdateFunc: func(old, cur any) {
			was, ok1 := old.(*v1.Node)
			is, ok2 := cur.(*v1.Node)
			if ok1 && ok2 && Node(was) != Node(is) {
				each(is.Name)
			}
		},
		DeleteFunc: func(obj any) {
			if tomb, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = tomb.Obj
			}
			if node, ok := obj.(*v1.Node); ok && Node(node) {
				each(node.Name)
			}
		},
	}, nil
}
