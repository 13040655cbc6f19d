// Package reconciler is the small engine under each of our controllers: a queue of keys with back-off, a few workers,
// and the event handlers that fill the queue, all of which end when Run returns.
//
// A controller is a function reconcile(ctx, key) that looks at the informers' caches, writes what is missing, and
// returns. It is level-triggered: it may be called at any time, any number of times, for one key never twice at once.
// A returned error or a panic puts the key back with back-off; nothing inside retries by itself.
//
// The package also has what several controllers share about pods that they own: routing of pod events to the owner's
// key (PodEvents) and creating pods in batches that start small (SlowStart).
//
// It imports client-go and upstream's pkg/controller helpers; its callers are the controllers beside it.
package reconciler
