package scheduler

import (
	"context"
	"fmt"

	"github.com/coracle-edge/coracle/controlplane/api/trace"
	"github.com/coracle-edge/coracle/controlplane/scheduler/framework"
)

// fewNodes is the size up to which every node is looked at. In larger clusters
// a share of the fitting nodes is enough to choose well among.
const fewNodes = 100

// choose returns the name of the best node for pod; a [framework.FitError] if
// there is none.
func (s *Scheduler) choose(ctx context.Context, pod *framework.Pod, cluster *framework.Cluster) (string, error) {
	fits, err := s.filter(ctx, pod, cluster)
	if err != nil {
		return "", err
	}
	s.opts.Trace.Record(string(pod.UID), trace.Event{Step: trace.Filtered, Component: "scheduler",
		Detail: fmt.Sprintf("%d of %d nodes fit", len(fits), len(cluster.Nodes))})
	best, score := s.score(ctx, pod, cluster, fits)
	s.opts.Trace.Record(string(pod.UID), trace.Event{Step: trace.Scored, Component: "scheduler",
		Detail: fmt.Sprintf("node %s, score %d, of %d", best.Name(), score, len(fits))})
	return best.Name(), nil
}

// filter returns the nodes that pod fits.
func (s *Scheduler) filter(ctx context.Context, pod *framework.Pod, cluster *framework.Cluster) ([]*framework.NodeInfo, error) {
	total := len(cluster.Nodes)
	filters, status := s.prepare(ctx, pod, cluster)
	if status != nil {
		if status.Code == framework.Failed {
			return nil, fmt.Errorf("plugin %s: %w", status.Plugin, status.Err)
		}
		return nil, &framework.FitError{NumNodes: total, PreFilter: status}
	}
	if name := firstOf(s.nominated.node(pod.UID), pod.Status.NominatedNodeName); name != "" {
		// The room there was made for this pod.
		if node := cluster.Get(name); node != nil && s.askNode(ctx, filters, pod, cluster, node).OK() {
			return []*framework.NodeInfo{node}, nil
		}
	}
	enough := enoughNodes(total)
	fits := make([]*framework.NodeInfo, 0, min(enough, total))
	verdicts := map[string]*framework.Status{}
	looked := 0
	for ; looked < total && len(fits) < enough; looked++ {
		node := cluster.Nodes[(s.next+looked)%total]
		status := s.askNode(ctx, filters, pod, cluster, node)
		switch {
		case status.OK():
			fits = append(fits, node)
		case status.Code == framework.Failed:
			return nil, fmt.Errorf("plugin %s on node %s: %w", status.Plugin, node.Name(), status.Err)
		case status.Everywhere:
			return nil, &framework.FitError{NumNodes: total, PreFilter: status}
		default:
			verdicts[node.Name()] = status
		}
	}
	if total > 0 {
		s.next = (s.next + looked) % total
	}
	if len(fits) == 0 {
		return nil, &framework.FitError{NumNodes: total, Verdicts: verdicts}
	}
	return fits, nil
}

// prepare returns the filters that have something to check for pod.
func (s *Scheduler) prepare(ctx context.Context, pod *framework.Pod, cluster *framework.Cluster) ([]framework.Filter, *framework.Status) {
	filters := make([]framework.Filter, 0, len(s.filters))
	for _, f := range s.filters {
		if p, ok := f.(framework.FilterPreparer); ok {
			prepared, status := p.PrepareFilter(ctx, pod, cluster)
			if status != nil {
				status.Plugin = f.Name()
				return nil, status
			}
			if prepared == nil {
				continue
			}
			f = prepared
		}
		filters = append(filters, f)
	}
	return filters, nil
}

// askNode asks about a node with the room that is kept there for others taken.
func (s *Scheduler) askNode(ctx context.Context, filters []framework.Filter, pod *framework.Pod, cluster *framework.Cluster, node *framework.NodeInfo) *framework.Status {
	if status := s.askFuller(ctx, pod, cluster, node); !status.OK() {
		return status
	}
	// Those others may never come: the pod must fit without them too, as its
	// affinity may need one.
	return ask(ctx, filters, pod, node)
}

// askHypothesis is askNode in another cluster than the real one.
func (s *Scheduler) askHypothesis(ctx context.Context, pod *framework.Pod, cluster *framework.Cluster, node *framework.NodeInfo) *framework.Status {
	if status := s.askFuller(ctx, pod, cluster, node); !status.OK() {
		return status
	}
	return s.askAgain(ctx, pod, cluster, node)
}

// askFuller asks about a node with those on it for which room is kept there; nil
// if there is nobody.
func (s *Scheduler) askFuller(ctx context.Context, pod *framework.Pod, cluster *framework.Cluster, node *framework.NodeInfo) *framework.Status {
	others := s.nominated.on(node.Name(), pod)
	if len(others) == 0 {
		return nil
	}
	fuller := node.Clone()
	for _, other := range others {
		fuller.Add(other)
	}
	return s.askAgain(ctx, pod, cluster.With(fuller), fuller)
}

// askAgain prepares the filters for this cluster and asks them.
func (s *Scheduler) askAgain(ctx context.Context, pod *framework.Pod, cluster *framework.Cluster, node *framework.NodeInfo) *framework.Status {
	filters, status := s.prepare(ctx, pod, cluster)
	if status != nil {
		return status
	}
	return ask(ctx, filters, pod, node)
}

// ask returns the first refusal.
func ask(ctx context.Context, filters []framework.Filter, pod *framework.Pod, node *framework.NodeInfo) *framework.Status {
	for _, f := range filters {
		if status := f.Filter(ctx, pod, node); status != nil {
			status.Plugin = f.Name()
			return status
		}
	}
	return nil
}

// score returns the node with the largest weighted sum of scores, one at random
// of those that share it, and the sum.
func (s *Scheduler) score(ctx context.Context, pod *framework.Pod, cluster *framework.Cluster, fits []*framework.NodeInfo) (*framework.NodeInfo, int64) {
	if len(fits) == 1 {
		return fits[0], 0
	}
	sums := make([]int64, len(fits))
	raw := make([]int64, len(fits))
	for _, w := range s.scores {
		score := w.Score
		if p, ok := score.(framework.ScorePreparer); ok {
			if score = p.PrepareScore(ctx, pod, cluster, fits); score == nil {
				continue
			}
		}
		for i, node := range fits {
			raw[i] = score.Score(ctx, pod, node)
		}
		if n, ok := score.(framework.Normalizer); ok {
			n.Normalize(raw)
		}
		for i := range raw {
			sums[i] += w.Weight * raw[i]
		}
	}
	best, ties := 0, 1
	for i := 1; i < len(sums); i++ {
		switch {
		case sums[i] > sums[best]:
			best, ties = i, 1
		case sums[i] == sums[best]:
			if ties++; s.opts.Rand(ties) == 0 {
				best = i
			}
		}
	}
	return fits[best], sums[best]
}

// enoughNodes is how many fitting nodes to find before choosing: all of a small
// cluster, down to 5 % of a very large one (upstream's formula).
func enoughNodes(total int) int {
	if total <= fewNodes {
		return total
	}
	percent := max(5, 50-total/125)
	return max(fewNodes, total*percent/100)
}

// helps is what the queue asks about an event: whether any of the plugins that
// refused the pod may think otherwise now.
func (s *Scheduler) helps(pod *framework.Pod, refused map[string]bool, ev framework.Event) bool {
	if len(refused) == 0 {
		// There was no node at all.
		return ev.Kind == framework.NodeChanged && ev.OldNode == nil || ev.Kind == framework.PodChanged
	}
	for name := range refused {
		r, ok := s.byName[name].(framework.Requeuer)
		if !ok || r.MayHelp(pod, ev) {
			return true
		}
	}
	return false
}

func firstOf(a, b string) string {
	if a != "" {
		return a
	}
	return b
}
