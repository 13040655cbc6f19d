package pods

import (
	"math"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Kernel bounds, as a kubelet applies them.
const (
	minShares   = 2
	maxShares   = 262144
	quotaPeriod = 100000 // microseconds
	minQuota    = 1000

	oomGuaranteed = -997
	oomBestEffort = 1000
)

func milliCPUToShares(milli int64) int64 {
	return min(max(milli*1024/1000, minShares), maxShares)
}

func linuxResources(cpuRequest, cpuLimit, memoryLimit *resource.Quantity) *runtimeapi.LinuxContainerResources {
	r := &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: memoryLimit.Value(), CpuPeriod: quotaPeriod}
	switch {
	case cpuRequest != nil:
		r.CpuShares = milliCPUToShares(cpuRequest.MilliValue())
	case !cpuLimit.IsZero():
		r.CpuShares = milliCPUToShares(cpuLimit.MilliValue())
	default:
		r.CpuShares = minShares
	}
	if milli := cpuLimit.MilliValue(); milli > 0 {
		r.CpuQuota = max(milli*quotaPeriod/1000, minQuota)
	}
	return r
}

// containerResources are a container's limits for the runtime. capacity is the
// node's memory in bytes, for the OOM score; node is what it has for pods.
func containerResources(pod *v1.Pod, c *v1.Container, capacity int64, node v1.ResourceList) *runtimeapi.LinuxContainerResources {
	var request *resource.Quantity
	if q, ok := c.Resources.Requests[v1.ResourceCPU]; ok {
		request = &q
	}
	cpu, memory := c.Resources.Limits.Cpu(), c.Resources.Limits.Memory()
	if p := pod.Spec.Resources; p != nil {
		if cpu.IsZero() {
			cpu = p.Limits.Cpu()
		}
		if memory.IsZero() {
			memory = p.Limits.Memory()
		}
	}
	r := linuxResources(request, cpu, memory)
	r.OomScoreAdj = oomScore(pod, c, capacity)
	r.HugepageLimits = hugepageLimits(pod, c, node)
	return r
}

// oomScore makes what asked for little memory and uses much go first.
func oomScore(pod *v1.Pod, c *v1.Container, capacity int64) int64 {
	switch qosClass(pod) {
	case v1.PodQOSGuaranteed:
		return oomGuaranteed
	case v1.PodQOSBestEffort:
		return oomBestEffort
	}
	if capacity <= 0 {
		return oomBestEffort - 1
	}
	adjust := 1000 - int64(math.Floor(1000*float64(c.Resources.Requests.Memory().Value())/float64(capacity)))
	return min(max(adjust, 1000+oomGuaranteed), oomBestEffort-1)
}

// podResources sums what the containers of a pod ask for, for its sandbox.
func podResources(pod *v1.Pod) *runtimeapi.LinuxContainerResources {
	var cpuRequest, cpuLimit, memoryLimit resource.Quantity
	hasRequest, cpuUnlimited, memoryUnlimited := false, false, false
	for i := range pod.Spec.Containers {
		r := &pod.Spec.Containers[i].Resources
		if q, ok := r.Requests[v1.ResourceCPU]; ok {
			hasRequest = true
			cpuRequest.Add(q)
		}
		cpuUnlimited = cpuUnlimited || r.Limits.Cpu().IsZero()
		memoryUnlimited = memoryUnlimited || r.Limits.Memory().IsZero()
		cpuLimit.Add(*r.Limits.Cpu())
		memoryLimit.Add(*r.Limits.Memory())
	}
	if cpuUnlimited {
		cpuLimit = resource.Quantity{}
	}
	if memoryUnlimited {
		memoryLimit = resource.Quantity{}
	}
	if hasRequest {
		return linuxResources(&cpuRequest, &cpuLimit, &memoryLimit)
	}
	return linuxResources(nil, &cpuLimit, &memoryLimit)
}

// requests is what a pod takes of a node: the larger of what its app containers
// and sidecars ask for together and what any init container does beside the
// sidecars started before it, and its overhead.
func requests(pod *v1.Pod) v1.ResourceList {
	add := func(to v1.ResourceList, from v1.ResourceList) {
		for name, q := range from {
			sum := to[name]
			sum.Add(q)
			to[name] = sum
		}
	}
	raise := func(to v1.ResourceList, from v1.ResourceList) {
		for name, q := range from {
			if have, ok := to[name]; !ok || q.Cmp(have) > 0 {
				to[name] = q.DeepCopy()
			}
		}
	}
	total, sidecars, peak := v1.ResourceList{}, v1.ResourceList{}, v1.ResourceList{}
	for i := range pod.Spec.Containers {
		add(total, pod.Spec.Containers[i].Resources.Requests)
	}
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		beside := v1.ResourceList{}
		add(beside, sidecars)
		add(beside, c.Resources.Requests)
		if isSidecar(c) {
			add(sidecars, c.Resources.Requests)
			add(total, c.Resources.Requests)
		}
		raise(peak, beside)
	}
	raise(total, peak)
	if pod.Spec.Resources != nil {
		for name, q := range pod.Spec.Resources.Requests {
			total[name] = q
		}
	}
	add(total, pod.Spec.Overhead)
	return total
}
