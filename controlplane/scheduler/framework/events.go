package framework

import (
	v1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
)

// Kind is what an [Event] is about.
type Kind int

const (
	NodeChanged    Kind = iota + 1 // a node was added (OldNode nil) or changed
	NodeGone                       // a node was deleted (OldNode); spread and affinity may be helped
	PodPlaced                      // a pod was bound to a node, or a bound pod's labels changed
	PodLeft                        // a bound pod ended or was deleted, or asks for less
	PodChanged                     // the waiting pod itself changed
	VolumeEvent                    // a claim, volume or storage class came or changed
	RuntimeClass                   // a runtime class came or changed
	Namespace                      // a namespace's labels changed
	ClaimChanged                   // a resource claim came, changed or went
	ClassChanged                   // a device class came or changed
	DevicesChanged                 // a resource slice came or changed, or what there is of devices became known
)

// Event is a change in the cluster that may make a waiting pod schedulable.
type Event struct {
	Kind    Kind
	OldNode *v1.Node // NodeChanged: nil if the node is new
	Node    *v1.Node
	OldPod  *v1.Pod // PodLeft: nil if the pod is gone altogether
	Pod     *v1.Pod // PodPlaced, PodLeft, PodChanged
	Claim   string  // VolumeEvent: "namespace/name" of a claim, "" if about something else

	OldDevices  *resourceapi.ResourceClaim // ClaimChanged: nil if the claim is new
	Devices     *resourceapi.ResourceClaim // ClaimChanged: nil if the claim is gone
	DeviceClass *resourceapi.DeviceClass   // ClassChanged
}

// NodeMayHelp answers [Requeuer] for a filter whose answer depends on nothing
// but the Node object: an event helps if the filter refused the node as it was
// and takes it as it is. For events not about a node's change it is false.
func NodeMayHelp(pod *Pod, ev Event, filter func(*Pod, *v1.Node) *Status) bool {
	if ev.Kind != NodeChanged {
		return false
	}
	if !filter(pod, ev.Node).OK() {
		return false
	}
	return ev.OldNode == nil || !filter(pod, ev.OldNode).OK()
}
