// Package board starts emulated boards of arm64 (QEMU's machine virt): Debian's kernel
// with nothing but cgroup v2, a disk with busybox and our programs, a network from which
// the host's loopback is 10.0.2.2, and a shell on the serial line. fetch.sh gets what
// they are made of.
//
// What only a real machine of that kind shows is tested on them: memory of small
// boards, cgroup v2, clocks that jump. They have no KVM, so they are ten to thirty times
// slower than the host: times had there say nothing.
package board
