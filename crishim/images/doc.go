// Package images pulls, classifies and keeps Wasm artifacts.
//
// Every shape of artifact that the field knows is taken unmodified: CNCF Wasm
// artifacts, runwasi's and wasm-to-oci's older ones, and ordinary images with
// a module at their entrypoint. What turns out to be an OCI image is left to
// containerd: Pull then answers KindOCI, having fetched a manifest and a
// configuration only. One index maps each reference to one store: a reference
// that this index has is Wasm, every other one is containerd's to know.
//
// Blobs lie in a containerd content store, fetched with containerd's own
// resolver, so hosts.toml mirrors and credentials are one configuration. The
// index is one JSON file, replaced by rename after everything it names has
// been synced: the fsync policy of the store is "blobs, then directory, then
// index", three syncs and one small file per pull, none while idle.
//
// The package imports containerd's client libraries and no Kubernetes API
// types. Its caller is crishim.
package images
