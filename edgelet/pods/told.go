package pods

import (
	"context"
	"fmt"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// What a kubelet tells of its node and of pods that wait for it, by its reasons and
// in its words (upstream: pkg/kubelet/events/event.go).
const (
	reasonNetwork     = "NetworkNotReady"
	reasonFailedMap   = "FailedMapVolume"
	reasonEnforced    = "NodeAllocatableEnforced"
	reasonNotEnforced = "FailedNodeAllocatableEnforcement"
	reasonCgroupV1    = "CgroupV1"
	reasonResolvConf  = "CheckLimitsForResolvConf"
)

// messageCgroupV1 is upstream's CgroupV1DeprecatedWarning (pkg/kubelet/cm/container_manager.go).
const messageCgroupV1 = "cgroup v1 detected. cgroup v1 support is deprecated and will be removed in a future release. Please migrate to cgroup v2. More information at https://git.k8s.io/enhancements/keps/sig-node/5573-remove-cgroup-v1"

// nodeEvent tells of the node.
func (m *Manager) nodeEvent(eventType, reason, message string) {
	if m.cfg.NodeEvent != nil {
		m.cfg.NodeEvent(eventType, reason, message)
	}
}

// checkNode tells what of the node will be felt by pods, once.
func (m *Manager) checkNode() {
	if m.cgroups.root != "" && !m.cgroups.v2() {
		m.nodeEvent(v1.EventTypeWarning, reasonCgroupV1, messageCgroupV1)
	}
	if why := m.checkResolvConf(); why != "" {
		m.nodeEvent(v1.EventTypeWarning, reasonResolvConf, why)
	}
}

// limited tells whether all pods together are bounded as the node wants.
func (m *Manager) limited(root string, err error) {
	if err != nil {
		m.nodeEvent(v1.EventTypeWarning, reasonNotEnforced, fmt.Sprintf("Failed to update Node Allocatable Limits %q: %v", root, err))
		return
	}
	m.nodeEvent(v1.EventTypeNormal, reasonEnforced, "Updated Node Allocatable limit across pods")
}

// networkMissing says, once a sandbox could not be made, that the node has no network
// for pods yet, in a kubelet's words; empty: it has, or the pod needs none.
func (w *worker) networkMissing(ctx context.Context) string {
	if w.pod.Spec.HostNetwork {
		return ""
	}
	status, err := w.m.runtimeStatus(ctx)
	if err != nil {
		return ""
	}
	for _, c := range status.GetStatus().GetConditions() {
		if c.Type == runtimeapi.NetworkReady && !c.Status {
			return fmt.Sprintf("network is not ready: container runtime network not ready: NetworkReady=false reason:%s message:%s", c.Reason, c.Message)
		}
	}
	return ""
}
