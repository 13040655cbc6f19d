package affinity

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"slices"
	"strconv"
	"strings"
)

// ErrTopology is returned when the kernel doesn't say which processors there are.
var ErrTopology = errors.New("the kernel doesn't say which processors there are")

// CPU is one processor that is online, as the kernel counts: a hardware thread.
type CPU struct {
	ID int
	// Core is the lowest number of the threads of its core, so it is one core's in
	// the whole machine.
	Core         int
	Socket, Node int
}

// Node is a NUMA node: memory, and the processors next to it.
type Node struct {
	ID int
	// Memory is all of it in bytes, huge pages included.
	Memory uint64
	// HugePages are bytes in each pool, by resource name such as hugepages-2Mi.
	HugePages map[string]uint64
}

// Topology is what there is on this machine. It is not changed once read.
type Topology struct {
	CPUs  []CPU  // sorted by ID, at least one
	Nodes []Node // sorted by ID, at least one
}

const (
	cpuDir  = "sys/devices/system/cpu"
	nodeDir = "sys/devices/system/node"
)

// Read reads the topology below a root with a sys folder. A kernel without SMT,
// packages or NUMA has no files for them: then each processor is a core of its own,
// and there is one package and one node. memory is the whole machine's in bytes,
// for a kernel that doesn't count it by node. It returns [ErrTopology].
func Read(root fs.FS, memory uint64) (*Topology, error) {
	online, err := readSet(root, cpuDir+"/online")
	if err != nil || len(online) == 0 {
		return nil, fmt.Errorf("%w: /%s/online: %v", ErrTopology, cpuDir, err)
	}
	t := &Topology{Nodes: readNodes(root)}
	where := map[int]int{} // node by processor
	for _, n := range t.Nodes {
		cpus, err := readSet(root, nodeDir+"/node"+strconv.Itoa(n.ID)+"/cpulist")
		if err != nil {
			continue
		}
		for _, id := range cpus {
			where[id] = n.ID
		}
	}
	if len(t.Nodes) == 0 {
		t.Nodes = []Node{{}}
	}
	// A kernel of a board may have the folder and no figures in it.
	if len(t.Nodes) == 1 && t.Nodes[0].Memory == 0 {
		t.Nodes[0].Memory = memory
	}
	for _, id := range online {
		at := cpuDir + "/cpu" + strconv.Itoa(id) + "/topology/"
		c := CPU{ID: id, Core: id, Node: t.Nodes[0].ID}
		siblings, err := readSet(root, at+"core_cpus_list")
		if err != nil {
			siblings, _ = readSet(root, at+"thread_siblings_list") // kernels before 5.3
		}
		// One that lists others, and not itself, says nothing to go by.
		if siblings = siblings.And(online); siblings.Has(id) {
			c.Core = siblings[0]
		}
		// Boards with device trees say -1.
		if n, err := readNumber(root, at+"physical_package_id"); err == nil && n >= 0 && n <= maxID {
			c.Socket = int(n)
		}
		if n, ok := where[id]; ok {
			c.Node = n
		}
		t.CPUs = append(t.CPUs, c)
	}
	// A core is what all its threads say it is.
	for i := range t.CPUs {
		if first := t.cpu(t.CPUs[i].Core); first != nil && first.Core != first.ID {
			t.CPUs[i].Core = t.CPUs[i].ID
		}
	}
	return t, nil
}

func readNodes(root fs.FS) []Node {
	ids, err := readSet(root, nodeDir+"/online")
	if err != nil {
		return nil
	}
	var out []Node
	for _, id := range ids {
		if id >= bits.UintSize || id >= 64 {
			break // more than anybody can be aligned to; see maxNodes
		}
		at := nodeDir + "/node" + strconv.Itoa(id)
		n := Node{ID: id}
		raw, err := fs.ReadFile(root, at+"/meminfo")
		if err != nil {
			continue
		}
		for line := range bytes.Lines(raw) {
			if f := strings.Fields(string(line)); len(f) >= 4 && f[2] == "MemTotal:" {
				if kib, err := strconv.ParseUint(f[3], 10, 44); err == nil {
					n.Memory = kib << 10
				}
			}
		}
		pools, _ := fs.ReadDir(root, at+"/hugepages")
		for _, p := range pools {
			kib, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimPrefix(p.Name(), "hugepages-"), "kB"), 10, 32)
			pages, err2 := readNumber(root, at+"/hugepages/"+p.Name()+"/nr_hugepages")
			if err != nil || err2 != nil || kib == 0 || pages <= 0 || uint64(pages) > 1<<62/(kib<<10) {
				continue
			}
			if n.HugePages == nil {
				n.HugePages = map[string]uint64{}
			}
			n.HugePages[hugeName(kib)] = uint64(pages) * kib << 10
		}
		out = append(out, n)
	}
	return out
}

// hugeName is the resource of a size of huge pages, such as hugepages-2Mi.
func hugeName(kib uint64) string {
	units := []string{"Ki", "Mi", "Gi", "Ti"}
	i := 0
	for kib%1024 == 0 && i < len(units)-1 {
		kib /= 1024
		i++
	}
	return "hugepages-" + strconv.FormatUint(kib, 10) + units[i]
}

func readSet(root fs.FS, name string) (Set, error) {
	raw, err := fs.ReadFile(root, name)
	if err != nil {
		return nil, err
	}
	return ParseSet(string(raw))
}

func readNumber(root fs.FS, name string) (int64, error) {
	raw, err := fs.ReadFile(root, name)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64)
}

func (t *Topology) cpu(id int) *CPU {
	i, ok := slices.BinarySearchFunc(t.CPUs, id, func(c CPU, id int) int { return c.ID - id })
	if !ok {
		return nil
	}
	return &t.CPUs[i]
}

// All are the processors that are online.
func (t *Topology) All() Set { return t.which(func(CPU) bool { return true }) }

func (t *Topology) which(is func(CPU) bool) Set {
	var out Set
	for _, c := range t.CPUs {
		if is(c) {
			out = append(out, c.ID)
		}
	}
	return out
}

// wholeCores are the processors of s whose cores are in it as a whole.
func (t *Topology) wholeCores(s Set) Set {
	missing := map[int]bool{}
	for _, c := range t.CPUs {
		if !s.Has(c.ID) {
			missing[c.Core] = true
		}
	}
	return t.which(func(c CPU) bool { return !missing[c.Core] })
}

// threads is how many a core has, the most where cores differ: what whole cores
// are given in.
func (t *Topology) threads() int {
	count := map[int]int{}
	most := 1
	for _, c := range t.CPUs {
		count[c.Core]++
		most = max(most, count[c.Core])
	}
	return most
}

// in are the processors of the nodes in a mask.
func (t *Topology) in(nodes Nodes) Set { return t.which(func(c CPU) bool { return nodes.Has(c.Node) }) }

// nodes is the mask of all nodes.
func (t *Topology) nodes() (out Nodes) {
	for _, n := range t.Nodes {
		out |= 1 << n.ID
	}
	return out
}
