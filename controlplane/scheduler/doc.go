// Package scheduler owns the decision which node a pod runs on.
//
// Its parts: framework (what a plugin is), plugins (the filters and scores),
// cache (nodes and the pods on them), queue (which pod is next). The Scheduler
// takes one pod at a time from the queue, asks the filters for every node and
// the scores for those that fit, takes the room in the cache, and binds through
// the API server beside, while it looks at the next pod. A pod that fits nowhere
// is parked until something changes that may help it, and its PodScheduled
// condition and a FailedScheduling event say why, per reason with the number of
// nodes; they are written again only when what they say changes.
//
// It talks to the API through a clientset and shared informers and imports
// nothing else of the control plane but the vocabulary of the trace. Called by
// cmd/controlplane.
package scheduler
