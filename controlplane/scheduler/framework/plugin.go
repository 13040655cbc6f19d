package framework

import (
	"context"
	"fmt"
)

// MaxScore is the best score a node can get from one plugin.
const MaxScore int64 = 100

// Filter decides whether a pod can run on a node.
type Filter interface {
	// Name is the plugin's name, as in events' and metrics' labels.
	Name() string
	// Filter returns nil if pod can run on node. It must not change pod or node
	// and must not block: it is called for every node of every pod.
	Filter(ctx context.Context, pod *Pod, node *NodeInfo) *Status
}

// Score says how well a pod that fits a node would be placed there.
type Score interface {
	Name() string
	// Score returns 0 (worst) to [MaxScore] (best), unless the Score is also a
	// [Normalizer], whose raw scores may be any number.
	Score(ctx context.Context, pod *Pod, node *NodeInfo) int64
}

// FilterPreparer is an optional part of a [Filter] that needs to look at the
// pod or at the whole cluster once, before it is asked for single nodes.
type FilterPreparer interface {
	// PrepareFilter returns the Filter to ask in this cycle, which carries what
	// was computed; nil if the plugin has nothing to check for this pod. A
	// status that isn't nil refuses the pod for all nodes at once.
	PrepareFilter(ctx context.Context, pod *Pod, cluster *Cluster) (Filter, *Status)
}

// ScorePreparer is the same for a [Score]; fits are the nodes to be scored.
type ScorePreparer interface {
	// PrepareScore returns the Score to ask in this cycle, or nil if the plugin
	// makes no difference for this pod.
	PrepareScore(ctx context.Context, pod *Pod, cluster *Cluster, fits []*NodeInfo) Score
}

// Normalizer is an optional part of a [Score]: it maps the raw scores of all
// nodes to 0..[MaxScore], in place.
type Normalizer interface {
	Normalize(scores []int64)
}

// Requeuer is an optional part of a [Filter]: it says whether an event may make
// a pod schedulable that this plugin refused. A plugin without it is taken to
// be helped by every event about nodes and pods. It must err on the side of
// true: a pod whose event is missed waits for minutes.
type Requeuer interface {
	MayHelp(pod *Pod, ev Event) bool
}

// PostFilter is asked when no node passed the filters, in order, until one
// nominates a node. Preemption is one.
type PostFilter interface {
	Name() string
	// PostFilter may make room. verdicts are by node name; filters asks about
	// hypothetical clusters. It may call the API and so take a while.
	PostFilter(ctx context.Context, pod *Pod, cluster *Cluster, verdicts map[string]*Status, filters FilterFunc) Nomination
}

// Nomination is what a [PostFilter] came to.
type Nomination struct {
	// Node is where room is being made for the pod; "" if nowhere. Until the pod
	// is placed, the room is kept from pods of no higher priority.
	Node string
	// Message is a sentence for the pod's condition and event.
	Message string
}

// FilterFunc runs all filters of a pod against one node as it stands in a
// hypothetical cluster.
type FilterFunc func(ctx context.Context, pod *Pod, cluster *Cluster, node *NodeInfo) *Status

// Reserver is an optional part of any plugin: it keeps something of a node for
// a pod between the decision and the binding.
type Reserver interface {
	// Reserve is called once a node is chosen, before the next pod is looked at.
	Reserve(ctx context.Context, pod *Pod, node *NodeInfo) *Status
	// Unreserve undoes it. Idempotent; called also if Reserve failed.
	Unreserve(ctx context.Context, pod *Pod, node string)
	// PreBind makes it durable; the pod is bound after every PreBind returned.
	// It may block for long and runs beside other pods' scheduling.
	PreBind(ctx context.Context, pod *Pod, node string) error
}

// PostBinder is an optional part of a [Reserver]: it hears that the pod was bound,
// so that what was kept needs no more undoing.
type PostBinder interface {
	PostBind(pod *Pod)
}

// Watcher is an optional part of a [Filter] that watches kinds of objects which
// most clusters have none of, from when the first pod needs them.
type Watcher interface {
	// Watch is called once, before the first pod. start starts the informers that
	// were asked of the shared factory since; tell passes on what may help waiting
	// pods, and must not be called with a lock that [Requeuer.MayHelp] takes. stop
	// takes everything back and returns when it is; ctx has ended then.
	Watch(ctx context.Context, start func(), tell func(Event)) (stop func())
}

// Code is the kind of a refusal.
type Code int

const (
	// Unschedulable: the node refuses the pod now; removing pods from it might
	// change that.
	Unschedulable Code = iota + 1
	// Unresolvable: the node refuses the pod whatever runs on it.
	Unresolvable
	// Failed: the plugin could not tell. The pod is tried again with back-off.
	Failed
	// Awaiting: something that another part is about to make isn't there yet, such
	// as the claim of a template. Only from PrepareFilter. Nobody is told before it
	// has lasted for a while.
	Awaiting
)

// Status is a plugin's refusal. Nil is consent.
type Status struct {
	Code    Code
	Plugin  string   // set by the scheduler
	Reasons []string // each as it stands after "N " in "0/3 nodes are available: N ..."
	Err     error    // with Failed
	// Everywhere: what was found wrong is wrong with the pod, though it was found
	// when a node was looked at. No other node is asked.
	Everywhere bool
}

// Refuse returns a Status with code [Unschedulable].
func Refuse(reasons ...string) *Status { return &Status{Code: Unschedulable, Reasons: reasons} }

// Exclude returns a Status with code [Unresolvable].
func Exclude(reasons ...string) *Status { return &Status{Code: Unresolvable, Reasons: reasons} }

// Await returns a Status with code [Awaiting].
func Await(reason string) *Status { return &Status{Code: Awaiting, Reasons: []string{reason}} }

// Fail returns a Status with code [Failed].
func Fail(err error) *Status {
	return &Status{Code: Failed, Err: err, Reasons: []string{err.Error()}}
}

// OK says whether s is consent.
func (s *Status) OK() bool { return s == nil }

func (s *Status) String() string {
	if s == nil {
		return "ok"
	}
	return fmt.Sprintf("%s: %v", s.Plugin, s.Reasons)
}
