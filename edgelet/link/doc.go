// Package link is the node's side of the fleet link: one MQTT session to the hub,
// through which the desired set comes in and reports and journal go out. What the
// messages mean stands in docs/fleet-protocol.md.
//
// The protocol itself is pure and does no I/O: [Decide] says what becomes of an
// order, [Machine] runs a session. [Link] is the shell around them: it connects,
// verifies, stores through edgelet/state, fetches large objects, signs and sends.
//
// What it promises: an order is durable before it is acknowledged; an older
// order, or one of another incarnation of the cluster, is never carried out;
// nothing is taken away except by a hub that has synced; a report is sent until
// it was answered for, and no message handler ever blocks.
//
// It imports controlplane/api and edgelet/state; cmd/edgelet runs it. It knows
// nothing of pods.
package link
