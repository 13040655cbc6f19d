// Package job runs Jobs: completions and parallelism, indexed completion, back-off (whole and per index), pod failure
// policy, success policy, pod replacement policy, suspension, active deadline, and exact counting by the finalizer
// batch.kubernetes.io/job-tracking. Rules, reasons and messages are upstream's. (Gang scheduling of Jobs, alpha and off
// upstream, is left out; deletion after a TTL is upstream's own controller.)
//
// What a pod's node being away (package away) changes:
//
//   - Its pods may have finished there, or be about to. They are active, and no second one is started for them.
//   - If such a pod is being deleted (its toleration ended, or by hand), whoever asked for it gets what he asked for: a
//     replacement, unless podReplacementPolicy says Failed. But upstream counts the pod as failed at once, and that isn't
//     known. Here it is counted, and its finalizer kept, until its node tells how it ended (the pod gets a terminal phase
//     or is removed with grace period 0), or until the Node is deleted. So a success that happened while nobody
//     looked is a success, and a board without network uses up nobody's backoffLimit. The same holds for a node that
//     came back after the deletion, until it has reported. As upstream, Complete and Failed wait for such pods.
//   - activeDeadlineSeconds and suspend act at once, as upstream: they are somebody's word.
//
// It may import package reconciler, package away and upstream's pkg/controller helpers; package controllers calls it.
package job
