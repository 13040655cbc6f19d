package affinity

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
)

// ErrOption is returned for a policy or an option that there isn't, or not here.
var ErrOption = errors.New("the policy can't be used as given")

// Policies, by a kubelet's names.
const (
	CPUNone, CPUStatic       = "none", "static"
	MemoryNone, MemoryStatic = "None", "Static"

	AlignNone       = "none"
	AlignBestEffort = "best-effort"
	AlignRestricted = "restricted"
	AlignSingleNode = "single-numa-node"

	ScopeContainer, ScopePod = "container", "pod"
)

// Policies are what the operator asked for.
type Policies struct {
	CPU, Memory, Align, Scope string
	// FullCores gives whole cores only and refuses a pod that asks for a part of one
	// (full-pcpus-only).
	FullCores bool
	// Strict keeps everybody off the reserved processors, not only those with
	// processors of their own (strict-cpu-reservation).
	Strict bool
	// Spread takes threads of different cores (distribute-cpus-across-cores).
	Spread bool
	// Reserved are the processors that nobody has for itself (reservedSystemCPUs);
	// empty: as many as ReservedMilli needs, the lowest ones.
	Reserved Set
	// ReservedMilli is what is kept from pods, in thousandths of a processor.
	ReservedMilli int64
	// ReservedMemory is what of each node's memory is kept from pods.
	ReservedMemory []ReservedMemory
}

// ReservedMemory is kept of a node, in bytes by resource name.
type ReservedMemory struct {
	Node   int
	Limits map[string]int64
}

// None reports whether there is nothing to manage.
func (p Policies) None() bool {
	return p.CPU == CPUNone && p.Memory == MemoryNone && p.Align == AlignNone
}

// Names of options that a kubelet has and boards have no use for: they choose
// among several nodes, packages or last-level caches.
var notHere = [...]string{"distribute-cpus-across-numa", "align-by-socket", "prefer-align-cpus-by-uncorecache"}

// SetCPUOptions takes cpuManagerPolicyOptions. It returns [ErrOption].
func (p *Policies) SetCPUOptions(options map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(options)) {
		to := map[string]*bool{"full-pcpus-only": &p.FullCores, "strict-cpu-reservation": &p.Strict, "distribute-cpus-across-cores": &p.Spread}[name]
		on, err := strconv.ParseBool(options[name])
		switch {
		case err != nil:
			return fmt.Errorf("bad value for option %q: %q is true or false: %w", name, options[name], ErrOption)
		case to != nil:
			*to = on
		case slices.Contains(notHere[:], name):
			if on {
				return fmt.Errorf("CPU manager policy option %q: %w; it has full-pcpus-only, strict-cpu-reservation and distribute-cpus-across-cores", name, ErrOption)
			}
		default:
			return fmt.Errorf("unknown CPU Manager Policy option: %q: %w", name, ErrOption)
		}
	}
	if p.FullCores && p.Spread {
		return fmt.Errorf("static policy options full-pcpus-only and distribute-cpus-across-cores can not be used at the same time: %w", ErrOption)
	}
	return nil
}

// SetAlignOptions takes topologyManagerPolicyOptions: those that a kubelet has are
// about machines with several nodes. It returns [ErrOption].
func (p *Policies) SetAlignOptions(options map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(options)) {
		value := options[name]
		switch name {
		case "prefer-closest-numa-nodes":
			if on, err := strconv.ParseBool(value); err != nil || on {
				return fmt.Errorf("topology manager policy option %s=%s: %w; all nodes are taken to be equally far", name, value, ErrOption)
			}
		case "max-allowable-numa-nodes":
			if n, err := strconv.Atoi(value); err != nil || n != maxNodes {
				return fmt.Errorf("topology manager policy option %s=%s: %w; it is %d", name, value, ErrOption, maxNodes)
			}
		default:
			return fmt.Errorf("unknown Topology Manager Policy option: %q: %w", name, ErrOption)
		}
	}
	return nil
}

// Check refuses policies that don't exist and what they lack. What depends on the
// machine is for [New]: a machine may be another one tomorrow. It returns
// [ErrOption].
func (p *Policies) Check() error {
	for _, c := range []struct {
		flag, have string
		known      []string
	}{
		{"--cpu-manager-policy", p.CPU, []string{CPUNone, CPUStatic}},
		{"--memory-manager-policy", p.Memory, []string{MemoryNone, MemoryStatic}},
		{"--topology-manager-policy", p.Align, []string{AlignNone, AlignBestEffort, AlignRestricted, AlignSingleNode}},
		{"--topology-manager-scope", p.Scope, []string{ScopeContainer, ScopePod}},
	} {
		if !slices.Contains(c.known, c.have) {
			return fmt.Errorf("%s %s: %w; it is one of %s", c.flag, c.have, ErrOption, strings.Join(c.known, ", "))
		}
	}
	if p.CPU == CPUStatic && p.ReservedMilli <= 0 {
		// Without any the shared processors could all be given away.
		return fmt.Errorf("the static policy requires systemreserved.cpu + kubereserved.cpu to be greater than zero: give --system-reserved cpu=N, --kube-reserved cpu=N or --reserved-cpus LIST: %w", ErrOption)
	}
	if p.CPU != CPUStatic && (p.FullCores || p.Strict || p.Spread) {
		return fmt.Errorf("--cpu-manager-policy-options: options are of the policy %s: %w", CPUStatic, ErrOption)
	}
	return nil
}

// ParseReservedMemory reads a kubelet's --reserved-memory,
// "0:memory=1Gi,hugepages-2Mi=4Mi;1:memory=2Gi". It returns [ErrOption].
func ParseReservedMemory(text string) ([]ReservedMemory, error) {
	var out []ReservedMemory
	for one := range strings.SplitSeq(text, ";") {
		if one = strings.TrimSpace(one); one == "" {
			continue
		}
		node, list, ok := strings.Cut(one, ":")
		id, err := strconv.ParseUint(node, 10, 6)
		if !ok || err != nil {
			return nil, fmt.Errorf("%q isn't NODE:NAME=AMOUNT,...: %w", one, ErrOption)
		}
		r := ReservedMemory{Node: int(id), Limits: map[string]int64{}}
		if slices.ContainsFunc(out, func(o ReservedMemory) bool { return o.Node == r.Node }) {
			return nil, fmt.Errorf("the reserved memory has a duplicate value for NUMA node %d: %w", id, ErrOption)
		}
		for pair := range strings.SplitSeq(list, ",") {
			name, value, _ := strings.Cut(strings.TrimSpace(pair), "=")
			q, err := resource.ParseQuantity(value)
			if err != nil || q.Sign() <= 0 || !isMemory(name) {
				return nil, fmt.Errorf("%q isn't an amount of memory or of hugepages-SIZE: %w", pair, ErrOption)
			}
			r.Limits[name] = q.Value()
		}
		out = append(out, r)
	}
	return out, nil
}

func isMemory(name string) bool { return name == "memory" || strings.HasPrefix(name, "hugepages-") }
