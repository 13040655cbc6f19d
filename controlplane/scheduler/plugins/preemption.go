package plugins

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	policylisters "k8s.io/client-go/listers/policy/v1"

	"github.com/coracle-edge/coracle/controlplane/scheduler/framework"
)

// maxCandidates bounds the nodes that are tried.
const maxCandidates = 100

// Preemption makes room for a pod by deleting pods of lower priority from one
// node: as few and as unimportant ones as possible, and rather none that a
// disruption budget protects. Victims end gracefully; until they are gone the
// pod is nominated for the node.
type Preemption struct {
	Client  kubernetes.Interface
	Budgets policylisters.PodDisruptionBudgetLister
}

func (*Preemption) Name() string { return "DefaultPreemption" }

// candidate is a node and who would have to go.
type candidate struct {
	node       string
	victims    []*framework.Pod // the most important first
	violations int              // of disruption budgets
}

func (p *Preemption) PostFilter(ctx context.Context, pod *framework.Pod, cluster *framework.Cluster, verdicts map[string]*framework.Status, filters framework.FilterFunc) framework.Nomination {
	if pod.Spec.PreemptionPolicy != nil && *pod.Spec.PreemptionPolicy == v1.PreemptNever {
		return framework.Nomination{Message: "preemption: not eligible due to preemptionPolicy=Never."}
	}
	if name := pod.Status.NominatedNodeName; name != "" && leaving(cluster.Get(name), pod.Priority) {
		return framework.Nomination{Node: name, Message: "preemption: not eligible due to a terminating pod on the nominated node."}
	}
	budgets, err := p.Budgets.List(labels.Everything())
	if err != nil {
		return framework.Nomination{Message: fmt.Sprintf("preemption: listing disruption budgets: %v.", err)}
	}
	var best *candidate
	tried := 0
	why := map[string]int{}
	for _, n := range cluster.Nodes {
		verdict := verdicts[n.Name()]
		if verdict == nil || verdict.Code != framework.Unschedulable || tried == maxCandidates {
			why["Preemption is not helpful for scheduling"]++
			continue
		}
		tried++
		c := victims(ctx, pod, cluster, n, budgets, filters)
		if c == nil {
			why["No preemption victims found for incoming pod"]++
			continue
		}
		if best == nil || c.better(best) {
			best = c
		}
	}
	if best == nil {
		return framework.Nomination{Message: "preemption: " + reasonCounts(len(cluster.Nodes), why)}
	}
	for _, v := range best.victims {
		if err := p.evict(ctx, v, pod); err != nil {
			return framework.Nomination{Message: fmt.Sprintf("preemption: deleting pod %s from node %s: %v.", v.Key(), best.node, err)}
		}
	}
	return framework.Nomination{Node: best.node, Message: fmt.Sprintf("preemption: %d pod(s) are being deleted from node %s.", len(best.victims), best.node)}
}

// leaving says whether a pod that was made to leave is still there. One that leaves
// for another reason makes no room that was meant for this pod.
func leaving(node *framework.NodeInfo, priority int32) bool {
	return node != nil && slices.ContainsFunc(node.Pods, func(p *framework.Pod) bool {
		return p.DeletionTimestamp != nil && p.Priority < priority &&
			slices.ContainsFunc(p.Status.Conditions, func(c v1.PodCondition) bool {
				return c.Type == v1.DisruptionTarget && c.Status == v1.ConditionTrue && c.Reason == v1.PodReasonPreemptionByScheduler
			})
	})
}

// victims finds the fewest pods to delete so that pod fits; nil if none helps.
func victims(ctx context.Context, pod *framework.Pod, cluster *framework.Cluster, node *framework.NodeInfo, budgets []*policyv1.PodDisruptionBudget, filters framework.FilterFunc) *candidate {
	without := node.Clone()
	var lower []*framework.Pod
	for _, other := range node.Pods {
		if other.Priority < pod.Priority {
			lower = append(lower, other)
			without.Remove(other.UID)
		}
	}
	hypothesis := cluster.With(without)
	if len(lower) == 0 || !filters(ctx, pod, hypothesis, without).OK() {
		return nil
	}
	// The most important are spared first, those that a budget protects before all.
	slices.SortStableFunc(lower, moreImportant)
	protected := violating(lower, budgets)
	slices.SortStableFunc(lower, func(a, b *framework.Pod) int {
		return cmp.Compare(violationRank(protected, a), violationRank(protected, b))
	})
	c := &candidate{node: node.Name()}
	for _, other := range lower {
		without.Add(other)
		if filters(ctx, pod, hypothesis, without).OK() {
			continue
		}
		without.Remove(other.UID)
		c.victims = append(c.victims, other)
		if protected[other.UID] {
			c.violations++
		}
	}
	slices.SortStableFunc(c.victims, moreImportant)
	if len(c.victims) == 0 {
		return nil // it fits as it is: something changed, the next try will see
	}
	return c
}

func violationRank(protected map[types.UID]bool, p *framework.Pod) int {
	if protected[p.UID] {
		return 0
	}
	return 1
}

// moreImportant sorts by priority, then by how long a pod has run.
func moreImportant(a, b *framework.Pod) int {
	if c := cmp.Compare(b.Priority, a.Priority); c != 0 {
		return c
	}
	return started(a).Compare(started(b))
}

func started(p *framework.Pod) time.Time {
	if p.Status.StartTime != nil {
		return p.Status.StartTime.Time
	}
	return p.CreationTimestamp.Time
}

// violating returns the pods whose deletion, in this order, some budget doesn't
// allow.
func violating(pods []*framework.Pod, budgets []*policyv1.PodDisruptionBudget) map[types.UID]bool {
	left := make([]int32, len(budgets))
	for i, b := range budgets {
		left[i] = b.Status.DisruptionsAllowed
	}
	found := map[types.UID]bool{}
	for _, p := range pods {
		for i, b := range budgets {
			if b.Namespace != p.Namespace || len(p.Labels) == 0 {
				continue
			}
			selector, err := metav1.LabelSelectorAsSelector(b.Spec.Selector)
			if err != nil || selector.Empty() || !selector.Matches(labels.Set(p.Labels)) {
				continue
			}
			if _, already := b.Status.DisruptedPods[p.Name]; already {
				continue
			}
			if left[i]--; left[i] < 0 {
				found[p.UID] = true
			}
		}
	}
	return found
}

// better compares as upstream: budgets, then the most important victim, then
// all of them, then their number.
func (c *candidate) better(o *candidate) bool {
	if c.violations != o.violations {
		return c.violations < o.violations
	}
	if a, b := c.victims[0].Priority, o.victims[0].Priority; a != b {
		return a < b
	}
	if a, b := c.sum(), o.sum(); a != b {
		return a < b
	}
	if len(c.victims) != len(o.victims) {
		return len(c.victims) < len(o.victims)
	}
	// The one whose most important victim has run for the shortest time.
	return started(c.victims[0]).Compare(started(o.victims[0])) > 0
}

func (c *candidate) sum() (sum int64) {
	for _, v := range c.victims {
		sum += int64(v.Priority) + 1<<31 // so that more pods of negative priority weigh more
	}
	return sum
}

func (p *Preemption) evict(ctx context.Context, victim, pod *framework.Pod) error {
	if victim.DeletionTimestamp != nil {
		return nil
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": victim.UID},
		"status": map[string]any{"conditions": []v1.PodCondition{{
			Type: v1.DisruptionTarget, Status: v1.ConditionTrue, Reason: v1.PodReasonPreemptionByScheduler,
			Message:            pod.Spec.SchedulerName + ": preempting to accommodate a higher priority pod",
			LastTransitionTime: metav1.Now(), ObservedGeneration: victim.Generation,
		}}},
	})
	if err != nil {
		return err
	}
	pods := p.Client.CoreV1().Pods(victim.Namespace)
	if _, err := pods.Patch(ctx, victim.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status"); err != nil && !gone(err) {
		return err
	}
	err = pods.Delete(ctx, victim.Name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(victim.UID))})
	if err != nil && !gone(err) {
		return err
	}
	return nil
}

// gone says that the pod, or the one of that UID, is there no more.
func gone(err error) bool { return apierrors.IsNotFound(err) || apierrors.IsConflict(err) }

func reasonCounts(nodes int, why map[string]int) string {
	lines := make([]string, 0, len(why))
	for reason, n := range why {
		lines = append(lines, fmt.Sprintf("%d %s", n, reason))
	}
	sort.Strings(lines)
	return fmt.Sprintf("0/%d nodes are available: %s.", nodes, strings.Join(lines, ", "))
}
