package stats

import (
	"context"
	"fmt"
	"net/http"
	"strconv"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/edgelet/metrics"
)

// Resource writes the page /metrics/resource: what autoscalers and `kubectl top`
// ask of a kubelet (upstream: pkg/kubelet/metrics/collectors/resource_metrics.go).
func (c *Collector) Resource(ctx context.Context, p *metrics.Page) error {
	s, err := c.Sample(ctx)
	if err != nil {
		return err
	}
	p.Counter("node_cpu_usage_seconds_total", "[STABLE] Cumulative cpu time consumed by the node in core-seconds")
	p.Sample("node_cpu_usage_seconds_total", float64(s.Node.CPUNanos)/nano)
	p.Gauge("node_memory_working_set_bytes", "[STABLE] Current working set of the node in bytes")
	p.Sample("node_memory_working_set_bytes", float64(s.Node.WorkingSet))
	p.Gauge("node_swap_usage_bytes", "[ALPHA] Current swap usage of the node in bytes. Reported only on non-windows systems")
	p.Sample("node_swap_usage_bytes", float64(s.Node.SwapTotal-min(s.Node.SwapFree, s.Node.SwapTotal)))
	for _, f := range []struct {
		counter    bool
		name, help string
		by         float64
		of         func(*CgroupUsage) *uint64
	}{
		{true, "cpu_usage_seconds_total", "[STABLE] Cumulative cpu time consumed by the %s in core-seconds", nano, func(u *CgroupUsage) *uint64 { return u.CPUNanos }},
		{false, "memory_working_set_bytes", "[STABLE] Current working set of the %s in bytes", 1, func(u *CgroupUsage) *uint64 { return u.WorkingSet }},
		{false, "swap_usage_bytes", "[ALPHA] Current amount of the %s swap usage in bytes. Reported only on non-windows systems", 1, func(u *CgroupUsage) *uint64 { return u.Swap }},
	} {
		for _, of := range []string{"container", "pod"} {
			name, help := of+"_"+f.name, fmt.Sprintf(f.help, of)
			if f.counter {
				p.Counter(name, help)
			} else {
				p.Gauge(name, help)
			}
			for i := range s.Pods {
				pod := &s.Pods[i]
				if of == "pod" {
					if pod.Usage != nil && f.of(pod.Usage) != nil {
						p.Sample(name, float64(*f.of(pod.Usage))/f.by, "namespace", pod.Namespace, "pod", pod.Name)
					}
					continue
				}
				for j := range pod.Containers {
					if u := pod.Containers[j].Usage; u != nil && f.of(u) != nil {
						p.Sample(name, float64(*f.of(u))/f.by, "container", pod.Containers[j].Name, "namespace", pod.Namespace, "pod", pod.Name)
					}
				}
			}
		}
	}
	p.Gauge("container_start_time_seconds", "[STABLE] Start time of the container since unix epoch in seconds")
	for i := range s.Pods {
		for _, one := range s.Pods[i].Containers {
			p.Sample("container_start_time_seconds", float64(one.Started.UnixNano())/nano, "container", one.Name, "namespace", s.Pods[i].Namespace, "pod", s.Pods[i].Name)
		}
	}
	p.Gauge("resource_scrape_error", "[STABLE] 1 if there was an error while getting container metrics, 0 otherwise")
	p.Sample("resource_scrape_error", 0)
	return nil
}

// Volumes writes kubelet_volume_stats_*, for claims as a kubelet does.
func (c *Collector) Volumes(ctx context.Context, p *metrics.Page) error {
	f, err := c.Files(ctx)
	if err != nil {
		return err
	}
	for _, x := range []struct {
		name, help string
		of         func(*Space) uint64
	}{
		{"available_bytes", "Number of available bytes in the volume", func(s *Space) uint64 { return s.Available }},
		{"capacity_bytes", "Capacity in bytes of the volume", func(s *Space) uint64 { return s.Capacity }},
		{"used_bytes", "Number of used bytes in the volume", func(s *Space) uint64 { return s.Used }},
		{"inodes", "Maximum number of inodes in the volume", func(s *Space) uint64 { return s.Inodes }},
		{"inodes_free", "Number of free inodes in the volume", func(s *Space) uint64 { return s.InodesFree }},
		{"inodes_used", "Number of used inodes in the volume", func(s *Space) uint64 { return s.InodesUse }},
	} {
		name := "kubelet_volume_stats_" + x.name
		p.Gauge(name, "[ALPHA] "+x.help)
		said := map[string]bool{}
		for _, pod := range c.Pods() {
			for _, v := range f.Pods[pod.UID].Volumes {
				if key := pod.Namespace + "/" + v.Claim; v.Claim != "" && !said[key] {
					said[key] = true
					p.Sample(name, float64(x.of(&v.Space)), "namespace", pod.Namespace, "persistentvolumeclaim", v.Claim)
				}
			}
		}
	}
	return nil
}

// Usage is what fleet.UsagePath answers.
func (c *Collector) Usage(ctx context.Context) (*fleet.Usage, error) {
	s, err := c.Sample(ctx)
	if err != nil {
		return nil, err
	}
	u := &fleet.Usage{UnixMilli: s.At.UnixMilli(), WorkingSet: s.Node.WorkingSet}
	if s.NodeRate != nil {
		u.NanoCores = *s.NodeRate
	}
	for i := range s.Pods {
		p := fleet.PodUsage{Namespace: s.Pods[i].Namespace, Name: s.Pods[i].Name, UID: s.Pods[i].UID}
		for _, one := range s.Pods[i].Containers {
			if one.Rate == nil || one.Usage == nil || one.Usage.WorkingSet == nil || one.Init {
				continue
			}
			u.WindowMilli = max(u.WindowMilli, one.Window.Milliseconds())
			p.Containers = append(p.Containers, fleet.ContainerUsage{Name: one.Name, NanoCores: *one.Rate, WorkingSet: *one.Usage.WorkingSet})
		}
		if len(p.Containers) > 0 {
			u.Pods = append(u.Pods, p)
		}
	}
	if u.WindowMilli == 0 {
		u.WindowMilli = rateWait.Milliseconds()
	}
	return u, nil
}

// Paths are those of the kubelet's API that this package answers, by pattern of
// http.ServeMux.
func (c *Collector) Paths() map[string]http.Handler {
	page := func(fill func(context.Context, *metrics.Page) error) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			// What is measured is measured before the first byte, so that an error has its status.
			if _, err := c.Sample(r.Context()); err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			w.Header().Set("Content-Type", metrics.ContentType)
			err := metrics.Stream(w, func(p *metrics.Page) {
				if err := fill(r.Context(), p); err != nil {
					c.Log.Info("a page of metrics is cut short", "path", r.URL.Path, "err", err)
					panic(http.ErrAbortHandler) // an end without its last chunk tells the client that something is missing
				}
			})
			if err != nil {
				c.Log.Debug("a page of metrics was not read to its end", "path", r.URL.Path, "err", err)
			}
		})
	}
	summary := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query().Get("only_cpu_and_memory")
		only, err := strconv.ParseBool(q)
		if q != "" && err != nil {
			http.Error(w, fmt.Sprintf("only_cpu_and_memory=%q: want true or false", q), http.StatusBadRequest)
			return
		}
		out := &lateHeader{w: w}
		if err := c.Summary(r.Context(), out, only); err != nil {
			if !out.begun {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			panic(http.ErrAbortHandler)
		}
	})
	return map[string]http.Handler{
		"GET /stats/summary":    summary,
		"POST /stats/summary":   summary,
		"GET /metrics/cadvisor": page(c.CAdvisor),
		"GET /metrics/resource": page(c.Resource),
		"GET " + fleet.UsagePath: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			u, err := c.Usage(r.Context())
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			w.Header().Set("Content-Type", "application/json")
			if err := fleet.WriteUsage(w, u); err != nil {
				c.Log.Debug("usage was not read to its end", "err", err)
			}
		}),
	}
}

// lateHeader says the content type with the first byte.
type lateHeader struct {
	w     http.ResponseWriter
	begun bool
}

func (l *lateHeader) Write(p []byte) (int, error) {
	if !l.begun {
		l.begun = true
		l.w.Header().Set("Content-Type", "application/json")
	}
	return l.w.Write(p)
}
