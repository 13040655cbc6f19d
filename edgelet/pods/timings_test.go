package pods

import (
	"bytes"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-edge/coracle/edgelet/metrics"
	"github.com/coracle-edge/coracle/edgelet/pods/fakecri"
)

// sums are how many values a histogram has, and what they are together.
func sums(t *testing.T, h *metrics.Histogram) (count uint64, sum float64) {
	t.Helper()
	var p metrics.Page
	p.Histogram("x", "h")
	h.Fill(&p, "x")
	parser := expfmt.NewTextParser(model.LegacyValidation)
	got, err := parser.TextToMetricFamilies(bytes.NewReader(p.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	one := got["x"].GetMetric()[0].GetHistogram()
	return one.GetSampleCount(), one.GetSampleSum()
}

func TestHowLongPodsTakeToStart(t *testing.T) {
	on(t, func(b *board) {
		expect := func(what string, h *metrics.Histogram, count uint64, seconds float64) {
			t.Helper()
			if n, sum := sums(t, h); n != count || sum < seconds || sum > seconds+1.5 {
				t.Errorf("%s: %d, %v seconds; want %d, about %v", what, n, sum, count, seconds)
			}
		}
		b.rt.AddRemote("far:1", "wasm")
		b.rt.Slow("PullImage", 7*time.Second)
		b.rt.Slow("RunPodSandbox", 2*time.Second)
		b.rt.Plan("first", fakecri.Plan{RunFor: 4 * time.Second})
		init := ctr("first")
		pod := testPod("p", withInit(init), func(p *v1.Pod) {
			p.CreationTimestamp = metav1.NewTime(time.Now().Add(-10 * time.Second))
			p.Spec.Containers[0].Image = "far:1"
		})
		b.store.put(pod)
		b.settle(time.Minute)
		m := b.m.Timings()
		expect("start", m.Start, 1, 13)
		expect("with all", m.StartTotal, 1, 23)
		expect("without images and init containers", m.StartSLI, 1, 12)
		if n, _ := sums(t, m.WorkerStart); n != 1 {
			t.Errorf("%d workers", n)
		}
		if n, _ := sums(t, m.Worker[workerCreate]); n != 1 {
			t.Errorf("created %d", n)
		}
		// One whose volume stays, and one from the future: the node's clock is behind.
		b.rt.Slow("RunPodSandbox", 0)
		b.store.put(testPod("q", func(p *v1.Pod) {
			p.CreationTimestamp = metav1.NewTime(time.Now().Add(-time.Second))
			p.Spec.Volumes = []v1.Volume{{Name: "v", VolumeSource: v1.VolumeSource{HostPath: &v1.HostPathVolumeSource{Path: b.dir}}}}
		}))
		b.store.put(testPod("r", func(p *v1.Pod) { p.CreationTimestamp = metav1.NewTime(time.Now().Add(time.Hour)) }))
		b.settle(time.Minute)
		expect("with q", m.StartTotal, 2, 24)
		expect("without q", m.StartSLI, 1, 12)
		expect("with r", m.Start, 3, 13)
		next := pod.DeepCopy()
		next.Labels = map[string]string{"a": "b"}
		b.store.put(next)
		b.settle(time.Minute)
		if n, _ := sums(t, m.Worker[workerUpdate]); n != 1 {
			t.Errorf("updated %d", n)
		}
		b.store.put(deleted(testPod("q"), 1))
		b.settle(time.Minute)
		if n, _ := sums(t, m.Worker[workerTerminated]); n != 1 {
			t.Errorf("ended %d", n)
		}
		b.settle(time.Hour)
		n, _ := sums(t, m.Relist)
		between, seconds := sums(t, m.RelistInterval)
		if n < 2 || between != n-1 || seconds/float64(between) < 1 || time.Since(time.Unix(m.RelistSeen.Load(), 0)) > time.Hour {
			t.Errorf("%d lists, %d between, %v seconds", n, between, seconds)
		}
		// What ran before the agent is nobody's start.
		b.stop()
		b.boot()
		b.settle(time.Minute)
		if n, _ := sums(t, b.m.Timings().Start); n != 0 {
			t.Errorf("%d starts after a restart", n)
		}
	})
}
