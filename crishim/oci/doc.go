// Package oci is containerd as crishim needs it: its CRI services over its
// socket, its events, importing an image, what a Wasm container must know of
// a sandbox it joins, and starting a containerd of one's own (StartPrivate),
// with a pause image made from a program in this package.
//
// containerd 1.6 and 2.x are both spoken to; only services that both have are
// used. The package imports no Kubernetes API types. Its caller is crishim.
package oci
