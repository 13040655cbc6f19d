// Package devices is the kubelet's half of device plugins (v1beta1): it listens
// where plugins register, follows what devices they have, gives them to
// containers, and remembers durably which container has which.
//
// A plugin may hang, die and come back. Every call of one has a deadline, none is
// made with a lock held, and what a container was given once is kept with the
// plugin's answer: after a reboot, without the plugin, without the control plane,
// it gets the same again.
//
// Semantics are those of k8s.io/kubernetes/pkg/kubelet/cm/devicemanager. Which
// NUMA nodes devices are near counts where edgelet/affinity asks for it.
//
// edgelet/pods asks for devices and says when a pod is over; edgelet/node and
// edgelet/podresources ask what there is. It imports none of them.
package devices
