// Package aot is the file in which a compiled module travels from the machine that
// built it to a board: an entry of the cache, signed. Whoever makes native code
// decides what runs on a board, so a board takes only what one of the keys that its
// owner put there has signed; anything else it compiles by itself.
//
// A file is three lines and then bytes:
//
//	coracle-wasm-aot 1
//	{"index":{...}}           what the entry is, with the SHA-256 of each file
//	<base64>                  Ed25519 over the two lines above
//	<files>                   in the order of their names, without their holes
//
// The signature covers the module's digest, the engine and CPU features that the code
// is for, and by their digests all files. wasmruntime imports it; it imports the
// standard library and internal/cache.
package aot
