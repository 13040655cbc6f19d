// Package evict keeps the node from running dry: of memory, of room and inodes on
// its disks, of process ids. Below a threshold it frees what nobody uses (dead
// containers, unused images), then ends pods, one at a time, in the order that a
// kubelet does, and says MemoryPressure, DiskPressure and PIDPressure. It ends pods
// that take more ephemeral storage than they may, too.
//
// A look costs two file reads and a statfs for each disk, every [Period], as a
// kubelet's; in between the kernel's pressure stall information wakes it where the
// kernel has that. What pods use is measured only below a threshold, and folders are
// counted only for pods that have a limit of them.
//
// It imports edgelet/stats; pods are handed to it by cmd/edgelet as functions.
package evict
