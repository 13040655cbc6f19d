// Package framework owns the contract between the scheduler and its plugins:
// the interfaces [Filter] and [Score] with their optional companions, what a
// plugin is shown of a pod ([Pod]) and of a node ([NodeInfo], [Cluster]), and
// how it says no ([Status], [FitError]).
//
// It imports Kubernetes' API types and component-helpers only. The packages
// plugins, cache and queue and the scheduler itself build on it; it imports
// none of them.
package framework
