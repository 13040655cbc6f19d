// Package apiserver assembles the Kubernetes API out of upstream's parts: the
// generic server, storages, strategies, validation, admission plugins, RBAC and
// Node authorizers, CRDs and aggregation. What is its own is what makes it fit a
// board: one etcd client for all storages, watch caches for hot kinds only,
// OpenAPI documents built on request and dropped, a transport for clients in the
// same process that is a function call (package inprocess), no heartbeat of any kind into etcd, and
// the times of a pod's steps.
//
// It knows nothing of how nodes are reached: a dialer is passed in. Of ours it
// imports datastore, admission and api/trace; only cmd/controlplane calls it,
// every other part of the control plane takes a *rest.Config from
// [Server.ClientConfig].
package apiserver
