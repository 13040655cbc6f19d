// Package cache is the on-disk store of compiled modules. wazero guards its
// own cache files by a checksum only, and a torn one fails at every start; so
// each module has a directory with an index of SHA-256 digests that is held
// against the files before each use, and a directory that isn't right is
// removed and compiled again.
//
// An entry is <cache>/<key>/ with index.json, module.wasm (what the engine is
// given), code (native code, which replicas map and share) and wazero's own
// directory with what else belongs to the code. The key has the
// module's digest and everything that the code depends on. Entries appear by
// rename, complete.
//
// wasmruntime and the runner import it; it imports the standard library and
// golang.org/x/sys.
package cache
