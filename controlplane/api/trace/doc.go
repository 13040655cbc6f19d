// Package trace owns the vocabulary of a pod's way from `kubectl apply` to
// Running, and a bounded in-memory record of it.
//
// Every part of the system that a pod passes records one [Event] per [Step]
// into a [Recorder] (control plane) or a [NodeTimes] (node). Nothing is sampled
// from logs. It imports nothing of ours and nothing of Kubernetes, because both
// the control plane and edgelet use it.
package trace
