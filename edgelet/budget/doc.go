// Package budget keeps count of the bytes that a node has used of a day's data,
// and says when what isn't urgent must wait. docs/fleet-protocol.md has the table
// of what is urgent.
//
// A day is 24 hours of the node's monotonic clock, over restarts as far as they
// were kept: the wall clock of a board is trusted with nothing. Time that the
// hub has signed may end a day earlier, for a board that is off at night.
//
// It imports edgelet/state; cmd/edgelet makes one [Budget] and gives it to
// whatever sends or receives.
package budget
