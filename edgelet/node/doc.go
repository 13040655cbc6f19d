// Package node says what this machine is as a Kubernetes Node: labels, capacity,
// conditions, addresses, images, as a kubelet says it, and what kind of board it
// is, as package boards finds it.
//
// It looks every few seconds and reports when something changed that matters;
// times and figures that change by themselves are left out, so an idle node
// says nothing (D2, D8). Liveness is the link's business.
//
// It may import boards. cmd/edgelet runs it; edgelet/pods asks it for capacity,
// labels and addresses.
package node
