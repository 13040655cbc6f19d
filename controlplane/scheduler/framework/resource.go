package framework

import (
	"maps"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	helper "k8s.io/component-helpers/resource"
)

// Requests assumed for scoring of containers that name none, as upstream: a
// container that asks for nothing still costs something.
const (
	DefaultMilliCPU int64 = 100
	DefaultMemory   int64 = 200 << 20
)

// Resources are amounts: CPU in thousandths, memory and storage in bytes,
// others in their own unit.
type Resources struct {
	MilliCPU  int64
	Memory    int64
	Ephemeral int64
	Pods      int64
	Scalar    map[v1.ResourceName]int64 // extended resources and huge pages; nil if none
}

// ResourcesOf reads a resource list.
func ResourcesOf(list v1.ResourceList) Resources {
	var r Resources
	for name, q := range list {
		switch name {
		case v1.ResourceCPU:
			r.MilliCPU = q.MilliValue()
		case v1.ResourceMemory:
			r.Memory = q.Value()
		case v1.ResourceEphemeralStorage:
			r.Ephemeral = q.Value()
		case v1.ResourcePods:
			r.Pods = q.Value()
		default:
			if r.Scalar == nil {
				r.Scalar = map[v1.ResourceName]int64{}
			}
			r.Scalar[name] = q.Value()
		}
	}
	return r
}

// Get returns one amount; 0 if the resource isn't there.
func (r *Resources) Get(name v1.ResourceName) int64 {
	switch name {
	case v1.ResourceCPU:
		return r.MilliCPU
	case v1.ResourceMemory:
		return r.Memory
	case v1.ResourceEphemeralStorage:
		return r.Ephemeral
	case v1.ResourcePods:
		return r.Pods
	}
	return r.Scalar[name]
}

func (r *Resources) add(o *Resources, sign int64) {
	r.MilliCPU += sign * o.MilliCPU
	r.Memory += sign * o.Memory
	r.Ephemeral += sign * o.Ephemeral
	for name, n := range o.Scalar {
		if r.Scalar == nil {
			r.Scalar = map[v1.ResourceName]int64{}
		}
		r.Scalar[name] += sign * n
	}
}

func (r Resources) clone() Resources {
	r.Scalar = maps.Clone(r.Scalar)
	return r
}

// requestsOf returns what the pod asks for, overhead, init and sidecar
// containers included, and the same with the defaults above for containers that
// don't say.
func requestsOf(pod *v1.Pod) (asked, scored Resources) {
	opts := helper.PodResourcesOptions{UseStatusResources: true, InPlacePodLevelResourcesVerticalScalingEnabled: true}
	asked = ResourcesOf(helper.PodRequests(pod, opts))
	opts.NonMissingContainerRequests = v1.ResourceList{
		v1.ResourceCPU:    *resource.NewMilliQuantity(DefaultMilliCPU, resource.DecimalSI),
		v1.ResourceMemory: *resource.NewQuantity(DefaultMemory, resource.BinarySI),
	}
	if helper.IsPodLevelRequestsSet(pod) {
		// What the pod as a whole asks for stands; only what it leaves open is assumed.
		if asked.MilliCPU != 0 {
			delete(opts.NonMissingContainerRequests, v1.ResourceCPU)
		}
		if asked.Memory != 0 {
			delete(opts.NonMissingContainerRequests, v1.ResourceMemory)
		}
	}
	scored = ResourcesOf(helper.PodRequests(pod, opts))
	return asked, scored
}
