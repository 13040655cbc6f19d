package evict

import (
	"context"
	"math"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/coracle-edge/coracle/edgelet/stats"
)

// observation is what there is of something now.
type observation struct {
	available, capacity int64
	countable           bool   // not bytes
	where               string // a folder on the disk that it is about; empty if it is about none
}

func (o observation) format() resource.Format {
	if o.countable {
		return resource.DecimalSI
	}
	return resource.BinarySI
}

type observations map[Signal]observation

// Sources is where a [Manager] looks; each costs little.
type Sources struct {
	// Memory of the machine.
	Memory func() stats.Machine
	// Tasks is how many there are and may be.
	Tasks func() (now, most uint64)
	// NodeDir is a folder on the disk that NodeFs is about, to tell people.
	NodeDir string
	// NodeFs is the disk of volumes and logs.
	NodeFs func() (stats.Space, error)
	// Stores are the disks of images and of containers' writable layers; nil where
	// the runtime doesn't say. They are asked for once an hour, or a minute until it says.
	Stores func(context.Context) (images, containers string)
	// Space asks for a disk by a path on it.
	Space func(path string) (stats.Space, error)
	// Pods is what all pods take together and may; ok is false without a limit.
	Pods func() (workingSet, limit uint64, ok bool)
}

// observe looks. What can't be told is left out.
func (m *Manager) observe(ctx context.Context) observations {
	out := observations{}
	if mem := m.Sources.Memory(); mem.MemoryTotal > 0 {
		out[MemoryAvailable] = observation{available: whole(mem.Available()), capacity: whole(mem.MemoryTotal)}
	}
	if now, most := m.Sources.Tasks(); most > 0 {
		out[PIDAvailable] = observation{available: whole(most) - whole(now), capacity: whole(most), countable: true}
	}
	disk := func(where string, s stats.Space, room, inodes Signal) {
		if s.Capacity > 0 {
			out[room] = observation{available: whole(s.Available), capacity: whole(s.Capacity), where: where}
		}
		if s.Inodes > 0 { // some file systems have no such number
			out[inodes] = observation{available: whole(s.InodesFree), capacity: whole(s.Inodes), countable: true, where: where}
		}
	}
	node, err := m.Sources.NodeFs()
	if err == nil {
		disk(m.Sources.NodeDir, node, NodeFsAvailable, NodeFsInodesFree)
	} else {
		m.Log.Warn("the disk of the node's data can't be asked how full it is", "err", err)
	}
	m.separate, m.split = false, false
	images, containers := m.stores(ctx)
	if images != "" {
		if s, err := m.Sources.Space(images); err == nil {
			disk(images, s, ImageFsAvailable, ImageFsInodesFree)
			m.separate = s.Device != node.Device
		}
	}
	if containers != "" {
		if s, err := m.Sources.Space(containers); err == nil {
			disk(containers, s, ContainerFsAvailable, ContainerFsInodesFree)
			// With images on a disk of their own and layers on the node's, as upstream's
			// KubeletSeparateDiskGC tells it.
			m.split = m.separate && s.Device == node.Device
		}
	}
	if ws, limit, ok := m.Sources.Pods(); ok {
		out[AllocatableMemory] = observation{available: whole(limit) - whole(ws), capacity: whole(limit)}
	}
	return out
}

func whole(n uint64) int64 { return int64(min(n, math.MaxInt64)) }

// met are the thresholds under which an observation lies; with reclaim, those that
// lie less than their minimum reclaim above.
func met(thresholds []Threshold, seen observations, reclaim bool) []Threshold {
	var out []Threshold
	for _, t := range thresholds {
		o, ok := seen[t.Signal]
		if !ok {
			continue
		}
		least := t.Value.of(o.capacity)
		if reclaim {
			least += t.Reclaim.of(o.capacity)
		}
		if o.available < least {
			out = append(out, t)
		}
	}
	return out
}

// placesOf says what of a pod lies on the disk that a signal is about (upstream:
// buildSignalToRankFunc).
func (m *Manager) placesOf(s Signal) places {
	switch {
	case !m.separate:
		return places{true, true, true}
	case s == NodeFsAvailable, s == NodeFsInodesFree:
		return places{layers: m.split, logs: true, volumes: true}
	case m.split && (s == ContainerFsAvailable || s == ContainerFsInodesFree):
		return places{true, true, true}
	case m.split:
		return places{} // images only
	}
	return places{layers: true}
}

// reclaims says what can be freed for a signal without ending a pod (upstream:
// buildSignalToNodeReclaimFuncs).
func (m *Manager) reclaims(s Signal) (containers, images bool) {
	if k, _ := s.kind(); k.condition != v1.NodeDiskPressure {
		return false, false
	}
	imageFs := s == ImageFsAvailable || s == ImageFsInodesFree
	node := s == NodeFsAvailable || s == NodeFsInodesFree
	switch {
	case !m.separate:
		return true, true
	case m.split:
		return !imageFs, imageFs
	}
	return !node, !node
}
