package job

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	batch "k8s.io/api/batch/v1"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	batchlisters "k8s.io/client-go/listers/batch/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
	"k8s.io/kubernetes/pkg/controller"
	"k8s.io/kubernetes/pkg/controller/job/util"
	"k8s.io/utils/ptr"

	"github.com/coracle-edge/coracle/controlplane/controllers/away"
	"github.com/coracle-edge/coracle/controlplane/controllers/reconciler"
)

const (
	// batchDelay gathers pod events: a job of a hundred pods is counted once a second and not a hundred times.
	batchDelay = time.Second
	// Back-off of a key whose reconcile failed.
	minBackoff, maxBackoff = time.Second, time.Minute
	// maxUncounted bounds the UIDs in status.uncountedTerminatedPods (20 KB), maxChange the pods created or deleted in
	// one pass, so that a big job doesn't starve small ones.
	maxUncounted = 500
	maxChange    = 500
)

var kind = batch.SchemeGroupVersion.WithKind("Job")

// Controller is the Job controller. Its queue holds jobs' keys (namespace/name), and with orphanPrefix the pods and label
// selectors of which finalizers that nobody needs any more are to be removed.
type Controller struct {
	*reconciler.Reconciler
	client   kubernetes.Interface
	opts     reconciler.Options
	pods     controller.PodControlInterface
	expected controller.ControllerExpectationsInterface
	// released holds the UIDs of pods whose finalizer was removed and whom the informer still shows with it.
	released released
	// finished holds the UIDs of jobs whose end was written and which the informer still shows as running.
	finished sync.Map
	failures failureStore

	jobs     batchlisters.JobLister
	podList  corelisters.PodLister
	podIndex cache.Indexer
	nodes    corelisters.NodeLister
}

// New makes the controller and registers what it watches: Jobs, pods and nodes. The factory must be started by the caller.
func New(client kubernetes.Interface, factory informers.SharedInformerFactory, opts reconciler.Options) (*Controller, error) {
	opts = opts.WithDefaults()
	pods, nodes := factory.Core().V1().Pods(), factory.Core().V1().Nodes()
	c := &Controller{
		client:   client,
		opts:     opts,
		pods:     controller.RealPodControl{KubeClient: client, Recorder: opts.Recorder},
		expected: controller.NewControllerExpectations(),
		jobs:     factory.Batch().V1().Jobs().Lister(),
		podList:  pods.Lister(),
		podIndex: pods.Informer().GetIndexer(),
		nodes:    nodes.Lister(),
	}
	c.Reconciler = reconciler.New("job", c.reconcile, opts, minBackoff, maxBackoff)
	if err := controller.AddPodControllerIndexer(pods.Informer()); err != nil {
		return nil, fmt.Errorf("job controller: index pods by owner: %w", err)
	}
	transitions, err := away.Transitions(pods.Informer(), func(pod *v1.Pod) {
		if ref := metav1.GetControllerOfNoCopy(pod); ref != nil {
			if job, ok := c.owner(pod.Namespace, ref); ok {
				c.soon(job.Namespace + "/" + job.Name)
			}
		}
	})
	if err != nil {
		return nil, fmt.Errorf("job controller: %w", err)
	}
	for _, w := range []struct {
		informer cache.SharedIndexInformer
		handler  cache.ResourceEventHandler
	}{
		{factory.Batch().V1().Jobs().Informer(), c.jobEvents()},
		{pods.Informer(), c.podEvents().Handler()},
		{nodes.Informer(), transitions},
	} {
		if err := c.Watch(w.informer, w.handler); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func (c *Controller) soon(key string) { c.AddAfter(key, batchDelay) }

func (c *Controller) jobEvents() cache.ResourceEventHandler {
	gone := func(job *batch.Job) {
		key := job.Namespace + "/" + job.Name
		c.finished.Delete(job.UID)
		c.failures.set(key, failures{})
		c.releaseAll(job)
		c.Add(key)
	}
	return cache.ResourceEventHandlerFuncs{
		AddFunc: c.Enqueue,
		UpdateFunc: func(oldObj, curObj any) {
			old, cur := oldObj.(*batch.Job), curObj.(*batch.Job)
			key := cur.Namespace + "/" + cur.Name
			if old.UID != cur.UID {
				gone(old)
				c.expected.DeleteExpectations(klog.Background(), key)
				c.released.forget(key)
			}
			if util.IsJobFinished(cur) {
				// No finalizer should be left by now; this is the second line.
				c.releaseAll(cur)
				c.Add(key)
				return
			}
			if old.Generation != cur.Generation || old.UID != cur.UID {
				c.Add(key)
			} else {
				c.soon(key)
			}
		},
		DeleteFunc: func(obj any) {
			if tomb, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = tomb.Obj
			}
			if job, ok := obj.(*batch.Job); ok {
				gone(job)
			}
		},
	}
}

func (c *Controller) podEvents() reconciler.PodEvents {
	return reconciler.PodEvents{
		Owner: func(namespace string, ref *metav1.OwnerReference) (string, bool) {
			job, ok := c.owner(namespace, ref)
			if !ok {
				return "", false
			}
			return namespace + "/" + job.Name, true
		},
		Orphan: func(pod *v1.Pod) {
			jobs, _ := c.jobs.GetPodJobs(pod)
			for i := range jobs {
				c.soon(jobs[i].Namespace + "/" + jobs[i].Name)
			}
		},
		Unowned: func(pod *v1.Pod) {
			if tracked(pod) {
				c.Add(orphanPod(pod))
			}
		},
		Created: func(key string, _ *v1.Pod) {
			c.expected.CreationObserved(klog.Background(), key)
			c.soon(key)
		},
		Deleted: func(key string, pod *v1.Pod, gone bool) {
			if c.isFinished(key) {
				if tracked(pod) && !gone {
					c.Add(orphanPod(pod))
				}
				return
			}
			c.expected.DeletionObserved(klog.Background(), key)
			if gone || !tracked(pod) {
				c.released.observe(key, pod.UID)
			}
			c.soon(key)
		},
		Changed: func(key string, _, cur *v1.Pod) {
			if !tracked(cur) {
				c.released.observe(key, cur.UID)
			}
			c.soon(key)
		},
	}
}

func (c *Controller) owner(namespace string, ref *metav1.OwnerReference) (*batch.Job, bool) {
	if ref.Kind != kind.Kind {
		return nil, false
	}
	job, err := c.jobs.Jobs(namespace).Get(ref.Name)
	if err != nil || job.UID != ref.UID {
		return nil, false
	}
	return job, true
}

func (c *Controller) isFinished(key string) bool {
	namespace, name, _ := cache.SplitMetaNamespaceKey(key)
	job, err := c.jobs.Jobs(namespace).Get(name)
	return err != nil || util.IsJobFinished(job)
}

func (c *Controller) reconcile(ctx context.Context, key string) error {
	if rest, ok := strings.CutPrefix(key, orphanPrefix); ok {
		return c.releaseOrphans(ctx, rest)
	}
	namespace, name, err := cache.SplitMetaNamespaceKey(key)
	if err != nil {
		return nil
	}
	cached, err := c.jobs.Jobs(namespace).Get(name)
	if apierrors.IsNotFound(err) {
		c.forget(key)
		return nil
	}
	if err != nil {
		return err
	}
	if foreign(cached) {
		return nil
	}
	if util.IsJobFinished(cached) {
		c.failures.set(key, failures{})
		c.finished.Delete(cached.UID)
		return nil
	}
	if _, ok := c.finished.Load(cached.UID); ok {
		return nil // its end is written; the event that says so is on its way
	}
	if mode := cached.Spec.CompletionMode; mode != nil && *mode != batch.NonIndexedCompletion && *mode != batch.IndexedCompletion {
		c.opts.Recorder.Event(cached, v1.EventTypeWarning, "UnknownCompletionMode", "Skipped Job sync because completion mode is unknown")
		return nil
	}
	p := &pass{Controller: c, key: key, job: cached.DeepCopy()}
	if err := p.run(ctx); err != nil {
		return fmt.Errorf("Job %s: %w", key, err)
	}
	return nil
}

func (c *Controller) forget(key string) {
	c.expected.DeleteExpectations(klog.Background(), key)
	c.released.forget(key)
	c.failures.set(key, failures{})
}

// foreign reports whether another controller manages the job (spec.managedBy).
func foreign(job *batch.Job) bool {
	return job.Spec.ManagedBy != nil && *job.Spec.ManagedBy != batch.JobControllerName
}

func suspended(job *batch.Job) bool { return ptr.Deref(job.Spec.Suspend, false) }

// onlyReplaceFailed reports whether a pod is replaced only once it has ended, not already when it is being deleted.
func onlyReplaceFailed(job *batch.Job) bool {
	return ptr.Deref(job.Spec.PodReplacementPolicy, batch.TerminatingOrFailed) == batch.Failed || job.Spec.PodFailurePolicy != nil
}

// failed reports whether a pod counts as failed. One that is being deleted does, unless the job waits for its end anyway
// or its end may have happened, or happen, where nobody sees it.
func (c *Controller) failed(pod *v1.Pod, job *batch.Job) bool {
	switch {
	case pod.Status.Phase == v1.PodFailed:
		return true
	case pod.DeletionTimestamp == nil, pod.Status.Phase == v1.PodSucceeded, onlyReplaceFailed(job):
		return false
	}
	return !c.unheard(pod)
}

// unheard reports whether how a deleted pod ends is for its node to tell: the node is away, or came back after the
// deletion was asked for, and neither has the pod ended by what we know nor has it been removed (grace period 0).
func (c *Controller) unheard(pod *v1.Pod) bool {
	if pod.Spec.NodeName == "" || podutil.IsPodTerminal(pod) || ptr.Deref(pod.DeletionGracePeriodSeconds, 1) == 0 {
		return false
	}
	node, err := c.nodes.Get(pod.Spec.NodeName)
	if err != nil {
		return false // no such node: nobody will tell
	}
	if away.Node(node) {
		return true
	}
	for _, cond := range node.Status.Conditions {
		if cond.Type == v1.NodeReady {
			// The node has been ready since then: if since before the deletion, it was there to hear of it.
			return cond.Status == v1.ConditionTrue && cond.LastTransitionTime.After(deletedAt(pod))
		}
	}
	return false
}

const (
	orphanPrefix   = "orphan:"
	orphanSelector = "selector:"
)

func orphanPod(pod *v1.Pod) string { return orphanPrefix + pod.Namespace + "/" + pod.Name }

// releaseAll enqueues the removal of finalizers from all pods that a deleted or finished job selects.
func (c *Controller) releaseAll(job *batch.Job) {
	if selector, err := metav1.LabelSelectorAsSelector(job.Spec.Selector); err == nil && job.Spec.Selector != nil {
		c.Add(orphanPrefix + orphanSelector + job.Namespace + "/" + selector.String())
	}
}

// releaseOrphans removes the finalizer from pods that no unfinished job owns.
func (c *Controller) releaseOrphans(ctx context.Context, key string) error {
	key, bySelector := strings.CutPrefix(key, orphanSelector)
	namespace, rest, _ := strings.Cut(key, "/")
	var pods []*v1.Pod
	if bySelector {
		selector, err := labels.Parse(rest)
		if err != nil {
			return nil
		}
		if pods, err = c.podList.Pods(namespace).List(selector); err != nil {
			return err
		}
	} else {
		pod, err := c.podList.Pods(namespace).Get(rest)
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return err
		}
		pods = []*v1.Pod{pod}
	}
	var first error
	for _, pod := range pods {
		if !tracked(pod) || c.needed(pod) {
			continue
		}
		if err := c.pods.PatchPod(ctx, namespace, pod.Name, untrack()); err != nil && !apierrors.IsNotFound(err) && first == nil {
			first = fmt.Errorf("pod %s/%s: remove finalizer %s: %w", namespace, pod.Name, batch.JobTrackingFinalizer, err)
		}
	}
	return first
}

// needed reports whether somebody will still count the pod: an unfinished job, one of another controller, or an owner
// that isn't a Job.
func (c *Controller) needed(pod *v1.Pod) bool {
	ref := metav1.GetControllerOfNoCopy(pod)
	if ref == nil {
		return false
	}
	if ref.Kind != kind.Kind || ref.APIVersion != batch.SchemeGroupVersion.String() {
		return true
	}
	job, ok := c.owner(pod.Namespace, ref)
	return ok && (foreign(job) || !util.IsJobFinished(job))
}

func tracked(pod *v1.Pod) bool { return slices.Contains(pod.Finalizers, batch.JobTrackingFinalizer) }

// untrack is the patch that takes the tracking finalizer off a pod.
func untrack() []byte {
	return []byte(`{"metadata":{"$deleteFromPrimitiveList/finalizers":["` + batch.JobTrackingFinalizer + `"]}}`)
}

// released remembers, per job, pods whose finalizer is off though the informer still shows it.
type released struct {
	mu    sync.Mutex
	byKey map[string]sets.Set[types.UID]
}

func (r *released) add(key string, uids ...types.UID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.byKey == nil {
		r.byKey = map[string]sets.Set[types.UID]{}
	}
	if r.byKey[key] == nil {
		r.byKey[key] = sets.New[types.UID]()
	}
	r.byKey[key].Insert(uids...)
}

func (r *released) observe(key string, uid types.UID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if set := r.byKey[key]; set != nil {
		if set.Delete(uid); set.Len() == 0 {
			delete(r.byKey, key)
		}
	}
}

func (r *released) of(key string) sets.Set[types.UID] {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.byKey[key].Clone()
}

func (r *released) forget(key string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.byKey, key)
}
