// Package image makes a CNCF Wasm OCI artifact of a module and pushes it to any
// registry that speaks the OCI distribution protocol. `coracle image` and
// `coracle up` are its callers.
package image
