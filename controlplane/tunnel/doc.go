// Package tunnel gives the API server connections to nodes that nobody can dial.
//
// To dial a node is to ask it, over the fleet link, to dial us: the hub sends a
// request with a random id, the node opens HTTPS to the fleet endpoint and
// upgrades to /v1/tunnel/ID, and the bytes of that stream are the connection
// that the dialer was asked for. Inside it, the API server speaks TLS with the
// node's certificate, as with any kubelet.
//
// It imports the contract in controlplane/api/enrollment. The API server's
// kubelet client is given [Tunnels.DialContext]; join hands streams to
// [Tunnels.ServeTunnel]; the hub is the [Asker].
package tunnel
