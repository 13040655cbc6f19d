// Package localvolumes provisions the volumes of StorageClass local-path: folders of the node that a claim's first pod was
// scheduled to. The node makes the folder when that pod comes (edgelet/volumes), and removes it when the hub shows it the
// released volume; what is left for here is the PersistentVolume, as an external provisioner has it
// (sigs.k8s.io/sig-storage-lib-external-provisioner): who may have one, its events, its finalizer, its end.
//
// It may import package reconciler, controlplane/api/localvolumes and upstream's packages; package controllers calls it.
package localvolumes
