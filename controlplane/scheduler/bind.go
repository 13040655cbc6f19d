package scheduler

import (
	"context"
	"fmt"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-edge/coracle/controlplane/scheduler/framework"
	"github.com/coracle-edge/coracle/controlplane/scheduler/queue"
)

// bind tells the API server where an assumed pod goes. It holds one slot, which
// is given back while a plugin waits for something slow, such as a volume.
func (s *Scheduler) bind(ctx context.Context, it *queue.Item, node string) {
	held := true
	free := func() {
		if held {
			<-s.slots
			held = false
		}
	}
	defer free()
	// What is still to be said about an earlier failure must not overtake the binding.
	s.reporter.settle(it.UID)
	for _, r := range s.reserve {
		if w, ok := r.(interface{ Waits(*framework.Pod) bool }); ok && w.Waits(it.Pod) {
			free()
		}
		if err := r.PreBind(ctx, it.Pod, node); err != nil {
			s.unbound(ctx, it, node, fmt.Errorf("before binding pod %s to node %s: %w", it.Key(), node, err))
			return
		}
	}
	err := s.client.CoreV1().Pods(it.Namespace).Bind(ctx, &v1.Binding{
		// The UID is a precondition: never bind a new pod of the same name.
		ObjectMeta: metav1.ObjectMeta{Namespace: it.Namespace, Name: it.Name, UID: it.UID},
		Target:     v1.ObjectReference{Kind: "Node", Name: node},
	}, metav1.CreateOptions{})
	if err != nil {
		s.unbound(ctx, it, node, fmt.Errorf("binding pod %s to node %s: %w", it.Key(), node, err))
		return
	}
	s.cache.Bound(it.UID)
	for _, r := range s.reserve {
		if b, ok := r.(framework.PostBinder); ok {
			b.PostBind(it.Pod)
		}
	}
	s.queue.Done(it)
	s.reporter.scheduled(it.Pod.Pod, node)
}

func (s *Scheduler) unbound(ctx context.Context, it *queue.Item, node string, err error) {
	s.release(ctx, it.Pod, node)
	if s.cache.Forget(it.UID) {
		// Its room is free again; others may have been refused for it.
		s.queue.Happened(framework.Event{Kind: framework.PodLeft, Pod: it.Pod.Pod})
	}
	switch {
	case ctx.Err() != nil || apierrors.IsNotFound(err):
		s.queue.Done(it)
	default:
		s.failed(it, err)
	}
}
