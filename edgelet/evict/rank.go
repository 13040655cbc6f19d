package evict

import (
	"fmt"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"
)

// Candidate is a pod that runs, and what it uses.
type Candidate struct {
	Namespace, Name, UID string
	Static               bool
	Pod                  *v1.Pod
	// Measured says that the rest could be told.
	Measured bool
	// Memory is the working set in bytes; nil if it can't be told, which counts as 0.
	Memory    *int64
	Processes int64
	// Layers, Logs and Volumes are bytes and inodes on disk: containers' writable
	// layers, their logs, and volumes that end with the pod.
	Layers, Logs, Volumes Disk
	// EmptyDirs are bytes by volume, and Ephemeral all bytes that count against limits
	// of ephemeral-storage.
	EmptyDirs  map[string]int64
	Ephemeral  int64
	Containers []ContainerUse
}

// Disk is an amount of bytes and inodes.
type Disk struct{ Bytes, Inodes int64 }

// ContainerUse is what one container uses; nil is unknown.
type ContainerUse struct {
	Name       string
	Memory     *int64
	Layer, Log *int64
}

// Places of a disk that a signal is about.
type places struct{ layers, logs, volumes bool }

// critical pods are never evicted (upstream: pkg/kubelet/types, IsCriticalPod).
func (c *Candidate) critical() bool {
	const systemCriticalPriority = 2 * 1000000000
	if c.Static {
		return true
	}
	if _, mirror := c.Pod.Annotations[v1.MirrorPodAnnotationKey]; mirror {
		return true
	}
	return c.priority() >= systemCriticalPriority
}

func (c *Candidate) priority() int32 {
	if p := c.Pod.Spec.Priority; p != nil {
		return *p
	}
	return 0
}

// request is upstream's GetResourceRequestQuantity: of a pod with resources of its
// own the containers' don't count, not even those that only containers can have, and
// overhead counts where something else is asked for.
func (c *Candidate) request(name v1.ResourceName) int64 {
	q := resourcehelper.PodRequests(c.Pod, resourcehelper.PodResourcesOptions{
		SkipContainerLevelResources: resourcehelper.IsPodLevelResourcesSet(c.Pod), ExcludeOverhead: true})[name]
	if overhead, ok := c.Pod.Spec.Overhead[name]; ok && !q.IsZero() {
		q.Add(overhead)
	}
	return q.Value()
}

// uses is what counts for a resource and how much of it was asked for.
func (c *Candidate) uses(name v1.ResourceName, at places) (used, requested int64) {
	disk := func(of func(Disk) int64) (sum int64) {
		if at.layers {
			sum += of(c.Layers)
		}
		if at.logs {
			sum += of(c.Logs)
		}
		if at.volumes {
			sum += of(c.Volumes)
		}
		return sum
	}
	switch name {
	case v1.ResourceMemory:
		if c.Memory != nil {
			used = *c.Memory
		}
		return used, c.request(name)
	case v1.ResourceEphemeralStorage:
		return disk(func(d Disk) int64 { return d.Bytes }), c.request(name)
	case resourceInodes:
		return disk(func(d Disk) int64 { return d.Inodes }), 0
	}
	return c.Processes, 0
}

// rank sorts pods, the one to go first at the front, as upstream does
// (pkg/kubelet/eviction/helpers.go): what isn't measured, what uses more than it
// asked for, the lower priority, the larger use beyond the request. For process
// ids, priority comes first and requests there are none.
func rank(pods []*Candidate, name v1.ResourceName, at places) {
	type weight struct {
		exceeds bool
		beyond  int64
	}
	weights := make(map[*Candidate]weight, len(pods))
	for _, c := range pods {
		used, requested := c.uses(name, at)
		beyond := used - requested
		if name == resourceInodes {
			beyond = used - c.request(v1.ResourceEphemeralStorage) // as upstream's disk() has it
		}
		weights[c] = weight{used > requested, beyond}
	}
	first := func(a, b bool) int {
		switch {
		case a == b:
			return 0
		case a:
			return -1
		}
		return 1
	}
	slices.SortStableFunc(pods, func(a, b *Candidate) int {
		x, y := weights[a], weights[b]
		if name != resourcePIDs {
			if !a.Measured || !b.Measured {
				if n := first(!a.Measured, !b.Measured); n != 0 {
					return n
				}
			} else if n := first(x.exceeds, y.exceeds); n != 0 {
				return n
			}
		}
		if n := int64(a.priority()) - int64(b.priority()); n != 0 {
			return int(max(-1, min(n, 1)))
		}
		if !a.Measured || !b.Measured {
			return first(!a.Measured, !b.Measured)
		}
		return int(max(-1, min(y.beyond-x.beyond, 1)))
	})
}

// message says why a pod goes, in upstream's words (evictionMessage).
func message(c *Candidate, name v1.ResourceName, met []Threshold, seen observations) string {
	var b strings.Builder
	fmt.Fprintf(&b, "The node was low on resource: %v. ", name)
	for i := range met {
		if k, _ := met[i].Signal.kind(); k.resource == name {
			if o, ok := seen[met[i].Signal]; ok {
				quantity := resource.NewQuantity(met[i].Value.of(o.capacity), o.format())
				if a := met[i].Value.Amount; a != nil {
					quantity = a
				}
				fmt.Fprintf(&b, "Threshold quantity: %v, available: %v. ", quantity, resource.NewQuantity(o.available, o.format()))
				break
			}
		}
	}
	if !c.Measured {
		return b.String()
	}
	if p := c.Pod.Spec.Resources; p != nil && name == v1.ResourceMemory && c.Memory != nil {
		if q, ok := p.Requests[name]; ok {
			fmt.Fprintf(&b, "Pod %s was using %s, request is %s, has larger consumption of %v. ", c.Name, amount(*c.Memory), q.String(), name)
		}
	}
	specs := slices.Concat(c.Pod.Spec.Containers, c.Pod.Spec.InitContainers)
	for _, use := range c.Containers {
		i := slices.IndexFunc(specs, func(s v1.Container) bool { return s.Name == use.Name })
		if i < 0 {
			continue
		}
		var used *int64
		switch name {
		case v1.ResourceMemory:
			used = use.Memory
		case v1.ResourceEphemeralStorage:
			if use.Layer != nil && use.Log != nil {
				sum := *use.Layer + *use.Log
				used = &sum
			}
		}
		request := specs[i].Resources.Requests[name]
		if used != nil && *used > request.Value() {
			fmt.Fprintf(&b, "Container %s was using %s, request is %s, has larger consumption of %v. ", use.Name, amount(*used), request.String(), name)
		}
	}
	return b.String()
}

func amount(n int64) string { return resource.NewQuantity(n, resource.BinarySI).String() }
