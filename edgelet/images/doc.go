// Package images makes sure that a container's image is on the node: pull
// policies, pull secrets, back-off, and what kind of image it is.
//
// It speaks the CRI ImageService and knows nothing of pods beyond what a
// [Request] says. Reasons, messages and events are worded as a kubelet words
// them. edgelet/pods calls it. It may import edgelet/pods/kubeobj and nothing
// else of ours.
package images
