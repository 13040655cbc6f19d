// Package bundle is what the starter of a guest and its runner agree on: the
// files of a bundle directory, the specification, the record of who runs and
// the record of how it ended. Both sides import it; it imports nothing of
// ours.
package bundle
