package claims

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/coracle-edge/coracle/edgelet/metrics"
)

// calls are the times of what was done, by a kubelet's metrics
// (pkg/kubelet/metrics, DRASubsystem). Nothing is kept before the first.
type calls struct {
	mu         sync.Mutex
	operations map[operationKey]*metrics.Histogram
	grpc       map[callKey]*metrics.Histogram
}

type operationKey struct{ name, failed string }

type callKey struct{ driver, method, code string }

// maxSeries bounds what drivers' names can cost.
const maxSeries = 256

// durationBounds are upstream's ExponentialBucketsRange(.1, 40, 15).
func durationBounds() []float64 { return metrics.ExponentialBounds(.1, 1.534149, 15) }

func (c *calls) operation(name string, began time.Time, err error) {
	observe(&c.mu, &c.operations, operationKey{name, strconv.FormatBool(err != nil)}, began)
}

func (c *calls) call(driver, method string, code codes.Code, began time.Time) {
	observe(&c.mu, &c.grpc, callKey{driver, method, code.String()}, began)
}

func observe[K comparable](mu *sync.Mutex, in *map[K]*metrics.Histogram, key K, began time.Time) {
	mu.Lock()
	if *in == nil {
		*in = map[K]*metrics.Histogram{}
	}
	h := (*in)[key]
	if h == nil && len(*in) < maxSeries {
		h = metrics.NewHistogram(durationBounds()...)
		(*in)[key] = h
	}
	mu.Unlock()
	if h != nil {
		h.Observe(time.Since(began).Seconds())
	}
}

// Fill writes a kubelet's families of dynamic resource allocation, on a node that
// has or had drivers.
func (m *Manager) Fill(p *metrics.Page) {
	m.mu.Lock()
	known := len(m.drivers) > 0
	inUse, total := map[string]int{}, 0
	for _, c := range m.claims {
		if c.Boot != m.Boot {
			continue
		}
		total++
		for name := range c.Drivers {
			inUse[name]++
		}
	}
	m.mu.Unlock()
	m.calls.mu.Lock()
	operations, grpc := maps.Clone(m.calls.operations), maps.Clone(m.calls.grpc)
	m.calls.mu.Unlock()
	if !known && total == 0 && len(operations) == 0 {
		return
	}
	const used, whole, called = "dra_resource_claims_in_use", "dra_operations_duration_seconds", "dra_grpc_operations_duration_seconds"
	p.Gauge(used, "[ALPHA] The number of ResourceClaims that are currently in use on the node, by driver name (driver_name label value) and across all drivers (special value <any> for driver_name). Note that the sum of all by-driver counts is not the total number of in-use ResourceClaims because the same ResourceClaim might use devices from different drivers. Instead, use the count for the <any> driver_name.")
	p.Sample(used, float64(total), "driver_name", "<any>")
	for _, name := range slices.Sorted(maps.Keys(inUse)) {
		p.Sample(used, float64(inUse[name]), "driver_name", name)
	}
	if len(operations) > 0 {
		p.Histogram(whole, "[ALPHA] Latency histogram in seconds for the duration of handling all ResourceClaims referenced by a pod when the pod starts or stops. Identified by the name of the operation (PrepareResources or UnprepareResources) and separated by the success of the operation. The number of failed operations is provided through the histogram's overall count.")
		for _, k := range slices.SortedFunc(maps.Keys(operations), func(a, b operationKey) int {
			return cmp.Or(cmp.Compare(a.name, b.name), cmp.Compare(a.failed, b.failed))
		}) {
			operations[k].Fill(p, whole, "operation_name", k.name, "is_error", k.failed)
		}
	}
	if len(grpc) > 0 {
		p.Histogram(called, "[ALPHA] Duration in seconds of the DRA gRPC operations")
		for _, k := range slices.SortedFunc(maps.Keys(grpc), func(a, b callKey) int {
			return cmp.Or(cmp.Compare(a.driver, b.driver), cmp.Compare(a.method, b.method), cmp.Compare(a.code, b.code))
		}) {
			grpc[k].Fill(p, called, "driver_name", k.driver, "method_name", k.method, "grpc_status_code", k.code)
		}
	}
}
