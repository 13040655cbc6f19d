// Package nodelease serves the Leases of nodes, in the namespace kube-node-lease,
// out of memory. Clients of upstream's expect one per node; stored and renewed
// every ten seconds they would cost etcd 14 MB of writes an hour each (D2).
//
// [REST] stands in front of upstream's storage of Leases: get, list and watch in
// that namespace are answered from a [Source], writes are refused; every other
// namespace is upstream's storage as it is, and a list or watch of all namespaces
// shows both. Nothing is ever written.
//
// It imports upstream's registries and nothing of ours; controlplane/apiserver
// installs it.
package nodelease
