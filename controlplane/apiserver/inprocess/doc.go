// Package inprocess is HTTP as a function call: the transport of clients that live in the process of the server that they
// talk to. It owns how a request becomes a call of the handler (streaming, cancelling, holding a fast handler back) and how
// its identity travels beside it, where nothing that comes over a network can reach.
//
// It imports none of the server's own code, so that its tests run with the race detector at little cost. Package apiserver
// calls it.
package inprocess
