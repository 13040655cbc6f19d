package wasmruntime

import (
	"errors"

	"github.com/coracle-edge/coracle/wasmruntime/internal/modcheck"
)

var (
	// ErrMalformedModule is returned when a file isn't a WebAssembly module,
	// or its section structure can't be right: a count larger than the bytes
	// that follow, a section twice, out of order, or past the end.
	ErrMalformedModule = modcheck.ErrMalformed

	// ErrUnsupportedModule is returned when a module is sound but this
	// runtime doesn't run it: a component, a module without _start, one with
	// imports that the host doesn't offer, an engine feature that is off.
	ErrUnsupportedModule = modcheck.ErrUnsupported

	// ErrUnknownImport is returned when a module imports what the host
	// doesn't offer. It is always wrapped together with ErrUnsupportedModule.
	ErrUnknownImport = modcheck.ErrUnknownImport

	// ErrOutbound is returned by Start when a module imports functions of the
	// socket extension and Spec.Outbound doesn't allow them. It is always
	// wrapped together with ErrUnsupportedModule.
	ErrOutbound = errors.New("outbound sockets aren't allowed to this guest")

	// ErrModuleTooLarge is returned when a module is over one of the Limits.
	ErrModuleTooLarge = modcheck.ErrTooLarge

	// ErrCompile is returned when the compiler child refused the module:
	// it doesn't validate.
	ErrCompile = errors.New("wasm module doesn't compile")

	// ErrCompileLimit is returned when the compiler child was ended because
	// it used more memory, CPU or time than Options allow.
	ErrCompileLimit = errors.New("wasm module exceeds the limits for compiling")

	// ErrStart is returned when the runner couldn't make the guest's
	// surroundings: a mount, a listening socket, a namespace, a user.
	ErrStart = errors.New("wasm guest can't be started")

	// ErrNotStarted is returned by Attach when the bundle has no record of a
	// process: the runner never ran, or died before it could say who it is.
	ErrNotStarted = errors.New("wasm guest was never started")

	// ErrExists is returned by Start when the bundle directory already
	// belongs to a process.
	ErrExists = errors.New("bundle directory already has a process")

	// ErrExited is returned when something is asked of a guest that has
	// ended: a signal, its statistics.
	ErrExited = errors.New("wasm guest has exited")
)
