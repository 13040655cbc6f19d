// Package replicaset keeps as many pods of a ReplicaSet as its spec says, with upstream's rules, events and conditions.
//
// A pod on a node that is away is a replica like any other, only not a ready one: it exists, it probably runs, and it is
// not replaced (package away). It is replaced as soon as it is being deleted: because its own toleration of the
// unreachable taint ended (taint eviction deletes it), because the set is scaled down (pods that aren't ready go first,
// these among them), or by hand. So replacement needs somebody's word; absence of news is none.
//
// It may import package reconciler, package away and upstream's pkg/controller helpers; package controllers calls it.
package replicaset
