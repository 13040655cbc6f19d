package queue

import (
	"container/heap"
	"context"
	"slices"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/coracle-edge/coracle/controlplane/scheduler/framework"
)

// Options are the queue's times; zero values are replaced by upstream's.
type Options struct {
	InitialBackoff time.Duration // 1 s, doubles with every failure
	MaxBackoff     time.Duration // 10 s
	MaxParked      time.Duration // 5 min: a parked pod is tried at least so often
	// Helps says whether an event may help a pod that the named plugins refused.
	// Nil: every event may.
	Helps func(pod *framework.Pod, plugins map[string]bool, ev framework.Event) bool
	// Gated says whether the pod must not be tried at all.
	Gated func(pod *framework.Pod) bool
}

// recent bounds how many events are remembered for the pods being tried. What
// falls out of it is taken to help.
const recent = 512

// Item is a pod in the queue or being tried.
type Item struct {
	*framework.Pod
	Added    time.Time // when the scheduler first heard of it
	Attempts int       // how often it was popped
	// Plugins are those that refused it last; nil before the first failure.
	Plugins map[string]bool

	place   place
	index   int       // in its heap
	ready   time.Time // backing off until
	due     time.Time // parked at most until
	failed  int       // failures, for the back-off
	last    time.Time // last failure
	seen    uint64    // number of events when it was popped
	changed bool      // the pod's spec changed while it was tried
}

type place int

const (
	trying place = iota
	ready
	backing
	parked
)

// Queue is safe for concurrent use; only one goroutine may call [Queue.Pop].
type Queue struct {
	opts Options
	wake chan struct{}

	mu      sync.Mutex
	items   map[types.UID]*Item // all of them, those being tried included
	ready   items
	backing items
	parked  map[types.UID]*Item
	sweep   time.Time         // when the first of parked has waited long enough; zero: never
	tried   int               // items being tried
	events  []framework.Event // since the oldest item being tried was popped
	number  uint64            // events ever
}

// New returns an empty queue.
func New(opts Options) *Queue {
	if opts.InitialBackoff <= 0 {
		opts.InitialBackoff = time.Second
	}
	if opts.MaxBackoff <= 0 {
		opts.MaxBackoff = 10 * time.Second
	}
	if opts.MaxParked <= 0 {
		opts.MaxParked = 5 * time.Minute
	}
	if opts.Helps == nil {
		opts.Helps = func(*framework.Pod, map[string]bool, framework.Event) bool { return true }
	}
	if opts.Gated == nil {
		opts.Gated = func(*framework.Pod) bool { return false }
	}
	return &Queue{
		opts: opts, wake: make(chan struct{}, 1),
		items: map[types.UID]*Item{}, parked: map[types.UID]*Item{},
		ready:   items{less: byPriority},
		backing: items{less: func(a, b *Item) bool { return a.ready.Before(b.ready) }},
	}
}

// Add takes a new waiting pod, or the changed object of one that waits.
// specChanged says that what decides about its place changed, so that it is
// worth another try.
func (q *Queue) Add(pod *v1.Pod, specChanged bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	it, ok := q.items[pod.UID]
	if !ok {
		it = &Item{Pod: framework.NewPod(pod), Added: time.Now()}
		q.items[pod.UID] = it
		q.enter(it)
		return
	}
	if it.place == trying {
		// The one who tries it holds the old object; it comes back with Failed.
		it.changed = it.changed || specChanged
		return
	}
	it.Pod = framework.NewPod(pod)
	switch {
	case it.place == ready:
		heap.Fix(&q.ready, it.index)
	case specChanged && it.place == parked && !q.opts.Gated(it.Pod):
		if it.Plugins == nil || q.opts.Helps(it.Pod, it.Plugins, framework.Event{Kind: framework.PodChanged, Pod: pod}) {
			q.unpark(it)
		}
	}
}

// Delete forgets a pod: it is gone, ended, or on a node.
func (q *Queue) Delete(uid types.UID) {
	q.mu.Lock()
	defer q.mu.Unlock()
	it, ok := q.items[uid]
	if !ok {
		return
	}
	delete(q.items, uid)
	switch it.place {
	case ready:
		heap.Remove(&q.ready, it.index)
	case backing:
		heap.Remove(&q.backing, it.index)
	case parked:
		delete(q.parked, uid)
	case trying:
		q.release()
	}
}

// Pop returns the next pod to try; it waits until there is one. The caller ends
// the try with [Queue.Done] or [Queue.Failed].
func (q *Queue) Pop(ctx context.Context) (*Item, error) {
	for {
		it, wait := q.next(time.Now())
		if it != nil {
			return it, nil
		}
		var timer *time.Timer
		var due <-chan time.Time
		if wait > 0 {
			timer = time.NewTimer(wait)
			due = timer.C
		}
		select {
		case <-ctx.Done():
		case <-q.wake:
		case <-due:
		}
		if timer != nil {
			timer.Stop()
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
}

// Done ends a try that succeeded, or of a pod that needs no other.
func (q *Queue) Done(it *Item) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.items[it.UID] == it {
		delete(q.items, it.UID)
		q.release()
	}
}

// Failed ends a try that failed. pod is the object as it is now. plugins are
// those that refused the pod: it is parked until an event may help; none (an
// error, not a refusal) means that it is tried again after the back-off.
func (q *Queue) Failed(it *Item, pod *v1.Pod, plugins map[string]bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.items[it.UID] != it {
		return // deleted meanwhile
	}
	if pod != it.Pod.Pod {
		it.Pod = framework.NewPod(pod)
	}
	now := time.Now()
	it.Plugins, it.last = plugins, now
	it.failed++
	again := it.changed || plugins == nil || q.missed(it)
	it.changed = false
	q.release()
	switch {
	case again && !q.opts.Gated(it.Pod):
		q.backOff(it)
	default:
		q.park(it)
	}
	q.signal()
}

// Wait ends a try that was too early: what the pod waits for is about to be made.
// It counts as no failure, so the event that helps makes the pod ready at once;
// without one it is tried again at the given time.
func (q *Queue) Wait(it *Item, pod *v1.Pod, plugins map[string]bool, until time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.items[it.UID] != it {
		return // deleted meanwhile
	}
	if pod != it.Pod.Pod {
		it.Pod = framework.NewPod(pod)
	}
	it.Plugins = plugins
	again := it.changed || q.missed(it)
	it.changed = false
	q.release()
	if again && !q.opts.Gated(it.Pod) {
		q.backOff(it)
	} else {
		q.parkUntil(it, until)
	}
	q.signal()
}

// Happened tells of an event; parked pods that it may help are tried again.
func (q *Queue) Happened(ev framework.Event) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.tried > 0 {
		if len(q.events) == recent {
			q.events = slices.Delete(q.events, 0, recent/2)
		}
		q.events = append(q.events, ev)
	}
	q.number++
	for _, it := range q.parked {
		if !q.opts.Gated(it.Pod) && q.opts.Helps(it.Pod, it.Plugins, ev) {
			q.unpark(it)
		}
	}
}

// Stats says how many pods are where.
type Stats struct{ Ready, BackingOff, Parked, Trying int }

// Stats counts.
func (q *Queue) Stats() Stats {
	q.mu.Lock()
	defer q.mu.Unlock()
	return Stats{len(q.ready.list), len(q.backing.list), len(q.parked), q.tried}
}

// next pops what is due, or says after how long something will be (0: never).
func (q *Queue) next(now time.Time) (*Item, time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.backing.list) > 0 && !now.Before(q.backing.list[0].ready) {
		q.push(heap.Pop(&q.backing).(*Item))
	}
	if !q.sweep.IsZero() && !now.Before(q.sweep) {
		q.sweepParked(now)
	}
	if len(q.ready.list) > 0 {
		it := heap.Pop(&q.ready).(*Item)
		it.place = trying
		it.Attempts++
		it.seen = q.number
		q.tried++
		return it, 0
	}
	due := q.sweep
	if len(q.backing.list) > 0 && (due.IsZero() || q.backing.list[0].ready.Before(due)) {
		due = q.backing.list[0].ready
	}
	if due.IsZero() {
		return nil, 0
	}
	return nil, max(due.Sub(now), time.Nanosecond)
}

// sweepParked makes ready what was parked for long enough. Gated pods stay: only
// their own change helps them.
func (q *Queue) sweepParked(now time.Time) {
	q.sweep = time.Time{}
	for uid, it := range q.parked {
		switch {
		case q.opts.Gated(it.Pod):
		case now.Before(it.due):
			q.sweepAt(it.due)
		default:
			delete(q.parked, uid)
			q.push(it)
		}
	}
}

func (q *Queue) sweepAt(at time.Time) {
	if q.sweep.IsZero() || at.Before(q.sweep) {
		q.sweep = at
	}
}

func (q *Queue) enter(it *Item) {
	if q.opts.Gated(it.Pod) {
		q.park(it)
		return
	}
	q.push(it)
	q.signal()
}

func (q *Queue) push(it *Item) {
	it.place = ready
	heap.Push(&q.ready, it)
}

func (q *Queue) park(it *Item) { q.parkUntil(it, time.Now().Add(q.opts.MaxParked)) }

func (q *Queue) parkUntil(it *Item, due time.Time) {
	it.place, it.due = parked, due
	q.parked[it.UID] = it
	if !q.opts.Gated(it.Pod) {
		q.sweepAt(due)
	}
}

// unpark makes a parked pod ready, after what is left of its back-off.
func (q *Queue) unpark(it *Item) {
	delete(q.parked, it.UID)
	q.backOff(it)
	q.signal()
}

func (q *Queue) backOff(it *Item) {
	it.ready = it.last.Add(q.backoff(it.failed))
	if !time.Now().Before(it.ready) {
		q.push(it)
		return
	}
	it.place = backing
	heap.Push(&q.backing, it)
}

func (q *Queue) backoff(failed int) time.Duration {
	if failed == 0 {
		return 0
	}
	d := q.opts.InitialBackoff
	for range failed - 1 {
		if d *= 2; d >= q.opts.MaxBackoff {
			return q.opts.MaxBackoff
		}
	}
	return d
}

// missed says whether an event that may help came while the pod was tried.
func (q *Queue) missed(it *Item) bool {
	n := int(q.number - it.seen)
	if n > len(q.events) {
		return true // no longer known
	}
	for _, ev := range q.events[len(q.events)-n:] {
		if q.opts.Helps(it.Pod, it.Plugins, ev) {
			return true
		}
	}
	return false
}

func (q *Queue) release() {
	if q.tried--; q.tried == 0 {
		q.events = nil
	}
}

func (q *Queue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func byPriority(a, b *Item) bool {
	if a.Priority != b.Priority {
		return a.Priority > b.Priority
	}
	return a.Added.Before(b.Added)
}

// items is a heap.
type items struct {
	list []*Item
	less func(a, b *Item) bool
}

func (h *items) Len() int           { return len(h.list) }
func (h *items) Less(i, j int) bool { return h.less(h.list[i], h.list[j]) }
func (h *items) Swap(i, j int) {
	h.list[i], h.list[j] = h.list[j], h.list[i]
	h.list[i].index, h.list[j].index = i, j
}
func (h *items) Push(x any) {
	it := x.(*Item)
	it.index = len(h.list)
	h.list = append(h.list, it)
}
func (h *items) Pop() any {
	last := len(h.list) - 1
	it := h.list[last]
	h.list[last] = nil
	h.list = h.list[:last]
	return it
}
