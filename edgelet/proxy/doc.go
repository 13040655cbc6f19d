// Package proxy lets pods reach the Kubernetes API by its Service, as clients in
// a cluster do: what they send to the address of default/kubernetes is sent on to
// a control plane that this node knows. It is the kernel that does so, by rules
// of the nat table; nothing listens, and nothing runs while nothing changes.
//
// It needs root and iptables, as the CNI plugins do. cmd/edgelet wires it to
// state (the Service) and identity (the addresses).
package proxy
