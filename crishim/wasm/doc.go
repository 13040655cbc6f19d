// Package wasm keeps pod sandboxes and containers of Wasm modules, in the
// words of the CRI: what kubelets ask of a runtime is done here with
// wasmruntime, CNI and a few small files.
//
// A sandbox has no process. Its network namespace is held by a bind mount, or
// it is the host's; a container of it is one process of wasmrunner. A Wasm
// container can also join a sandbox of containerd's, whose network namespace
// and cgroup parent it is then told.
//
// Durable state is one JSON file per sandbox and per container, written when
// it is made and when it ends. Only what a power cut must not lose is synced:
// the record of a network attachment, whose address would leak. The rest
// survives a SIGKILL in the page cache, and after a power cut every guest is
// dead anyway; a torn record is then swept away and edgelet makes the pod
// again. Guests outlive this process: Recover takes them over by what their
// runners left (pid, start time, boot), with their output, which waits in
// FIFOs that the guests themselves hold open. A line is in a log once, whatever
// dies when (inflight), but for what is still in the FIFO of a guest that is
// killed, by SIGKILL, together with this process.
//
// The package knows CRI, CNI and wasmruntime; it imports no Kubernetes API
// types and doesn't know containerd. Its caller is crishim.
package wasm
