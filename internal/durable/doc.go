// Package durable replaces a file so that after a power cut either the old
// content or the new one is there, whole: write beside it, fsync, rename, fsync
// of the folder.
//
// It imports nothing of ours; keys, certificates and identities on both sides
// of the fleet link are written through it. Stores that write often have their
// own policy and don't use it.
package durable
