package away

import (
	v1 "k8s.io/api/core/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
)

// Node reports whether a node is away: its Ready condition is Unknown. A node that reports itself as not ready (False)
// is there, and one that has never reported (no Ready condition) has not come yet; neither is away.
func Node(node *v1.Node) bool {
	for i := range node.Status.Conditions {
		if c := &node.Status.Conditions[i]; c.Type == v1.NodeReady {
			return c.Status == v1.ConditionUnknown
		}
	}
	return false
}

// Standing reports whether a pod was ready when it was last heard of. Marking the pods of an away node touches only the
// Ready condition, so ContainersReady tells, and so do the readiness gates.
func Standing(pod *v1.Pod) bool {
	if pod.DeletionTimestamp != nil || pod.Status.Phase != v1.PodRunning {
		return false
	}
	if !conditionTrue(pod, v1.ContainersReady) {
		return false
	}
	for _, gate := range pod.Spec.ReadinessGates {
		if !conditionTrue(pod, gate.ConditionType) {
			return false
		}
	}
	return true
}

func conditionTrue(pod *v1.Pod, kind v1.PodConditionType) bool {
	for i := range pod.Status.Conditions {
		if c := &pod.Status.Conditions[i]; c.Type == kind {
			return c.Status == v1.ConditionTrue
		}
	}
	return false
}

// Nodes answers from a node lister. The zero value knows no node, and nothing is away.
type Nodes struct {
	Lister corelisters.NodeLister
}

// Has reports whether the named node exists and is away. A node that doesn't exist is not away: nobody will come back.
func (n Nodes) Has(name string) bool {
	if name == "" || n.Lister == nil {
		return false
	}
	node, err := n.Lister.Get(name)
	return err == nil && Node(node)
}

// HasPod reports whether the pod is bound to a node that is away.
func (n Nodes) HasPod(pod *v1.Pod) bool { return n.Has(pod.Spec.NodeName) }
