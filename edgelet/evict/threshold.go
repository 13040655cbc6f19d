package evict

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// ErrThreshold is returned for a threshold that isn't one.
var ErrThreshold = errors.New("not an eviction threshold")

// Signal is what a threshold is about, by a kubelet's name.
type Signal string

// The signals that a kubelet knows.
const (
	MemoryAvailable       Signal = "memory.available"
	NodeFsAvailable       Signal = "nodefs.available"
	NodeFsInodesFree      Signal = "nodefs.inodesFree"
	ImageFsAvailable      Signal = "imagefs.available"
	ImageFsInodesFree     Signal = "imagefs.inodesFree"
	ContainerFsAvailable  Signal = "containerfs.available"
	ContainerFsInodesFree Signal = "containerfs.inodesFree"
	PIDAvailable          Signal = "pid.available"
	// AllocatableMemory is what all pods together may still take of their cgroup. It
	// follows from MemoryAvailable and has no flag.
	AllocatableMemory Signal = "allocatableMemory.available"
)

// kind is what a signal leads to.
type kind struct {
	condition v1.NodeConditionType
	resource  v1.ResourceName
}

const (
	resourceInodes v1.ResourceName = "inodes"
	resourcePIDs   v1.ResourceName = "pids"
)

func (s Signal) kind() (kind, bool) {
	switch s {
	case MemoryAvailable, AllocatableMemory:
		return kind{v1.NodeMemoryPressure, v1.ResourceMemory}, true
	case NodeFsAvailable, ImageFsAvailable, ContainerFsAvailable:
		return kind{v1.NodeDiskPressure, v1.ResourceEphemeralStorage}, true
	case NodeFsInodesFree, ImageFsInodesFree, ContainerFsInodesFree:
		return kind{v1.NodeDiskPressure, resourceInodes}, true
	case PIDAvailable:
		return kind{v1.NodePIDPressure, resourcePIDs}, true
	}
	return kind{}, false
}

// Value is an amount, or a share of the capacity.
type Value struct {
	Amount *resource.Quantity
	Share  float32 // of 1; if Amount is nil
}

// of is the amount of a capacity.
func (v Value) of(capacity int64) int64 {
	if v.Amount != nil {
		return v.Amount.Value()
	}
	return int64(float64(capacity) * float64(v.Share))
}

func (v Value) String() string {
	if v.Amount != nil {
		return v.Amount.String()
	}
	return strconv.FormatFloat(float64(v.Share)*100, 'g', 6, 32) + "%"
}

// Threshold is met while less than Value is there.
type Threshold struct {
	Signal Signal
	Value  Value
	// Grace is how long it must be met before pods go; 0 for a hard threshold.
	Grace time.Duration
	// Reclaim is how much more than Value is to be there before it is over.
	Reclaim Value
}

func (t *Threshold) hard() bool { return t.Grace == 0 }

// Flags are a kubelet's flags, as text.
type Flags struct {
	Hard, Soft, SoftGrace, MinReclaim string
}

// DefaultHard is what is kept free unless the flag says otherwise: of memory 100
// MiB or a tenth of a small board's, of disks a tenth and of their inodes a
// twentieth (a kubelet keeps 15 % of a disk with images; here these and all else
// mostly share the board's one disk), and a twentieth of the process ids.
func DefaultHard(memory int64) string {
	return fmt.Sprintf("memory.available<%d,nodefs.available<10%%,nodefs.inodesFree<5%%,imagefs.available<10%%,imagefs.inodesFree<5%%,pid.available<5%%", min(100<<20, memory/10))
}

// Parse reads the flags. All errors are [ErrThreshold] and name the flag.
func (f Flags) Parse() ([]Threshold, error) {
	hard, err := parseThresholds(f.Hard)
	if err != nil {
		return nil, fmt.Errorf("--eviction-hard: %w", err)
	}
	soft, err := parseThresholds(f.Soft)
	if err != nil {
		return nil, fmt.Errorf("--eviction-soft: %w", err)
	}
	graces, err := parseMap(f.SoftGrace)
	if err != nil {
		return nil, fmt.Errorf("--eviction-soft-grace-period: %w", err)
	}
	for i := range soft {
		text, ok := graces[soft[i].Signal]
		if !ok {
			return nil, fmt.Errorf("--eviction-soft-grace-period: %w: grace period must be specified for the soft eviction threshold %s", ErrThreshold, soft[i].Signal)
		}
		if soft[i].Grace, err = time.ParseDuration(text); err != nil || soft[i].Grace <= 0 {
			return nil, fmt.Errorf("--eviction-soft-grace-period: %w: %s=%q is no positive duration such as 1m30s", ErrThreshold, soft[i].Signal, text)
		}
	}
	reclaim, err := parseMap(f.MinReclaim)
	if err != nil {
		return nil, fmt.Errorf("--eviction-minimum-reclaim: %w", err)
	}
	all := append(hard, soft...)
	for signal, text := range reclaim {
		v, err := parseValue(text)
		if err != nil {
			return nil, fmt.Errorf("--eviction-minimum-reclaim: %s: %w", signal, err)
		}
		for i := range all {
			if all[i].Signal == signal {
				all[i].Reclaim = v
			}
		}
	}
	return all, nil
}

// parseThresholds reads "SIGNAL<VALUE,...". A value of 0 or 0% or 100% switches a
// signal off, as in a kubelet.
func parseThresholds(text string) ([]Threshold, error) {
	var out []Threshold
	for _, one := range strings.Split(text, ",") {
		one = strings.TrimSpace(one)
		if one == "" {
			continue
		}
		name, value, ok := strings.Cut(one, "<")
		signal := Signal(strings.TrimSpace(name))
		if !ok {
			return nil, fmt.Errorf("%w: %q isn't SIGNAL<VALUE, such as memory.available<100Mi", ErrThreshold, one)
		}
		if err := checkSignal(signal); err != nil {
			return nil, err
		}
		if slices.ContainsFunc(out, func(t Threshold) bool { return t.Signal == signal }) {
			return nil, fmt.Errorf("%w: %s stands there twice", ErrThreshold, signal)
		}
		value = strings.TrimSpace(value)
		if value == "0%" || value == "100%" {
			continue
		}
		v, err := parseValue(value)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", signal, err)
		}
		if v.Amount != nil && v.Amount.Sign() == 0 {
			continue
		}
		out = append(out, Threshold{Signal: signal, Value: v})
	}
	return out, nil
}

func parseMap(text string) (map[Signal]string, error) {
	out := map[Signal]string{}
	for _, one := range strings.Split(text, ",") {
		one = strings.TrimSpace(one)
		if one == "" {
			continue
		}
		name, value, ok := strings.Cut(one, "=")
		signal := Signal(strings.TrimSpace(name))
		if !ok {
			return nil, fmt.Errorf("%w: %q isn't SIGNAL=VALUE", ErrThreshold, one)
		}
		if err := checkSignal(signal); err != nil {
			return nil, err
		}
		out[signal] = strings.TrimSpace(value)
	}
	return out, nil
}

func checkSignal(s Signal) error {
	if _, ok := s.kind(); !ok || s == AllocatableMemory {
		return fmt.Errorf("%w: unknown signal %q; there are memory.available, nodefs.available, nodefs.inodesFree, imagefs.available, imagefs.inodesFree, containerfs.available, containerfs.inodesFree and pid.available", ErrThreshold, s)
	}
	return nil
}

func parseValue(text string) (Value, error) {
	if number, ok := strings.CutSuffix(text, "%"); ok {
		share, err := strconv.ParseFloat(number, 32)
		if err != nil || !(share >= 0 && share <= 100) {
			return Value{}, fmt.Errorf("%w: %q is no percentage from 0 to 100", ErrThreshold, text)
		}
		return Value{Share: float32(share / 100)}, nil
	}
	q, err := resource.ParseQuantity(text)
	if err != nil || q.Sign() < 0 {
		return Value{}, fmt.Errorf("%w: %q is no amount such as 100Mi or 10%%", ErrThreshold, text)
	}
	return Value{Amount: &q}, nil
}

// Keeps is what the hard thresholds keep from pods, of a node's capacity.
func Keeps(thresholds []Threshold, capacity v1.ResourceList) v1.ResourceList {
	out := v1.ResourceList{}
	for i := range thresholds {
		t := &thresholds[i]
		var name v1.ResourceName
		switch t.Signal {
		case MemoryAvailable:
			name = v1.ResourceMemory
		case NodeFsAvailable:
			name = v1.ResourceEphemeralStorage
		default:
			continue
		}
		if q, ok := capacity[name]; ok && t.hard() {
			out[name] = *resource.NewQuantity(t.Value.of(q.Value()), resource.BinarySI)
		}
	}
	return out
}
