// Package wasmruntime runs WASI modules on small boards: it checks a module
// before anything decodes it, compiles it once in a limited child process,
// and runs it in a process of its own. It knows nothing of Kubernetes and of
// CRI; crishim/wasm is its caller.
//
// The package never decodes, compiles or runs a module in the calling
// process. A guest loop without a call stops the garbage collector of the
// process that hosts it for good, and malformed modules can kill the decoder.
// So there are three steps, the first of which is the only one done here:
//
//   - Check reads the section structure in pure Go, with every count held
//     against the bytes that are left, and names what is wrong.
//   - Runtime.Compile starts `wasmrunner compile` under limits of memory, CPU
//     and time, and keeps native code in a cache that is checked by digest
//     before each use.
//   - Runtime.Start starts `wasmrunner run`, which jails itself and becomes
//     the guest. That process outlives its starter: it holds its own output
//     FIFOs open for reading and writing, and leaves an exit record. A later
//     process takes it over by Runtime.Attach.
//
// The package may import the standard library, golang.org/x/sys and its own
// internal packages. wazero is linked by cmd/wasmrunner alone.
package wasmruntime
