// Package network attaches pods to the network that a CNI configuration
// describes.
//
// CNI's plugins are programs: a bridge with addresses, masquerading and host
// ports runs some fifteen of them when a pod starts and as many when it ends,
// which is most of a Wasm pod's start. So what the usual configuration asks for
// (bridge with host-local) is done in this process, by the same rules and in
// the same files, so that containerd can attach its pods to the same network by
// the plugins. Every other configuration, and pods with host ports, go to the
// plugins.
package network
