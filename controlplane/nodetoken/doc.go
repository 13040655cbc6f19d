// Package nodetoken authenticates those whose word stands on a node's key: pods,
// by tokens that their node signed, and the nodes themselves, by certificates
// that must agree with their record.
//
// A node can sign for its own pods and no others, as long as its identity wasn't
// revoked and the pod exists and is bound to it. So what a stolen board can do is
// what its pods may do, until `coracle node revoke`. Times in a token are the
// node's, whose clock may be wrong: the pod's existence is what ends it.
//
// It imports k8s.io/apiserver's authentication interfaces, noderecord and the
// contract in controlplane/api/enrollment. cmd/controlplane gives both
// authenticators to the API server.
package nodetoken
