// Package podstate lets edgelet/pods keep what it must in edgelet/state: it is
// the one place where the two meet. cmd/edgelet uses it.
package podstate
