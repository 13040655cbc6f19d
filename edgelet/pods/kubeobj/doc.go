// Package kubeobj turns the raw bytes of a Kubernetes object, as the API server
// stored them and as they travel and are kept on a node, into the typed object
// and back.
//
// The raw form is "k8s\x00" followed by a protobuf runtime.Unknown. It is read
// by hand, so that nothing of apimachinery's scheme or serializers is linked
// into the agent (D9). Objects are decoded on use only and never cached.
//
// It imports k8s.io/api types and nothing of ours; edgelet/pods,
// edgelet/volumes, edgelet/images and edgelet/static call it.
package kubeobj
