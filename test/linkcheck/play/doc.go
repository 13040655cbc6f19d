// Package play plays the two ends of the fleet link without I/O: a node, a hub
// and etcd as values that can be copied. What decides is production's own code,
// edgelet/link.Machine and controlplane/fleethub.Peer, called through
// [Transitions]; what is played is what their shells do with an Output: gather
// and send, store, fetch, write into the API, answer. The shells' rules stand in
// edgelet/link/run.go, edgelet/state, controlplane/fleethub/node.go and
// podreport.go; whoever changes them changes them here.
//
// It imports both sides, which production code never does; test/linkcheck
// explores with it.
package play
