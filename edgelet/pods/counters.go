package pods

import (
	"maps"
	"sync"

	v1 "k8s.io/api/core/v1"
)

// Counts are what became of containers since the agent started, as a kubelet counts
// them (upstream: pkg/kubelet/metrics).
type Counts struct {
	// StartedPods are sandboxes that were made; StartedContainers and NotStarted are by
	// a container's type: container, init_container or ephemeral_container.
	StartedPods                   uint64
	StartedContainers, NotStarted map[string]uint64
	Terminated                    map[Termination]uint64
}

// Termination is how a container ended.
type Termination struct {
	Type, Reason string
	ExitCode     int32
}

// maxTerminations bounds the ways to end that are told apart: reasons are the
// runtime's words. Ends of other ways are not counted then.
const maxTerminations = 512

type counters struct {
	mu sync.Mutex
	n  Counts
}

func newCounters() counters {
	return counters{n: Counts{StartedContainers: map[string]uint64{}, NotStarted: map[string]uint64{}, Terminated: map[Termination]uint64{}}}
}

func (c *counters) sandbox() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n.StartedPods++
}

func (c *counters) started(kind string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.n.NotStarted[kind]++
		return
	}
	c.n.StartedContainers[kind]++
}

func (c *counters) ended(t Termination) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, known := c.n.Terminated[t]; known || len(c.n.Terminated) < maxTerminations {
		c.n.Terminated[t]++
	}
}

// Counts of this manager until now.
func (m *Manager) Counts() Counts {
	m.counters.mu.Lock()
	defer m.counters.mu.Unlock()
	n := m.counters.n
	n.StartedContainers, n.NotStarted, n.Terminated = maps.Clone(n.StartedContainers), maps.Clone(n.NotStarted), maps.Clone(n.Terminated)
	return n
}

// containerType is upstream's name of it (pkg/kubelet/metrics, GetContainerType).
func containerType(pod *v1.Pod, name string) string {
	if pod == nil {
		return "container"
	}
	for i := range pod.Spec.InitContainers {
		if pod.Spec.InitContainers[i].Name == name {
			return "init_container"
		}
	}
	for i := range pod.Spec.EphemeralContainers {
		if pod.Spec.EphemeralContainers[i].Name == name {
			return "ephemeral_container"
		}
	}
	return "container"
}
