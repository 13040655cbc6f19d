// Package oom hears from the kernel's log that the machine as a whole ran out of
// memory, as a kubelet does (upstream: pkg/kubelet/oom). A container that exceeds a
// limit of its own is no business of the node's: its status says OOMKilled.
//
// It imports nothing of ours. cmd/edgelet runs it and makes an event of the node of
// each kill.
package oom
