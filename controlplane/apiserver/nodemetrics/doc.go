// Package nodemetrics serves metrics.k8s.io, as metrics-server does, for
// `kubectl top` and autoscalers, with one difference: nothing is scraped. A node is
// asked through its tunnel when somebody asks for it, so many at a time, and its
// answer is kept for a while that its link class sets, because on a small link the
// question itself costs. A node that is away is left out.
//
// It imports the contract in controlplane/api/fleet; the API server installs its
// storages and gives it its way to nodes.
package nodemetrics
