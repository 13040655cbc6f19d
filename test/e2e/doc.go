// Package e2e tests the whole of Coracle as a newcomer meets it: the programs
// in ./bin, started by `coracle up`, driven by the real kubectl. It knows no
// internals but the names of the processes, because it kills them.
package e2e
