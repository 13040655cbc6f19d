package main

import (
	"cmp"
	"context"
	"maps"
	"runtime"
	"slices"
	"strconv"

	v1 "k8s.io/api/core/v1"

	"github.com/coracle-edge/coracle/edgelet/metrics"
	"github.com/coracle-edge/coracle/edgelet/pods"
	"github.com/coracle-edge/coracle/edgelet/probes"
	"github.com/coracle-edge/coracle/internal/version"
)

// What dashboards and alerts ask of a kubelet, by its names (upstream:
// pkg/kubelet/metrics and test/instrumentation/documentation).

// fillProbes writes how often probes ran (upstream: pkg/kubelet/prober).
func (a *agent) fillProbes(p *metrics.Page) {
	named := map[string]pods.Pod{}
	for _, pod := range a.pods.Pods() {
		named[pod.UID] = pod
	}
	const name = "prober_probe_total"
	p.Counter(name, "[BETA] Cumulative number of a liveness, readiness or startup probe for a container by result.")
	a.pods.Probes(func(uid, container string, kind probes.Kind, c probes.Counts) {
		pod, ok := named[uid]
		if !ok {
			return
		}
		for _, r := range []struct {
			result string
			n      uint64
		}{{"successful", c.Successful}, {"failed", c.Failed}, {"unknown", c.Unknown}} {
			if r.n > 0 {
				p.Sample(name, float64(r.n), "container", container, "namespace", pod.Namespace, "pod", pod.Name, "pod_uid", uid, "probe_type", kind.String(), "result", r.result)
			}
		}
	})
}

// fillKubelet writes what dashboards ask of a kubelet's own page.
func (a *agent) fillKubelet(ctx context.Context, p *metrics.Page) {
	states, list := map[string]int{}, a.pods.Pods()
	for _, pod := range list {
		for _, of := range [][]v1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses, pod.Status.EphemeralContainerStatuses} {
			for _, c := range of {
				switch {
				case c.State.Running != nil:
					states["running"]++
				case c.State.Terminated != nil:
					states["exited"]++
				case c.ContainerID != "":
					states["created"]++
				}
			}
		}
	}
	p.Gauge("kubelet_running_containers", "[ALPHA] Number of containers currently running")
	for _, state := range []string{"created", "exited", "running"} {
		if n := states[state]; n > 0 {
			p.Sample("kubelet_running_containers", float64(n), "container_state", state)
		}
	}
	a.fillPods(p, list)
	a.ops.fill(p)
	fillTimings(p, a.pods.Timings())
	if a.claims != nil {
		a.claims.Fill(p)
	}
	p.Counter("kubelet_evictions", "[ALPHA] Cumulative number of pod evictions by eviction signal")
	for signal, n := range a.res.evict.Evictions() {
		p.Sample("kubelet_evictions", float64(n), "eviction_signal", string(signal))
	}
	a.fillAffinity(p)
	if err := a.res.stats.Volumes(ctx, p); err != nil {
		a.log.Info("volumes are not in the page of metrics", "err", err)
	}
}

// fillTimings writes how long pods take.
func fillTimings(p *metrics.Page, t *pods.Timings) {
	one := func(name, help string, h *metrics.Histogram) {
		p.Histogram(name, help)
		h.Fill(p, name)
	}
	one("kubelet_pod_start_duration_seconds", "[ALPHA] Duration in seconds from kubelet seeing a pod for the first time to the pod starting to run", t.Start)
	one("kubelet_pod_start_sli_duration_seconds", "[ALPHA] Duration in seconds to start a pod, excluding time to pull images and run init containers, measured from pod creation timestamp to when all its containers are reported as started and observed via watch", t.StartSLI)
	one("kubelet_pod_start_total_duration_seconds", "[ALPHA] Duration in seconds to start a pod since creation, including time to pull images and run init containers, measured from pod creation timestamp to when all its containers are reported as started and observed via watch", t.StartTotal)
	one("kubelet_pod_worker_start_duration_seconds", "[ALPHA] Duration in seconds from kubelet seeing a pod to starting a worker.", t.WorkerStart)
	const worker = "kubelet_pod_worker_duration_seconds"
	p.Histogram(worker, "[ALPHA] Duration in seconds to sync a single pod. Broken down by operation type: create, update, or sync")
	for i, h := range t.Worker {
		if h.Count() > 0 {
			h.Fill(p, worker, "operation_type", pods.WorkerOperation(i))
		}
	}
	one("kubelet_pleg_relist_duration_seconds", "[ALPHA] Duration in seconds for relisting pods in PLEG.", t.Relist)
	one("kubelet_pleg_relist_interval_seconds", "[ALPHA] Interval in seconds between relisting in PLEG.", t.RelistInterval)
	p.Gauge("kubelet_pleg_last_seen_seconds", "[ALPHA] Timestamp in seconds when PLEG was last seen active.")
	p.Sample("kubelet_pleg_last_seen_seconds", float64(t.RelistSeen.Load()))
}

// fillPods counts pods, and what became of containers.
func (a *agent) fillPods(p *metrics.Page, list []pods.Pod) {
	// By static: whether the pod is the node's own.
	var desired, active [2]int
	mirrors := 0
	for _, pod := range list {
		static := 0
		if pod.Static {
			static = 1
			mirrors++ // every static pod has one, while there is a control plane
		}
		desired[static]++
		if pod.Status.Phase != v1.PodSucceeded && pod.Status.Phase != v1.PodFailed {
			active[static]++
		}
	}
	gauge := func(name, help string, n [2]int) {
		p.Gauge(name, help)
		p.Sample(name, float64(n[0]), "static", "")
		p.Sample(name, float64(n[1]), "static", "true")
	}
	gauge("kubelet_desired_pods", "[ALPHA] The number of pods the kubelet is being instructed to run. static is true if the pod is not from the apiserver.", desired)
	gauge("kubelet_active_pods", "[ALPHA] The number of pods the kubelet considers active and which are being considered when admitting new pods. static is true if the pod is not from the apiserver.", active)
	p.Gauge("kubelet_mirror_pods", "[ALPHA] The number of mirror pods the kubelet will try to create (one per admitted static pod)")
	p.Sample("kubelet_mirror_pods", float64(mirrors))

	n := a.pods.Counts()
	p.Counter("kubelet_started_pods_total", "[ALPHA] Cumulative number of pods started")
	p.Sample("kubelet_started_pods_total", float64(n.StartedPods))
	byType := func(name, help string, counts map[string]uint64) {
		p.Counter(name, help)
		for _, kind := range slices.Sorted(maps.Keys(counts)) {
			p.Sample(name, float64(counts[kind]), "container_type", kind)
		}
	}
	byType("kubelet_started_containers_total", "[ALPHA] Cumulative number of containers started", n.StartedContainers)
	byType("kubelet_started_containers_errors_total", "[ALPHA] Cumulative number of errors when starting containers", n.NotStarted)
	p.Counter("kubelet_terminated_containers_total", "[ALPHA] Cumulative number of container terminations.")
	for _, t := range slices.SortedFunc(maps.Keys(n.Terminated), func(a, b pods.Termination) int {
		return cmp.Or(cmp.Compare(a.Type, b.Type), cmp.Compare(a.ExitCode, b.ExitCode), cmp.Compare(a.Reason, b.Reason))
	}) {
		p.Sample("kubelet_terminated_containers_total", float64(n.Terminated[t]),
			"container_type", t.Type, "exit_code", strconv.Itoa(int(t.ExitCode)), "reason", t.Reason)
	}
	p.Gauge("kubernetes_build_info", "[ALPHA] A metric with a constant '1' value labeled by major, minor, git version, git commit, git tree state, build date, Go version, and compiler from which Kubernetes was built, and platform on which it is running.")
	p.Sample("kubernetes_build_info", 1, "git_version", version.Node(), "go_version", runtime.Version(), "platform", runtime.GOOS+"/"+runtime.GOARCH)
}
