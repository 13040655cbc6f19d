// Package connect gives the servers of Kubernetes' streaming protocols, which are
// upstream's (k8s.io/cri-streaming), what runs in Wasm containers: a command, a
// guest's own streams, a port.
//
// crishim/streaming serves them by URL to clients of the CRI, edgelet/streams on
// the node's tunnel. Of cri-streaming it imports the protocols only, not the server
// with its router.
package connect
