// Package wasi tests what a guest sees, through `coracle wasm run`, which runs
// a module in the runner that pods have.
//
// guest/ is a suite of WASI preview 1 in C, written from the specification
// against the bare imports: for every function its success, the errors that it
// names, its flags and the edges. TestPreview1 runs it, as root and as an
// ordinary user, and fails if a function has no case.
package wasi
