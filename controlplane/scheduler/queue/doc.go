// Package queue owns which pod is scheduled next and when a pod that failed is
// tried again.
//
// A waiting pod is in one of three places: ready (by priority, then by age),
// backing off (until a time), or parked (until an event that may help it). The
// plugins that refused a parked pod are asked which events may help; an event
// that arrives while the pod is being tried counts too, so none is missed. As a
// safety net a parked pod is tried every few minutes.
//
// Nothing runs in the background: [Queue.Pop] does what is due. It imports
// framework. Only the scheduler calls it.
package queue
