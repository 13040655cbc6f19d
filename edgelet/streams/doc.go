// Package streams serves what kubectl does inside a running pod: exec, attach,
// port-forward, and the kubelet's /run. Its handlers are paths of the node's API,
// which edgelet/tunnel serves on the node's tunnels.
//
// A container of another runtime is reached as a kubelet reaches it: the runtime
// names a URL, and the bytes are passed on unread, whatever protocol they are. A
// Wasm container of the runtime in this process has no URL; upstream's servers of
// the protocols (k8s.io/cri-streaming) are connected to it here.
//
// It finds containers and sandboxes in the runtime by the labels that edgelet/pods
// gives them, so it knows every kind of container that runs, and needs of the pods
// only that they are there.
package streams
