// Package probes asks containers how they are: startup, readiness and liveness
// probes, by command, HTTP, TCP and gRPC, with a kubelet's rules and words
// (upstream's pkg/kubelet/prober and pkg/probe).
//
// One schedule serves all pods: a heap of what is due next, one goroutine that
// sleeps until then, and as many more as probes run at this moment, at most
// [Config.Parallel]. A node without probes has none of the others and no timer.
// What hangs costs its own slot only: probes that were slow before share half of
// the slots, and a probe is never run twice at the same time.
//
//   - manager.go is the API: what is probed, and what came of it.
//   - schedule.go says when.
//   - check.go and request.go do it.
//
// It knows no runtime, no store and no pod but what [Manager.Watch] is told.
package probes
