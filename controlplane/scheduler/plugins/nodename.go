package plugins

import (
	"context"

	v1 "k8s.io/api/core/v1"

	"github.com/coracle-edge/coracle/controlplane/scheduler/framework"
)

// NodeName refuses all nodes but the one a pod names. (A pod that names one is
// bound already; this one asks in hypothetical cycles.)
type NodeName struct{}

func (NodeName) Name() string { return "NodeName" }

func (NodeName) Filter(_ context.Context, pod *framework.Pod, node *framework.NodeInfo) *framework.Status {
	return onNodeName(pod, node.Node)
}

func (NodeName) MayHelp(pod *framework.Pod, ev framework.Event) bool {
	return framework.NodeMayHelp(pod, ev, onNodeName)
}

func onNodeName(pod *framework.Pod, node *v1.Node) *framework.Status {
	if pod.Spec.NodeName == "" || pod.Spec.NodeName == node.Name {
		return nil
	}
	return framework.Exclude("node(s) didn't match the requested node name")
}
