// Package kubelet holds what edgelet says of a machine against what upstream's
// kubelet says of the same machine: its own setters of the node's status, run on
// the same facts, and the API server's own validation.
//
// It has tests only. They live here because edgelet never links k8s.io/kubernetes.
package kubelet
