// Package podresources tells programs on the node which processors, memory,
// devices and resource claims its pods have: the kubelet's PodResources API (podresources/v1 List, Get
// and GetAllocatableResources, and List of v1alpha1) on its socket, which exporters
// and network plugins such as multus read.
//
// Nobody asks on most boards. So there is a socket and a goroutine that waits; the
// server is made when the first one connects, and messages are written by hand with
// protowire, because generated code costs memory whether or not it is called.
//
// cmd/edgelet runs it. It imports edgelet/affinity, edgelet/claims, edgelet/devices and
// edgelet/rawcall.
package podresources
