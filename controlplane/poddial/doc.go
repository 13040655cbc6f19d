// Package poddial is the one dialer of the API server towards pods: for webhooks,
// conversion of custom resources, aggregated APIs and the pod and Service proxies
// (D12). An address that is a pod's leads through the tunnel of the pod's node,
// unless it is said to be reached directly; every other address is dialed as it is.
//
// What is sent is protected like logs and exec are: inside the tunnel is TLS between
// the API server and the node, and inside of that what was to be said to the pod.
//
// It imports the contracts in controlplane/api. cmd/controlplane gives it to the API
// server.
package poddial
