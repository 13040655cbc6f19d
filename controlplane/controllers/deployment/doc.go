// Package deployment rolls Deployments out over ReplicaSets: rolling update, recreate, pause, rollback, proportional
// scaling, revision history, progress deadline. Rules, names, annotations, events and conditions are upstream's, so that
// kubectl rollout, describe and whatever else reads them work unchanged; upstream's deployment/util computes most of them.
//
// What is ours is the arithmetic for pods on nodes that are away (package away; type reckoning):
//
//   - A pod that was ready when its node went away counts as available, of the old revision and of the new one. So away
//     nodes use up no part of maxUnavailable, the rollout goes on over the others, and it is complete when each pod of
//     the new revision has been seen ready.
//   - A pod of the new revision that was never seen ready and whose node went away is not attempted. It counts as
//     unavailable, so the old pod that it is to replace stays, but it takes no surge slot, so all others are rolled out.
//   - While only such pods are missing, Progressing is True with the reason NodesAway and its message says how many; the
//     progress deadline does not run, and runs afresh when the node is back.
//   - Old pods on away nodes are not "unhealthy" and not cleaned up first; they go within maxUnavailable like any other.
//   - Recreate promises that no old pod runs beside a new one. An old pod that is being deleted on an away node may still
//     run, so the new revision waits for it, with the same condition. Deleting the pod by force, or its Node, ends the wait.
//   - The numbers in the status are upstream's: a pod on an away node is neither ready nor available there.
//
// It may import package reconciler, package away and upstream's pkg/controller helpers; package controllers calls it.
package deployment
