// Package affinity says which processors and which memory a container has: a
// kubelet's CPU manager (policy static), memory manager (policy Static) and
// topology manager in one room, because each of them asks the others.
//
// A container of a Guaranteed pod that asks for whole processors gets them for
// itself; all others share the rest. What was given is durable before the pod
// starts, and kept through restarts and reboots. A kubelet rewrites the cpusets of
// the others every ten seconds; here nothing runs by time: whoever gives or takes
// back processors has edgelet/pods look, once.
//
// Semantics and messages are those of k8s.io/kubernetes/pkg/kubelet/cm
// (cpumanager, memorymanager, topologymanager), but for one thing: a kubelet
// whose kept state doesn't fit the machine any more exits and wants to be drained.
// A board that lost a processor has nobody to do that. Here what still fits is
// kept, what doesn't is given anew, and a container for which nothing is left runs
// on the shared processors, and says so, until there is.
//
// edgelet/pods asks; edgelet/devices has hints of its own; cmd/edgelet builds a
// [Manager] only if there is something to manage. It imports none of them.
package affinity
