// Package pods is the kubelet's job: it makes the containers of this node be
// what the pods it should run say, over CRI alone.
//
// A [Manager] reads what the node should run from a [Store] and keeps one worker
// per pod. A worker is level-triggered: it looks at the pod, at what the runtime
// has of it and at its own durable record, computes what to do, does it and
// reports. It can be cut off at any line and does the rest after the next start.
// Nothing of it needs the network but pulling an image that isn't there.
//
//   - actions.go decides, status.go words what a client sees: both are pure
//     functions of (pod, observation, record), and follow upstream's kubelet.
//   - sandbox.go, container.go, security.go, env.go translate a pod into CRI.
//   - worker.go and start.go and kill.go act.
//   - record.go is what a pod must remember across a reboot.
//
// It does not know which runtime runs (but for the annotation that tells a Wasm
// sandbox from an OCI one, D5), nor how reports travel. It may import
// edgelet/{images,probes,userns,volumes} and its own subpackages. cmd/edgelet wires it.
package pods
