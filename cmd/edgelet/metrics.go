package main

import (
	"net/http"

	v1 "k8s.io/api/core/v1"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/edgelet/metrics"
	"github.com/coracle-edge/coracle/edgelet/tunnel"
)

// morePaths are those of the kubelet's API that this node has more of, and its own.
func (a *agent) morePaths() map[string]http.Handler {
	paths := a.resourcePaths()
	paths["GET "+fleet.HeldPath] = tunnel.Held(a.state, a.log)
	return paths
}

// fillMetrics says what this node does and what it costs.
func (a *agent) fillMetrics(p *metrics.Page) {
	p.Gauge("kubelet_node_name", "The node's name. The count is always 1.")
	p.Sample("kubelet_node_name", 1, "node", a.name)
	running := 0
	for _, pod := range a.pods.Pods() {
		if pod.Status.Phase == v1.PodRunning {
			running++
		}
	}
	p.Gauge("kubelet_running_pods", "Number of pods that have a running pod sandbox")
	p.Sample("kubelet_running_pods", float64(running))
	started, failed := a.pods.OwnUsers()
	p.Counter("kubelet_started_user_namespaced_pods_total", "[ALPHA] Cumulative number of pods with user namespaces started. This metric will only be collected on Linux.")
	p.Sample("kubelet_started_user_namespaced_pods_total", float64(started))
	p.Counter("kubelet_started_user_namespaced_pods_errors_total", "[ALPHA] Cumulative number of errors when starting pods with user namespaces. This metric will only be collected on Linux.")
	p.Sample("kubelet_started_user_namespaced_pods_errors_total", float64(failed))

	if l := a.link.Load(); l != nil {
		s := l.of()
		p.Gauge("coracle_link_live", "1 while the control plane has welcomed this node.")
		p.Sample("coracle_link_live", number(s.Live))
		p.Counter("coracle_link_connections_total", "Connections to the broker that were made since the agent started.")
		p.Sample("coracle_link_connections_total", float64(s.Connections))
		p.Gauge("coracle_link_keepalive_seconds", "Keepalive of the connection in use.")
		p.Sample("coracle_link_keepalive_seconds", s.Keepalive.Seconds())
		p.Gauge("coracle_link_class", "The link class in force. The value is always 1.")
		p.Sample("coracle_link_class", 1, "class", s.Class)
	}
	metrics.Traffic(p, a.counters.Snapshot())
	if b := a.budget.Status(); b.Limit > 0 {
		p.Gauge("coracle_link_data_budget_bytes", "Bytes that the node should not exceed in a day.")
		p.Sample("coracle_link_data_budget_bytes", float64(b.Limit))
		p.Gauge("coracle_link_data_used_bytes", "Bytes of the day that are used.")
		p.Sample("coracle_link_data_used_bytes", float64(b.Used))
		p.Gauge("coracle_link_data_held", "1 while what isn't urgent waits.")
		p.Sample("coracle_link_data_held", number(b.Held))
	}

	written := a.state.Written()
	p.Counter("coracle_state_commits_total", "Transactions of the node's state file since the agent started.")
	p.Sample("coracle_state_commits_total", float64(written.Commits))
	p.Counter("coracle_state_written_bytes_total", "Bytes that they handed to the flash.")
	p.Sample("coracle_state_written_bytes_total", float64(written.Bytes))
	p.Counter("coracle_state_syncs_total", "Times that they waited for the flash.")
	p.Sample("coracle_state_syncs_total", float64(written.Syncs))
	metrics.Process(p)
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
