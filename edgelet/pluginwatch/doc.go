// Package pluginwatch is the kubelet's plugin registration: it watches a folder
// (/var/lib/kubelet/plugins_registry of drivers that don't know us) for sockets,
// asks each for its type, name and endpoint, hands it to the handler of its type
// and tells it what came of that (k8s.io/kubelet/pkg/apis/pluginregistration/v1).
//
// It sleeps in the kernel while nothing happens. edgelet/csi, edgelet/claims
// and the device plugins are its handlers; it may import edgelet/rawcall.
package pluginwatch
