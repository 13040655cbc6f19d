// Package crishim is a CRI v1 runtime and image service for Wasm and OCI.
//
// It is a router: a Wasm sandbox, container or image is crishim/wasm's and
// crishim/images', everything else is containerd's, behind its own CRI socket.
// A pod may hold both kinds of container: its sandbox is containerd's then,
// and its Wasm containers join that sandbox's network namespace and cgroup
// parent. Without containerd Wasm works all the same.
//
// Which kind a sandbox is of is said by the annotation coracle.dev/sandbox
// (edgelet classifies a pod's images first), else by the runtime handler. What
// kind an image is of is said by ImageStatus: Info["coracle.dev/kind"] and the
// annotation of the same name in Image.Spec, verbose or not.
//
// # While containerd doesn't answer
//
// Calls about OCI sandboxes, containers and images fail with Unavailable: they
// may well run on, nothing is known. Wasm goes on. ListPodSandbox and
// ListContainers must not make a kubelet believe that OCI containers are gone,
// nor stop it from looking after Wasm ones: they return Wasm as it is and OCI
// as it was when containerd last answered in this boot (also after a restart
// of this process), each such item with the annotation coracle.dev/stale, the
// time of that answer. If containerd never answered in this boot there is
// nothing to remember, and Wasm alone is listed. ListImages lists Wasm images
// alone, which collects no garbage of others; ImageStatus says that an unknown
// image is absent, so that Wasm images can still be pulled, and pulling an OCI
// image says why it can't be.
//
// edgelet calls Service in its own process; cmd/crishim serves it by gRPC to
// any other kubelet. The package imports CRI's API and no Kubernetes API types.
package crishim
