package plugins

import (
	"context"

	v1 "k8s.io/api/core/v1"
	corev1helpers "k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/klog/v2"

	"github.com/coracle-edge/coracle/controlplane/scheduler/framework"
)

// Unschedulable refuses cordoned nodes, unless the pod tolerates the taint that
// stands for the cordon.
type Unschedulable struct{}

func (Unschedulable) Name() string { return "NodeUnschedulable" }

func (Unschedulable) Filter(_ context.Context, pod *framework.Pod, node *framework.NodeInfo) *framework.Status {
	return cordoned(pod, node.Node)
}

func (Unschedulable) MayHelp(pod *framework.Pod, ev framework.Event) bool {
	return ev.Kind == framework.PodChanged || framework.NodeMayHelp(pod, ev, cordoned)
}

func cordoned(pod *framework.Pod, node *v1.Node) *framework.Status {
	if !node.Spec.Unschedulable {
		return nil
	}
	taint := v1.Taint{Key: v1.TaintNodeUnschedulable, Effect: v1.TaintEffectNoSchedule}
	if corev1helpers.TolerationsTolerateTaint(klog.Background(), pod.Spec.Tolerations, &taint, true) {
		return nil
	}
	return framework.Exclude("node(s) were unschedulable")
}
