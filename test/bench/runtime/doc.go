// Command runtime measures what a Wasm container costs beside a container of runc
// through containerd, on the same machine in the same run: time to the first byte
// of output, memory, an idle server, computing, answering HTTP.
//
// It goes into a network and a mount namespace of its own, starts a containerd
// there, and serves its own CRI in the same process, as edgelet does. Guests are
// built from ./guests with Debian's clang and rustc and with Go; the same C sources
// are built for this machine by the same clang with the same flags. What a machine
// can't build or run is named and its rows are left out.
//
// Cold means that the image is there but nothing was made of it yet: the module
// isn't compiled, the layers aren't unpacked. Cached is every later start.
package main
