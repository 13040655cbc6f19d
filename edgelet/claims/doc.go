// Package claims is the node's half of dynamic resource allocation
// (resource.k8s.io/v1, KEP-4381): it takes the DRA drivers that register through
// the kubelet's plugin folder, has them prepare the claims of a pod before that
// starts and undo it after the last pod that uses them, and says which CDI devices
// each container gets.
//
// What was begun is durable before a driver is asked and goes after the driver has
// undone it, so an agent that died in between leaves nothing. What a driver
// prepared is remembered for this boot of the machine: containers restart without
// the driver and without the control plane. After a reboot it is asked again, about
// the same claims, which the node has.
//
// A driver may hang, die and come back: every call has a deadline and none is made
// with a lock held that another pod's driver would need. Messages are written by
// hand (wire.go); while no driver is registered nothing runs.
//
// Semantics are those of k8s.io/kubernetes/pkg/kubelet/cm/dra. edgelet/pods calls
// it, cmd/edgelet tells the cluster which drivers stay away. It may import
// edgelet/rawcall, edgelet/pluginwatch and edgelet/pods/kubeobj. Lock order: a
// claim's lock, then Manager.mu.
package claims
