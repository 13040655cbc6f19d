package features

import v1 "k8s.io/api/core/v1"

// A node whose containerd is down is Ready, because its Wasm pods go on and its OCI
// containers run on. But no OCI pod can start there: the node says so in a
// condition, and of that the control plane makes a taint, of effect NoSchedule,
// which the RuntimeClass wasm tolerates.

// ConditionContainerdDown is True while containerd doesn't answer, or says that it
// isn't ready. A node that isn't to have containerd doesn't have the condition.
const ConditionContainerdDown v1.NodeConditionType = "ContainerdDown"

// TaintContainerdDown is the taint that is made of it.
const TaintContainerdDown = "coracle.dev/containerd-down"
