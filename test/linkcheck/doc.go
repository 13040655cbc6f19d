// Package linkcheck explores the fleet link: it runs the very transition functions
// that production runs, edgelet/link.Machine and controlplane/fleethub.Peer,
// through everything that can happen to them within the bounds of a [Scenario],
// and checks each [Invariant] in every state that can be reached. [Explore] goes
// breadth first, so what it finds is the shortest way there; [Walk] takes single
// ways that are too long to be explored.
//
// A state ([World]) is etcd, up to two hubs, the node, and the messages between
// them. Two states are one if nothing can tell them apart: a [Key] is made of all
// fields of the machines, moments counted from now. From each state the way on is
// followed in which nothing goes wrong any more; it must come to where all is in
// step, within a bound.
//
// What the shells of the machines do is played by the package play. Rules can be
// broken on purpose by putting other functions into [play.Transitions]; the tests
// have a list of such mutations, each of which must be found. Production code has
// no switch for any of it.
//
// `make test-link` goes to the full depth, a shallower one is an ordinary test.
// docs/fleet-protocol.md says what is explored, and what isn't.
package linkcheck
