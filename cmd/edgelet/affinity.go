package main

import (
	"flag"
	"fmt"
	"os"
	"strings"

	v1 "k8s.io/api/core/v1"

	"github.com/coracle-edge/coracle/edgelet/affinity"
	"github.com/coracle-edge/coracle/edgelet/evict"
	"github.com/coracle-edge/coracle/edgelet/metrics"
	"github.com/coracle-edge/coracle/edgelet/pods"
	"github.com/coracle-edge/coracle/edgelet/stats"
)

// Processors and memory of a container's own.

// affinityFlags are a kubelet's flags of its CPU, memory and topology manager.
type affinityFlags struct {
	cpu, cpuOptions            string
	memory, reservedMemory     string
	align, alignOptions, scope string
}

func (f *affinityFlags) define(fs *flag.FlagSet) {
	fs.StringVar(&f.cpu, "cpu-manager-policy", affinity.CPUNone, affinity.CPUNone+": all pods share all processors. "+affinity.CPUStatic+": a container of a Guaranteed pod that asks for whole processors has them for itself")
	fs.StringVar(&f.cpuOptions, "cpu-manager-policy-options", "", "comma list of NAME=true of the policy "+affinity.CPUStatic+": full-pcpus-only, strict-cpu-reservation, distribute-cpus-across-cores")
	fs.StringVar(&f.memory, "memory-manager-policy", affinity.MemoryNone, affinity.MemoryNone+" or "+affinity.MemoryStatic+": memory of Guaranteed pods is promised by NUMA node")
	fs.StringVar(&f.reservedMemory, "reserved-memory", "", "list of NODE:memory=AMOUNT[,hugepages-SIZE=AMOUNT], with semicolons between nodes, that is kept of each NUMA node; together what --kube-reserved, --system-reserved and --eviction-hard keep. With one node it needn't be given")
	fs.StringVar(&f.align, "topology-manager-policy", affinity.AlignNone, "whether processors, memory and devices of a container come from the same NUMA nodes: "+affinity.AlignNone+", "+affinity.AlignBestEffort+", "+affinity.AlignRestricted+" or "+affinity.AlignSingleNode)
	fs.StringVar(&f.alignOptions, "topology-manager-policy-options", "", "comma list of NAME=VALUE; the defaults only")
	fs.StringVar(&f.scope, "topology-manager-scope", affinity.ScopeContainer, affinity.ScopeContainer+" or "+affinity.ScopePod+": what has to come together")
}

// policies reads them.
func (o *options) policies() (affinity.Policies, error) {
	f := o.affinity
	p := affinity.Policies{CPU: f.cpu, Memory: f.memory, Align: f.align, Scope: f.scope}
	reserved, err := o.resources.reserved()
	if err != nil {
		return p, err
	}
	p.ReservedMilli = reserved.Cpu().MilliValue()
	if p.Reserved, err = affinity.ParseSet(o.resources.reservedCPUs); err != nil {
		return p, fmt.Errorf("--reserved-cpus: %w", err)
	}
	for _, list := range []struct {
		flag, text string
		set        func(map[string]string) error
	}{{"cpu-manager-policy-options", f.cpuOptions, p.SetCPUOptions}, {"topology-manager-policy-options", f.alignOptions, p.SetAlignOptions}} {
		options := map[string]string{}
		for _, one := range split(list.text) {
			name, value, ok := strings.Cut(one, "=")
			if !ok {
				return p, fmt.Errorf("--%s: %q is not NAME=VALUE", list.flag, one)
			}
			options[name] = value
		}
		if err := list.set(options); err != nil {
			return p, fmt.Errorf("--%s: %w", list.flag, err)
		}
	}
	if p.ReservedMemory, err = affinity.ParseReservedMemory(f.reservedMemory); err != nil {
		return p, fmt.Errorf("--reserved-memory: %w", err)
	}
	return p, p.Check()
}

// topology is this machine's, nil if the kernel doesn't say.
func (a *agent) topology() (*affinity.Topology, error) {
	return affinity.Read(os.DirFS("/"), stats.ReadMemory("/proc").MemoryTotal)
}

// nodes are the machine's NUMA nodes, if anybody is to be aligned on them.
func (a *agent) nodes() (out affinity.Nodes) {
	if a.o.affinity.align == affinity.AlignNone {
		return 0
	}
	t, err := a.topology()
	if err != nil {
		return 0
	}
	for _, n := range t.Nodes {
		out |= 1 << n.ID
	}
	return out
}

// buildAffinity leaves a.affinity nil if there is nothing to manage.
func (a *agent) buildAffinity() error {
	p, err := a.o.policies()
	if err != nil {
		return err
	}
	if p.None() {
		// Unless an earlier start bound containers to processors.
		if kept, err := a.state.AffinityRecords(); err != nil || len(kept) == 0 {
			return err
		}
	}
	c := affinity.Config{Policies: p, Store: a.state, Log: a.log, Guaranteed: func(pod *v1.Pod) bool { return pods.QOSClass(pod) == v1.PodQOSGuaranteed },
		Changed: func() { a.pods.WakeAll() }, Active: func(uid string) bool { return a.pods.Present(uid) }}
	if !p.None() {
		c.NotFit = a.noCPUSets()
	}
	if c.Topology, err = a.topology(); err != nil && c.NotFit == "" {
		c.NotFit = err.Error()
	}
	if p.Memory == affinity.MemoryStatic {
		if c.MemoryKept, err = a.memoryKept(); err != nil {
			return err
		}
	}
	a.affinity, err = affinity.New(c)
	return err
}

// noCPUSets says why no process can be bound to processors here; empty if it can.
func (a *agent) noCPUSets() string {
	if os.Geteuid() != 0 {
		return "processors and memory of a container's own need the agent to run as root"
	}
	const mount = "/sys/fs/cgroup"
	controllers, err := os.ReadFile(mount + "/cgroup.controllers")
	if err == nil && strings.Contains(" "+strings.TrimSpace(string(controllers))+" ", " cpuset ") {
		return ""
	}
	if _, err := os.Stat(mount + "/cpuset"); err == nil {
		return ""
	}
	return "the kernel has no cpuset controller: it takes one with CONFIG_CPUSETS=y, and no cgroup_disable=cpuset on its command line"
}

// memoryKept is what of memory isn't for pods, in bytes.
func (a *agent) memoryKept() (map[string]int64, error) {
	reserved, err := a.o.resources.reserved()
	if err != nil {
		return nil, err
	}
	thresholds, err := a.o.resources.thresholds(int64(stats.ReadMemory("/proc").MemoryTotal))
	if err != nil {
		return nil, err
	}
	keeps := evict.Keeps(thresholds, a.node.Capacity())
	return map[string]int64{"memory": reserved.Memory().Value() + keeps.Memory().Value()}, nil
}

// processors are the pods' view of it, nil if all share all.
func (a *agent) processors() pods.Processors {
	if a.affinity == nil {
		return nil
	}
	return a.affinity
}

// fillAffinity writes a kubelet's counters; without a manager they are 0, as there.
func (a *agent) fillAffinity(p *metrics.Page) {
	n := new(affinity.Counts)
	if a.affinity != nil {
		n = &a.affinity.Counts
		exclusive, free := a.affinity.Used()
		p.Gauge("kubelet_cpu_manager_exclusive_cpu_allocation_count", "[ALPHA] The total number of CPUs exclusively allocated to containers running on this node")
		p.Sample("kubelet_cpu_manager_exclusive_cpu_allocation_count", float64(exclusive))
		p.Gauge("kubelet_cpu_manager_shared_pool_size_millicores", "[ALPHA] The size of the shared CPU pool for non-guaranteed QoS pods, in millicores.")
		p.Sample("kubelet_cpu_manager_shared_pool_size_millicores", float64(1000*free))
	}
	for _, c := range []struct {
		name, help string
		n          uint64
	}{
		{"kubelet_cpu_manager_pinning_requests_total", "[ALPHA] The number of cpu core allocations which required pinning.", n.CPURequests.Load()},
		{"kubelet_cpu_manager_pinning_errors_total", "[ALPHA] The number of cpu core allocations which required pinning failed.", n.CPUErrors.Load()},
		{"kubelet_memory_manager_pinning_requests_total", "[ALPHA] The number of memory pages allocations which required pinning.", n.MemoryRequests.Load()},
		{"kubelet_memory_manager_pinning_errors_total", "[ALPHA] The number of memory pages allocations which required pinning that failed.", n.MemoryErrors.Load()},
		{"kubelet_topology_manager_admission_requests_total", "[ALPHA] The number of admission requests where resources have to be aligned.", n.AlignRequests.Load()},
		{"kubelet_topology_manager_admission_errors_total", "[ALPHA] The number of admission request failures where resources could not be aligned.", n.AlignErrors.Load()},
	} {
		p.Counter(c.name, c.help)
		p.Sample(c.name, float64(c.n))
	}
}
