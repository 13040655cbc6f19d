// Package wasmpods is the suite of a kubelet's behaviour with Wasm containers: each
// step of a pod's life that applies to them, on a node that `coracle up` makes, and
// for those that can't apply the reason that is given.
package wasmpods
