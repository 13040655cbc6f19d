// Package streaming serves the streams of Wasm containers to a kubelet or to
// crictl: attach and port-forward, over SPDY or WebSocket, by Kubernetes' own
// streaming server (k8s.io/cri-streaming) on a listener of ours.
//
// crishim.Service answers Attach and PortForward with its URLs when it is served
// by gRPC. What concerns OCI containers goes to containerd's own streaming server,
// whose URL is handed through: the client is on this machine as a rule and so
// reaches it, the bytes need no third process on their way, and a session outlives
// a restart of crishim.
//
// Only cmd/crishim links this package: the server and its router are of no
// use to edgelet, which calls AttachContainer and DialPod of crishim.Service.
package streaming
