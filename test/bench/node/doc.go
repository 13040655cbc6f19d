// Command node puts our node beside upstream's, kubelet and kube-proxy, each with
// the same containerd and each with an API server of its own, one after the other in
// the same run: what their processes take of memory idle, after light work and with
// pods; processor time idle and with probes; create to Running; what goes to the disk.
//
// All of it happens in a network and a mount namespace of its own, and each node's
// processes are in cgroups of their own: agent, runtime (containerd with its shims)
// and pods. So nothing is counted twice or left out, and kernel memory is known.
package main
