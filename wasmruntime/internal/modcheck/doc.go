// Package modcheck is the admission check of WebAssembly modules: it reads
// the structure of a module in pure Go before anything decodes it. wazero
// trusts counts before it allocates, so that 15 bytes can end the process
// that decodes them; this package holds every count against the bytes that
// are left and against the limits of the board, and allocates next to nothing
// itself.
//
// It doesn't validate types or stacks: the compiler child does, under its
// limits. It imports the standard library only; wasmruntime and the runner
// call it. The instruction walker is exported for package rewrite.
package modcheck
