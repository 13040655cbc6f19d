// Package daemonset keeps one pod of a DaemonSet on each node that should have one, with upstream's placement, rolling
// update (maxUnavailable and maxSurge), OnDelete, revision history as ControllerRevisions, events and status.
//
// Nodes that are away (package away) are not attempted:
//
//   - No pod is created there, none is replaced for being failed or out of date, and none of them counts against
//     maxUnavailable or maxSurge. Upstream deletes an out-of-date pod there at once, because it isn't available, and counts
//     the node as unavailable, so that one board that is switched off stops the rollout for all others.
//   - They are outside of every number of the status, as with upstream (which takes them out by their NoSchedule taint;
//     here also for a DaemonSet that tolerates everything, and not as misscheduled), so kubectl rollout status ends when
//     every node that can be reached has ended. Condition NodesAway of the status says how many there are.
//   - When a node returns it is a candidate like any other, within maxUnavailable.
//   - A pod that no longer belongs there (the node's labels or the DaemonSet's selector changed) is deleted at once; the
//     node hears of it when it returns.
//
// A node counts as away here until its unreachable taint is gone too, so that a return is one change and not two.
//
// It may import package reconciler, package away and upstream's pkg/controller helpers; package controllers calls it.
package daemonset
