// Package fdwatch tells when descriptors become readable, of many by one goroutine.
//
// Go's own poller wants a parked goroutine for each descriptor that is waited for: a
// stack of 2 to 8 KiB and a runtime structure of which the garbage collector gives
// nothing back. A node with a hundred pods waits for three descriptors of each.
//
// It imports nothing of ours; crishim/wasm and wasmruntime call it.
package fdwatch
