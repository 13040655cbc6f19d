// Package noderecord is what the cluster remembers of a node's identity: its
// public keys, the certificate it was last granted, and whether it was revoked.
//
// A record is a Secret of type coracle.dev/node in the namespace coracle-system.
// It is the authority on who a node is: certificates only lead to it. A node
// record outlives the Node object.
//
// It imports client-go and the contract in controlplane/api/enrollment. join
// writes records; the hub, nodetoken and the tunnel read them through a [Directory].
package noderecord
