// Command conformance runs upstream's end-to-end suite against a cluster, with an
// e2e.test binary or by hydrophone, and prints what came of it by SIG: what
// passed, what failed and why, what was not run. `make conformance` is its caller;
// docs/conformance.md says how to get what it runs.
package main
