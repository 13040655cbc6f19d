// Package userns gives each pod with hostUsers: false a range of the node's user
// and group ids that no other pod has (KEP-127; upstream: pkg/kubelet/userns and
// getKubeletMappings in kubelet_pods.go).
//
// Who has which range stands in a file of the pod's folder, as a kubelet writes it,
// and nowhere else: it is there before anything runs with these ids, and goes with
// the folder once nothing does. It imports internal/durable; edgelet/pods calls it.
package userns
