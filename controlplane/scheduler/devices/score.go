package devices

import (
	"context"

	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/dynamic-resource-allocation/resourceclaim"

	"github.com/coracle-edge/coracle/controlplane/scheduler/framework"
)

// PrepareScore prefers nodes on which requests with alternatives (KEP-4816) get
// those named first.
func (p *Plugin) PrepareScore(ctx context.Context, pod *framework.Pod, _ *framework.Cluster, fits []*framework.NodeInfo) framework.Score {
	if !p.gates.PrioritizedList || len(pod.Spec.ResourceClaims) == 0 {
		return nil
	}
	t, _ := p.prepare(ctx, pod)
	if t == nil || !alternatives(t.claims) {
		return nil
	}
	s := scores{}
	for _, node := range fits {
		if pl, status := t.plan(ctx, pod, node); status.OK() {
			s[node.Name()] = pl.score()
		}
	}
	return s
}

// Score is that of a pod without alternatives.
func (*Plugin) Score(context.Context, *framework.Pod, *framework.NodeInfo) int64 { return 0 }

func alternatives(claims []*resourceapi.ResourceClaim) bool {
	for _, c := range claims {
		for i := range c.Spec.Devices.Requests {
			if len(c.Spec.Devices.Requests[i].FirstAvailable) > 0 {
				return true
			}
		}
	}
	return false
}

// score is the more, the earlier in its list each alternative stands that was chosen.
func (pl *plan) score() (sum int64) {
	for i := range pl.parts {
		c, allocation := pl.parts[i].claim, pl.parts[i].allocation
		if allocation == nil {
			allocation = c.Status.Allocation
		}
		chosen := sets.New[string]()
		for j := range allocation.Devices.Results {
			chosen.Insert(allocation.Devices.Results[j].Request)
		}
		for j := range c.Spec.Devices.Requests {
			request := &c.Spec.Devices.Requests[j]
			for k := range request.FirstAvailable {
				if chosen.Has(resourceclaim.CreateSubRequestRef(request.Name, request.FirstAvailable[k].Name)) {
					sum += int64(resourceapi.FirstAvailableDeviceRequestMaxSize - k)
				}
			}
		}
	}
	return sum
}

// scores are by node name.
type scores map[string]int64

func (scores) Name() string { return (*Plugin)(nil).Name() }

func (s scores) Score(_ context.Context, _ *framework.Pod, node *framework.NodeInfo) int64 {
	return s[node.Name()]
}

// Normalize makes the best one [framework.MaxScore].
func (scores) Normalize(raw []int64) {
	var best int64
	for _, n := range raw {
		best = max(best, n)
	}
	if best == 0 {
		return
	}
	for i := range raw {
		raw[i] = raw[i] * framework.MaxScore / best
	}
}
