package daemonset

import (
	"context"
	"fmt"

	apps "k8s.io/api/apps/v1"
	v1 "k8s.io/api/core/v1"
	"k8s.io/kubernetes/pkg/controller/daemon/util"
)

// rollingUpdate deletes out-of-date pods within maxUnavailable (manage then creates new ones), or with maxSurge creates
// new pods beside them. Only nodes that exist and aren't away take part.
func (c *Controller) rollingUpdate(ctx context.Context, key string, set *apps.DaemonSet, sites []*site, hash string) error {
	var reachable []*site
	desired := 0
	for _, s := range sites {
		if s.node == nil || s.away {
			continue
		}
		if s.run {
			desired++
		}
		if s.run || len(s.pods) > 0 {
			reachable = append(reachable, s)
		}
	}
	unavailable, err := util.UnavailableCount(set, desired)
	if err != nil {
		return fmt.Errorf("invalid value for MaxUnavailable: %w", err)
	}
	surge, err := util.SurgeCount(set, desired)
	if err != nil {
		return fmt.Errorf("invalid value for MaxSurge: %w", err)
	}
	if surge > 0 {
		create, remove := c.surge(set, reachable, hash, surge, desired)
		return c.change(ctx, key, set, create, remove, hash)
	}
	if desired > 0 && unavailable == 0 {
		unavailable = 1 // rounded down to nothing, which would never end
	}
	return c.change(ctx, key, set, nil, c.replace(set, reachable, hash, unavailable), hash)
}

// replace returns the out-of-date pods to delete: all that aren't available, for nobody misses them, and of the others as
// many as keep the number of unavailable nodes within most. A node whose pod is being deleted or not yet created counts
// as unavailable, so the rate holds over passes.
func (c *Controller) replace(set *apps.DaemonSet, sites []*site, hash string, most int) []*v1.Pod {
	var broken, candidates []*v1.Pod
	down := 0
	for _, s := range sites {
		current, old, ok := c.pair(set, s, hash)
		switch {
		case !ok, current == nil && old == nil, current != nil && old != nil:
			down++ // manage deletes or creates here
		case current != nil:
			if !c.available(current, set) {
				down++
			}
		case !c.available(old, set):
			broken = append(broken, old)
			down++
		default:
			candidates = append(candidates, old)
		}
	}
	return append(broken, candidates[:max(0, min(most-down, len(candidates)))]...)
}

// surge returns the nodes on which to create a new pod beside the old one, and old pods to delete because their new ones
// are available, or because they shouldn't be on their node any more and enough others are available without them.
func (c *Controller) surge(set *apps.DaemonSet, sites []*site, hash string, most, desired int) (create []string, remove []*v1.Pod) {
	var candidates []string
	var strays []*v1.Pod // available, on a node where they shouldn't be
	surging, available := 0, 0
	for _, s := range sites {
		current, old, ok := c.pair(set, s, hash)
		if !ok {
			surging++
			continue
		}
		if first := old; first != nil || current != nil {
			if first == nil {
				first = current
			}
			if c.available(first, set) {
				available++
			}
		}
		switch {
		case old == nil:
		case current != nil && c.available(current, set):
			remove = append(remove, old)
		case current != nil:
			surging++
		case !c.available(old, set) && !s.run:
			remove = append(remove, old)
		case !c.available(old, set):
			create = append(create, s.name)
		case !s.run:
			strays = append(strays, old)
		default:
			candidates = append(candidates, s.name)
		}
	}
	remove = append(remove, strays[:max(0, min(available-desired, len(strays)))]...)
	return append(create, candidates[:max(0, min(most-surging, len(candidates)))]...), remove
}

// pair returns the node's pod of the current revision and its out-of-date one, of those not being deleted. With more than
// one of either ok is false: manage prunes first.
func (c *Controller) pair(set *apps.DaemonSet, s *site, hash string) (current, old *v1.Pod, ok bool) {
	generation, err := util.GetTemplateGeneration(set)
	if err != nil {
		generation = nil
	}
	for _, pod := range s.pods {
		if pod.DeletionTimestamp != nil {
			continue
		}
		which := &old
		if util.IsPodUpdated(pod, hash, generation) {
			which = &current
		}
		if *which != nil {
			return nil, nil, false
		}
		*which = pod
	}
	return current, old, true
}
