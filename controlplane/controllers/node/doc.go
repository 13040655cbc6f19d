// Package node turns a node's conditions into what the rest of the cluster goes by: taints, pods that aren't ready, and
// events, as upstream's node lifecycle controller does.
//
//   - Ready=False gives the taint node.kubernetes.io/not-ready, Ready=Unknown (the node is away, package away)
//     node.kubernetes.io/unreachable, both with NoSchedule and NoExecute; pressure, network-unavailable and unschedulable
//     give theirs with NoSchedule. What is no longer so is taken off, taints of others stay.
//   - The pods of a node that isn't ready get Ready=False; their other conditions stay as they were last heard. When it is
//     ready again the mark goes from those that nothing else makes unready: a node reports what changed, and nothing of a
//     pod that ran on.
//   - The older labels for operating system and architecture follow the newer ones.
//   - Neither nodes nor pods are deleted here. What the taints do to a pod is its tolerations' matter (upstream's taint
//     eviction, package upstream).
//
// Who is away is not found out here: the hub knows and writes the condition, once per transition. So there are no leases,
// no polling, no zones and no eviction rate; with nothing changing, nothing is read or written.
//
// Writers of pod status must store a node's Ready=True before they store its pods' Ready=True again: pods are marked only
// after the node was read from the API as not ready.
//
// It may import packages away and reconciler, and upstream's packages; package controllers calls it.
package node
