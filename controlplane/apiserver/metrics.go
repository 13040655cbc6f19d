package apiserver

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"k8s.io/component-base/metrics/legacyregistry"
)

// MetricsPath is where upstream serves its metrics, and ours with them.
const MetricsPath = "/metrics"

// RegisterMetrics adds to what MetricsPath serves.
func (s *Server) RegisterMetrics(c prometheus.Collector) error { return s.metrics.Register(c) }

// Handle serves path with handler, for those whom RBAC allows that path. It must
// be called before Run.
func (s *Server) Handle(path string, handler http.Handler) {
	s.outermost.Handler.NonGoRestfulMux.UnlistedHandle(path, handler)
}

// installMetrics puts a handler of both registries in the place of upstream's.
// Upstream's own registry is of the process, and a server must not be.
func (s *Server) installMetrics() {
	mux := s.outermost.Handler.NonGoRestfulMux
	mux.Unregister(MetricsPath)
	mux.Handle(MetricsPath, promhttp.HandlerFor(prometheus.Gatherers{legacyregistry.DefaultGatherer, s.metrics}, promhttp.HandlerOpts{}))
}
