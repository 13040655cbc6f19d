package node

import (
	"fmt"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/boards"
	"github.com/coracle-edge/coracle/controlplane/api/features"
)

func (n *Node) conditions(status *runtimeapi.StatusResponse, runtimeErr error) []v1.NodeCondition {
	var out []v1.NodeCondition
	add := func(t v1.NodeConditionType, on bool, reason, message string) {
		c := v1.NodeCondition{Type: t, Status: v1.ConditionFalse, Reason: reason, Message: message,
			LastTransitionTime: metav1.NewTime(n.Now().Truncate(time.Second))}
		if on {
			c.Status = v1.ConditionTrue
		}
		if n.object != nil {
			for _, old := range n.object.Status.Conditions {
				if old.Type != t {
					continue
				}
				if old.Status == c.Status {
					c.LastTransitionTime = old.LastTransitionTime
					if old.Reason == c.Reason && t != v1.NodeReady {
						c.Message = old.Message
					}
				}
			}
		}
		out = append(out, c)
	}
	var short []v1.NodeConditionType
	if n.Pressure != nil {
		short = n.Pressure()
	}
	pressed := func(t v1.NodeConditionType, bad, good, badMessage, goodMessage string) {
		if slices.Contains(short, t) {
			add(t, true, bad, badMessage)
		} else {
			add(t, false, good, goodMessage)
		}
	}
	pressed(v1.NodeMemoryPressure, "KubeletHasInsufficientMemory", "KubeletHasSufficientMemory",
		"kubelet has insufficient memory available", "kubelet has sufficient memory available")
	pressed(v1.NodeDiskPressure, "KubeletHasDiskPressure", "KubeletHasNoDiskPressure",
		"kubelet has disk pressure", "kubelet has no disk pressure")
	pressed(v1.NodePIDPressure, "KubeletHasInsufficientPID", "KubeletHasSufficientPID",
		"kubelet has insufficient PID available", "kubelet has sufficient PID available")
	readings := append(slices.Clone(n.readings), n.memoryLimits)
	if c, has := containerd(status); has {
		readings = append(readings, c)
	}
	if n.More != nil {
		readings = slices.Concat(readings, n.More())
	}
	for _, c := range readings {
		add(v1.NodeConditionType(c.Type), c.Status, c.Reason, c.Message)
	}
	if why := notReady(status, runtimeErr, n.capacity(), n.ShuttingDown != nil && n.ShuttingDown()); why != "" {
		add(v1.NodeReady, false, "KubeletNotReady", why)
	} else {
		add(v1.NodeReady, true, "KubeletReady", "kubelet is posting ready status")
	}
	return out
}

// notReady says why no pod can run, or nothing. That containerd is away doesn't
// make a board unready: Wasm goes on, and a condition says it.
func notReady(status *runtimeapi.StatusResponse, err error, capacity v1.ResourceList, shuttingDown bool) string {
	var why, missing []string
	if err != nil {
		why = append(why, fmt.Sprintf("container runtime is down: %v", err))
	}
	for _, t := range []struct{ condition, message string }{
		{runtimeapi.RuntimeReady, "container runtime not ready"}, {runtimeapi.NetworkReady, "container runtime network not ready"},
	} {
		found := err != nil // it can't say
		for _, c := range status.GetStatus().GetConditions() {
			if c.Type != t.condition {
				continue
			}
			found = true
			if !c.Status {
				why = append(why, fmt.Sprintf("%s: %s=false reason:%s message:%s", t.message, c.Type, c.Reason, c.Message))
			}
		}
		if !found {
			why = append(why, fmt.Sprintf("%s: no %s in its status", t.message, t.condition))
		}
	}
	for _, name := range []v1.ResourceName{v1.ResourceCPU, v1.ResourceMemory, v1.ResourcePods, v1.ResourceEphemeralStorage} {
		if _, has := capacity[name]; !has {
			missing = append(missing, string(name))
		}
	}
	if len(missing) > 0 {
		why = append(why, "missing node capacity for resources: "+strings.Join(missing, ", "))
	}
	if shuttingDown {
		why = append(why, "node is shutting down")
	}
	switch len(why) {
	case 0:
		return ""
	case 1:
		return why[0]
	}
	return "[" + strings.Join(why, ", ") + "]"
}

// ContainerdDown is the condition that containerd is down, see [features.ConditionContainerdDown].
const ContainerdDown = string(features.ConditionContainerdDown)

// containerd is that condition, if the node is to have containerd at all.
func containerd(status *runtimeapi.StatusResponse) (boards.Condition, bool) {
	for _, c := range status.GetStatus().GetConditions() {
		switch {
		case c.Type != conditionOCI:
		case c.Status:
			return boards.Condition{Type: ContainerdDown, Reason: "ContainerdReady"}, true
		case c.Reason != "NoContainerd":
			return boards.Condition{Type: ContainerdDown, Status: true, Reason: c.Reason, Message: "container runtime is down: " + c.Message}, true
		}
	}
	return boards.Condition{}, false
}
