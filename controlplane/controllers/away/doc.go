// Package away holds the one fact in which our controllers differ from upstream's, and the rules that follow from it.
//
// A node is AWAY while its Ready condition is Unknown: the hub has lost its session and nobody can say what happens
// there. A board is away because it is switched off at night, drives through a tunnel or lost its SIM card, and it
// comes back; so away is not failed. What stays true of a pod on such a node is only what was last heard.
//
// The rules, each with its owner:
//
//	pod            Ready is set to False, ContainersReady stays as it was: "last heard ready" is still to be read off
//	               (Standing), and Ready is put back by it when the node returns. Nobody of ours deletes it. Upstream's taint eviction deletes it when its own toleration
//	               of the unreachable taint ends, which by our admission default is never. (node)
//	ReplicaSet     The pod exists: it counts as a replica, not as a ready one, and gets no replacement. Once it is
//	               being deleted (by eviction, scale-down or hand) it is replaced as upstream does. Scale-down takes
//	               pods on away nodes first, as upstream does with every pod that isn't ready. (replicaset)
//	Deployment     For the arithmetic of a rollout a standing pod on an away node is available, because nobody made it
//	               unavailable. A pod of the new revision that never became ready and whose node went away is "not
//	               attempted": it takes no surge slot, the others are rolled out around it, the old pod that it should
//	               replace stays, and no progress deadline runs for it. The status counts as upstream. (deployment)
//	DaemonSet      Away nodes are not attempted: no pod is created, replaced or updated there and none of them counts
//	               against maxUnavailable or maxSurge. They are outside of all numbers of the status, so that a rollout
//	               ends when every node that can be reached has ended; a condition of the status counts them. A pod
//	               that no longer belongs on the node is deleted at once; the node hears of it when it returns. (daemonset)
//	Job            The pod may have finished there, so it is active and no second one is started. Being deleted isn't
//	               being failed: such a pod is counted when its node tells how it ended, or when the Node is
//	               deleted (pod garbage collection then marks it Failed). (job)
//	EndpointSlice  The endpoint stays in its slice, with its node's name, neither ready nor serving, so that nobody else
//	               sends traffic there; its own site decides by nodeName. publishNotReadyAddresses works as ever. (endpointslice)
//	Node           Gets the standard taints, is never deleted. (node)
//
// The package imports no controller and has no state; its callers are the controllers named in brackets.
package away
