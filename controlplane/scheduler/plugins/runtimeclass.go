package plugins

import (
	"context"
	"fmt"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	nodelisters "k8s.io/client-go/listers/node/v1"

	"github.com/coracle-edge/coracle/controlplane/scheduler/framework"
)

// RuntimeClass refuses nodes that list their runtime handlers in
// status.runtimeHandlers without the one of the pod's RuntimeClass. A node that
// lists none is given the benefit of the doubt, since older agents don't; and a
// handler that no node of the cluster lists, which isn't ours, is left to the
// nodes, as upstream's scheduler leaves all of them: handlers may be unlisted. The
// node selector and tolerations of a RuntimeClass are put into the pod by
// admission and not looked at here.
type RuntimeClass struct {
	Classes nodelisters.RuntimeClassLister
}

func (*RuntimeClass) Name() string { return "RuntimeClass" }

func (r *RuntimeClass) PrepareFilter(_ context.Context, pod *framework.Pod, cluster *framework.Cluster) (framework.Filter, *framework.Status) {
	if pod.Spec.RuntimeClassName == nil || *pod.Spec.RuntimeClassName == "" {
		return nil, nil
	}
	name := *pod.Spec.RuntimeClassName
	class, err := r.Classes.Get(name)
	if apierrors.IsNotFound(err) {
		return nil, framework.Exclude(fmt.Sprintf("runtimeclass %q not found", name))
	}
	if err != nil {
		return nil, framework.Fail(fmt.Errorf("runtimeclass %q: %w", name, err))
	}
	if cluster != nil && class.Handler != handlerWasm && !listed(cluster, class.Handler) {
		return nil, nil
	}
	return handler(class.Handler), nil
}

// handlerWasm is the handler that this project's nodes list if they have it.
const handlerWasm = "wasm"

func listed(cluster *framework.Cluster, name string) bool {
	for _, n := range cluster.Nodes {
		for i := range n.Node.Status.RuntimeHandlers {
			if n.Node.Status.RuntimeHandlers[i].Name == name {
				return true
			}
		}
	}
	return false
}

func (r *RuntimeClass) Filter(ctx context.Context, pod *framework.Pod, node *framework.NodeInfo) *framework.Status {
	f, status := r.PrepareFilter(ctx, pod, nil)
	if status != nil || f == nil {
		return status
	}
	return f.Filter(ctx, pod, node)
}

func (r *RuntimeClass) MayHelp(pod *framework.Pod, ev framework.Event) bool {
	if ev.Kind == framework.RuntimeClass {
		return true
	}
	return framework.NodeMayHelp(pod, ev, func(pod *framework.Pod, node *v1.Node) *framework.Status {
		f, status := r.PrepareFilter(context.Background(), pod, nil)
		if status != nil || f == nil {
			return status
		}
		return f.(handler).on(node)
	})
}

type handler string

func (handler) Name() string { return (*RuntimeClass)(nil).Name() }

func (h handler) Filter(_ context.Context, _ *framework.Pod, node *framework.NodeInfo) *framework.Status {
	return h.on(node.Node)
}

func (h handler) on(node *v1.Node) *framework.Status {
	if len(node.Status.RuntimeHandlers) == 0 {
		return nil
	}
	for i := range node.Status.RuntimeHandlers {
		if node.Status.RuntimeHandlers[i].Name == string(h) {
			return nil
		}
	}
	return framework.Exclude(fmt.Sprintf("node(s) didn't have runtime handler %q", string(h)))
}
