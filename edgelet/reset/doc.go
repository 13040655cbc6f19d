// Package reset makes a board nobody's: it stops what runs, then removes all that
// the cluster gave or that was made for it, and says so. What costs nobody a
// secret and everybody a download, images, stays unless it is asked for.
//
// The order is such that a power cut at any moment leaves a board that resets to
// the end when told again: pods first, then keys and secrets, the state file last.
//
// It works on folders and a [Stop]; cmd/edgelet gives it both. It imports
// nothing of ours.
package reset
