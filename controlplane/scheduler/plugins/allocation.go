package plugins

import (
	"context"
	"math"

	"github.com/coracle-edge/coracle/controlplane/scheduler/framework"
)

// LeastAllocated prefers nodes with much CPU and memory left once the pod is
// there. Containers that ask for nothing count with upstream's defaults.
type LeastAllocated struct{}

func (LeastAllocated) Name() string { return "NodeResourcesFit" }

func (LeastAllocated) Score(_ context.Context, pod *framework.Pod, node *framework.NodeInfo) int64 {
	var sum, n int64
	left := func(used, have int64) {
		if have <= 0 {
			return
		}
		n++
		if used < have {
			sum += (have - used) * framework.MaxScore / have
		}
	}
	left(node.Scored.MilliCPU+pod.Scored.MilliCPU, node.Allocatable.MilliCPU)
	left(node.Scored.Memory+pod.Scored.Memory, node.Allocatable.Memory)
	if n == 0 {
		return 0
	}
	return sum / n
}

// Balanced prefers nodes on which the pod brings the shares of CPU and memory
// in use closer together, so that neither runs out alone: 75 if it makes no
// difference, towards 100 if it balances, towards 50 if it doesn't. (Upstream's
// formula since 1.35, which looks at the improvement and not at the result.)
type Balanced struct{}

func (Balanced) Name() string { return "NodeResourcesBalancedAllocation" }

func (b Balanced) PrepareScore(_ context.Context, pod *framework.Pod, _ *framework.Cluster, _ []*framework.NodeInfo) framework.Score {
	if pod.Requests.MilliCPU == 0 && pod.Requests.Memory == 0 {
		return nil
	}
	return b
}

func (Balanced) Score(_ context.Context, pod *framework.Pod, node *framework.NodeInfo) int64 {
	used, have := &node.Requested, &node.Allocatable
	with := balance(used.MilliCPU+pod.Requests.MilliCPU, have.MilliCPU, used.Memory+pod.Requests.Memory, have.Memory)
	without := balance(used.MilliCPU, have.MilliCPU, used.Memory, have.Memory)
	return framework.MaxScore/2 + (framework.MaxScore/2+with-without)/2
}

func balance(cpu, cpus, memory, memories int64) int64 {
	if cpus <= 0 || memories <= 0 {
		return framework.MaxScore
	}
	a := min(1, float64(cpu)/float64(cpus))
	b := min(1, float64(memory)/float64(memories))
	return int64((1 - math.Abs(a-b)/2) * float64(framework.MaxScore))
}
