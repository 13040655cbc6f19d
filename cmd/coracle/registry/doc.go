// Package registry runs the registry of a local cluster: CNCF distribution over
// TLS on loopback, on a folder. It exists so that on one machine too an image
// goes the real way, push, manifest, blobs, pull. `coracle up` is its caller.
package registry
