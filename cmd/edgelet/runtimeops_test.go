package main

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/coracle-edge/coracle/edgelet/metrics"
)

// Prometheus reads what calls to the runtime became, and the histogram is one.
func TestOperationsOfTheRuntime(t *testing.T) {
	o := newOperations()
	for range 3 {
		o.add("run_podsandbox", 5*time.Millisecond, nil) // at a bound is within it
	}
	o.add("run_podsandbox", time.Hour, errors.New("too late"))
	var p metrics.Page
	o.fill(&p)
	parser := expfmt.NewTextParser(model.LegacyValidation)
	got, err := parser.TextToMetricFamilies(bytes.NewReader(p.Bytes()))
	if err != nil {
		t.Fatalf("%v in\n%s", err, p.Bytes())
	}
	one := func(name string) float64 {
		t.Helper()
		if f := got[name]; len(f.GetMetric()) == 1 && f.Metric[0].Label[0].GetValue() == "run_podsandbox" {
			return f.Metric[0].GetCounter().GetValue()
		}
		t.Fatalf("%s: %+v", name, got[name])
		return 0
	}
	if calls, failed := one("kubelet_runtime_operations_total"), one("kubelet_runtime_operations_errors_total"); calls != 4 || failed != 1 {
		t.Errorf("%v calls, %v failed", calls, failed)
	}
	h := got["kubelet_runtime_operations_duration_seconds"].GetMetric()[0].GetHistogram()
	if h.GetSampleCount() != 4 || len(h.GetBucket()) != 15 || h.Bucket[0].GetCumulativeCount() != 3 || h.Bucket[13].GetCumulativeCount() != 3 || h.GetSampleSum() < 3600 {
		t.Errorf("%+v", h)
	}
}
