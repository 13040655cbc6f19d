// Package stats says what this node, its pods and their containers use: cgroups
// (v1, hybrid and v2), file systems, the pods' networks, and what the container
// runtime alone knows. It serves them as the kubelet does: /stats/summary,
// /metrics/cadvisor, /metrics/resource, and fleet.UsagePath for metrics.k8s.io.
//
// Nothing is measured unless somebody asks, and then at most once in
// [Config.Fresh]. Eviction asks it, too (edgelet/evict).
//
// It imports edgelet/metrics for the form of a page, and knows pods as a list of
// [Pod] that cmd/edgelet hands it.
package stats
