// Package static reads pods from a folder of this node: they run without any
// control plane and are shown in the API as mirror pods.
//
// A file holds one Pod in YAML or JSON; names and UIDs are made as a kubelet
// makes them. The folder is watched, and read again now and then in case a
// change was missed. It may import edgelet/pods for what a pod is there, and
// edgelet/pods/kubeobj. cmd/edgelet runs it.
package static
