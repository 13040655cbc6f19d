// Package admission owns the one admission plugin in which Coracle differs from
// upstream: a pod tolerates the absence of its node without limit unless it
// says otherwise.
//
// Upstream's DefaultTolerationSeconds gives every pod 300 seconds, after which
// taint eviction deletes it. A board that is offline for an hour is ordinary
// here, so the default is to stay.
//
// It imports k8s.io/apiserver/pkg/admission and Kubernetes' internal pod type;
// controlplane/apiserver registers it in the place of the one it replaces.
package admission
