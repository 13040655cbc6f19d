package scheduler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"

	"github.com/coracle-edge/coracle/controlplane/api/trace"
	"github.com/coracle-edge/coracle/controlplane/scheduler/cache"
	"github.com/coracle-edge/coracle/controlplane/scheduler/framework"
	"github.com/coracle-edge/coracle/controlplane/scheduler/plugins"
	"github.com/coracle-edge/coracle/controlplane/scheduler/queue"
)

// DefaultName is the spec.schedulerName of pods that ask for no other.
const DefaultName = v1.DefaultSchedulerName

// DefaultPatience is for how long a pod may wait for what another part is about to
// make before its condition says so. Claims are made from templates within this
// time, their controller's start included.
const DefaultPatience = 5 * time.Second

// DefaultBindings is how many bindings are under way at once.
const DefaultBindings = 16

// ErrNotSynced is returned by Run when the informers did not sync before the
// context ended.
var ErrNotSynced = errors.New("scheduler: informers did not sync")

// Options are what may be chosen; the zero value is the default scheduler.
type Options struct {
	Name   string          // pods with this spec.schedulerName are ours; default [DefaultName]
	Logger *slog.Logger    // default: discards
	Trace  *trace.Recorder // nil records nothing
	// Plugins replaces [plugins.Default].
	Plugins  *plugins.Set
	Bindings int           // default [DefaultBindings]
	Queue    queue.Options // times only
	Patience time.Duration // default [DefaultPatience]
	// Rand chooses among the n equally good nodes; default random.
	Rand func(n int) int
}

// Scheduler schedules pods. It runs once.
type Scheduler struct {
	opts     Options
	client   kubernetes.Interface
	factory  informers.SharedInformerFactory
	pods     corelisters.PodLister
	log      *slog.Logger
	cache    *cache.Cache
	queue    *queue.Queue
	reporter *reporter
	filters  []framework.Filter
	scores   []plugins.Weighted
	post     []framework.PostFilter
	reserve  []framework.Reserver
	byName   map[string]framework.Filter
	// nominated are pods for which room is being made.
	nominated nominations

	next     int // where the next cycle starts among the nodes
	slots    chan struct{}
	bindings sync.WaitGroup
}

// New returns a scheduler. It asks factory for the informers it needs; whoever
// owns the factory starts it afterwards.
func New(client kubernetes.Interface, factory informers.SharedInformerFactory, opts Options) *Scheduler {
	if opts.Name == "" {
		opts.Name = DefaultName
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Bindings <= 0 {
		opts.Bindings = DefaultBindings
	}
	if opts.Patience <= 0 {
		opts.Patience = DefaultPatience
	}
	if opts.Rand == nil {
		opts.Rand = rand.IntN
	}
	set := opts.Plugins
	if set == nil {
		d := plugins.Default(client, factory)
		set = &d
	}
	s := &Scheduler{
		opts: opts, client: client, factory: factory,
		pods:     factory.Core().V1().Pods().Lister(),
		log:      opts.Logger.With("component", "scheduler"),
		cache:    cache.New(0),
		filters:  set.Filters,
		scores:   set.Scores,
		post:     set.PostFilters,
		byName:   map[string]framework.Filter{},
		slots:    make(chan struct{}, opts.Bindings),
		reporter: newReporter(client, opts.Name, opts.Logger),
	}
	for _, f := range set.Filters {
		s.byName[f.Name()] = f
		if r, ok := f.(framework.Reserver); ok {
			s.reserve = append(s.reserve, r)
		}
	}
	opts.Queue.Helps = s.helps
	opts.Queue.Gated = func(pod *framework.Pod) bool { return len(pod.Spec.SchedulingGates) > 0 }
	s.queue = queue.New(opts.Queue)
	// Asking for an informer makes the factory start it.
	for _, watch := range s.listeners() {
		watch.informer()
	}
	factory.Policy().V1().PodDisruptionBudgets().Informer() // waited for in any case
	return s
}

// Run schedules until ctx ends, and returns after every binding under way ended.
func (s *Scheduler) Run(ctx context.Context) error {
	stop, err := s.listen(ctx)
	defer stop()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var reports sync.WaitGroup
	reports.Go(func() { s.reporter.run(ctx) })
	defer reports.Wait()
	defer s.bindings.Wait()
	defer cancel()
	s.log.Info("scheduling", "name", s.opts.Name, "nodes", s.cache.Stats().Nodes, "waiting", s.queue.Stats().Ready)
	for {
		it, err := s.queue.Pop(ctx)
		if err != nil {
			return nil // ctx ended
		}
		s.one(ctx, it)
	}
}

// one runs the cycle of one pod.
func (s *Scheduler) one(ctx context.Context, it *queue.Item) {
	pod := it.Pod
	if pod.DeletionTimestamp != nil || s.cache.Assigned(pod.UID) {
		s.queue.Done(it)
		return
	}
	s.opts.Trace.Record(string(pod.UID), trace.Event{Step: trace.Queued, Component: "scheduler"})
	cluster := s.cache.Snapshot()
	cluster.Nominated = s.nominated.on("", pod)
	node, err := s.choose(ctx, pod, cluster)
	if err == nil {
		err = s.take(ctx, pod, cluster.Get(node))
	}
	if err != nil {
		if s.early(it, err) {
			return
		}
		s.makeRoom(ctx, pod, cluster, err)
		s.failed(it, err)
		return
	}
	s.nominated.remove(pod.UID)
	s.slots <- struct{}{}
	s.bindings.Go(func() { s.bind(ctx, it, node) })
}

// take reserves what the plugins keep, and the room.
func (s *Scheduler) take(ctx context.Context, pod *framework.Pod, node *framework.NodeInfo) error {
	for _, r := range s.reserve {
		if status := r.Reserve(ctx, pod, node); !status.OK() {
			s.release(ctx, pod, node.Name())
			return fmt.Errorf("reserve for pod %s on node %s: %s", pod.Key(), node.Name(), status)
		}
	}
	if err := s.cache.Assume(pod, node.Name()); err != nil {
		s.release(ctx, pod, node.Name())
		return err
	}
	return nil
}

func (s *Scheduler) release(ctx context.Context, pod *framework.Pod, node string) {
	for _, r := range s.reserve {
		r.Unreserve(ctx, pod, node)
	}
}

// current returns the pod as it is now; nil if there is nothing to schedule.
func (s *Scheduler) current(it *queue.Item) *v1.Pod {
	pod, err := s.pods.Pods(it.Namespace).Get(it.Name)
	if err != nil || pod.UID != it.UID || pod.Spec.NodeName != "" {
		return nil // gone, or bound by somebody else
	}
	return pod
}

// early puts a pod back without a word if it only came before what it waits for.
func (s *Scheduler) early(it *queue.Item, err error) bool {
	var fit *framework.FitError
	if !errors.As(err, &fit) || fit.PreFilter == nil || fit.PreFilter.Code != framework.Awaiting {
		return false
	}
	until := it.Added.Add(s.opts.Patience)
	if !time.Now().Before(until) {
		return false
	}
	if current := s.current(it); current != nil {
		s.queue.Wait(it, current, fit.Plugins(), until)
	} else {
		s.queue.Done(it)
	}
	return true
}

// failed puts a pod back and says why.
func (s *Scheduler) failed(it *queue.Item, err error) {
	current := s.current(it)
	if current == nil {
		s.queue.Done(it)
		return
	}
	reason := v1.PodReasonSchedulerError
	var refused map[string]bool
	var fit *framework.FitError
	if errors.As(err, &fit) {
		reason, refused = v1.PodReasonUnschedulable, fit.Plugins()
	} else {
		s.log.Warn("pod not scheduled", "pod", it.Key(), "err", err)
	}
	s.queue.Failed(it, current, refused)
	s.reporter.unschedulable(current, reason, err.Error(), s.nominated.node(it.UID))
}

// makeRoom asks the post filters for a pod that fits nowhere.
func (s *Scheduler) makeRoom(ctx context.Context, pod *framework.Pod, cluster *framework.Cluster, err error) {
	var fit *framework.FitError
	if !errors.As(err, &fit) {
		return
	}
	if name := s.nominated.node(pod.UID); name != "" && name != pod.Status.NominatedNodeName {
		// The API's copy doesn't say yet that room is being made: it must not be made again.
		known := *pod
		known.Pod = pod.DeepCopy()
		known.Status.NominatedNodeName = name
		pod = &known
	}
	var said []string
	for _, p := range s.post {
		n := p.PostFilter(ctx, pod, cluster, fit.Verdicts, s.askHypothesis)
		if n.Message != "" {
			said = append(said, n.Message)
		}
		if n.Node != "" {
			s.nominated.set(pod, n.Node)
			fit.PostFilter = strings.Join(said, ", ")
			return
		}
	}
	s.nominated.remove(pod.UID)
	fit.PostFilter = strings.Join(said, ", ")
}
