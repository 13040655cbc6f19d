package nodelease

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/kubernetes/pkg/apis/coordination"
)

// watcher sends one client what changes: the latest of each lease, however many
// changes it missed while it was slow. With a stored watch it shows the leases of
// other namespaces, too.
type watcher struct {
	board   *board
	matches func(*coordination.Lease) bool
	result  chan watch.Event
	stopped chan struct{}
	stop    sync.Once

	// stored is nil in the nodes' own namespace. position is then the last
	// revision of etcd that the client has seen: the leases of nodes carry it,
	// because the client will resume from what it saw last.
	stored   watch.Interface
	position string

	// pending and told are the board's to lock.
	pending map[string]bool
	told    map[string]entry // what the client knows
	more    chan struct{}    // capacity 1
	first   []watch.Event
}

// start says where a watch begins.
type start struct {
	// rev is the board's; what changed since is sent. all: everything is sent as if
	// it were new.
	rev uint64
	all bool
	// everything is sent, as changes: the client has seen it at an unknown time.
	unknown bool
	// bookmark ends what is sent first.
	bookmark bool
}

// watch registers a watcher; nil if what happened since s.rev isn't known.
func (b *board) watch(matches func(*coordination.Lease) bool, stored watch.Interface, position string, s start) *watcher {
	w := &watcher{
		board: b, matches: matches, stored: stored, position: position, result: make(chan watch.Event), stopped: make(chan struct{}),
		pending: map[string]bool{}, told: map[string]entry{}, more: make(chan struct{}, 1),
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.refresh()
	if !s.all && !s.unknown && (s.rev < b.floor || s.rev > b.rev) {
		return nil
	}
	for _, g := range b.graves {
		if _, again := b.leases[g.Node]; !again && (s.unknown || !s.all && g.rev > s.rev) {
			w.first = append(w.first, w.event(watch.Deleted, g))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(b.leases)) {
		e := b.leases[name]
		switch {
		case s.all, !s.unknown && e.created > s.rev:
			w.first = append(w.first, w.event(watch.Added, e))
		case s.unknown, e.rev > s.rev:
			w.first = append(w.first, w.event(watch.Modified, e))
		}
		w.told[name] = e
	}
	if s.bookmark {
		w.first = append(w.first, watch.Event{Type: watch.Bookmark, Object: &coordination.Lease{ObjectMeta: metav1.ObjectMeta{
			ResourceVersion: strconv.FormatUint(b.rev, 10), Annotations: map[string]string{metav1.InitialEventsAnnotationKey: "true"},
		}}})
	}
	b.watchers[w] = true
	return w
}

func (w *watcher) event(kind watch.EventType, e entry) watch.Event {
	o := e.object(e.rev)
	if w.stored != nil {
		o.ResourceVersion = w.position
	}
	return watch.Event{Type: kind, Object: o}
}

// mark notes changes; the board is locked.
func (w *watcher) mark(names []string) {
	for _, name := range names {
		w.pending[name] = true
	}
	select {
	case w.more <- struct{}{}:
	default:
	}
}

// ResultChan implements watch.Interface.
func (w *watcher) ResultChan() <-chan watch.Event { return w.result }

// Stop implements watch.Interface.
func (w *watcher) Stop() { w.stop.Do(func() { close(w.stopped) }) }

// run sends until ctx ends, the client stops, or the stored watch ends.
func (w *watcher) run(ctx context.Context) {
	defer close(w.result)
	defer func() {
		w.board.mu.Lock()
		defer w.board.mu.Unlock()
		delete(w.board.watchers, w)
	}()
	var stored <-chan watch.Event
	if w.stored != nil {
		defer w.stored.Stop()
		stored = w.stored.ResultChan()
	}
	if !w.send(ctx, w.first) {
		return
	}
	w.first = nil
	ticker := time.NewTicker(Period)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.stopped:
			return
		case <-ticker.C:
			w.board.poll()
		case <-w.more:
			if !w.send(ctx, w.changes()) {
				return
			}
		case e, ok := <-stored:
			if !ok || !w.forward(ctx, e) {
				return
			}
		}
	}
}

// changes are the events that bring the client up to now.
func (w *watcher) changes() []watch.Event {
	b := w.board
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []watch.Event
	for _, name := range slices.Sorted(maps.Keys(w.pending)) {
		now, is := b.leases[name]
		before, was := w.told[name]
		if was && (!is || now.UID != before.UID) {
			before.rev = b.rev
			out = append(out, w.event(watch.Deleted, before))
			was = false
			delete(w.told, name)
		}
		if !is {
			continue
		}
		kind := watch.Added
		if was {
			kind = watch.Modified
		}
		out = append(out, w.event(kind, now))
		w.told[name] = now
	}
	clear(w.pending)
	return out
}

// forward sends an event of the stored watch. Leases of nodes that an earlier
// version of the cluster stored are hidden.
func (w *watcher) forward(ctx context.Context, e watch.Event) bool {
	if o, err := meta.Accessor(e.Object); err == nil {
		if o.GetNamespace() == corev1.NamespaceNodeLease {
			return true
		}
		if rv := o.GetResourceVersion(); rv != "" {
			w.position = rv
		}
	}
	return w.put(ctx, e)
}

func (w *watcher) send(ctx context.Context, events []watch.Event) bool {
	for _, e := range events {
		if l, ok := e.Object.(*coordination.Lease); ok && e.Type != watch.Bookmark && !w.matches(l) {
			continue
		}
		if !w.put(ctx, e) {
			return false
		}
	}
	return true
}

func (w *watcher) put(ctx context.Context, e watch.Event) bool {
	select {
	case w.result <- e:
		return true
	case <-ctx.Done():
	case <-w.stopped:
	}
	return false
}
