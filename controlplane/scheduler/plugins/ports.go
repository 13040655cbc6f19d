package plugins

import (
	"context"

	"github.com/coracle-edge/coracle/controlplane/scheduler/framework"
)

// Ports refuses nodes on which a host port of the pod is in use.
type Ports struct{}

func (Ports) Name() string { return "NodePorts" }

func (p Ports) PrepareFilter(_ context.Context, pod *framework.Pod, _ *framework.Cluster) (framework.Filter, *framework.Status) {
	if len(pod.Ports) == 0 {
		return nil, nil
	}
	return p, nil
}

func (Ports) Filter(_ context.Context, pod *framework.Pod, node *framework.NodeInfo) *framework.Status {
	for _, port := range pod.Ports {
		if node.PortTaken(port) {
			return framework.Refuse("node(s) didn't have free ports for the requested pod ports")
		}
	}
	return nil
}

func (Ports) MayHelp(pod *framework.Pod, ev framework.Event) bool {
	switch ev.Kind {
	case framework.PodLeft:
		return framework.PortsConflict(pod.Ports, framework.NewPod(ev.Pod).Ports)
	case framework.NodeChanged:
		return ev.OldNode == nil
	}
	return false
}
