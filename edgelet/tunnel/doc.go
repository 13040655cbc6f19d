// Package tunnel lets the control plane in: on a request that came over the
// fleet link it dials the fleet endpoint, upgrades to a byte stream, and serves
// the kubelet's HTTP API on it, and nowhere else. Nothing ever listens.
//
// On the stream it is the server of a second TLS session, with the node's own
// certificate; the client must be the API server. So whoever runs what is in
// between sees nothing.
//
// It imports identity, logs, state and the contracts in controlplane/api. link
// calls [Tunnels.Request]; what runs on the node it asks of [Pods].
package tunnel
