// Package runner is the inside of cmd/wasmrunner, the only program that links
// wazero. It has two jobs, and does each in two stages:
//
//	run      joins cgroup and network namespace, opens everything the guest
//	         may touch, jails itself, and executes itself as
//	guest    which loads the code from the cache and becomes the guest.
//
//	compile  jails itself, and executes itself as
//	compiler which turns one module into native code in an empty directory.
//
// Between the stages stands an execve, so that no memory, thread or privilege
// of the first is left in the second. What the second needs are descriptors,
// and a handover in a memfd. The starter hears through a pipe whether the
// guest started, and why not; later, of its end, through the exit record,
// which is a file opened in the first stage and written by one write.
package runner
