// Package lab is the real things that tests run against: a registry with TLS
// on loopback, images of every shape, a containerd of the test's own in
// namespaces of the test's own, modules compiled from source, the runner.
//
// What this machine lacks is found out and the test skipped with the reason.
// Only tests import it.
package lab
