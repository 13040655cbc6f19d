// Package cgroup makes, joins, reads and removes a guest's cgroup, on the
// unified hierarchy and on version 1. What the permissions or the kernel
// don't allow is left out: a guest without a cgroup still has its other
// walls. wasmruntime and the runner import it.
package cgroup
