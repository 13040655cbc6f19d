// Package localvolumes is what the control plane and nodes say to each other of
// volumes that are folders of a node: StorageClass local-path, whose volumes
// controlplane/controllers/localvolumes provisions, and edgelet/volumes makes and
// removes. It imports Kubernetes' API types only.
package localvolumes
