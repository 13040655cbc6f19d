// Package standing owns what the cluster last said of this node: that it is one of
// its own, or why not. It is durable, so that a node that was refused says why
// also after it was started again without a network; its pods go on all the
// while, because to be refused is no order.
//
// A refused node can't be called: nothing dials in. It asks, ever less often, by
// [Keeper.Await].
//
// It imports the contracts in controlplane/api. cmd/edgelet wires it to link
// (which hears it), identity (which asks) and state (which keeps it).
package standing
