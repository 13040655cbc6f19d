// Package fleethub is the control plane's side of the fleet link. From informers
// it computes what each node should have (the pods bound to it and what they
// reference), brings nodes there by signed orders, and writes what they report
// into the API, as the node that reported it. It holds in memory who is there and
// writes only the transitions. What the messages mean stands in
// docs/fleet-protocol.md.
//
// The protocol is pure and does no I/O: [Peer] is the hub's side of one node. The
// shell around it, [Hub], is a queue of nodes with something to do and a queue of
// things to write, each with a fixed number of workers; both keep the newest per
// key only.
//
// A hub answers nobody before all its informers have synced, and begins by
// raising the epoch durably, so that what an earlier hub said can be told from
// what it says.
//
// It imports client-go and controlplane/api; it knows nothing of what a pod
// means. cmd/controlplane wires it to a broker ([Transport]), to the API and to
// the node records ([Keys]).
package fleethub
