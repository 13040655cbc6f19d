// Package cache owns the scheduler's picture of the nodes and of the pods on
// them: what the informers have shown, and on top of it the pods that were
// given a node but whose binding hasn't been seen yet (assumed pods).
//
// A pod is assumed when a node is chosen, so that the next pod sees the room as
// taken; its binding runs beside. Seeing the bound pod confirms it, a failed
// binding forgets it, and an assumed pod of which nothing was seen long after
// its binding is dropped.
//
// It imports framework. Only the scheduler calls it.
package cache
