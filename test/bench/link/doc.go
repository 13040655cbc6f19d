// Command link measures what the fleet link costs: a real control plane and a
// real node with twenty pods, bytes as the node counts them on its socket and
// above TLS, per link class. Each figure stands beside its mark; one that is
// missed says so. The rows go to bench-link.jsonl, too.
//
// Beside it, in the same run, upstream's own kubelet and kube-proxy run as many
// pods with upstream's own API server, and what they exchange is counted on the
// way (upstream.go). That needs root, for namespaces; without, their figure is the
// one of an earlier measurement, and the program says so.
//
// An idle class whose keepalive is longer than the time it is watched for is
// computed: what was seen besides keepalives, and the cost of a keepalive as it
// was measured in a quicker class. Its row says so; --window 1h measures all.
package main
