package reconciler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/clock"
)

// ErrPanic is returned (wrapped) for a key when its reconcile function panicked.
var ErrPanic = errors.New("reconcile panicked")

// Func brings the object named by key (namespace/name, or name) to its desired state.
type Func func(ctx context.Context, key string) error

// Options are what every controller of ours is given besides its client and its informers. Zero values have defaults.
type Options struct {
	// Recorder takes events. Default: none are recorded.
	Recorder record.EventRecorder
	// Clock is the time, for deadlines and delays. Default: the real one.
	Clock clock.WithTicker
	// Logger is told of failures. Default: slog.Default.
	Logger *slog.Logger
	// Workers is how many keys are reconciled at once. Default 1: memory is dearer than latency on a board.
	Workers int
}

// WithDefaults returns the options with every zero field set.
func (o Options) WithDefaults() Options {
	if o.Recorder == nil {
		o.Recorder = noEvents{}
	}
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Workers <= 0 {
		o.Workers = 1
	}
	return o
}

// Reconciler runs one Func over a queue of keys. Use New; Watch before Run; Run once.
type Reconciler struct {
	name    string
	do      Func
	opts    Options
	queue   workqueue.TypedRateLimitingInterface[string]
	watched []watched
	read    []cache.SharedIndexInformer
}

type watched struct {
	informer cache.SharedIndexInformer
	handle   cache.ResourceEventHandlerRegistration
}

// New makes a reconciler with the default back-off, 5 ms to 1000 s per key. minBackoff and maxBackoff, if not zero,
// replace these two.
func New(name string, do Func, opts Options, minBackoff, maxBackoff time.Duration) *Reconciler {
	opts = opts.WithDefaults()
	if minBackoff == 0 {
		minBackoff = 5 * time.Millisecond
	}
	if maxBackoff == 0 {
		maxBackoff = 1000 * time.Second
	}
	return &Reconciler{
		name: name, do: do, opts: opts,
		queue: workqueue.NewTypedRateLimitingQueueWithConfig(
			workqueue.NewTypedItemExponentialFailureRateLimiter[string](minBackoff, maxBackoff),
			workqueue.TypedRateLimitingQueueConfig[string]{Name: name, Clock: opts.Clock}),
	}
}

// Watch adds an event handler to a shared informer. Run waits until the handler has seen the informer's first list, and
// takes the handler off again when it ends, so that a controller can be started anew on the same informers.
func (r *Reconciler) Watch(informer cache.SharedIndexInformer, handler cache.ResourceEventHandler) error {
	handle, err := informer.AddEventHandler(handler)
	if err != nil {
		return fmt.Errorf("controller %s: add event handler: %w", r.name, err)
	}
	r.watched = append(r.watched, watched{informer, handle})
	return nil
}

// Await makes Run wait for an informer whose cache is read but whose events are no reason to reconcile anything.
func (r *Reconciler) Await(informer cache.SharedIndexInformer) { r.read = append(r.read, informer) }

// Add enqueues a key now.
func (r *Reconciler) Add(key string) { r.queue.Add(key) }

// AddAfter enqueues a key once d has passed.
func (r *Reconciler) AddAfter(key string, d time.Duration) { r.queue.AddAfter(key, d) }

// AddRateLimited enqueues a key after its next back-off.
func (r *Reconciler) AddRateLimited(key string) { r.queue.AddRateLimited(key) }

// Enqueue adds an object's key. It takes a deleted object's tombstone as well and ignores what has no key.
func (r *Reconciler) Enqueue(obj any) {
	if key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(obj); err == nil {
		r.queue.Add(key)
	}
}

// Everything is an event handler that enqueues each object added, changed or deleted.
func (r *Reconciler) Everything() cache.ResourceEventHandler {
	return cache.ResourceEventHandlerFuncs{
		AddFunc:    r.Enqueue,
		UpdateFunc: func(_, cur any) { r.Enqueue(cur) },
		DeleteFunc: r.Enqueue,
	}
}

// Run waits for the watched informers, reconciles until ctx ends, and returns once its workers have ended. It returns
// nil after ctx ended, else an error.
func (r *Reconciler) Run(ctx context.Context) error {
	defer r.unwatch()
	defer r.queue.ShutDown()
	checks := make([]cache.DoneChecker, 0, len(r.watched))
	for _, w := range r.watched {
		checks = append(checks, w.handle.HasSyncedChecker())
	}
	for _, informer := range r.read {
		checks = append(checks, informer.HasSyncedChecker())
	}
	if !cache.WaitFor(ctx, "", checks...) {
		return nil // only ctx ends the wait
	}
	r.opts.Logger.Debug("controller started", "controller", r.name)
	var workers sync.WaitGroup
	for range r.opts.Workers {
		workers.Go(func() {
			for r.next(ctx) {
			}
		})
	}
	<-ctx.Done()
	r.queue.ShutDown()
	workers.Wait()
	return nil
}

func (r *Reconciler) unwatch() {
	for _, w := range r.watched {
		_ = w.informer.RemoveEventHandler(w.handle)
	}
	r.watched = nil
}

func (r *Reconciler) next(ctx context.Context) bool {
	key, quit := r.queue.Get()
	if quit {
		return false
	}
	defer r.queue.Done(key)
	err := r.safely(ctx, key)
	switch {
	case err == nil, apierrors.HasStatusCause(err, v1.NamespaceTerminatingCause):
		// In a namespace that is being deleted every create fails, and retrying can't help.
		r.queue.Forget(key)
	case ctx.Err() != nil:
	default:
		level := slog.LevelWarn
		if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
			level = slog.LevelDebug // a cache that lags behind; the retry settles it
		}
		r.opts.Logger.Log(ctx, level, "reconcile failed, will retry", "controller", r.name, "key", key,
			"attempt", r.queue.NumRequeues(key)+1, "error", err)
		r.queue.AddRateLimited(key)
	}
	return true
}

func (r *Reconciler) safely(ctx context.Context, key string) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("controller %s, key %s: %w: %v\n%s", r.name, key, ErrPanic, p, debug.Stack())
		}
	}()
	return r.do(ctx, key)
}
