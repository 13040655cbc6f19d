package affinity_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/go-logr/logr"
	cadvisor "github.com/google/cadvisor/info/v1"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/apis/core/v1/helper/qos"
	"k8s.io/kubernetes/pkg/kubelet/cm/cpumanager"
	cpustate "k8s.io/kubernetes/pkg/kubelet/cm/cpumanager/state"
	"k8s.io/kubernetes/pkg/kubelet/cm/cpumanager/topology"
	"k8s.io/kubernetes/pkg/kubelet/cm/memorymanager"
	memorystate "k8s.io/kubernetes/pkg/kubelet/cm/memorymanager/state"
	"k8s.io/kubernetes/pkg/kubelet/cm/topologymanager"
	"k8s.io/kubernetes/pkg/kubelet/cm/topologymanager/bitmask"
	"k8s.io/kubernetes/pkg/kubelet/lifecycle"
	"k8s.io/utils/cpuset"

	"github.com/coracle-edge/coracle/edgelet/affinity"
)

// machine has cores of so many threads, in packages and nodes of equal size. Threads
// of a core have numbers far apart, as on a PC.
func machine(cores, threads, packages, nodes int) *affinity.Topology {
	t := &affinity.Topology{}
	for i := range cores * threads {
		c := i % cores
		t.CPUs = append(t.CPUs, affinity.CPU{ID: i, Core: c, Socket: c * packages / cores, Node: c * nodes / cores})
	}
	for i := range nodes {
		t.Nodes = append(t.Nodes, affinity.Node{ID: i, Memory: 1 << 30 * uint64(4/nodes)})
	}
	return t
}

// pod has containers that ask for so many processors each, such as "main=2 ~init=1
// +sidecar=1".
func pod(name, containers string) *v1.Pod {
	p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name)}}
	for one := range strings.FieldsSeq(containers) {
		cname, cpu, _ := strings.Cut(strings.TrimLeft(one, "~+"), "=")
		list := v1.ResourceList{v1.ResourceCPU: resource.MustParse(cpu)}
		c := v1.Container{Name: cname, Resources: v1.ResourceRequirements{Requests: list, Limits: list}}
		switch one[0] {
		case '+':
			c.RestartPolicy = new(v1.ContainerRestartPolicyAlways)
			fallthrough
		case '~':
			p.Spec.InitContainers = append(p.Spec.InitContainers, c)
		default:
			p.Spec.Containers = append(p.Spec.Containers, c)
		}
	}
	return p
}

// nowhere is a store that forgets.
type nowhere struct{}

func (nowhere) AffinityRecords() (map[string][]byte, error) { return map[string][]byte{}, nil }
func (nowhere) PutAffinityRecord(string, []byte) error      { return nil }

// kubelet is upstream's own managers, on the same machine.
type kubelet struct {
	align    topologymanager.Manager
	cpu      cpumanager.Policy
	cpus     cpustate.State
	memory   memorymanager.Policy
	memories memorystate.State
}

func newKubelet(t *testing.T, m *affinity.Topology, p affinity.Policies) *kubelet {
	t.Helper()
	var nodes []cadvisor.Node
	details := topology.CPUDetails{}
	cores, sockets := map[int]bool{}, map[int]bool{}
	for _, n := range m.Nodes {
		nodes = append(nodes, cadvisor.Node{Id: n.ID, Memory: n.Memory})
	}
	for _, c := range m.CPUs {
		details[c.ID] = topology.CPUInfo{NUMANodeID: c.Node, SocketID: c.Socket, CoreID: c.Core, UncoreCacheID: c.Socket}
		cores[c.Core], sockets[c.Socket] = true, true
	}
	topo := &topology.CPUTopology{NumCPUs: len(m.CPUs), NumCores: len(cores), NumSockets: len(sockets), NumNUMANodes: len(m.Nodes), NumUncoreCache: len(sockets), CPUDetails: details}
	k := &kubelet{cpus: cpustate.NewMemoryState(logr.Discard()), memories: memorystate.NewMemoryState(klog.Background())}
	var err error
	fail := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	k.align, err = topologymanager.NewManager(nodes, p.Align, p.Scope, nil)
	fail(err)
	options := map[string]string{"full-pcpus-only": fmt.Sprint(p.FullCores), "strict-cpu-reservation": fmt.Sprint(p.Strict)}
	k.cpu, err = cpumanager.NewStaticPolicy(logr.Discard(), topo, int(p.ReservedMilli+999)/1000, cpuset.New(p.Reserved...), k.align, options)
	fail(err)
	fail(k.cpu.Start(logr.Discard(), k.cpus))
	k.align.AddHintProvider(klog.Background(), cpuProvider{k})
	if p.Memory == affinity.MemoryStatic {
		reserved := map[int]map[v1.ResourceName]uint64{}
		for _, r := range p.ReservedMemory {
			reserved[r.Node] = map[v1.ResourceName]uint64{v1.ResourceMemory: uint64(r.Limits["memory"])}
		}
		k.memory, err = memorymanager.NewPolicyStatic(klog.Background(), &cadvisor.MachineInfo{Topology: nodes}, reserved, k.align)
		fail(err)
		fail(k.memory.Start(klog.Background(), k.memories))
		k.align.AddHintProvider(klog.Background(), memoryProvider{k})
	}
	return k
}

type cpuProvider struct{ k *kubelet }

func (p cpuProvider) GetTopologyHints(pod *v1.Pod, c *v1.Container) map[string][]topologymanager.TopologyHint {
	return p.k.cpu.GetTopologyHints(logr.Discard(), p.k.cpus, pod, c)
}
func (p cpuProvider) GetPodTopologyHints(pod *v1.Pod) map[string][]topologymanager.TopologyHint {
	return p.k.cpu.GetPodTopologyHints(logr.Discard(), p.k.cpus, pod)
}
func (p cpuProvider) AllocatePod(pod *v1.Pod) error {
	return p.k.cpu.AllocatePod(logr.Discard(), p.k.cpus, pod)
}
func (p cpuProvider) Allocate(pod *v1.Pod, c *v1.Container) error {
	return p.k.cpu.Allocate(logr.Discard(), p.k.cpus, pod, c)
}

type memoryProvider struct{ k *kubelet }

func (p memoryProvider) GetTopologyHints(pod *v1.Pod, c *v1.Container) map[string][]topologymanager.TopologyHint {
	return p.k.memory.GetTopologyHints(klog.Background(), p.k.memories, pod, c)
}
func (p memoryProvider) GetPodTopologyHints(pod *v1.Pod) map[string][]topologymanager.TopologyHint {
	return p.k.memory.GetPodTopologyHints(klog.Background(), p.k.memories, pod)
}
func (p memoryProvider) AllocatePod(pod *v1.Pod) error {
	return p.k.memory.AllocatePod(klog.Background(), p.k.memories, pod)
}
func (p memoryProvider) Allocate(pod *v1.Pod, c *v1.Container) error {
	return p.k.memory.Allocate(klog.Background(), p.k.memories, pod, c)
}

// devices are hints that are made up, the same for both.
type devices struct {
	seed uint64
	all  affinity.Nodes
}

func (d devices) of(name string) (out []affinity.Hint) {
	r := rand.New(rand.NewPCG(d.seed, uint64(len(name))+uint64(name[0])<<8+uint64(name[len(name)-1])<<16))
	if r.IntN(3) > 0 {
		return nil
	}
	out = []affinity.Hint{}
	d.all.Combinations(func(n affinity.Nodes) {
		if r.IntN(4) == 0 {
			out = append(out, affinity.Hint{Nodes: n, Preferred: r.IntN(2) == 0})
		}
	})
	return out
}

func (d devices) Hints(c *v1.Container) affinity.Hints                    { return affinity.Hints{"device": d.of(c.Name)} }
func (d devices) PodHints() affinity.Hints                                { return affinity.Hints{"device": d.of("pod")} }
func (devices) Give(context.Context, *v1.Container, affinity.Nodes) error { return nil }

type deviceProvider struct{ devices }

func (p deviceProvider) theirs(name string) map[string][]topologymanager.TopologyHint {
	ours := p.of(name)
	if ours == nil {
		return map[string][]topologymanager.TopologyHint{"device": nil}
	}
	out := []topologymanager.TopologyHint{}
	for _, h := range ours {
		mask, _ := bitmask.NewBitMask(h.Nodes.IDs()...)
		out = append(out, topologymanager.TopologyHint{NUMANodeAffinity: mask, Preferred: h.Preferred})
	}
	return map[string][]topologymanager.TopologyHint{"device": out}
}
func (p deviceProvider) GetTopologyHints(_ *v1.Pod, c *v1.Container) map[string][]topologymanager.TopologyHint {
	return p.theirs(c.Name)
}
func (p deviceProvider) GetPodTopologyHints(*v1.Pod) map[string][]topologymanager.TopologyHint {
	return p.theirs("pod")
}
func (deviceProvider) AllocatePod(*v1.Pod) error             { return nil }
func (deviceProvider) Allocate(*v1.Pod, *v1.Container) error { return nil }

func (k *kubelet) free(pod *v1.Pod) {
	for _, c := range append(pod.Spec.InitContainers, pod.Spec.Containers...) {
		_ = k.cpu.RemoveContainer(logr.Discard(), k.cpus, string(pod.UID), c.Name)
		if k.memory != nil {
			k.memory.RemoveContainer(klog.Background(), k.memories, string(pod.UID), c.Name)
		}
	}
}

// On the same machine, with the same pods, this agent gives what upstream's kubelet
// gives, and refuses what it refuses, with its words.
func TestAsUpstream(t *testing.T) {
	machines := map[string]*affinity.Topology{"pi4": machine(4, 1, 1, 1), "rk3588": machine(8, 1, 1, 1), "server": machine(16, 2, 2, 4)}
	given := 0
	for name, m := range machines {
		for seed := range uint64(60) {
			r := rand.New(rand.NewPCG(seed, 11))
			p := affinity.Policies{CPU: affinity.CPUStatic, Memory: affinity.MemoryNone}
			p.ReservedMilli = int64(1 + r.IntN(2000))
			p.FullCores, p.Strict = r.IntN(3) == 0, r.IntN(3) == 0
			if p.FullCores {
				p.ReservedMilli = 2000 // a whole core: beside a part of one upstream gives the other part
			}
			p.Align = []string{affinity.AlignNone, affinity.AlignBestEffort, affinity.AlignRestricted, affinity.AlignSingleNode}[r.IntN(4)]
			p.Scope = []string{affinity.ScopeContainer, affinity.ScopePod}[r.IntN(2)]
			kept := int64(len(m.Nodes)) * 64 << 20
			// With best-effort upstream gives memory of one node out of a group, against its
			// own rule.
			if r.IntN(2) == 0 && (p.Align != affinity.AlignBestEffort || len(m.Nodes) == 1) {
				p.Memory = affinity.MemoryStatic
				for _, n := range m.Nodes {
					p.ReservedMemory = append(p.ReservedMemory, affinity.ReservedMemory{Node: n.ID, Limits: map[string]int64{"memory": 64 << 20}})
				}
			}
			k := newKubelet(t, m, p)
			ours, err := affinity.New(affinity.Config{Policies: p, Topology: m, Store: nowhere{}, MemoryKept: map[string]int64{"memory": kept}, Guaranteed: func(p *v1.Pod) bool { return qos.GetPodQOS(p) == v1.PodQOSGuaranteed }})
			if err != nil {
				t.Fatal(err)
			}
			plugins := devices{seed: seed, all: 1<<len(m.Nodes) - 1}
			k.align.AddHintProvider(klog.Background(), deviceProvider{plugins})
			var live []*v1.Pod
			for i := range 40 {
				at := fmt.Sprintf("%s, seed %d %+v, step %d", name, seed, p, i)
				if len(live) > 0 && r.IntN(3) == 0 {
					j := r.IntN(len(live))
					k.free(live[j])
					if err := ours.Free(string(live[j].UID)); err != nil {
						t.Fatal(err)
					}
					live = append(live[:j], live[j+1:]...)
				} else {
					spec := fmt.Sprintf("main=%d", 1+r.IntN(6))
					if r.IntN(3) == 0 && !p.FullCores { // there upstream doesn't count what can be used again
						spec += fmt.Sprintf(" ~init=%d +side=%d other=%d", r.IntN(4), r.IntN(2), r.IntN(3))
					}
					one := pod(fmt.Sprint("p", i), spec)
					for _, list := range [][]v1.Container{one.Spec.InitContainers, one.Spec.Containers} {
						for i := range list {
							q := resource.MustParse([]string{"100Mi", "300Mi", "900Mi"}[r.IntN(3)])
							list[i].Resources.Requests["memory"], list[i].Resources.Limits["memory"] = q, q
						}
					}
					admitted := k.align.Admit(&lifecycle.PodAdmitAttributes{Pod: one})
					err := ours.Admit(context.Background(), one, plugins)
					reason, message := "", ""
					if err != nil {
						reason, message = err.(*affinity.Refusal).Reason, err.(*affinity.Refusal).Message
					}
					if admitted.Admit != (err == nil) || admitted.Reason != reason || admitted.Message != message {
						t.Fatalf("%s: %s\nupstream: %+v\nours: %s: %s", at, spec, admitted, reason, message)
					}
					if err != nil {
						k.free(one)
					} else {
						live = append(live, one)
						given++
					}
				}
				for _, one := range live {
					for _, c := range append(one.Spec.InitContainers, one.Spec.Containers...) {
						want, _ := k.cpus.GetCPUSet(string(one.UID), c.Name)
						got, blocks := ours.Given(string(one.UID), c.Name)
						if got.String() != want.String() {
							t.Fatalf("%s: %s/%s has %s, upstream gives %s", at, one.Name, c.Name, got, want)
						}
						if k.memory == nil {
							continue
						}
						for _, b := range k.memories.GetMemoryBlocks(string(one.UID), c.Name) {
							if len(blocks) != 1 || affinity.NewSet(b.NUMAAffinity...).String() != affinity.NewSet(blocks[0].Nodes.IDs()...).String() || b.Size != blocks[0].Bytes {
								t.Fatalf("%s: %s/%s has %v, upstream gives %v", at, one.Name, c.Name, blocks, b)
							}
						}
					}
				}
			}
		}
	}
	if given < 500 {
		t.Errorf("%d pods were taken only", given)
	}
}
