// Package restoration settles what a restore of etcd leaves open: nodes that
// belong to the cluster as it was before keep what they run and get no orders,
// until an operator says what is right.
//
// Confirm says that etcd is right: the nodes are adopted with what they have, and
// stop what the cluster doesn't know. Adopt says that the nodes are right: what
// they run and the cluster has forgotten is brought back into the API from what
// they hold, under the UIDs it had, so that nothing restarts; only then are they
// adopted. A node of which one pod can't be brought back is left as it is.
//
// Whoever asks does all of it by their own rights: the objects that a node hands
// back are its word alone, so bringing them back is what creating them is.
//
// It imports client-go, fleethub and the contract in controlplane/api/fleet;
// cmd/controlplane serves its [Service] to `coracle restore`.
package restoration
