package wasmruntime

import "github.com/coracle-edge/coracle/wasmruntime/internal/bundle"

// Spec says what to run and within which walls. It is written to spec.json in
// Dir, which is what the runner reads.
type Spec = bundle.Spec

// Mount makes a host directory or file visible to the guest as a preopen.
type Mount = bundle.Mount

// Listen is a socket that the runner opens and hands to the guest.
type Listen = bundle.Listen

// Outbound lets a guest make connections of its own.
type Outbound = bundle.Outbound

// Resources are cgroup limits. Zero means no limit.
type Resources = bundle.Resources

// ExitStatus says how a guest ended.
type ExitStatus = bundle.ExitStatus

// Reasons of an ExitStatus, as the CRI spells them.
const (
	ReasonCompleted = bundle.ReasonCompleted
	ReasonError     = bundle.ReasonError
	ReasonOOMKilled = bundle.ReasonOOMKilled
	ReasonUnknown   = bundle.ReasonUnknown
)
