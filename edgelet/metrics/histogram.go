package metrics

import (
	"slices"
	"strconv"
	"sync"
)

// Histogram counts observations below bounds: a word for each bound, no more. It is
// safe for concurrent use.
type Histogram struct {
	bounds []float64

	mu     sync.Mutex
	within []uint64 // of each bound, not of those below
	count  uint64
	sum    float64
}

// NewHistogram returns one with these upper bounds, which grow.
func NewHistogram(bounds ...float64) *Histogram {
	return &Histogram{bounds: bounds, within: make([]uint64, len(bounds))}
}

// DefaultBounds are the Prometheus client's DefBuckets, in seconds.
func DefaultBounds() []float64 {
	return []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}
}

// ExponentialBounds are count bounds from least on, each factor times the one before.
func ExponentialBounds(least, factor float64, count int) []float64 {
	out := make([]float64, count)
	for i := range out {
		out[i] = least
		least *= factor
	}
	return out
}

// Observe counts a value; one that is a bound is within it.
func (h *Histogram) Observe(v float64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.count++
	h.sum += v
	if i, _ := slices.BinarySearch(h.bounds, v); i < len(h.bounds) {
		h.within[i]++
	}
}

// Count is how many values were observed.
func (h *Histogram) Count() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.count
}

// Fill writes the samples of a family that [Page.Histogram] began; labels are names
// and values by turns.
func (h *Histogram) Fill(p *Page, name string, labels ...string) {
	h.mu.Lock()
	within, count, total := slices.Clone(h.within), h.count, h.sum
	h.mu.Unlock()
	sum := uint64(0)
	labels = slices.Clip(labels)
	for i, n := range within {
		sum += n
		p.Sample(name+"_bucket", float64(sum), append(labels, "le", strconv.FormatFloat(h.bounds[i], 'g', -1, 64))...)
	}
	p.Sample(name+"_bucket", float64(count), append(labels, "le", "+Inf")...)
	p.Sample(name+"_sum", total, labels...)
	p.Sample(name+"_count", float64(count), labels...)
}
