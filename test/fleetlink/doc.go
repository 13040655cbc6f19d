// Package fleetlink tests the fleet link as a whole: the real hub, the real link
// and state of a node, real brokers over TLS, with a fake API behind the hub.
// Here controlplane and edgelet meet, which they never do in production code.
package fleetlink
