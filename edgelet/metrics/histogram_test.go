package metrics

import (
	"strings"
	"testing"
)

func TestHistogram(t *testing.T) {
	h := NewHistogram(ExponentialBounds(1, 2, 3)...)
	for _, v := range []float64{0.5, 1, 1.5, 4, 5} { // what is a bound is within it
		h.Observe(v)
	}
	var p Page
	p.Histogram("x", "h")
	h.Fill(&p, "x", "a", "b")
	want := `# HELP x h
# TYPE x histogram
x_bucket{a="b",le="1"} 2
x_bucket{a="b",le="2"} 3
x_bucket{a="b",le="4"} 4
x_bucket{a="b",le="+Inf"} 5
x_sum{a="b"} 12
x_count{a="b"} 5
`
	if got := string(p.Bytes()); got != want || h.Count() != 5 {
		t.Errorf("%s", got)
	}
	p = Page{}
	NewHistogram(DefaultBounds()...).Fill(&p, "x")
	if got := string(p.Bytes()); !strings.HasPrefix(got, "x_bucket{le=\"0.005\"} 0\n") || !strings.HasSuffix(got, "x_sum 0\nx_count 0\n") || strings.Count(got, "\n") != 14 {
		t.Errorf("%s", got)
	}
}
