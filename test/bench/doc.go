// Command bench measures a cluster that it starts, and prints each figure
// beside its anchor, what a peer needs, and its mark, what we want to need.
//
// Anchors are published or measured figures of k3s, KubeEdge and upstream
// Kubernetes; each row names where its own comes from. A row whose mark is
// missed says so; nothing is left out. The rows go to bench.jsonl too.
package main
