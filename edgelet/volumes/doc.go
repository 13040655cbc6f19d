// Package volumes makes a pod's volumes: directories and files on the node that
// containers get mounted, or preopened if they are Wasm.
//
// It owns <data>/pods/<uid>/volumes. Files of API objects are replaced
// atomically by a symlink swap, as a kubelet's AtomicWriter does, and live on a
// tmpfs where the agent may mount one, so that neither secrets nor rewrites
// reach the flash. Nothing here is durable: every byte can be made again from
// the node's state after a power cut, so nothing is synced, but for folders of
// StorageClass local-path (folders.go), whose data is nowhere else.
//
// edgelet/pods calls it. It may import edgelet/pods/kubeobj,
// edgelet/pods/downward and controlplane/api/localvolumes. A volume type is one function in types.go.
package volumes
