// Package csi is the node half of CSI volumes: it takes the drivers that
// register through the kubelet's plugin folder, has them stage and publish
// volumes for pods, and remembers durably what they did, so that whatever
// happens to the agent, it is undone when the pod goes.
//
// Paths are a kubelet's (below Config.KubeletDir), because drivers mount these
// folders of the host into their own pods. Messages are written by hand
// (wire.go); connections are made for a call and closed after it: a board
// without a driver pays nothing.
//
// edgelet/volumes calls it and resolves claims, secrets and drivers' objects for
// it. It may import edgelet/rawcall and edgelet/pluginwatch. Lock order: a
// volume's lock, then Manager.mu.
package csi
