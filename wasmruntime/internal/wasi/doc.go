// Package wasi is WASI preview 1 for one guest in a process of its own, on
// bare Linux file descriptors. wazero's own layer isn't used: it lets
// symlinks that a guest makes lead out of a preopened directory, answers
// poll_oneoff for sockets at once (so that an idle server burns a core), and
// opens listening sockets by itself.
//
//   - Every path is resolved by openat2(RESOLVE_BENEATH|RESOLVE_NO_MAGICLINKS)
//     under its preopen, or, on kernels before 5.6, by a walk over directory
//     descriptors that never follows a link by itself.
//   - poll_oneoff is ppoll(2).
//   - A blocking call blocks in the kernel. Nothing here starts goroutines;
//     whoever wants to end a guest signals its process.
//   - Read and write paths don't allocate, so that a guest at work doesn't
//     make the collector run.
//
// The file-descriptor table starts as 0-2 stdio, then the listening sockets
// at 3.., as LISTEN_FDS counts them, then the preopened directories. Sockets
// answer fd_prestat_get with a tag that isn't a directory's, which both
// wasi-libc and Go step over.
//
// The package imports wazero's api, x/sys and the standard library; only the
// runner imports it.
package wasi
