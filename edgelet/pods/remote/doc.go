// Package remote makes a CRI runtime behind a socket look like one in this
// process: each gRPC client method becomes a function call. cmd/edgelet uses it
// for --container-runtime-endpoint; edgelet/pods, edgelet/images and
// edgelet/node are handed the [Runtime].
package remote
