// Package features is how a pod says that its node must be able to do something,
// and how a node says that it can: the names, and who lacks which.
//
// A node lists its features in status.declaredFeatures (KEP-5328), where the API
// server takes names of one form only, see [Valid]. A pod lists what it needs in
// the annotation [Annotation]; names are compared without regard to case, so
// "wasm" asks for Wasm.
//
// It imports nothing of ours. The scheduler's plugin and edgelet/pods both ask it,
// so that a node refuses what the scheduler would not have sent there.
package features
