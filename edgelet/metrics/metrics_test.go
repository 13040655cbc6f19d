package metrics

import (
	"bytes"
	"net/http/httptest"
	"testing"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	dto "github.com/prometheus/client_model/go"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

// parse reads a page as Prometheus does.
func parse(t testing.TB, page []byte) map[string]*dto.MetricFamily {
	t.Helper()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(page))
	if err != nil {
		t.Fatalf("%v in\n%s", err, page)
	}
	return families
}

func value(f *dto.MetricFamily, labels ...string) (float64, bool) {
next:
	for _, m := range f.GetMetric() {
		if len(m.GetLabel()) != len(labels)/2 {
			continue
		}
		for i := 0; i < len(labels); i += 2 {
			if l := m.GetLabel()[i/2]; l.GetName() != labels[i] || l.GetValue() != labels[i+1] {
				continue next
			}
		}
		return m.GetCounter().GetValue() + m.GetGauge().GetValue(), true
	}
	return 0, false
}

func TestTrafficIsReadByPrometheus(t *testing.T) {
	var c fleet.Counters
	c.Socket.Add(1000, 500)
	c.Plain.Add(900, 400)
	c.Sent(&fleet.Up{Report: &fleet.Report{}}, 300)
	c.Received(&fleet.Down{Order: &fleet.Order{}}, 200)
	c.Stream("kubelet").Add(7, 8)
	c.Refused()
	var p Page
	Traffic(&p, c.Snapshot())
	Process(&p)
	got := parse(t, p.Bytes())
	for _, x := range []struct {
		name   string
		labels []string
		want   float64
	}{
		{"coracle_link_bytes_total", []string{"class", "report", "direction", "sent"}, 300},
		{"coracle_link_bytes_total", []string{"class", "control", "direction", "sent"}, 700},
		{"coracle_link_bytes_total", []string{"class", "control", "direction", "received"}, 300},
		{"coracle_link_messages_total", []string{"class", "order", "direction", "received"}, 1},
		{"coracle_link_connection_bytes_total", []string{"layer", "mqtt", "direction", "sent"}, 900},
		{"coracle_link_stream_bytes_total", []string{"purpose", "kubelet", "direction", "received"}, 8},
		{"coracle_link_refused_messages_total", nil, 1},
	} {
		if v, ok := value(got[x.name], x.labels...); !ok || v != x.want {
			t.Errorf("%s%q = %v %v, want %v", x.name, x.labels, v, ok, x.want)
		}
	}
	if rss, ok := value(got["process_resident_memory_bytes"]); !ok || rss < 1<<20 || rss > 1<<32 {
		t.Errorf("resident memory %v", rss)
	}
	if fds, _ := value(got["process_open_fds"]); fds < 3 {
		t.Errorf("%v open files", fds)
	}
}

func TestHandler(t *testing.T) {
	w := httptest.NewRecorder()
	Handler(func(p *Page) { p.Gauge("a", "b"); p.Sample("a", 1.5) }).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if got := parse(t, w.Body.Bytes()); w.Header().Get("Content-Type") != ContentType || got["a"].GetMetric()[0].GetGauge().GetValue() != 1.5 {
		t.Errorf("%s %q", w.Header(), w.Body)
	}
}

// FuzzLabels: whatever stands in a label or a help text, the page stays one.
func FuzzLabels(f *testing.F) {
	f.Add("lan", "what it is")
	f.Add("\"\\\n", "a\nb\\")
	f.Fuzz(func(t *testing.T, label, help string) {
		var p Page
		p.Gauge("name", help)
		p.Sample("name", 1, "label", label)
		p.Sample("name", 2, "label", label+"x", "other", "y")
		if got := parse(t, p.Bytes()); len(got) != 1 || len(got["name"].GetMetric()) != 2 {
			t.Errorf("%q %q: %v", label, help, got)
		}
	})
}
