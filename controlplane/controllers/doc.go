// Package controllers runs every controller of the cluster in one process: ours for the kinds where a node that is away
// changes the answer (replicaset, deployment, daemonset, job, endpointslice, node; the rules are in package away), and
// upstream's for all others (package upstream).
//
// Each controller is supervised by itself: if it returns an error, panics, or ends, it is started again with back-off and
// the log names it; the others don't notice. They share one set of informers, which the caller makes (with Trim as
// transform) and which this package starts. Each acts as the service account that upstream's RBAC
// bootstrap has a role for. Nothing is written while nothing happens: no leader election, no leases, no resyncs.
//
// It imports its subpackages; cmd/controlplane calls it, once the API server is ready. Controllers never import each other.
package controllers
