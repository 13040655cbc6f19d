package pods

import (
	"math"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Kernel bounds, as a kubelet applies them.
const (
	minShares   = 2
	maxShares   = 262144
	quotaPeriod = 100000 // microseconds
	minQuota    = 1000
	// noQuota is for who has processors of its own (DisableCPUQuotaWithExclusiveCPUs).
	noQuota = -1

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

// containerResources are a container's limits on this node.
func (m *Manager) containerResources(pod *v1.Pod, c *v1.Container) *runtimeapi.LinuxContainerResources {
	r := containerResources(pod, c, m.memoryCapacity(), m.cfg.Node.Allocatable())
	if m.cgroups.v2() {
		// All processes of a container end when one needs too much, as with a kubelet
		// (pkg/kubelet/kuberuntime/kuberuntime_container_linux.go, singleProcessOOMKill).
		r.Unified = map[string]string{"memory.oom.group": "1"}
	}
	if p := m.cfg.Processors; p != nil {
		at := p.Place(string(pod.UID), c.Name)
		r.CpusetCpus, r.CpusetMems = at.CPUs, at.Memory
		if at.Exclusive {
			r.CpuQuota = noQuota
		}
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

// oomScore makes what asked for little memory and uses much go first (upstream:
// pkg/kubelet/qos/policy.go).
func oomScore(pod *v1.Pod, c *v1.Container, capacity int64) int64 {
	if pod.Spec.PriorityClassName == systemNodeCritical && deref(pod.Spec.Priority, 0) >= systemCriticalPriority {
		return oomGuaranteed
	}
	switch qosClass(pod) {
	case v1.PodQOSGuaranteed:
		return oomGuaranteed
	case v1.PodQOSBestEffort:
		return oomBestEffort
	}
	if capacity <= 0 {
		return oomBestEffort - 1
	}
	// What a pod asks for as a whole and no container does is all containers' alike.
	shared := int64(0)
	if p := pod.Spec.Resources; p != nil {
		if q, ok := p.Requests[v1.ResourceMemory]; ok {
			sum, n := int64(0), int64(len(pod.Spec.Containers))
			for i := range pod.Spec.Containers {
				sum += pod.Spec.Containers[i].Resources.Requests.Memory().Value()
			}
			for i := range pod.Spec.InitContainers {
				if isSidecar(&pod.Spec.InitContainers[i]) {
					sum += pod.Spec.InitContainers[i].Resources.Requests.Memory().Value()
					n++
				}
			}
			if left := q.Value() - sum; left > 0 && n > 0 {
				shared = left / n
			}
		}
	}
	adjust := 1000 - 1000*(c.Resources.Requests.Memory().Value()+shared)/capacity
	if isSidecar(c) && isInit(pod, c.Name) {
		// A sidecar doesn't go before the containers it serves.
		least := int64(math.MaxInt64)
		for i := range pod.Spec.Containers {
			least = min(least, pod.Spec.Containers[i].Resources.Requests.Memory().Value())
		}
		if len(pod.Spec.Containers) == 0 {
			least = 0
		}
		adjust = min(adjust, 1000-1000*(least+shared)/capacity)
	}
	return min(max(adjust, 1000+oomGuaranteed), oomBestEffort-1)
}

// systemNodeCritical is scheduling.SystemNodeCritical.
const systemNodeCritical = "system-node-critical"

// podResources are a pod's on this node, for its sandbox.
func (m *Manager) podResources(pod *v1.Pod) *runtimeapi.LinuxContainerResources {
	r := podResources(pod)
	if p := m.cfg.Processors; p != nil && p.Exclusive(string(pod.UID)) {
		r.CpuQuota = noQuota
	}
	return r
}

// podResources is what a pod asks for as a whole, without its overhead, for its
// sandbox.
func podResources(pod *v1.Pod) *runtimeapi.LinuxContainerResources {
	options := resourcehelper.PodResourcesOptions{ExcludeOverhead: true}
	requests, limits := resourcehelper.PodRequests(pod, options), resourcehelper.PodLimits(pod, options)
	var cpu *resource.Quantity
	if q, ok := requests[v1.ResourceCPU]; ok {
		cpu = &q
	}
	return linuxResources(cpu, limits.Cpu(), limits.Memory())
}

// podLimits is what a pod's own cgroup is bounded by, its overhead included
// (upstream: pkg/kubelet/cm/helpers_linux.go, ResourceConfigForPod): by CPU and
// memory only if every container is, or the pod as a whole.
func podLimits(pod *v1.Pod) cgroupLimits {
	cpuBound, memoryBound := true, true
	limits := resourcehelper.PodLimits(pod, resourcehelper.PodResourcesOptions{
		ContainerFn: func(l v1.ResourceList, _ resourcehelper.ContainerType) {
			cpuBound = cpuBound && !l.Cpu().IsZero()
			memoryBound = memoryBound && !l.Memory().IsZero()
		}})
	if p := pod.Spec.Resources; p != nil {
		cpuBound = cpuBound || !p.Limits.Cpu().IsZero()
		memoryBound = memoryBound || !p.Limits.Memory().IsZero()
	}
	requests := requests(pod)
	l := cgroupLimits{hugepages: hugepageSizes(requests)}
	shares := int64(minShares)
	qos := qosClass(pod)
	if qos != v1.PodQOSBestEffort {
		shares = milliCPUToShares(requests.Cpu().MilliValue())
	}
	l.shares = &shares
	if qos == v1.PodQOSGuaranteed || qos == v1.PodQOSBurstable && cpuBound {
		if milli := limits.Cpu().MilliValue(); milli > 0 {
			l.quota = max(milli*quotaPeriod/1000, minQuota)
		}
	}
	if qos == v1.PodQOSGuaranteed || qos == v1.PodQOSBurstable && memoryBound {
		l.memory = limits.Memory().Value()
	}
	return l
}

// podRequest is what a pod asks for of one resource.
func podRequest(pod *v1.Pod, name v1.ResourceName) *resource.Quantity {
	q := requests(pod)[name]
	return &q
}

// requests is what a pod takes of a node: the larger of what its app containers
// and sidecars ask for together and what any init container does beside the
// sidecars started before it, or what the pod asks for as a whole; and its overhead.
func requests(pod *v1.Pod) v1.ResourceList {
	return resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{})
}
